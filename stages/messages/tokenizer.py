"""Load a tokenizer of transformers by name or folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from stages.errors import InputError
from stages.messages.loading import loading

LARGEST = 1 << 24  # token ids; the largest vocabularies have a million


def load_tokenizer(name: str, todo: str = "give a folder that holds a tokenizer") -> Any:
    """Return the tokenizer of a folder, such as that of --tokenizer.

    Args:
        name: a folder, or the name of a model of the hub.
        todo: what to do if there is none.

    Raises:
        InputError: transformers is not installed, has no such tokenizer, or the folder has code.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        what, install = f"needs the package '{error.name}'", "pip install 'irc-cli[transformers]'"
        raise InputError("--tokenizer", what, install) from None
    with loading(name, todo):
        _check_ids(Path(name, "tokenizer.json"))
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer.encode("a", add_special_tokens=False)  # wrong types fail only here
    return tokenizer


def _check_ids(path: Path) -> None:
    """Raise InputError for a huge token id: tokenizers counts up to it, which takes minutes."""
    try:
        vocabulary = orjson.loads(path.read_bytes())["model"]["vocab"].values()
        last = max(vocabulary)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return  # there is no such file, or loading it reports the error
    if last > LARGEST:
        raise InputError(str(path), f"damaged: token id {last:,}", "use a complete checkpoint")
