"""The files of a rollout run: a journal while it runs, complete artifacts at its end.

Each episode is appended to `OUT.partial` when it ends, so a killed run loses only the running
episodes. The complete run is written in the order of its plan, OUT last:

    rollouts.jsonl            one episode per line (RolloutRow)
    rollouts.tokens.parquet   token ids and logprobs as sampled (TOKENS)
    rollouts.timing.jsonl     seconds of each episode and turn: everything that depends on the clock
    rollouts.meta.json        provenance (JSON lines have no header), the tools, and how the
                              prompt described them
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypedDict

import orjson
import polars as pl

from stages.core.limits import LARGEST
from stages.errors import InputError
from stages.rollout import Played
from stages.tables.artifacts import TOKENS, RolloutRow
from stages.tables.files import refuse_existing, whole_file
from stages.tables.paths import RunFiles
from stages.tables.state import parsed, read_state
from stages.tables.table_file import read_table, write_blocks

REPEATED_BY = (
    "irc_cli",
    "command",
    "settings",
    "seed",
    "inputs",
)  # the parts of the provenance that determine the episodes
BLOCK = 200  # turns whose tokens are in memory as Python objects; a turn has about a thousand

FORCE = "pass --force to start over"

Key = tuple[str, int]  # task id, trial


def run_id(made_by: Mapping[str, Any]) -> str:
    """Return the id of a run, a hash of everything that determines its episodes.

    Args:
        made_by: provenance of the run.

    Returns:
        Eight hex digits; a repetition of the run has the same id.
    """
    spec = {name: made_by[name] for name in REPEATED_BY}
    return hashlib.sha256(orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)).hexdigest()[:8]


class _MadeBy(TypedDict):
    """The required field of a run's provenance."""

    settings: dict[str, Any]


class _Tokens(TypedDict):
    """A row of TOKENS in the journal."""

    prompt_ids: list[int]
    token_ids: list[int]
    logprobs: list[float] | None


class _Line(TypedDict):
    """A line of the journal, with the fields of Played."""

    row: RolloutRow
    tokens: list[_Tokens]
    timing: dict[str, Any]


