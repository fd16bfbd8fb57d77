"""The record of a loop's finished steps on disk: commands, inputs and outputs.

A step is skipped if its command and inputs are the same as in its last run and its outputs are
unchanged. A policy's folder is represented by the digest of its weights.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import orjson
import yaml

from stages.errors import InputError
from stages.loop import LoopStep
from stages.serving.address import without_secrets
from stages.tables.files import digest, is_remains, whole_file
from stages.tables.state import read_state
from stages.tables.yamlfile import Node, read_yaml

SETTINGS = "loop.yaml"


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new loop, or check them against those of an existing loop.

    Only `iterations` and the secrets of servers may change.

    Args:
        out: folder of the loop.
        settings: settings of the loop.

    Raises:
        InputError: the folder holds another loop or something else, or can't be created.
    """
    path, settings = out / SETTINGS, without_secrets(settings)
    if path.exists():
        before = without_secrets(_plain(read_yaml(str(path))))
        for name in sorted(before.keys() | settings.keys()):
            if name != "iterations" and before.get(name) != settings.get(name):
                what = f"is of a loop with {name} {before.get(name)!r}, not {settings.get(name)!r}"
                raise InputError(str(path), what, "name another folder, or give the same settings")
    elif out.is_dir() and not all(is_remains(file, SETTINGS) for file in out.iterdir()):
        raise InputError(str(out), "holds something other than a loop", "name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"can't be a folder: {(error.strerror or str(error)).lower()}"
        raise InputError(str(out), what, "name another one") from None
    with whole_file(str(path), force=True) as file:
        file.write(yaml.safe_dump(settings, sort_keys=False).encode())


def _plain(root: Node) -> dict[str, Any]:
    """Return the values of a mapping."""
    return {name: node.plain() for name, node in root.fields().items()}


class Records:
    """The finished steps of one iteration: `steps.json` in its folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "steps.json"
        folder.mkdir(exist_ok=True)
        self._steps: dict[str, Any] = {}
        if self._path.exists():
            todo = "delete it: the steps of this iteration run again"
            self._steps = read_state(self._path, dict[str, dict[str, Any]], todo)

    def done(self, step: LoopStep) -> bool:
        """Return whether a step is finished and nothing has changed since."""
        before = self._steps.get(step.name)
        return bool(before) and before == _record(step)

    def add(self, step: LoopStep) -> None:
        """Record that a step is finished."""
        self._steps[step.name] = _record(step)
        with whole_file(str(self._path), force=True) as file:
            file.write(orjson.dumps(self._steps, option=orjson.OPT_INDENT_2))


def _record(step: LoopStep) -> dict[str, Any]:
    return {
        "command": step.command,
        "inputs": {path: _digest(path) for path in step.inputs},
        "outputs": {path: _digest(path) for path in step.outputs},
    }


def _digest(path: str) -> str | None:
    """Return the sha256 of a file, or of the weights in a folder; None if there are none."""
    if Path(path).is_dir():
        parts = [digest(str(file)) for file in sorted(Path(path).glob("*.safetensors"))]
        return hashlib.sha256("".join(parts).encode()).hexdigest() if parts else None
    return digest(path) if Path(path).exists() else None
