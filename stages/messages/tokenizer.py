"""Loading a tokenizer of transformers by name or folder."""

from __future__ import annotations

from typing import Any

from stages.errors import InputError


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer that --tokenizer names.

    Raises:
        InputError: transformers is not installed, or has no such tokenizer.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        what, todo = f"needs the package '{error.name}'", "pip install 'irc-cli[transformers]'"
        raise InputError("--tokenizer", what, todo) from None
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise InputError(name, what, "give a folder that holds a tokenizer") from error
