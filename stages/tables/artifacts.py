"""Every table's declaration, and how tables are read and written.

Tables are Parquet on disk and JSON lines on pipes (`-`). A table on disk records what made it:
version, command, settings, seed, sha256 of its inputs.
"""

from __future__ import annotations

import io
import sys
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from stages.core.statuses import LEFT_OUT, STATUSES
from stages.errors import InputError, few
from stages.tables.files import head, standard_input, whole_file
from stages.tables.paths import remote, unreadable

COUNTS = ~pl.col("status").is_in(LEFT_OUT)  # whether statistics count a turn
PARQUET_MAGIC = b"PAR1"
ROW_GROUP = 1000  # rows of a table that is written in blocks
LARGE_GROUP = 1 << 14  # ... of one that memory does not hold
_METADATA_KEY = "irc-cli"
_UNREADABLE = (pl.exceptions.ComputeError, pl.exceptions.SchemaError)  # JSON lines, to polars
_T = TypeVar("_T")


@dataclass(frozen=True)
class Table:
    """Declaration of a table: its columns, the key of a row, and the rules every row obeys."""

    name: str
    columns: dict[str, pl.DataType]
    key: tuple[str, ...]
    made_by: str  # the command that writes it, named in errors
    made_from: str = ""  # "trace", or the table that the command reads
    rules: dict[str, pl.Expr] = field(default_factory=dict)  # name that users read -> condition

    def frame(self, columns: Mapping[str, list[Any] | pl.Series]) -> pl.DataFrame:
        """Return the columns as a frame with this table's types."""
        return pl.DataFrame(columns, schema=self.columns)

    def empty(self) -> pl.DataFrame:
        """Return this table without rows."""
        return pl.DataFrame(schema=self.columns)

    def conform(self, frame: pl.DataFrame, where: str) -> pl.DataFrame:
        """Return the frame with this table's columns and types, and every row checked.

        Raises:
            InputError: a column is missing or of another type, or a row breaks the key or a rule.
        """
        self.check_columns(frame.schema, where)
        frame = conformed(frame, self.columns, where, self._todo())
        self.check_rows(frame, where)
        return frame

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Raise InputError unless every column of this table is among those found."""
        if missing := [name for name in self.columns if name not in columns]:
            from stages.tables.recognise import of_columns, wrong_kind

            if kind := of_columns(columns):
                raise InputError(where, *wrong_kind(self, kind, where))
            names = few(f"'{name}'" for name in missing)
            raise InputError(where, f"not a {self.name} table: no column {names}", self._todo())

    def check_rows(self, frame: pl.DataFrame, where: str) -> None:
        """Raise InputError at the first row that breaks the key or a rule."""
        key = {f"unique {' and '.join(self.key)}": pl.struct(self.key).is_first_distinct()}
        self.check_rules(self.rules | key, frame, where)

    def check_rules(
        self, rules: Mapping[str, pl.Expr], frame: pl.DataFrame, where: str, first: int = 0
    ) -> None:
        """Raise InputError at the first row that breaks one of these rules.

        `first` is the number of rows that stand before those of the frame.
        """
        for rule, holds in rules.items():
            broken = frame.select((~holds.fill_null(True)).arg_true()).to_series()
            if len(broken):
                what = f"breaks rule '{rule}' ({len(broken):,} of {frame.height:,})"
                raise InputError(f"{where}:row {first + broken[0] + 1}", what, self._todo())

    def _todo(self) -> str:
        return f"rerun {self.made_by}"


TURNS = Table(
    name="turns",
    columns={
        "source": pl.String(),  # the trace it was read from
        "episode_id": pl.String(),
        "task_id": pl.String(),  # within its domain, where that is known: "airline/5"
        "trial": pl.Int32(),
        "group_id": pl.String(),  # episodes sampled for one task under one policy
        "domain": pl.String(),  # of the task; null: unknown
        "policy": pl.String(),  # what acted: as the trace states it, else the source
        "turn": pl.Int32(),  # 0-based position in the episode
        "tool_names": pl.List(pl.String()),  # empty: the turn called no tool
        "n_calls": pl.Int32(),
        "tier": pl.String(),
        "match": pl.String(),  # full | partial | none; null: no call, or gold actions unknown
        "match_share": pl.Float64(),  # share of the best gold action's arguments that agree
        "reward": pl.Float64(),  # dimensionless
        "outcome": pl.Float64(),  # of the whole episode, in [0, 1]
        "success": pl.Boolean(),  # outcome >= 1 - 1e-6
        "status": pl.String(),  # ok | truncated; error | masked: left out of every statistic
        "n_tokens": pl.Int32(),  # null: unknown
    },
    key=("episode_id", "turn"),
    made_by="irc-cli score",
    made_from="trace",
    rules={
        f"{name} not null": pl.col(name).is_not_null()
        for name in ("episode_id", "task_id", "group_id", "turn", "tier", "reward", "status")
    }
    | {
        "turn at least 0": pl.col("turn") >= 0,
        "outcome within [0, 1]": pl.col("outcome").is_between(0, 1),
        "reward finite": pl.col("reward").is_finite(),
        "status is ok, truncated, error or masked": pl.col("status").is_in(STATUSES),
    },
)

ADVANTAGES = Table(
    name="advantages",
    columns={
        "episode_id": pl.String(),
        "group_id": pl.String(),
        "turn": pl.Int32(),
        "tier": pl.String(),
        "reward": pl.Float64(),
        "advantage": pl.Float64(),
        "return_part": pl.Float64(),  # return_part + outcome_part = advantage
        "outcome_part": pl.Float64(),
        "group_mean": pl.Float64(),  # of the quantity that was normalised at this turn
        "group_std": pl.Float64(),
    },
    key=("episode_id", "turn"),
    made_by="irc-cli calibrate",
    made_from="turns",
    rules={"advantage finite": pl.col("advantage").is_finite()},
)

# Exact integer sums: shards computed anywhere add up to the sums of one run. They are kept apart by
# length, because what length explains is known only when the whole group is.
SUMS = Table(
    name="sums",
    columns={
        "task_id": pl.String(),
        "group_id": pl.String(),
        "policy": pl.String(),  # of the group
        "domain": pl.String(),  # of the group; null: unknown
        "length": pl.Int64(),  # turns of each of these episodes
        "tier": pl.String(),  # null: all of the group's episodes of this length
        "episodes": pl.Int64(),  # with the tier
        "successes": pl.Int64(),  # among them
        "turns": pl.Int64(),  # of the tier
        "turns_in_successes": pl.Int64(),
        "x": pl.Int64(),  # sum of the measure, in its unit (stages.calibration.sums.UNITS)
        "xx": pl.Int64(),  # sum of its squares
        "xo": pl.Int64(),  # sum over the successes
    },
    key=("task_id", "group_id", "policy", "domain", "length", "tier"),
    made_by="irc-cli calibrate --partial",
    made_from="turns",
    rules={"successes at most episodes": pl.col("successes") <= pl.col("episodes")},
)

# The same with forgetting: an episode followed by n others weighs w = 2^(-n / half-life). `x` is in
# the measure's own unit. Deviations are from the means of each group within one addition.
ONLINE = Table(
    name="online",
    columns={
        "task_id": pl.String(),
        "tier": pl.String(),
        **{name: pl.Float64() for name in SUMS.columns if name not in SUMS.key},
        "squares": pl.Float64(),  # sum of w^2 over the episodes with the tier
        "xo_deviation": pl.Float64(),
        "xx_deviation": pl.Float64(),
        "yo_deviation": pl.Float64(),  # y: x less what the lengths of episodes explain
        "yy_deviation": pl.Float64(),
        "oo_deviation": pl.Float64(),  # only in rows with tier null
    },
    key=("task_id", "tier"),
    made_by="irc-cli calibrate --online",
    rules={"weights finite": pl.col("episodes").is_finite()},
)

EPISODES = Table(
    name="episodes",
    columns={
        "source": pl.String(),
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "trial": pl.Int32(),
        "domain": pl.String(),  # of the task; null: unknown
        "policy": pl.String(),
        "success": pl.Boolean(),  # null: the episode is left out
        "turns": pl.Int32(),
        "tokens": pl.Int64(),  # that the policy wrote; null: unknown
        "gold_writes": pl.Int32(),  # writes that the task expects of the agent
        "gold_writes_done": pl.Int32(),
        "family": pl.String(),  # of the task; null: unknown
        "forbidden_writes": pl.Int32(),  # that worked, and that no gold action expects
    },
    key=("episode_id",),
    made_by="irc-cli eval",
)

TOKENS = Table(
    name="tokens",
    columns={
        "episode_id": pl.String(),
        "turn": pl.Int32(),  # 0-based; a turn whose ids are unknown has no row
        "appended": pl.Boolean(),  # the prompt goes on where the previous turn's tokens ended
        "prompt_ids": pl.List(pl.Int32()),  # what was added since then; else the whole prompt
        "token_ids": pl.List(pl.Int32()),  # as sampled, the end token included
        "logprobs": pl.List(pl.Float32()),  # of token_ids; null: unknown
    },
    key=("episode_id", "turn"),
    made_by="irc-cli rollout",
    rules={
        "one logprob per token": pl.col("logprobs").list.len() == pl.col("token_ids").list.len(),
    },
)


# The lists of a row are equally long. Where the mask is false, logprobs and advantage are 0, not
# null: a loss multiplies by the mask, and null times 0 is not 0.
SEQUENCES = Table(
    name="sequences",
    columns={
        "episode_id": pl.String(),
        "group_id": pl.String(),
        "part": pl.Int32(),  # 0-based; an episode goes on in another where its prompt was rewritten
        "token_ids": pl.List(pl.Int32()),
        "mask": pl.List(pl.Boolean()),  # true on tokens that the policy wrote
        "turn": pl.List(pl.Int32()),  # of each such token; -1 elsewhere
        "logprobs": pl.List(pl.Float32()),  # in nats, when it was sampled; null: unknown
        "advantage": pl.List(pl.Float32()),  # of the token's turn
        "temperature": pl.Float64(),  # that it was sampled with
    },
    key=("episode_id", "part"),
    made_by="irc-cli export tokens",
    rules={
        f"a {name} for each token": pl.col(name).list.len() == pl.col("token_ids").list.len()
        for name in ("mask", "turn", "logprobs", "advantage")
    },
)


# What `rollout` adds to an assistant's message: n_tokens (null where unknown), and finish "length"
# where a limit cut it. No chat template knows them.
OF_ROLLOUT = frozenset({"n_tokens", "finish"})


class RolloutRow(TypedDict):
    """A line of rollouts.jsonl: one episode."""

    episode_id: str  # run/task/trial; the run is a digest of the settings
    task_id: str
    trial: int
    group_id: str  # run/task: the episodes sampled for one task under one policy
    domain: str  # whose tool kinds `score` uses
    env: str
    policy: str
    user: str
    sampling: dict[str, Any]  # temperature, top_p, max_tokens
    seed: int  # of the run; an episode's own follow from it, the task, the trial and the turn
    family: str
    status: str  # ok | truncated (by max-turns or the context) | error (left out of statistics)
    ended: str  # done | max-turns | context | why the policy or the user failed
    outcome: float | None  # in [0, 1]; null where the status is error
    outcome_parts: dict[str, bool | None]
    tokens_recorded: bool  # each turn's token ids are in the tokens table
    messages: list[dict[str, Any]]  # the assistant's with OF_ROLLOUT
    gold_actions: list[Mapping[str, Any]]
    required_info: list[str]
    tools: NotRequired[list[dict[str, Any]]]  # only of domains that do not ship
    logprobs_rounded: NotRequired[bool]  # of tokens from a format that rounds: verifiers


PAIRS = Table(
    name="pairs",
    columns={
        "source": pl.String(),
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "turn": pl.Int32(),
        "call": pl.Int32(),  # 0-based position in the turn
        "name": pl.String(),
        "arguments": pl.String(),  # as recorded
        "gold": pl.Int32(),  # index of the best gold action; null: none has the name
        "gold_arguments": pl.String(),
        "exact": pl.Boolean(),
        "deep": pl.Boolean(),
        "tau2": pl.Boolean(),
        "bfcl": pl.Boolean(),
        "match_share": pl.Float64(),
    },
    key=("episode_id", "turn", "call"),
    made_by="irc-cli compare-args",
)


def conformed(
    frame: pl.DataFrame, columns: Mapping[str, pl.DataType], where: str, todo: str
) -> pl.DataFrame:
    """Return these columns of a frame in these types.

    Raises:
        InputError: a column holds values that are not of its type.
    """
    series = []
    for name, to in columns.items():
        given = frame[name]
        try:
            column = given.cast(to)
        except pl.exceptions.PolarsError:
            column = given
        if column.dtype != to:
            raise InputError(where, f"column '{name}' is {given.dtype}, not {to}", todo)
        series.append(column)
    return pl.DataFrame(series)


def write_table(
    table: Table, frame: pl.DataFrame, path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write a table: Parquet with its provenance, or JSON lines to standard output (`-`)."""
    frame = frame.select(list(table.columns))
    if path == "-":
        sys.stdout.write(frame.write_ndjson())
        return
    with whole_file(path, force=force) as file, _full_disk():
        frame.write_parquet(file, metadata=_metadata(made_by))


