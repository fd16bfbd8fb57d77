"""The database of one episode: shared tables below, its own changes on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]
Tables = Mapping[str, Mapping[str, Record]]  # table -> id -> record


class ToolError(Exception):
    """A tool can't do what was asked; the model sees the text."""


class Database:
    """Copy-on-write tables; a write that fails changes nothing.

    The records of `edit` and `add` are staged until `commit`; `rollback` discards them.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.handed_off = False
        self._changed: dict[tuple[str, str], Record] = {}
        self._staged: dict[tuple[str, str], Record] = {}

    def find(self, table: str, key: str) -> Record | None:
        """Return a record, which the caller must not change, or None."""
        for records in (self._staged, self._changed):
            if (table, key) in records:
                return records[table, key]
        return self.tables[table].get(key)

    def get(self, table: str, key: str) -> Record:
        """Return a record, which the caller must not change.

        Raises:
            ToolError: there is none.
        """
        record = self.find(table, key)
        if record is None:
            raise ToolError(f"{table.removesuffix('s')} not found")
        return record

    def edit(self, table: str, key: str) -> Record:
        """Return a copy of a record for the caller to change.

        Raises:
            ToolError: there is none.
        """
        if (table, key) not in self._staged:
            self._staged[table, key] = copy.deepcopy(self.get(table, key))
        return self._staged[table, key]

    def add(self, table: str, key: str, record: Record) -> None:
        """Add a record."""
        self._staged[table, key] = record

    def commit(self) -> None:
        """Keep the staged records."""
        self._changed |= self._staged
        self._staged = {}

    def rollback(self) -> None:
        """Discard the staged records."""
        self._staged = {}

    def state(self) -> tuple[bool, dict[tuple[str, str], Record]]:
        """Return everything in which databases over the same tables can differ."""
        differing = {
            (table, key): record
            for (table, key), record in self._changed.items()
            if record != self.tables[table].get(key)
        }
        return self.handed_off, differing
