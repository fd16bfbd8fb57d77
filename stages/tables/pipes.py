"""Open a file, or a pipe such as `<(...)`, which can be read only once."""

from __future__ import annotations

import io
import os
import stat
import time
from functools import cache
from pathlib import Path
from typing import BinaryIO

from stages.errors import InputError

PATIENCE_S = 5.0  # time to wait for the first writer of a pipe


def opened(path: str) -> BinaryIO:
    """Open a file or a pipe for reading; the content of a pipe is kept for the next time.

    Raises:
        InputError: nobody writes to the pipe, or the path is that of a device.
        OSError: the file can't be opened.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISFIFO(mode):
        return io.BytesIO(_piped(path, os.path.realpath(path)))
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise InputError(path, "is no file", "give a file, a pipe, or '-' for standard input")
    return Path(path).open("rb")


def is_pipe(path: str) -> bool:
    """Return whether a path is that of a pipe."""
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
    """Return the whole content of a pipe; its real path identifies it in the cache."""
    pipe = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # blocking, it would wait for a writer
    with os.fdopen(pipe, "rb", buffering=0) as file:
        begin, deadline = b"", time.monotonic() + PATIENCE_S
        while not begin:  # None: the writer is silent so far; empty: there is no writer
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
