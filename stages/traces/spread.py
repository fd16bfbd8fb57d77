"""Group the records of each conversation that are scattered over a file, on disk."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from typing import Any, Self

from stages.traces.stream import parse, written

IN_MEMORY = 1 << 24  # bytes; more than this goes to disk


class Spread:
    """Records by group in a temporary file; memory holds one group and the offsets of the others.

    The file has no name, so the system removes it even after a crash. `with` closes it.
    """

    def __init__(self) -> None:
        self._groups: dict[str, array[int]] = {}  # offsets of records, in order of the first record
        self._file = SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115 - closed by `__exit__`
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, group: str, place: str, record: Any) -> None:
        """Add a record to a group, whose records are sorted by `place`, then by order of adding."""
        self._groups.setdefault(group, array("q")).append(self._end)
        self._end += self._file.write(written([place, record]) + b"\n")

    def put(self, group: str, record: Any) -> None:
        """Replace all records of a group by one; the group keeps its position."""
        del self._groups.setdefault(group, array("q"))[:]
        self.add(group, "", record)

    def join(self, group: str, into: str) -> None:
        """Move the records of one group into another, which may be new."""
        moved = self._groups.pop(group)
        held = self._groups.setdefault(into, array("q"))
        self._groups[into] = array("q", sorted([*held, *moved]))

    def groups(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield (key, records in order) of every group."""
        for name, begins in self._groups.items():
            parts = sorted(map(self._read, begins), key=lambda part: part[0])
            yield name, [record for _, record in parts]

    def _read(self, begin: int) -> list[Any]:
        self._file.seek(begin)
        part: list[Any] = parse(self._file.readline())[0]
        return part