class Journal:
    """The journal of a run's episodes on disk; the last episode of a (task, trial) pair counts."""

    def __init__(self, files: RunFiles, made_by: dict[str, Any]) -> None:
        """Open an existing journal; see `open_journal`."""
        self._files, self._made_by = files, made_by
        self._places: dict[Key, int] = {}  # byte offset of each pair's line
        self._failed: set[Key] = set()  # pairs with status error
        end = self._index()
        self._file = files.partial.open("r+b", buffering=0)
        self._file.truncate(end)

    def done(self, key: Key) -> bool:
        """Return whether a pair has an episode without an error."""
        return key in self._places and key not in self._failed

    def append(self, played: Played) -> None:
        """Append an episode, so that it survives a crash of this process.

        Args:
            played: the episode.

        Raises:
            InputError: the disk is full or fails.
        """
        line = memoryview(orjson.dumps(played._asdict(), option=orjson.OPT_APPEND_NEWLINE))
        place = self._file.seek(0, os.SEEK_END)
        try:
            while line:  # an unbuffered write may be partial
                line = line[self._file.write(line) or 0 :]
        except OSError as error:
            what = f"can't be written: {(error.strerror or str(error)).lower()}"
            raise InputError(self._files.out, what, "free space, then pass --resume") from None
        self._note(_key(played.row), place, played.row["status"])

    def finish(
        self,
        order: Iterable[Key],
        tools: Sequence[dict[str, Any]],
        prompt: Mapping[str, str] | None = None,
    ) -> None:
        """Write the artifacts and delete the journal.

        Args:
            order: pairs in the order of the artifacts.
            tools: tools that the policy saw.
            prompt: how the prompt described the tools (record of Told); None: unknown.
        """
        tokens, timing, meta = self._files.sidecars
        keys = list(order)
        with (
            whole_file(self._files.out, force=True) as rows,
            whole_file(meta, force=True) as about,
            whole_file(timing, force=True) as times,
        ):
            for played in self._played(keys):
                rows.write(orjson.dumps(played.row, option=orjson.OPT_APPEND_NEWLINE))
                times.write(orjson.dumps(played.timing, option=orjson.OPT_APPEND_NEWLINE))
            # Only what determines the episodes, so that equal episodes give equal bytes.
            spec = {name: self._made_by[name] for name in REPEATED_BY}
            write_blocks(TOKENS, _blocks(self._played(keys)), tokens, spec)
            described = {"prompt": dict(prompt)} if prompt else {}
            document = {**self._made_by, "tools": tools, **described}
            about.write(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        self._places.clear()
        self.close()

    def rows(self) -> Iterator[RolloutRow]:
        """Return the finished episodes without errors, in the order of their first line."""
        done = [key for key in self._places if key not in self._failed]
        return (played.row for played in self._played(done))

    def close(self) -> None:
        """Close the journal; delete it if it holds no episode."""
        self._file.close()
        if not self._places:
            self._files.partial.unlink(missing_ok=True)

    def _played(self, keys: Iterable[Key]) -> Iterator[Played]:
        with self._files.partial.open("rb") as journal:
            for key in keys:
                journal.seek(self._places[key])
                yield Played(**orjson.loads(journal.readline()))

    def _index(self) -> int:
        """Index the episodes; return the end of the last complete line, as the last may be torn."""
        with self._files.partial.open("rb") as file:
            place = len(file.readline())
            for number, line in enumerate(file, 2):
                where = f"{self._files.partial}:{number}"
                try:
                    played = parsed(line, _Line, where, "delete the line")
                except InputError:
                    if file.read(1):
                        raise InputError(where, "broken", "delete the line") from None
                    break
                if not line.endswith(b"\n"):
                    break
                row, fit = played["row"], _fit(played["tokens"])
                self._note(_key(row), place, row["status"] if fit else "error")
                place += len(line)
        return place

    def _note(self, key: Key, place: int, status: str) -> None:
        self._places[key] = place
        (self._failed.add if status == "error" else self._failed.discard)(key)


def open_journal(files: RunFiles, made_by: dict[str, Any], *, resume: bool, force: bool) -> Journal:
    """Begin a run, or resume one that was interrupted or has failed episodes.

    Args:
        files: files of the run.
        made_by: its provenance; a run can be resumed only if REPEATED_BY is unchanged.
        resume: continue an existing run, if there is one.
        force: replace an existing run.

    Returns:
        The journal.

    Raises:
        InputError: there is a run and neither flag is given, or it is a different run.
    """
    begun = _header(files)
    if not resume:
        for path in (files.out, *files.sidecars):
            refuse_existing(path, force=force)
        if begun and not force:
            todo = "pass --resume to complete it, or --force to start over"
            raise InputError(files.out, "an unfinished run lies beside it", todo)
        _create(files, made_by, ())
    elif begun:
        _check_same(begun, made_by, files.out)
    elif Path(files.out).exists():
        _check_same(_read_meta(files), made_by, files.out)
        _create(files, made_by, _finished(files))
    else:
        _create(files, made_by, ())
    return Journal(files, made_by)


def _header(files: RunFiles) -> dict[str, Any] | None:
    """Return the journal's provenance; None without a journal or without a complete first line."""
    try:
        with files.partial.open("rb") as file:
            line = file.readline()
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(str(files.partial), reason, "move it") from None
    if not line.endswith(b"\n"):
        return None
    try:
        return dict(parsed(line, _MadeBy, str(files.partial), "delete it"))
    except InputError:
        raise InputError(str(files.partial), "not a journal of a run", "delete it") from None


def _create(files: RunFiles, made_by: dict[str, Any], episodes: Iterable[Played]) -> None:
    with whole_file(str(files.partial), force=True) as file:
        file.write(orjson.dumps(made_by, option=orjson.OPT_APPEND_NEWLINE))
        for played in episodes:
            file.write(orjson.dumps(played._asdict(), option=orjson.OPT_APPEND_NEWLINE))


def _read_meta(files: RunFiles) -> dict[str, Any]:
    meta = files.sidecars[-1]
    try:
        return dict(read_state(meta, _MadeBy, FORCE))
    except InputError:
        what = "missing or broken: what made the rollouts is unknown"
        raise InputError(meta, what, FORCE) from None


def _check_same(recorded: dict[str, Any], made_by: dict[str, Any], where: str) -> None:
    """Raise InputError with the first difference unless both provenances determine the same run."""
    old, new = ({**side, **side["settings"]} for side in (recorded, made_by))
    settings = {**recorded["settings"], **made_by["settings"]}
    for name in (*settings, "seed", "irc_cli", "inputs"):
        if old.get(name) != new.get(name):
            what = f"was made with {name} {_shown(old.get(name))}, not {_shown(new.get(name))}"
            raise InputError(where, what, "resume with the same settings, or pass --force")


def _shown(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


def _finished(files: RunFiles) -> Iterator[Played]:
    """Yield the episodes of a complete run, in the order of its file."""
    tokens, timing, _ = files.sidecars
    table = read_table(TOKENS, tokens).partition_by("episode_id", as_dict=True)
    with Path(files.out).open("rb") as rows, Path(timing).open("rb") as times:
        for number, (line, time) in enumerate(zip_longest(rows, times, fillvalue=b"null"), 1):
            row = parsed(line, RolloutRow, f"{files.out}:{number}", FORCE)
            times_of = parsed(time, dict[str, Any], f"{timing}:{number}", FORCE)
            frame = table.get((row["episode_id"],))
            yield Played(row, [] if frame is None else frame.to_dicts(), times_of)


def _blocks(episodes: Iterable[Played]) -> Iterator[pl.DataFrame]:
    """Yield the rows of TOKENS in frames of about BLOCK rows; at least one frame."""
    block: list[dict[str, Any]] = []
    for played in episodes:
        block += played.tokens
        if len(block) >= BLOCK:
            yield _tokens(block)
            block = []
    yield _tokens(block)


def _fit(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether ids fit TOKENS; an earlier version recorded ids without checking them."""
    lists = (ids for row in rows for ids in (row["prompt_ids"], row["token_ids"]))
    return all(0 <= min(ids, default=0) <= max(ids, default=0) <= LARGEST for ids in lists)


def _tokens(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})


def _key(row: Any) -> Key:
    return row["task_id"], row["trial"]
