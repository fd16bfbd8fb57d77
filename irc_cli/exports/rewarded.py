"""Shared by the formats with a reward per turn: files, episodes and report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias

import polars as pl

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.exports.conversions import Conversion
from irc_cli.notes import check_notes
from irc_cli.traces import TraceOptions, TraceReader
from stages.errors import InputError
from stages.exports.credits import Earned, check_credits, earned
from stages.exports.sequences import Paid, paid_sequences, tokens_of
from stages.settings import Setting
from stages.tables.artifacts import TURNS
from stages.tables.inspected import inspected_advantages
from stages.tables.paths import RunFiles
from stages.tables.table_file import read_table
from stages.tables.turn_arrays import turn_arrays
from stages.traces.notes import left_out, note_left_out
from stages.training.inputs import (
    check_logprobs,
    check_tokens,
    is_rollouts,
    read_rollouts,
    without_tokens,
)

Row: TypeAlias = dict[str, Any]
Made: TypeAlias = Callable[[Row, Earned | None, Counter[str]], Row]


@dataclass(frozen=True)
class RewardFiles:
    """Files with the rewards of turns."""

    turns: Annotated[
        str, Setting("Turns of the episodes, from irc-cli score.", options.INPUT, metavar="FILE")
    ]
    advantages: Annotated[
        str | None,
        Setting(
            "Advantages from irc-cli calibrate, whose rewards are written; default: the rewards in "
            "the turns.",
            options.INPUT,
            metavar="FILE",
        ),
    ] = None

    @property
    def paths(self) -> list[str]:
        """The given files."""
        return [path for path in (self.turns, self.advantages) if path]

    def earned(self) -> dict[str, Earned]:
        """Return the rewards of each counted episode with an outcome.

        Raises:
            InputError: a file is missing or broken, or the advantages are of other turns.
        """
        scored = read_table(TURNS, self.turns)
        weighed = None
        if self.advantages:
            weighed = inspected_advantages(self.advantages, turn_arrays(scored), self.turns)
        return earned(scored, weighed)


def write_episodes(
    command: str,
    made: Made,
    traces: list[str],
    files: RewardFiles,
    out: str | None,
    source: TraceOptions,
    printing: options.Writing,
    seed: int,
) -> None:
    """Write a line per episode of traces.

    Args:
        command: name of the command, such as "export verifiers".
        made: makes an episode's line from its row and its rewards, and adds to the notes.
        traces: paths of the traces.
        files: files with the rewards of their turns.
        out: path of the JSON lines; None: nothing is written.
        source: options of reading the traces.
        printing: what to show, and whether to replace files.
        seed: seed to record.

    Raises:
        InputError: a file is missing or broken, or the files do not go together.
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    gains = files.earned()
    conversion = Conversion(command, traces, source, out, printing)
    n_turns = {
        e.episode_id: len(e.turns)
        for e in conversion.episodes
        if e.counts and e.turns and e.outcome is not None
    }
    known = ((name, turn) for name, gain in gains.items() for turn in range(len(gain.raw)))
    check_credits(known, n_turns, files.turns)
    notes = conversion.notes
    lines = [
        made(row, gains[row["episode_id"]] if row["episode_id"] in n_turns else None, notes)
        for row in conversion.rows()
    ]
    with conversion.writing(seed, files.paths) as made_by:
        writing.write_lines(lines, out, made_by, force=printing.force)
    turns = sum(n_turns.values())
    document = {"episodes": len(lines), "turns_with_reward": turns}
    conversion.report(document, f"{len(lines):,} episodes, {turns:,} turns with a reward")


class Group(NamedTuple):
    """An episode's place in its group."""

    group_id: str
    place: int  # 0-based
    truncated: bool


Read: TypeAlias = tuple[dict[str, Group], pl.DataFrame, dict[str, str]]


def write_sequences(
    command: str,
    made: Callable[[Paid, Group], Row],
    rollouts: str,
    files: RewardFiles,
    out: str | None,
    printing: options.Writing,
    seed: int,
) -> None:
    """Write a line per token sequence of rollouts.

    Args:
        command: name of the command, such as "export areal".
        made: makes the line of a sequence.
        rollouts: path of the rollouts, with their tokens beside them, or of any trace that holds
            tokens.
        files: files with the rewards of their turns.
        out: path of the JSON lines; None: nothing is written.
        printing: what to show, and whether to replace files.
        seed: seed to record.

    Raises:
        InputError: a file is missing or broken, tokens are missing, or the files do not go
            together.
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    notes, gains = Counter[str](), files.earned()
    read = _played if is_rollouts(rollouts) else _traced
    groups, tokens, sources = read(rollouts, notes, quiet=printing.quiet)
    without = groups.keys() - gains.keys()
    notes += left_out({"no reward in the turns": len(without)})
    wanted = {episode: gains[episode] for episode in groups if episode in gains}
    if not wanted:
        what = f"has no turns of the episodes of {rollouts}"
        raise InputError(files.turns, what, f"rerun irc-cli score {rollouts}")
    paid = paid_sequences(tokens, wanted, rollouts)
    rows = [made(part, groups[part.tokens.episode_id]) for part in paid]
    if unknown := sum(part.logprobs is None for part in paid):
        notes["sequences whose logprobs are unknown"] = unknown
    check_notes(notes, strict=printing.strict)
    inputs = writing.digests([rollouts, *files.paths]) | sources
    writing.write_lines(rows, out, console.made_by(command, {}, seed, inputs), force=printing.force)
    document = {"rows": len(rows), "episodes": len(wanted)}
    line = f"{len(rows):,} sequences of {len(wanted):,} episodes"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)


def _played(path: str, notes: Counter[str], *, quiet: bool) -> Read:
    """Return groups and tokens of rollouts, and the digest of the file with the tokens."""
    played = read_rollouts(path, notes)
    check_tokens(played)
    named = ((row["episode_id"], row["group_id"], row["status"]) for row in played.episodes)
    return _groups(named), played.tokens, writing.digests([RunFiles(path).sidecars[0]])


def _traced(path: str, notes: Counter[str], *, quiet: bool) -> Read:
    """Return groups and tokens of a trace of any format, and its digest."""
    reader = TraceReader([path], quiet=quiet)
    episodes = [episode for episode, _ in reader]
    notes += reader.notes
    for episode in episodes:
        note_left_out(episode, notes)
    counted = [episode for episode in episodes if episode.counts]
    tokens = tokens_of(counted, path)
    check_logprobs(tokens, path)
    if missing := len(counted) - tokens["episode_id"].n_unique():
        raise InputError(path, *without_tokens(missing, len(counted)))
    return _groups((e.episode_id, e.group, e.status) for e in counted), tokens, reader.digests


def _groups(named: Iterable[tuple[str, str, str]]) -> dict[str, Group]:
    """Return each episode's place in its group, from (episode_id, group_id, status)."""
    groups, places = dict[str, Group](), Counter[str]()
    for episode, name, status in named:
        groups[episode] = Group(name, places[name], status == "truncated")
        places[name] += 1
    return groups
