"""Records of one conversation that are spread over a file, brought together on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from stages.traces.stream import parse, written


class Spread:
    """Records by group, in a temporary database: memory holds one group at a time.

    SQLite keeps a small cache and puts the rest in a file that has no name, which the system
    removes whatever happens.
    """

    def __init__(self) -> None:
        import sqlite3  # most traces do without, and so do some builds of Python

        self._groups: dict[str, int] = {}  # number by key, in order of first appearance
        self._database = sqlite3.connect("")
        self._database.execute("PRAGMA journal_mode = OFF")  # nobody needs it back
        self._database.execute("CREATE TABLE part (number INT, place TEXT, row INT, data BLOB)")
        self._database.execute("CREATE INDEX of_group ON part (number)")
        self._rows = 0

    def add(self, group: str, place: str, record: Any) -> None:
        """Add a record to a group; within it records go by `place`, then as they came."""
        self._rows += 1
        number = self._number(group)
        part = (number, place, self._rows, written(record))
        self._database.execute("INSERT INTO part VALUES (?, ?, ?, ?)", part)

    def join(self, group: str, into: str) -> None:
        """Put the records of one group into another, which may be new."""
        self._rows += 1
        number = self._number(into)
        change = (number, self._groups.pop(group))
        self._database.execute("UPDATE part SET number = ? WHERE number = ?", change)

    def groups(self) -> Iterator[tuple[str, list[Any]]]:
        """(key, records in order) of every group; afterwards the database is gone."""
        rows = "SELECT data FROM part WHERE number = ? ORDER BY place, row"
        with closing(self._database):
            for name, number in self._groups.items():
                parts = self._database.execute(rows, (number,))
                yield name, [parse(data)[0] for (data,) in parts]

    def _number(self, group: str) -> int:
        if group not in self._groups:
            self._groups[group] = self._rows  # of the first record, so that no two are the same
        return self._groups[group]
