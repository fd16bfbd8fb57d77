"""Files of artifacts: whole or absent, named in errors, identified by their digest."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import IO

from stages.errors import InputError
from stages.tables.inputs import refuse_input
from stages.tables.pipes import opened

UNFINISHED = ".irc-"  # between an output's name and the random suffix of a temporary file
WAITS_S = 3600.0  # longest time that a complete temporary file waits for others
TEMPORARY, TMPDIR = "temporary files", "free space, or name another folder in TMPDIR"

# Complete temporary files by their final names, which they get when `together` ends; None: at once.
_held_back: ContextVar[dict[Path, Path] | None] = ContextVar("held_back", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Make all files and folders that are written inside appear together, when all are complete.

    If anything fails before, none of them appears. The first one written appears last, so write
    the file first whose presence implies the others. The renames are not one atomic step: a mark
    lies beside each output until all are renamed, and an output that a killed process left beside
    its mark may be replaced.

    Raises:
        InputError: a file can't be renamed.
    """
    if _held_back.get() is not None:  # the outer `together` makes them appear
        yield
        return
    files: dict[Path, Path] = {}
    token = _held_back.set(files)
    try:
        yield
        marks = _marked(list(files)) if len(files) > 1 else []
        for target in reversed(list(files)):
            _appear(files[target], target)
            del files[target]
        for mark in marks:
            mark.unlink(missing_ok=True)
    finally:
        _held_back.reset(token)
        for temporary in files.values():
            _remove(temporary)


def half_written(path: str) -> bool:
    """Return whether a killed process left this output without others that belong to it."""
    mark = _mark(Path(os.path.realpath(path)))
    try:
        first = mark.read_text()
    except OSError:
        return False
    # Without the first target's mark, all outputs were renamed, or none was.
    if not (first and Path(first).exists()):
        mark.unlink(missing_ok=True)
        return False
    return True


def _marked(targets: list[Path]) -> list[Path]:
    """Put a mark beside each target; return the marks."""
    marks = [_mark(target) for target in targets]
    try:
        for mark, target in reversed(list(zip(marks, targets, strict=True))):
            with writing(str(target)):  # the first target's mark comes last and validates all
                mark.write_text(str(marks[0]))
    except InputError:
        for mark in marks:
            mark.unlink(missing_ok=True)
        raise
    return marks


def _mark(target: Path) -> Path:
    return target.with_name(f".{target.name}.appearing")


def _appear(temporary: Path, target: Path) -> None:
    """Give a complete file or folder its final name; an old folder is removed afterwards."""
    old, is_folder = target.with_name(f".{target.name}.old"), temporary.is_dir()
    try:
        if is_folder and target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(str(target), error) from None
    if is_folder:
        shutil.rmtree(old, ignore_errors=True)


def _remove(temporary: Path) -> None:
    if temporary.is_dir():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def _complete(temporary: Path, target: Path, path: str) -> None:
    """Give a complete file or folder its final name, or hold it back within `together`."""
    held_back = _held_back.get()
    if held_back is None:
        _appear(temporary, target)
    elif target in held_back:
        _remove(temporary)
        raise InputError(path, "given twice", "name each output once")
    else:
        held_back[target] = temporary


@contextmanager
def whole_file(path: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Open a file for writing; it appears under its name only when it is complete.

    `-` is standard output. A link is followed, and its target written. Within `together`, the file
    appears with the others.

    Args:
        path: where to write.
        force: whether to replace a file that exists.

    Raises:
        InputError: the file exists and `force` is not given, is read by this command, or can't be
            written.
    """
    if path == "-":
        yield sys.stdout.buffer
        return
    refuse_existing(path, force=force)
    target = Path(os.path.realpath(path))
    temporary: str | None = None
    try:
        _remove_remains(target)
        prefix = f".{target.name}{UNFINISHED}"
        descriptor, temporary = tempfile.mkstemp(prefix=prefix, dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            _locks(file)
            yield file
        # mkstemp makes files private; an artifact has the permissions any new file would have.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        _complete(Path(temporary), target, path)
        temporary = None
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _remove_remains(target: Path) -> None:
    """Remove the temporary files that killed processes left for an output.

    Such a file is unlocked, and was not written for a while: a complete one may wait, unlocked, for
    the other outputs of its command.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}{UNFINISHED}*"):
        with suppress(OSError):  # another process was faster, or this one lacks permission
            waits = time.time() - path.stat().st_mtime < WAITS_S
            with path.open("rb") as file:
                if not waits and _locks(file):
                    path.unlink()


