"""Read conversations from Parquet: one per row, in nested columns or as JSON strings."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from stages.errors import InputError, few
from stages.traces.calls import ARGUMENTS

MAGIC = b"PAR1"


def read_rows(
    data: bytes | bytearray, where: str, accepts: Callable[[dict[str, Any]], bool]
) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file of conversations, without the nulls inside nested columns.

    A struct column has every key in every row, and null for each key that a message or an argument
    lacks. A null under `arguments` is kept, because nothing else marks a call without arguments.

    Args:
        data: the content of the file.
        where: name of the file in errors.
        accepts: returns whether a row is in a known format; used if there is no column `messages`.

    Raises:
        InputError: the file is not readable as Parquet, has no rows, or is in no known format.
    """
    import polars as pl  # slow to import, and only this format needs it

    try:
        frame = pl.read_parquet(io.BytesIO(data))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError):
        raise InputError(where, "is broken Parquet", "copy or write the file again") from None
    first: dict[str, Any] = _without_nulls(frame.head(1).to_dicts()[0]) if frame.height else {}
    if "messages" not in frame.columns and not accepts(first):
        from stages.tables.recognise import of_columns

        if kind := of_columns(frame.columns):
            raise InputError(where, f"not a trace but {kind.name}", "give the traces themselves")
        columns = few(f"'{name}'" for name in frame.columns)
        raise InputError(
            where,
            f"has no column 'messages' (columns: {columns})",
            "give one row per conversation: messages, and optionally tools, gold_actions, outcome",
        )
    if frame.is_empty():
        raise InputError(where, "has no rows", "give one row per conversation")
    rows: list[dict[str, Any]] = _without_nulls(frame.to_dicts())
    return rows


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        keeps_null = value.get("name") is not None and not any(
            value.get(key) is not None for key in ARGUMENTS
        )
        return {
            key: _without_nulls(item)
            for key, item in value.items()
            if item is not None or (keeps_null and key == "arguments")
        }
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