@contextmanager
def _full_disk() -> Iterator[None]:
    """Raise OSError for polars' own word for a full disk."""
    try:
        yield
    except pl.exceptions.ComputeError as error:
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
    """Write Parquet in the memory of a row group."""
    with whole_file(path, force=force) as file, _full_disk():
        frame.sink_parquet(
            file, metadata=_metadata(made_by), row_group_size=row_group, maintain_order=True
        )


def write_rows(
    rows: Iterable[Mapping[str, Any]], path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write rows as JSON lines, and what made them beside; `-`: to standard output, alone."""
    lines = (orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows)
    if path == "-":
        sys.stdout.buffer.writelines(lines)
        return
    beside = made_by_path(path)
    with whole_file(path, force=force) as file, whole_file(beside, force=force) as about:
        file.writelines(lines)
        about.write(orjson.dumps(made_by, option=orjson.OPT_INDENT_2))


def made_by_path(path: str) -> str:
    """Return where JSON lines have what made them, for they have no header."""
    return path.removesuffix(".jsonl") + ".meta.json"


def write_blocks(
    table: Table,
    blocks: Iterator[pl.DataFrame],
    path: str,
    made_by: dict[str, Any],
) -> None:
    """Write a table to Parquet as its blocks come, in the memory of one; an old file is replaced.

    Equal rows make equal bytes, whatever the blocks.
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
        frame = reading(path, lambda: pl.read_parquet(path, glob=False))
    else:
        frame = _json_lines(table, _content(path), where)
    return table.conform(frame, where)


def read_columns(path: str) -> pl.DataFrame:
    """Read a table of another program, whatever its columns: Parquet or JSON lines, also from `-`.

    Raises:
        InputError: the file is missing or of another kind.
    """
    if _is_parquet(path):
        return reading(path, lambda: pl.read_parquet(path, glob=False))
    try:
        return pl.read_ndjson(_content(path), infer_schema_length=None)
    except pl.exceptions.PolarsError:
        raise InputError(path, "neither Parquet nor JSON lines", "write it as one") from None


def scan_table(table: Table, path: str) -> pl.LazyFrame | None:
    """Return a lazy scan of a Parquet table, its columns checked; None for any other file."""
    if not _is_parquet(path):
        return None
    lazy = pl.scan_parquet(path, glob=False)
    table.check_columns(reading(path, lazy.collect_schema), path)
    return lazy


def made_by(path: str) -> dict[str, Any]:
    """Return what an artifact records of its making; empty where it records nothing."""
    if not _is_parquet(path):
        return {}
    recorded = reading(path, lambda: pl.read_parquet_metadata(path)).get(_METADATA_KEY)
    return dict(orjson.loads(recorded)) if recorded else {}


def _metadata(made_by: dict[str, Any]) -> dict[str, str]:
    return {_METADATA_KEY: orjson.dumps(made_by).decode()}


def _is_parquet(path: str) -> bool:
    """Return whether a file is Parquet, as all tables in object stores are."""
    return path != "-" and (remote(path) or head(path) == PARQUET_MAGIC)


def _content(path: str) -> bytes:
    return standard_input() if path == "-" else Path(path).read_bytes()


def reading(path: str, read: Callable[[], _T]) -> _T:
    """Return what is read from a Parquet file, or raise InputError where polars can't."""
    try:
        return read()
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError, OSError) as error:
        raise unreadable(path, error) from None


