"""Recognise a file of the wrong kind: a trace, one of our tables, a known format."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from stages.tables.artifacts import (
    ADVANTAGES,
    EPISODES,
    ONLINE,
    PAIRS,
    SEQUENCES,
    SUMS,
    TOKENS,
    TURNS,
)
from stages.tables.near import near_format, read_format
from stages.tables.table import Table

TABLES = (TURNS, ADVANTAGES, SUMS, ONLINE, EPISODES, TOKENS, SEQUENCES, PAIRS)
TRACE_KEYS = frozenset({"messages", "traj", "simulations"})


class Kind(NamedTuple):
    """The kind of a file."""

    name: str  # with its article
    key: str  # "trace", the name of one of our tables, or ""


def of_columns(columns: Collection[str]) -> Kind | None:
    """Return the kind with these columns or keys: one of our tables, or a trace."""
    tables = [table for table in TABLES if table.columns.keys() <= set(columns)]
    if tables:
        table = max(tables, key=lambda table: len(table.columns))
        return Kind(f"{_a(table.name)} table", table.name)
    return Kind("a trace", "trace") if TRACE_KEYS & set(columns) else None


def of_record(document: Any) -> Kind | None:
    """Return the kind of a JSON document; a list is of its first item's kind."""
    record = document[0] if isinstance(document, list) and document else document
    if not isinstance(record, Mapping):
        return None
    if kind := of_columns(record.keys()):
        return kind
    if read := read_format(record):
        return Kind(read.name, "trace")
    near = near_format(record)
    return Kind(near.name, "") if near else None


def of_json(data: bytes) -> Kind | None:
    """Return the kind of JSON lines, or of a JSON document."""
    with suppress(OSError, EOFError, zlib.error):
        data = gzip.decompress(data)
    for text in (data.lstrip().partition(b"\n")[0], data):
        with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return of_record(msgspec.json.decode(text))
    return None


def wrong_kind(table: Table, kind: Kind, path: str) -> tuple[str, str]:
    """Return what is wrong with a file of this kind in place of a table, and what to do."""
    if kind.key == table.made_from:
        todo = f"make one with '{table.made_by} {path} -o {table.name}.parquet'"
    else:
        todo = f"give what {table.made_by} writes"
    return f"not {_a(table.name)} table but {kind.name}", todo


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
