"""Every table's declaration, and how artifacts are read and written.

Tables are Parquet on disk and JSON lines on pipes (`-`). An artifact on disk records what made it
(version, command, settings, seed, sha256 of its inputs) and appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import IO, Any, NotRequired, TypedDict, TypeVar

import orjson
import polars as pl

from stages.errors import InputError

PARQUET_MAGIC = b"PAR1"
_METADATA_KEY = "irc-cli"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Table:
    """Declaration of a table: its columns, the key of a row, and the rules every row obeys."""

    name: str
    columns: dict[str, pl.DataType]
    key: tuple[str, ...]
    made_by: str  # the command that writes it, named in errors
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
        try:
            frame = frame.select(pl.col(name).cast(to) for name, to in self.columns.items())
        except pl.exceptions.InvalidOperationError as error:
            what = str(error).splitlines()[0].lower()
            raise InputError(where, what, self._todo()) from None
        self.check_rows(frame, where)
        return frame

    def check_columns(self, schema: pl.Schema, where: str) -> None:
        """Raise InputError unless every column of this table is in the schema."""
        if missing := [name for name in self.columns if name not in schema]:
            names = ", ".join(f"'{name}'" for name in missing)
            raise InputError(where, f"not a {self.name} table: no column {names}", self._todo())

    def check_rows(self, frame: pl.DataFrame, where: str) -> None:
        """Raise InputError at the first row that breaks the key or a rule."""
        rules = {f"unique {' and '.join(self.key)}": pl.struct(self.key).is_first_distinct()}
        for rule, holds in (self.rules | rules).items():
            broken = frame.select((~holds.fill_null(True)).arg_true()).to_series()
            if len(broken):
                what = f"breaks rule '{rule}' ({len(broken):,} of {frame.height:,})"
                raise InputError(f"{where}:row {broken[0] + 1}", what, self._todo())

    def _todo(self) -> str:
        return f"rerun {self.made_by}"


TURNS = Table(
    name="turns",
    columns={
        "source": pl.String(),  # the trace it was read from
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "trial": pl.Int32(),
        "group_id": pl.String(),  # episodes sampled for one task under one policy
        "turn": pl.Int32(),  # 0-based position in the episode
        "tool_names": pl.List(pl.String()),  # empty: the turn called no tool
        "n_calls": pl.Int32(),
        "tier": pl.String(),
        "match": pl.String(),  # full | partial | none; null: no call, or gold actions unknown
        "match_share": pl.Float64(),  # share of the best gold action's arguments that agree
        "reward": pl.Float64(),  # dimensionless
        "outcome": pl.Float64(),  # of the whole episode, in [0, 1]
        "success": pl.Boolean(),  # outcome >= 1 - 1e-6
        "status": pl.String(),  # ok | truncated | error (left out of every statistic)
        "n_tokens": pl.Int32(),  # null: unknown
    },
    key=("episode_id", "turn"),
    made_by="irc-cli score",
    rules={
        "turn at least 0": pl.col("turn") >= 0,
        "outcome within [0, 1]": pl.col("outcome").is_between(0, 1),
        "reward finite": pl.col("reward").is_finite(),
        "status is ok, truncated or error": pl.col("status").is_in(["ok", "truncated", "error"]),
        "tier not null": pl.col("tier").is_not_null(),
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
    rules={"advantage finite": pl.col("advantage").is_finite()},
)

# Exact integer sums: shards computed anywhere add up to the sums of one run. A row with tier null
# sums over all of the task's episodes.
SUMS = Table(
    name="sums",
    columns={
        "task_id": pl.String(),
        "tier": pl.String(),
        "episodes": pl.Int64(),  # with the tier
        "successes": pl.Int64(),  # among them
        "turns": pl.Int64(),  # of the tier
        "turns_in_successes": pl.Int64(),
        "x": pl.Int64(),  # sum of the measure, in its unit (stages.sums.UNITS)
        "xx": pl.Int64(),  # sum of its squares
        "xo": pl.Int64(),  # sum over the successes
    },
    key=("task_id", "tier"),
    made_by="irc-cli calibrate --partial",
    rules={"successes at most episodes": pl.col("successes") <= pl.col("episodes")},
)

EPISODES = Table(
    name="episodes",
    columns={
        "source": pl.String(),
        "episode_id": pl.String(),
        "task_id": pl.String(),
        "trial": pl.Int32(),
        "success": pl.Boolean(),  # null: the episode is left out
        "turns": pl.Int32(),
        "tokens": pl.Int64(),  # that the policy wrote; null: unknown
        "gold_writes": pl.Int32(),  # writes that the task expects of the agent
        "gold_writes_done": pl.Int32(),
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
    messages: list[dict[str, Any]]  # assistant messages with n_tokens, null where unknown
    gold_actions: list[Mapping[str, Any]]
    required_info: list[str]
    tools: NotRequired[list[dict[str, Any]]]  # only of domains that do not ship


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


@contextmanager
def whole_file(path: str, *, force: bool) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under its name only when it is complete.

    Raises:
        InputError: the file exists and `force` is not given, or the target can't be written.
    """
    target = Path(path)
    refuse_existing(path, force=force)
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp makes files private; an artifact has the permissions any new file would have.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(target)
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def refuse_existing(path: str, *, force: bool) -> None:
    """Raise InputError when the output exists and may not be replaced, or has no folder."""
    target = Path(path)
    if target.is_dir():
        raise InputError(path, "is a directory", "name a file to write")
    if not target.parent.is_dir():
        raise InputError(path, f"no directory '{target.parent}'", "create it first")
    if target.exists() and not force:
        raise InputError(path, "exists already", "pass --force to replace it")


