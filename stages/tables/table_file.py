"""Read and write tables: Parquet on disk, JSON lines on pipes (`-`).

A table on disk records its lineage: version, command, settings, seed, sha256 of its inputs.
"""

from __future__ import annotations

import io
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from stages.errors import InputError
from stages.tables.files import head, standard_input, together, whole_file
from stages.tables.paths import remote, unreadable
from stages.tables.pipes import content, is_pipe
from stages.tables.state import Input, MadeBy, check_types, parsed
from stages.tables.table import Table

PARQUET_MAGIC = b"PAR1"
ROW_GROUP = 1000  # rows per row group of a table that is written in blocks
BUFFERED = 1 << 16  # bytes; a file buffers less
LARGE_GROUP = 1 << 14  # rows per row group of a table that memory does not hold
_METADATA_KEY = "irc-cli"
_UNREADABLE = (pl.exceptions.ComputeError, pl.exceptions.SchemaError)  # polars', on JSON lines
_T = TypeVar("_T")


def write_table(
    table: Table, frame: pl.DataFrame, path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write a table: Parquet with its lineage, or JSON lines to standard output (`-`)."""
    frame = frame.select(list(table.columns))
    if path == "-":
        sys.stdout.write(frame.write_ndjson())
        return
    with whole_file(path, force=force) as file, full_disk(file):
        frame.write_parquet(file, metadata=_metadata(made_by))


@contextmanager
def full_disk(file: IO[bytes]) -> Iterator[None]:
    """Raise OSError for polars' error on a full disk, which does not always say so."""
    try:
        yield
    except pl.exceptions.ComputeError as error:
        file.write(bytes(BUFFERED))  # fails with the system's error
        file.flush()
        raise OSError(str(error)) from None


def write_lazy(
    table: Table, frame: pl.LazyFrame, path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write a table that memory does not hold, as `write_table` does."""
    frame = frame.select(list(table.columns))
    if path == "-":
        frame.sink_ndjson(sys.stdout.buffer)
        return
    _sink(frame, path, made_by, LARGE_GROUP, force=force)


def _sink(
    frame: pl.LazyFrame, path: str, made_by: dict[str, Any], row_group: int, *, force: bool
) -> None:
    """Write Parquet, with one row group in memory."""
    with whole_file(path, force=force) as file, full_disk(file):
        frame.sink_parquet(
            file, metadata=_metadata(made_by), row_group_size=row_group, maintain_order=True
        )


def write_rows(
    rows: Iterable[Mapping[str, Any]], path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write rows as JSON lines with their lineage beside; to standard output (`-`) without it."""
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if path == "-":
        sys.stdout.buffer.writelines(lines)
        return
    with together():
        with whole_file(path, force=force) as file:
            file.writelines(lines)
        with whole_file(made_by_path(path), force=force) as about:
            about.write(orjson.dumps(made_by, option=orjson.OPT_INDENT_2))


def made_by_path(path: str) -> str:
    """Return the path of the lineage of JSON lines, which have no header for it."""
    return path.removesuffix(".jsonl") + ".meta.json"


def write_blocks(
    table: Table,
    blocks: Iterator[pl.DataFrame],
    path: str,
    made_by: dict[str, Any],
) -> None:
    """Write a table to Parquet block by block, with one in memory; an old file is replaced.

    Equal rows make equal bytes, however they are split into blocks.
    """
    rows = register_io_source(lambda *ignored: blocks, schema=table.columns)
    _sink(rows, path, made_by, ROW_GROUP, force=True)


def read_table(table: Table, path: str) -> pl.DataFrame:
    """Read a table from Parquet or JSON lines, `-` for standard input, and check every row.

    Raises:
        InputError: the file is missing, empty, of another kind, or breaks the declaration.
    """
    where = "standard input" if path == "-" else path
    if _is_parquet(path):
        frame = reading(path, lambda: pl.read_parquet(_parquet(path), glob=False))
    else:
        frame = _json_lines(table, _content(path), where)
    return table.conform(frame, where)


def read_columns(path: str) -> pl.DataFrame:
    """Read a table of another program, with any columns: Parquet or JSON lines, also from `-`.

    Raises:
        InputError: the file is missing or of another kind.
    """
    if _is_parquet(path):
        return reading(path, lambda: pl.read_parquet(_parquet(path), glob=False))
    try:
        return pl.read_ndjson(_content(path), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        raise InputError(path, "neither Parquet nor JSON lines", "write it as one") from None


def scan_table(table: Table, path: str) -> pl.LazyFrame | None:
    """Return a lazy scan of a Parquet table with checked columns; None for any other file."""
    if not _is_parquet(path):
        return None
    lazy = pl.scan_parquet(_parquet(path), glob=False)
    table.check_columns(reading(path, lazy.collect_schema), path)
    return lazy


def made_by(path: str) -> dict[str, Any]:
    """Return the lineage that an artifact records; empty: it records none."""
    if not _is_parquet(path):
        return {}
    recorded = reading(path, lambda: pl.read_parquet_metadata(_parquet(path))).get(_METADATA_KEY)
    if not recorded:
        return {}
    document: dict[str, Any] = parsed(recorded, MadeBy, f"{path}: its record", "make it again")
    return document


def made_from(path: str) -> dict[str, str | None]:
    """Return the sha256 of each input that an artifact records, by path."""
    inputs = made_by(path).get("inputs", [])
    rows = check_types(inputs, list[Input], f"{path}: its record", "make it again")
    return {row["path"]: row.get("sha256") for row in rows}


def _metadata(made_by: dict[str, Any]) -> dict[str, str]:
    return {_METADATA_KEY: orjson.dumps(made_by).decode()}


def _is_parquet(path: str) -> bool:
    """Return whether a file is Parquet, as all tables in object stores are."""
    return path != "-" and (remote(path) or head(path) == PARQUET_MAGIC)


def _parquet(path: str) -> str | io.BytesIO:
    """Return the source of a table for polars, which would open a pipe a second time."""
    return io.BytesIO(content(path)) if is_pipe(path) else path


def _content(path: str) -> bytes:
    return standard_input() if path == "-" else content(path)


def reading(path: str, read: Callable[[], _T]) -> _T:
    """Return the result of reading a Parquet file; raise InputError if polars fails."""
    try:
        return read()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(path, error) from None
    except pl.exceptions.PanicException:  # polars trusts the pages of a file
        raise unreadable(path, OSError("its pages are damaged")) from None


def _json_lines(table: Table, data: bytes, where: str) -> pl.DataFrame:
    if not data.strip():
        raise InputError(where, "empty", f"rerun {table.made_by}")
    try:
        frame = pl.read_ndjson(data, schema=table.columns)
    except _UNREADABLE:
        raise _wrong_kind(table, data, where) or _bad_line(table, data, where) from None
    # polars reads a column that is in no line as nulls.
    first = next(line for line in io.BytesIO(data) if line.strip())
    columns = list(parsed(first, dict[str, Any], where, f"rerun {table.made_by}"))
    if table.columns.keys() - columns and (error := _wrong_kind(table, data, where)):
        raise error
    table.check_columns(columns, where)
    return frame


def _wrong_kind(table: Table, data: bytes, where: str) -> InputError | None:
    """Return the error for JSON of another known kind; None: it is this table or unknown."""
    from stages.tables.recognise import of_json, wrong_kind

    kind = of_json(data)
    if kind is None or kind.key == table.name:
        return None
    return InputError(where, *wrong_kind(table, kind, where))


def _bad_line(table: Table, data: bytes, where: str) -> InputError:
    """Return the error for the first line that polars can't read; polars does not name it."""
    lines = data.splitlines()

    def fails(count: int) -> bool:
        return not _reads(b"\n".join(lines[:count]), table.columns)

    number = bisect_left(range(1, len(lines)), True, key=fails) + 1
    place, todo = f"{where}:{number}", f"rerun {table.made_by}"
    try:
        row = orjson.loads(lines[number - 1])
    except orjson.JSONDecodeError as error:
        return InputError(place, f"not JSON: {error.msg}", "fix the line")
    if not isinstance(row, dict):
        return InputError(place, "not an object", todo)
    for name, to in table.columns.items():
        if name in row and not _reads(orjson.dumps({name: row[name]}), {name: to}):
            return InputError(place, f"'{name}' is {row[name]!r:.40}, not {to}", todo)
    return InputError(place, "not readable as a row", todo)


def _reads(data: bytes, columns: Mapping[str, pl.DataType]) -> bool:
    try:
        pl.read_ndjson(data, schema=columns)
    except _UNREADABLE:
        return False
    return True
