"""The inputs of a command, which its outputs may not replace."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from glob import has_magic
from pathlib import Path

from stages.errors import InputError

SIDECARS = (".tokens.parquet", ".timing.jsonl", ".meta.json")  # of rollouts: see RunFiles
_PAGES = (".html", ".md")  # no command reads these; a loop's report lies in the loop's folder
_read: ContextVar[tuple[str, ...]] = ContextVar("read", default=())


@contextmanager
def keeping(paths: Iterable[str]) -> Iterator[None]:
    """Protect these files and folders, and none of an outer command, from being overwritten.

    Args:
        paths: as users give them: files, folders, patterns, `-`.
    """
    token = _read.set(())
    try:
        keep(paths)
        yield
    finally:
        _read.reset(token)


def keep(paths: Iterable[str]) -> None:
    """Protect these files and folders too; they need not exist."""
    more: list[str] = []
    for path in paths:
        more += [path, *matching(path)]
        if path.endswith(".jsonl"):
            more += [path.removesuffix(".jsonl") + ending for ending in SIDECARS]
    _read.set((*_read.get(), *more))


def kept() -> tuple[str, ...]:
    """Return what is protected, so that another process can protect it too."""
    return _read.get()


def matching(pattern: str) -> list[str]:
    """Return the files that match a pattern; none if it has no `*`, `?` or `[`, or is malformed."""
    if not has_magic(pattern):
        return []
    root = Path(pattern).anchor
    try:
        return [str(path) for path in Path(root).glob(pattern.removeprefix(root))]
    except ValueError:  # '**' beside other characters
        return []


def refuse_input(path: str, *, folder: bool = False) -> None:
    """Raise InputError if writing a path would replace an input of the command.

    Files are identified by their inode, so that a link counts as its target.

    Args:
        path: path to write.
        folder: whether the path is a folder whose whole content is replaced.
    """
    target = _status(path)
    for read in _read.get():
        status = _status(read)
        if status is None or target is None:
            continue
        if folder and _is_in(read, path):
            raise InputError(path, f"holds '{read}', which is read", "name another folder")
        if os.path.samestat(target, status):
            raise InputError(path, "is read by this command", "write to another file")
        if not folder and Path(read).is_dir() and _is_of(path, target, read):
            raise InputError(path, f"is of '{read}', which is read", "write to another folder")


def _status(path: str) -> os.stat_result | None:
    """Return the status of a path; None: there is nothing that could be overwritten."""
    try:
        return os.fstat(sys.stdin.fileno()) if path == "-" else Path(path).stat()
    except (OSError, ValueError):  # ValueError: standard input is not a file
        return None


def _is_of(path: str, status: os.stat_result, folder: str) -> bool:
    """Return whether a file lies in a folder, or is linked there under another name."""
    if path.endswith(_PAGES):
        return False
    if _is_in(path, folder):
        return True
    files = Path(folder).rglob("*") if status.st_nlink > 1 else ()
    return any(os.path.samestat(status, file.stat()) for file in files if file.is_file())


def _is_in(path: str, folder: str) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