def _unwritable(path: str, error: OSError) -> InputError:
    reason = (error.strerror or str(error)).lower()
    return InputError(path, f"can't be written: {reason}", "free space or write somewhere else")


def write_table(
    table: Table, frame: pl.DataFrame, path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write a table: Parquet with its provenance, or JSON lines to standard output (`-`)."""
    frame = frame.select(list(table.columns))
    if path == "-":
        sys.stdout.write(frame.write_ndjson())
        return
    metadata = {_METADATA_KEY: orjson.dumps(made_by).decode()}
    with whole_file(path, force=force) as file:
        try:
            frame.write_parquet(file, metadata=metadata)
        except pl.exceptions.ComputeError as error:  # polars' word for a full disk
            raise OSError(str(error)) from None


def read_table(table: Table, path: str) -> pl.DataFrame:
    """Read a table from Parquet or JSON lines, `-` for standard input, and check every row.

    Raises:
        InputError: the file is missing, empty, of another kind, or breaks the declaration.
    """
    where = "standard input" if path == "-" else path
    if path != "-" and _head(path) == PARQUET_MAGIC:
        frame = _parquet(path, lambda: pl.read_parquet(path, glob=False))
    else:
        data = standard_input() if path == "-" else Path(path).read_bytes()
        frame = _json_lines(table, data, where)
    return table.conform(frame, where)


def read_columns(path: str) -> pl.DataFrame:
    """Read a table of another program, whatever its columns: Parquet or JSON lines.

    Raises:
        InputError: the file is missing or of another kind.
    """
    if _head(path) == PARQUET_MAGIC:
        return _parquet(path, lambda: pl.read_parquet(path, glob=False))
    try:
        return pl.read_ndjson(path, infer_schema_length=None)
    except pl.exceptions.PolarsError:
        raise InputError(path, "neither Parquet nor JSON lines", "write it as one") from None


def scan_table(table: Table, path: str) -> pl.LazyFrame | None:
    """Return a lazy scan of a Parquet table, its columns checked; None for any other file."""
    if path == "-" or _head(path) != PARQUET_MAGIC:
        return None
    lazy = pl.scan_parquet(path, glob=False)
    table.check_columns(_parquet(path, lazy.collect_schema), path)
    return lazy


def made_by(path: str) -> dict[str, Any]:
    """Return what an artifact records of its making; empty where it records nothing."""
    if path == "-" or _head(path) != PARQUET_MAGIC:
        return {}
    recorded = _parquet(path, lambda: pl.read_parquet_metadata(path)).get(_METADATA_KEY)
    return dict(orjson.loads(recorded)) if recorded else {}


@cache
def standard_input() -> bytes:
    """Return all of standard input; it can be read once but is needed for its digest too."""
    return sys.stdin.buffer.read()


def digest(path: str) -> str:
    """Return the sha256 of a file, or of standard input (`-`).

    Raises:
        InputError: the file can't be read.
    """
    if path == "-":
        return hashlib.sha256(standard_input()).hexdigest()
    _head(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet(path: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except (pl.exceptions.ComputeError, pl.exceptions.ColumnNotFoundError, OSError) as error:
        what = f"not readable as Parquet: {str(error).splitlines()[0].lower()}"
        raise InputError(path, what, "write the file again") from None


def _head(path: str) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(4)
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None
    except IsADirectoryError:
        raise InputError(path, "is a directory", "name a file") from None
    except OSError as error:
        raise InputError(path, (error.strerror or str(error)).lower(), "check the path") from None


def _json_lines(table: Table, data: bytes, where: str) -> pl.DataFrame:
    if not data.strip():
        raise InputError(where, "empty", f"rerun {table.made_by}")
    try:
        return pl.read_ndjson(data, schema=table.columns)
    except (pl.exceptions.ComputeError, pl.exceptions.SchemaError):
        raise _bad_line(table, data, where) from None


def _bad_line(table: Table, data: bytes, where: str) -> InputError:
    """Find the line that polars could not read, for it names none."""
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            return InputError(f"{where}:{number}", f"not JSON: {error.msg}", "mend the line")
        if not isinstance(row, dict):
            return InputError(f"{where}:{number}", "not an object", f"rerun {table.made_by}")
        try:
            pl.DataFrame([row], schema=table.columns)
        except (pl.exceptions.PolarsError, TypeError) as error:
            what = str(error).splitlines()[0].lower()
            return InputError(f"{where}:{number}", what, f"rerun {table.made_by}")
    return InputError(where, "not JSON lines", f"rerun {table.made_by}")
