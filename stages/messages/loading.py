"""Load a model's folder with transformers, with every error as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.errors import InputError
from stages.messages.model_code import refuse_code

LONGEST = 200  # characters of an error


@contextmanager
def loading(name: str | Path, todo: str) -> Iterator[None]:
    """Let transformers read a folder silently, and raise its errors as InputError.

    Nothing checks the files before, so that wrong types in them cause errors of any kind.

    Args:
        name: a folder, or the name of a model of the hub.
        todo: what to do if it can't be read.

    Raises:
        InputError: it can't be read, or it comes with code.
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
        raise InputError(str(name), _as_line(error), todo) from error
    finally:
        logging.set_verbosity(before)


def _as_line(error: Exception) -> str:
    """Return an error as one line."""
    from safetensors import SafetensorError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:LONGEST]
    plain = isinstance(error, (OSError, ValueError, SafetensorError))
    return text if text and plain else f"can't be loaded ({kind}: {text})"
