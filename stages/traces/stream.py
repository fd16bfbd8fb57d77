"""Open a trace, hash its stored bytes, gunzip them, and parse them as JSON."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec
import orjson

from stages.errors import InputError
from stages.tables.files import standard_input
from stages.tables.pipes import opened

if TYPE_CHECKING:
    from hashlib import _Hash

GZIP = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BUFFER = 1 << 17  # bytes
MOST_UNZIPPED = 1 << 27  # bytes that gzip may expand to, whatever its size
MOST_RATIO = 100  # beyond that, bytes per compressed byte; JSON of real traces reaches about 30
NOT_STANDARD = "JSON outside the standard"
FETCH_AGAIN = "copy or download the file again"


class Stream:
    """The content of a file or of standard input ("-"). It can be read once.

    Attributes:
        where: its name in error messages.
        digest: hash of the stored bytes read so far.
        head: the first bytes of the content after decompression.
    """

    def __init__(self, path: str, digest: _Hash | None = None, *, keep: bool = False) -> None:
        """Open the stream.

        Args:
            path: a file, or "-".
            digest: hash that is updated with the stored bytes; None: a new one.
            keep: keep standard input in memory, so that it can be hashed again later.

        Raises:
            InputError: the file can't be opened, is broken gzip, or is empty.
        """
        self.where = "standard input" if path == "-" else path
        self.digest = digest or hashlib.sha256()
        with readable(self.where):
            # `close` closes it; every exit path of the readers calls `close`.
            file = _standard_input(keep) if path == "-" else opened(path)
            self._hashing = _Hashing(file, self.digest)
            self._stored = io.BufferedReader(self._hashing, BUFFER)
        self._content: io.BufferedReader[Any] | gzip.GzipFile = self._stored
        try:
            with readable(self.where):
                if self._stored.peek(2)[:2] == GZIP:
                    self._content = gzip.GzipFile(fileobj=self._stored)
                if self._content.peek(3)[:3] == BYTE_ORDER_MARK:
                    self._content.read(3)
                self.head = self._content.peek(1024)
            if not self.head:
                raise InputError(self.where, "is empty", "give a trace file")
        except InputError:
            self.close()
            raise

    def read(self) -> bytes | bytearray:
        """Return all remaining content and close the file."""
        try:
            with readable(self.where):
                return self._all()
        finally:
            self.close()

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number from 1, line) of every line that is not blank."""
        with readable(self.where):
            for number, line in enumerate(self._each_line(), 1):
                if not line.isspace():
                    yield number, line

    def _all(self) -> bytes | bytearray:
        if self._content is self._stored:
            data = bytearray(self._hashing.size)
            del data[self._stored.readinto(data) :]  # in place; `read` would copy everything twice
            data += self._stored.read()
            return data
        data = bytearray()
        while block := self._content.read(BUFFER):
            data += block
            self._check_unzipped(len(data))
        return data

    def _each_line(self) -> Iterator[bytes]:
        if self._content is self._stored:
            yield from self._content
        while line := self._content.readline(MOST_UNZIPPED):
            while len(line) % MOST_UNZIPPED == 0 and not line.endswith(b"\n"):
                self._check_unzipped(len(line))
                more = self._content.readline(MOST_UNZIPPED)
                if not more:
                    break
                line += more
            yield line

    def _check_unzipped(self, size: int) -> None:
        """Raise InputError if a small gzip file expands beyond the limits."""
        if size >= MOST_UNZIPPED and size > MOST_RATIO * self._hashing.count:
            what = f"unzips to more than {size / 2**20:,.0f} MiB, {MOST_RATIO} times its size"
            raise InputError(self.where, what, "gunzip it first, if memory holds it")

    def close(self) -> None:
        """Close the file; closing twice is harmless."""
        self._content.close()
        self._stored.close()


def _standard_input(keep: bool) -> BinaryIO:
    return io.BytesIO(standard_input()) if keep else sys.stdin.buffer


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn errors from opening or reading a file into a one-line InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(where, "no such file", "check the path") from None
    except EOFError:
        raise InputError(where, "the gzip data is cut off", FETCH_AGAIN) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(where, f"broken gzip data ({error})", FETCH_AGAIN) from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(where, f"can't be read ({reason})", "check the path") from None


class BrokenJsonError(ValueError):
    """An error in a JSON text, with the byte offset where the parser stopped."""

    def __init__(self, what: str, offset: int) -> None:
        super().__init__(what, offset)
        self.what, self.offset = what, offset


def parse(data: bytes | bytearray) -> tuple[Any, bool]:
    """Parse JSON into (value, whether the text conforms to the standard).

    Python's own writer emits NaN and lone surrogates (half of an emoji that a model wrote), which
    the standard forbids. Such JSON is accepted too; surrogates are replaced by "?".

    Raises:
        BrokenJsonError: the JSON is broken or cut off.
    """
    try:
        # msgspec is faster than orjson on whole traces and keeps integers beyond 64 bits exact.
        return msgspec.json.decode(data), True
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return orjson.loads(data), True
    except orjson.JSONDecodeError as error:
        strict = error  # gives the offset where the parser stopped
    try:
        return without_surrogates(json.loads(data)), False
    except UnicodeDecodeError as error:
        raise BrokenJsonError("not UTF-8 text", error.start) from None
    except (ValueError, RecursionError) as error:
        offset = len(strict.doc[: strict.pos].encode())  # orjson counts characters
        what = "the JSON is cut off" if offset >= len(data.rstrip()) else "broken JSON"
        if isinstance(error, RecursionError):
            what = "JSON nested too deep"
        raise BrokenJsonError(what, offset) from None


def parse_document(data: bytes | bytearray, where: str, notes: Counter[str]) -> Any:
    """Parse the content of a whole file with `parse`.

    Raises:
        InputError: the JSON is broken or cut off; the error gives the byte offset.
    """
    try:
        value, standard = parse(data)
    except BrokenJsonError as error:
        raise InputError(f"{where}:byte {error.offset}", error.what, FETCH_AGAIN) from None
    if not standard:
        notes[NOT_STANDARD] += 1
    return value


def written(value: Any, option: int = 0) -> bytes:
    """Serialise a value as JSON; integers beyond 64 bits stay exact.

    Args:
        value: a value as `parse` returns it.
        option: option flags of orjson.
    """
    try:
        return orjson.dumps(value, default=str, option=option | orjson.OPT_NON_STR_KEYS)
    except TypeError:
        return json.dumps(value, default=str, sort_keys=True).encode()


def without_surrogates(value: Any) -> Any:
    """Replace every lone surrogate in a value by "?", because UTF-8 can't encode it."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


class _Hashing(io.RawIOBase):
    """A file that updates a hash with every byte read from it."""

    def __init__(self, file: BinaryIO, digest: _Hash) -> None:
        self._file, self._digest = file, digest
        self.count = 0  # bytes read

    @property
    def size(self) -> int:
        """Size of the file in bytes; 0 if it is unknown in advance, e.g. for a pipe."""
        try:
            return os.fstat(self._file.fileno()).st_size
        except OSError:
            return 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self._file.readinto(buffer)  # type: ignore[attr-defined] # of all our files
        self._digest.update(buffer[:count])
        self.count += count
        return count

    def readall(self) -> bytes:
        data = self._file.read()
        self._digest.update(data)
        return data

    def close(self) -> None:
        # Standard input is not ours to close.
        if not self.closed and self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()