def _locks(file: IO[bytes]) -> bool:
    """Lock a file until it is closed; return whether it was free."""
    try:
        import fcntl  # of POSIX
    except ModuleNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also if the file system has no locks
        return False
    return True


@contextmanager
def whole_folder(path: str) -> Iterator[Path]:
    """Yield a folder to fill; it gets its name when it is complete.

    A link is followed, and its target written. Within `together`, the folder appears with the
    others.

    Args:
        path: path of the folder; an existing one is replaced once the new one is complete.

    Raises:
        InputError: the old folder holds an input of this command, or the new one can't be written.
    """
    refuse_input(path, folder=True)
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _complete(temporary, target, path)


def remove_folder(folder: Path) -> None:
    """Remove a folder if it exists; a killed process leaves no part of it under its name."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def is_remains(path: Path, name: str) -> bool:
    """Return whether a file is one that a killed process left unfinished for this name."""
    return path.name.startswith(f".{name}.")


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Lock an output, so that other processes that would write it fail meanwhile.

    The lock is a file beside the output. A killed process leaves the file but not the lock.

    Raises:
        InputError: another process holds the lock, or the output can't be written.
    """
    import fcntl  # of POSIX; only playing episodes needs it

    refuse_existing(path, force=True)
    lock = Path(f"{path}.lock")
    try:
        file = lock.open("ab")
    except OSError as error:
        raise _unwritable(path, error) from None
    with file:
        if os.fstat(file.fileno()).st_size:
            what = "has the name of the lock but is not a lock"
            raise InputError(str(lock), what, "move it, or write to another file")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy = True
        else:  # its last owner has unlinked a file without a name
            busy = os.fstat(file.fileno()).st_nlink == 0
        if busy:
            what, todo = "another process is writing it", "wait for it, or stop it"
            raise InputError(path, what, todo)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def refuse_existing(path: str, *, force: bool) -> None:
    """Raise InputError if the output exists and may not be replaced, or has no folder.

    An input of the command may never be replaced.
    """
    target = Path(path)
    with reachable(path):
        if target.is_dir():
            raise InputError(path, "is a directory", "name a file to write")
        if target.is_symlink():
            target = _followed(path)
        if not target.parent.is_dir():
            raise InputError(path, f"no directory '{target.parent}'", "create it first")
        refuse_input(path)
        # Renaming a file onto /dev/null would replace it.
        if target.exists() and not target.is_file():
            raise InputError(path, "is no regular file", "name a file to write, or '-'")
        if target.exists() and not force and not half_written(path):
            raise InputError(path, "exists already", "pass --force to replace it")


def _followed(link: str) -> Path:
    """Return the final target of a link."""
    target = Path(os.path.realpath(link))
    if target.is_symlink():
        raise InputError(link, "is a link to itself", "name a file to write")
    return target


@contextmanager
def reachable(path: str) -> Iterator[None]:
    """Raise an OSError about a path, such as that it is too long, as an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(path, (error.strerror or str(error)).lower(), "check the path") from None


@contextmanager
def writing(path: str, todo: str = "free space or write somewhere else") -> Iterator[None]:
    """Raise an OSError about writing, such as that the disk is full, as an InputError."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error, todo) from None


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder.

    Raises:
        InputError: it can't be made.
    """
    with writing(TEMPORARY, TMPDIR):
        return tempfile.TemporaryDirectory(prefix="irc-cli-")


def _unwritable(
    path: str, error: OSError, todo: str = "free space or write somewhere else"
) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(path, f"can't be written: {reason}", todo)


@cache
def standard_input() -> bytes:
    """Return all of standard input; cached, because it can be read only once."""
    return sys.stdin.buffer.read()


def digest(path: str) -> str:
    """Return the sha256 of a file, or of standard input (`-`).

    Raises:
        InputError: the file can't be read.
    """
    if path == "-":
        return hashlib.sha256(standard_input()).hexdigest()
    head(path)
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it may be a BytesIO


def head(path: str) -> bytes:
    """Return the first four bytes of a file.

    Raises:
        InputError: the file can't be read.
    """
    with reachable(path):
        try:
            with opened(path) as file:
                return file.read(4)
        except FileNotFoundError:
            raise InputError(path, "no such file", "check the path") from None
        except IsADirectoryError:
            raise InputError(path, "is a directory", "name a file") from None
