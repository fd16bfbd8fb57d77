"""Refuse to run code that comes with a model."""

from __future__ import annotations

from pathlib import Path

import orjson

from stages.errors import InputError


def refuse_code(folder: str | Path) -> None:
    """Raise InputError if a model's folder comes with code.

    Only a folder is read. For a model of the hub, `trust_remote_code=False` makes transformers
    raise ValueError; without it, transformers asks on the terminal, where `yes |` answers.

    Args:
        folder: folder of the model, or its name on the hub.

    Raises:
        InputError: one of its JSON files has an `auto_map`.
    """
    for path in sorted(Path(folder).glob("*.json")):
        if _maps_code(path):
            what = "its 'auto_map' names Python code that loading would run"
            todo = "use a model that transformers knows itself, or a server (--policy openai)"
            raise InputError(str(path), what, todo)


def _maps_code(path: Path) -> bool:
    try:
        document = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return False  # loading the model reports the error
    return isinstance(document, dict) and bool(document.get("auto_map"))
