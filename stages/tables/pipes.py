"""Opening what a path names: a file, or a pipe such as `<(...)`, which can be read but once."""

from __future__ import annotations

import io
import os
import stat
import time
from functools import cache
from pathlib import Path
from typing import BinaryIO

from stages.errors import InputError

PATIENCE_S = 5.0  # for the first writer of a pipe


def opened(path: str) -> BinaryIO:
    """Open a file or a pipe for reading; what a pipe has given is there each time.

    Raises:
        InputError: nobody writes to the pipe, or the path is of a device.
        OSError: the file can't be opened.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISFIFO(mode):
        return io.BytesIO(_piped(path, os.path.realpath(path)))
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(path, "is no file", "give a file, a pipe, or '-' for standard input")
    return Path(path).open("rb")


def is_pipe(path: str) -> bool:
    """Return whether a path is of a pipe."""
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False


def content(path: str) -> bytes:
    """Return all bytes of a file or a pipe; raises as `opened` does."""
    with opened(path) as file:
        return file.read()


@cache
def _piped(path: str, real: str) -> bytes:
    """Return what is written to a pipe, whose real path tells it from others, until its end."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # blocking, it waits for a writer forever
    with os.fdopen(pipe, "rb", buffering=0) as file:
        begin, deadline = b"", time.monotonic() + PATIENCE_S
        while not begin:  # None: a writer is there, and silent yet; empty: there is none
            read = file.read(1)
            if read is None:
                break
            begin = read
            if not begin and time.monotonic() > deadline:
                what = f"is a pipe to which nothing was written in {PATIENCE_S:g} s"
                raise InputError(path, what, "start its writer first, or give a file")
            if not begin:
                time.sleep(0.02)
        os.set_blocking(pipe, True)
        return begin + file.read()