def _json_lines(table: Table, data: bytes, where: str) -> pl.DataFrame:
    if not data.strip():
        raise InputError(where, "empty", f"rerun {table.made_by}")
    try:
        frame = pl.read_ndjson(data, schema=table.columns)
    except _UNREADABLE:
        raise _wrong_kind(table, data, where) or _bad_line(table, data, where) from None
    # polars reads a column that no line has as nulls.
    first = next(line for line in io.BytesIO(data) if line.strip())
    columns = pl.read_ndjson(first).columns
    if table.columns.keys() - columns and (error := _wrong_kind(table, data, where)):
        raise error
    table.check_columns(columns, where)
    return frame


def _wrong_kind(table: Table, data: bytes, where: str) -> InputError | None:
    """Return the error for JSON of a kind that is known, and not this table."""
    from stages.tables.recognise import of_json, wrong_kind

    kind = of_json(data)
    if kind is None or kind.key == table.name:
        return None
    return InputError(where, *wrong_kind(table, kind, where))


def _bad_line(table: Table, data: bytes, where: str) -> InputError:
    """Find the first line that polars could not read, for it names none."""
    lines = data.splitlines()

    def fails(count: int) -> bool:
        return not _reads(b"\n".join(lines[:count]), table.columns)

    number = bisect_left(range(1, len(lines)), True, key=fails) + 1
    place, todo = f"{where}:{number}", f"rerun {table.made_by}"
    try:
        row = orjson.loads(lines[number - 1])
    except orjson.JSONDecodeError as error:
        return InputError(place, f"not JSON: {error.msg}", "mend the line")
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
