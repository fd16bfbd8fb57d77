"""What transformers reads of a model's folder: whole, or one clear line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError
from stages.messages.model_code import refuse_code

LONGEST = 200  # characters of an error


@contextmanager
def loading(name: str | Path, todo: str) -> Iterator[None]:
    """Let transformers read a folder; what it says and raises is one line of ours.

    Its files are checked nowhere before: odd types in them end in errors of any kind.

    Args:
        name: of the folder, or of a model of the hub.
        todo: what to do where it can't be read.

    Raises:
        InputError: it can't be read, or names code of its own.
    """
    from transformers.utils import logging

    refuse_code(name)
    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(str(name), _told(error), todo) from error
    finally:
        logging.set_verbosity(before)


def _told(error: Exception) -> str:
    """Return what an error says, as one line."""
    from safetensors import SafetensorError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:LONGEST]
    plain = isinstance(error, (OSError, ValueError, SafetensorError))
    return text if text and plain else f"can't be loaded ({kind}: {text})"
