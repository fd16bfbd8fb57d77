"""Loading a tokenizer of transformers by name or folder."""

from __future__ import annotations

from typing import Any

from stages.errors import InputError
from stages.messages.model_code import refuse_code


def load_tokenizer(name: str) -> Any:
    """Return the tokenizer that --tokenizer names.

    Raises:
        InputError: transformers is not installed, has no such tokenizer, or the folder names code.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        what, todo = f"needs the package '{error.name}'", "pip install 'irc-cli[transformers]'"
        raise InputError("--tokenizer", what, todo) from None
    refuse_code(name)
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        what = str(error).strip().splitlines()[0]
        raise InputError(name, what, "give a folder that holds a tokenizer") from error
