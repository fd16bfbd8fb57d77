"""Assign every turn of traces a tier and its reward (episodes -> TURNS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, NamedTuple
from weakref import finalize

import orjson
import polars as pl
from polars.io.plugins import register_io_source

from stages.tables.artifacts import TURNS
from stages.tables.files import TEMPORARY, TMPDIR, writing
from stages.tables.table_file import full_disk
from stages.tiers.classify import Classifier
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.rules import Reward, Tiers
from stages.traces.episode import SUCCESS, Episode
from stages.traces.identity import Renamed, settled
from stages.traces.notes import why_left_out

CHUNK = 1 << 16  # turns in memory as Python objects before they are written to disk


def _empty() -> dict[str, list[Any]]:
    return {name: [] for name in TURNS.columns}


class ScoredTurns(NamedTuple):
    """The turns of one episode: the columns of TURNS that vary within an episode."""

    tool_names: list[list[str]]
    n_tokens: list[int | None]
    tier: list[str]
    match: list[str | None]
    match_share: list[float | None]
    reward: list[float]


@dataclass
class Scored:
    """Scored turns (TURNS), spilled to disk so that memory stays bounded, and counts of them."""

    columns: dict[str, list[Any]] = field(default_factory=_empty)  # the turns not yet on disk
    episodes: int = 0  # episodes that count
    excluded: Counter[str] = field(default_factory=Counter)  # excluded episodes, by reason
    without_turns: int = 0  # excluded episodes without turns, and so without rows
    calls: int = 0  # of the episodes that count
    notes: Counter[str] = field(default_factory=Counter)  # oddities, by name
    failures: Counter[str] = field(default_factory=Counter)  # failed tool results, by rule
    known_gold: bool = False  # whether the gold actions of any episode are known
    renamed: Renamed = field(default_factory=dict)  # tasks that are renamed at the end
    _turns: Counter[str] = field(default_factory=Counter)  # of the episodes that count, by tier
    _tasks: set[tuple[str, str]] = field(default_factory=set)  # (source, task id) of these
    _retiered: tuple[Mapping[str, str], Mapping[str, Reward]] | None = None
    _folder: Path | None = None  # temporary folder of the chunks
    _chunks: list[Path] = field(default_factory=list)

    def frame(self) -> pl.DataFrame:
        """Return the turns as a table (TURNS)."""
        return self.lazy().collect()

    @property
    def is_large(self) -> bool:
        """Whether turns were spilled to disk."""
        return bool(self._chunks)

    def lazy(self) -> pl.LazyFrame:
        """Return the turns with the final names of tasks and tiers (TURNS)."""
        frame = self._last().lazy()
        if self._chunks:
            frame = register_io_source(lambda *_: self._parts(), schema=TURNS.columns)
        if self._retiered:
            names, rewards = self._retiered
            paid = {tier: rewards[name].of(0.0) for tier, name in names.items()}
            frame = frame.with_columns(
                tier=pl.col("tier").replace_strict(names, return_dtype=pl.String),
                reward=pl.col("tier").replace_strict(paid, return_dtype=pl.Float64),
            )
        return settled(frame, self.renamed)

    def add(self, episode: Episode, turns: ScoredTurns) -> None:
        """Add an episode's turns, and spill full columns to disk.

        Args:
            episode: the episode; its own turns are ignored.
            turns: its scored turns.
        """
        self.known_gold |= episode.gold is not None
        self._count(episode, turns)
        columns, n = self.columns, len(turns.tier)
        for name, values in turns._asdict().items():
            columns[name] += values
        outcome = episode.outcome
        columns["source"] += [episode.source] * n
        columns["episode_id"] += [episode.episode_id] * n
        columns["task_id"] += [episode.task] * n
        columns["trial"] += [episode.trial] * n
        columns["group_id"] += [episode.group] * n
        columns["domain"] += [episode.domain] * n
        columns["policy"] += [episode.policy] * n
        columns["turn"] += range(n)
        columns["n_calls"] += map(len, turns.tool_names)
        columns["outcome"] += [outcome] * n
        columns["success"] += [None if outcome is None else outcome >= SUCCESS] * n
        columns["status"] += [episode.status] * n
        if len(columns["tier"]) >= CHUNK:
            self._move_to_disk()

    def _count(self, episode: Episode, turns: ScoredTurns) -> None:
        """Count the episode as scored or excluded."""
        self.without_turns += not turns.tier
        if not episode.counts:
            self.excluded[why_left_out(episode.status)] += 1
        elif not turns.tier:
            self.excluded["no turn of the agent"] += 1
        else:
            self.episodes += 1
            self.calls += sum(map(len, turns.tool_names))
            self._turns.update(turns.tier)
            self._tasks.add((episode.source, episode.task))

    def _move_to_disk(self) -> None:
        with writing(TEMPORARY, TMPDIR):
            if self._folder is None:
                self._folder = Path(mkdtemp(prefix="irc-cli-"))
                finalize(self, rmtree, self._folder, ignore_errors=True)
            self._chunks.append(self._folder / f"{len(self._chunks)}.arrow")
            with self._chunks[-1].open("wb") as file, full_disk(file):
                self._last().write_ipc(file, compression="lz4")
        self.columns = _empty()

    def _parts(self) -> Iterator[pl.DataFrame]:
        """Yield the chunks on disk, then the last turns; one part is in memory at a time."""
        for chunk in self._chunks:
            yield pl.read_ipc(chunk.read_bytes())  # a scan would memory-map all of them
        yield self._last()

    def _last(self) -> pl.DataFrame:
        # polars converts nested Python lists one by one; decoding JSON is a single operation.
        names = [orjson.dumps(names).decode() for names in self.columns["tool_names"]]
        lists = pl.Series(names, dtype=pl.String).str.json_decode(TURNS.columns["tool_names"])
        return TURNS.frame(self.columns | {"tool_names": lists})

    def rename_tiers(self, names: Mapping[str, str], rewards: Mapping[str, Reward]) -> None:
        """Rename the tiers and pay other rewards; none may depend on gold actions.

        Args:
            names: new name of each tier.
            rewards: reward of each new name.
        """
        self._retiered = names, rewards

    def tasks(self) -> int:
        """Return the number of tasks of the episodes that count."""
        return len({self.renamed.get(place, place[1]) for place in self._tasks})

    def tiers(self) -> dict[str, int]:
        """Return the number of turns of each tier in the episodes that count, most first."""
        names = self._retiered[0] if self._retiered else {}
        turns = Counter[str]()
        for tier, count in self._turns.items():
            turns[names.get(tier, tier)] += count
        return dict(turns.most_common())


class Scorer:
    """Scorer of the episodes of any number of traces under one set of tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._classifiers = PerDomain(lambda domain: Classifier(tiers, domain))
        self.scored = Scored()

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Score the episodes of a domain."""
        for episode in episodes:
            self.scored.add(episode, self.score(episode, domain))

    def score(self, episode: Episode, domain: Domain) -> ScoredTurns:
        """Score an episode's turns; count its oddities if the episode counts."""
        scored = self.scored
        notes, failures = scored.notes, scored.failures
        if not (episode.counts and episode.turns):
            notes, failures = Counter[str](), Counter[str]()
        elif episode.outcome is None:
            notes["episodes without an outcome"] += 1
        turns = self._classifiers.of(domain).turns(episode, notes, failures)
        return ScoredTurns(
            tool_names=[[call.name for call in turn.calls] for turn in episode.turns],
            n_tokens=[turn.n_tokens for turn in episode.turns],
            tier=[turn.tier for turn in turns],
            match=[turn.match and turn.match.kind for turn in turns],
            match_share=[turn.match and turn.match.share for turn in turns],
            reward=[turn.reward for turn in turns],
        )
