"""The database of one episode: shared tables below, its own changes on top."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

Record = dict[str, Any]
Tables = Mapping[str, Mapping[str, Record]]  # table -> id -> record


class ToolError(Exception):
    """A tool can't do what was asked; the text is for the model."""


class Database:
    """Copy-on-write tables; a write that fails leaves nothing behind.

    What `edit` and `add` give out is staged until `commit`; `rollback` forgets it.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self.handed_off = False
        self._changed: dict[tuple[str, str], Record] = {}
        self._staged: dict[tuple[str, str], Record] = {}

    def find(self, table: str, key: str) -> Record | None:
        """Return a record, not to be changed; None where there is none."""
        for records in (self._staged, self._changed):
            if (table, key) in records:
                return records[table, key]
        return self.tables[table].get(key)

    def get(self, table: str, key: str) -> Record:
        """Return a record, not to be changed.

        Raises:
            ToolError: there is none.
        """
        record = self.find(table, key)
        if record is None:
            raise ToolError(f"{table.removesuffix('s')} not found")
        return record

    def edit(self, table: str, key: str) -> Record:
        """Return a record to be changed.

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
        """Keep what was staged."""
        self._changed |= self._staged
        self._staged = {}

    def rollback(self) -> None:
        """Forget what was staged."""
        self._staged = {}

    def state(self) -> tuple[bool, dict[tuple[str, str], Record]]:
        """Return all that tells this database from another one over the same tables."""
        differing = {
            (table, key): record
            for (table, key), record in self._changed.items()
            if record != self.tables[table].get(key)
        }
        return self.handed_off, differing
