"""Files as artifacts need them: whole or absent, named in errors, known by their digest."""

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

UNFINISHED = ".irc-"  # between the name of an output and what tells temporary files apart
WAITS_S = 3600.0
TEMPORARY, TMPDIR = "temporary files", "free space, or name another folder in TMPDIR"

# Complete files by the name that they get when `together` ends; None: they get it at once.
_held_back: ContextVar[dict[Path, Path] | None] = ContextVar("held_back", default=None)


@contextmanager
def together() -> Iterator[None]:
    """Let all files and folders that are written in here appear at once, when all are complete.

    If anything fails before, none of them appears. The first one that was written appears last, so
    write first what says that the others are there. Names can't be given all at once: a mark lies
    beside each until all have theirs, and what a killed process left beside its mark may be
    written again.

    Raises:
        InputError: a file can't get its name.
    """
    if _held_back.get() is not None:  # they appear with those of an outer one
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
    """Whether an output is what a killed process left of several that were to appear together."""
    mark = _mark(Path(os.path.realpath(path)))
    try:
        first = mark.read_text()
    except OSError:
        return False
    # All had their names, or none, and the process was killed after that, or before.
    if not (first and Path(first).exists()):
        mark.unlink(missing_ok=True)
        return False
    return True


def _marked(targets: list[Path]) -> list[Path]:
    """Put a mark beside each target; return the marks."""
    marks = [_mark(target) for target in targets]
    try:
        for mark, target in reversed(list(zip(marks, targets, strict=True))):
            with writing(str(target)):  # none counts without the first one's
                mark.write_text(str(marks[0]))
    except InputError:
        for mark in marks:
            mark.unlink(missing_ok=True)
        raise
    return marks


def _mark(target: Path) -> Path:
    return target.with_name(f".{target.name}.appearing")


def _appear(temporary: Path, target: Path) -> None:
    """Give a complete file or folder its name; an old folder goes when the new one is there."""
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
    """Give a complete file or folder its name, or within `together` let it wait for the others."""
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
    """Open a file for writing that appears under its name only when it is complete.

    `-` is standard output. A link is followed: what it names is written. Within `together` the file
    appears with the others.

    Args:
        path: where to write.
        force: replace a file that exists.

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
    """Remove what processes that were killed were writing for a file.

    Nobody holds its lock, and nobody has written it for a while: one that is complete may wait,
    unlocked, for the other outputs of its command.
    """
    for path in target.parent.glob(f".{glob.escape(target.name)}{UNFINISHED}*"):
        with suppress(OSError):  # another process was faster, or may and this one may not
            waits = time.time() - path.stat().st_mtime < WAITS_S
            with path.open("rb") as file:
                if not waits and _locks(file):
                    path.unlink()


def _locks(file: IO[bytes]) -> bool:
    """Take the lock of a file until it is closed; return whether it was free."""
    try:
        import fcntl  # of POSIX
    except ModuleNotFoundError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # also where the file system has no locks
        return False
    return True


@contextmanager
def whole_folder(path: str) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name when it is complete.

    A link is followed: the folder that it names is written. Within `together` the folder appears
    with the others.

    Args:
        path: of the folder; one that is there already is replaced, once the new one is whole.

    Raises:
        InputError: the old folder holds what this command reads, or the new one can't be written.
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
    """Remove a folder, if it is there: a killed process leaves no part of it under its name."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)


def is_remains(path: Path, name: str) -> bool:
    """Whether a file is what a killed process was writing for a file of this name."""
    return path.name.startswith(f".{name}.")


@contextmanager
def alone(path: str) -> Iterator[None]:
    """Keep other processes from writing an output too: they fail while this one is in here.

    The lock is a file beside the output. A killed process leaves the file but not the lock.

    Raises:
        InputError: another process is in here, or the output can't be written.
    """
    import fcntl  # of POSIX; whoever plays no episodes can do without

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
        else:  # a file without a name is one that its last owner has left
            busy = os.fstat(file.fileno()).st_nlink == 0
        if busy:
            what, todo = "another process is writing it", "wait for it, or stop it"
            raise InputError(path, what, todo)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def refuse_existing(path: str, *, force: bool) -> None:
    """Raise InputError when the output exists and may not be replaced, or has no folder.

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
    """Return the file that a link names in the end."""
    target = Path(os.path.realpath(link))
    if target.is_symlink():
        raise InputError(link, "is a link to itself", "name a file to write")
    return target


@contextmanager
def reachable(path: str) -> Iterator[None]:
    """Turn what the system says of a path, such as that it is too long, into one clear line."""
    try:
        yield
    except OSError as error:
        raise InputError(path, (error.strerror or str(error)).lower(), "check the path") from None


@contextmanager
def writing(path: str, todo: str = "free space or write somewhere else") -> Iterator[None]:
    """Turn what the system says of writing, such as that the disk is full, into one clear line."""
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error, todo) from None


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder for what nobody keeps.

    Raises:
        InputError: no place takes one.
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
    """Return all of standard input; it can be read once but is needed for its digest too."""
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
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # of BytesIO, too


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
