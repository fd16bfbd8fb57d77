"""Databases of one episode over a snapshot that all episodes share.

Each tool call ends with `keep` or `undo`, so that a call that fails changes nothing.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Protocol

Record = Any  # one of the package's pydantic models
State = Mapping[str, str]  # what differs from the snapshot, by place, as canonical JSON


class UndoableDatabase(Protocol):
    """The `db` that the tools of one side see, with undo."""

    db: Any

    def keep(self) -> None:
        """Make the changes since the last `keep` final."""

    def undo(self) -> None:
        """Take back the changes since the last `keep`."""

    def state(self) -> State:
        """Return the state; two states are equal if tau2-bench's hashes of them are."""


def open_database(snapshot: Record) -> UndoableDatabase:
    """Return a database that starts as the snapshot and never changes it."""
    tables = [value for _, value in snapshot]
    if all(isinstance(table, dict) for table in tables):
        return _Tables(snapshot)
    return _Whole(snapshot)


class _Tables:
    """A large database of records by key; only the records that tools access are copied."""

    def __init__(self, snapshot: Record) -> None:
        self._tables = {name: _Table(records) for name, records in snapshot}
        self.db = SimpleNamespace(**self._tables)

    def keep(self) -> None:
        """Keep what the call changed in any table."""
        for table in self._tables.values():
            table.keep()

    def undo(self) -> None:
        """Put back what the call changed in any table."""
        for table in self._tables.values():
            table.undo()

    def state(self) -> State:
        """Return each record that differs from the snapshot, as text, by table and key."""
        return {
            f"{name}/{key}": text
            for name, table in self._tables.items()
            for key, text in table.changes().items()
        }


class _Table(dict[str, Record]):
    """Records by key. Access by key returns a copy, made anew for each call.

    Iteration over `values()` or `items()` returns the shared records, which the package's tools
    only read there. The tools use no other methods of a dict.
    """

    def __init__(self, snapshot: Mapping[str, Record]) -> None:
        super().__init__(snapshot)
        self._snapshot = snapshot
        self._before: dict[str, Record | None] = {}  # records before this call; None: new
        self._reached: set[str] = set()

    def __getitem__(self, key: str) -> Record:
        record = super().__getitem__(key)
        if key in self._before:
            return record
        self._before[key] = record
        copy = record.model_copy(deep=True)
        super().__setitem__(key, copy)
        return copy

    def __setitem__(self, key: str, record: Record) -> None:
        self._before.setdefault(key, self.get(key))
        super().__setitem__(key, record)

    def keep(self) -> None:
        """Keep the records as the call left them."""
        self._reached |= self._before.keys()
        self._before.clear()

    def undo(self) -> None:
        """Put back the records that the call changed."""
        for key, record in self._before.items():
            if record is None:
                del self[key]
            else:
                super().__setitem__(key, record)
        self._before.clear()

    def changes(self) -> dict[str, str]:
        """Return the records that differ from the snapshot, as text, by key."""
        texts = {key: _canonical(self.get(key)) for key in self._reached}
        return {
            key: text for key, text in texts.items() if text != _canonical(self._snapshot.get(key))
        }


class _Whole:
    """A small database, pickled after each call."""

    def __init__(self, snapshot: Record) -> None:
        self._last = pickle.dumps(snapshot, pickle.HIGHEST_PROTOCOL)
        self.db = pickle.loads(self._last)

    def keep(self) -> None:
        """Keep what the call changed."""
        self._last = pickle.dumps(self.db, pickle.HIGHEST_PROTOCOL)

    def undo(self) -> None:
        """Put back the database as it was before the call."""
        self.db = pickle.loads(self._last)

    def state(self) -> State:
        """Return the whole database as text."""
        return {"": _canonical(self.db)}


def _canonical(record: Record | None) -> str:
    """Return the text that tau2-bench hashes: `1` and `1.0` differ, key order does not matter."""
    dumped = None if record is None else record.model_dump(warnings=False)
    return json.dumps(dumped, sort_keys=True, default=str)
