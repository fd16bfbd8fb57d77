"""Classify every turn of traces into a tier and give it its reward (episodes -> TURNS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import orjson
import polars as pl

from stages.tables.artifacts import TURNS
from stages.tiers.classify import Classifier
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.rules import Reward, Tiers
from stages.traces.episode import SUCCESS, Episode
from stages.traces.identity import Renamed, settled
from stages.traces.notes import why_left_out

CHUNK = 1 << 16  # turns that are held as Python objects before they become columns on disk


def _empty() -> dict[str, list[Any]]:
    return {name: [] for name in TURNS.columns}


@dataclass
class Scored:
    """Turns of TURNS in memory that does not grow with them, and counts of what was met."""

    columns: dict[str, list[Any]] = field(default_factory=_empty)  # of the last turns
    episodes: int = 0  # that count
    excluded: Counter[str] = field(default_factory=Counter)  # left out, by reason
    without_turns: int = 0  # of those left out: no row tells of them
    calls: int = 0  # of the episodes that count
    notes: Counter[str] = field(default_factory=Counter)  # what was odd, by name
    failures: Counter[str] = field(default_factory=Counter)  # failed tool results, by rule
    known_gold: bool = False  # an episode's gold actions are known
    renamed: Renamed = field(default_factory=dict)  # tasks that got another name at the end
    _turns: Counter[str] = field(default_factory=Counter)  # of the episodes that count, by tier
    _tasks: set[tuple[str, str]] = field(default_factory=set)  # (source, task id) of these
    _retiered: tuple[Mapping[str, str], Mapping[str, Reward]] | None = None
    _folder: Path | None = None  # of the turns before the last ones
    _chunks: list[Path] = field(default_factory=list)

    def frame(self) -> pl.DataFrame:
        """Return the turns as a table (TURNS)."""
        return self.lazy().collect()

    @property
    def is_large(self) -> bool:
        """Whether the turns are more than memory should hold."""
        return bool(self._chunks)

    def lazy(self) -> pl.LazyFrame:
        """Return the turns with the names that tasks and tiers have at the end (TURNS)."""
        parts = [pl.scan_ipc(self._chunks)] if self._chunks else []
        frame = pl.concat([*parts, self._last().lazy()])
        if self._retiered:
            names, rewards = self._retiered
            paid = {tier: rewards[name].of(0.0) for tier, name in names.items()}
            frame = frame.with_columns(
                tier=pl.col("tier").replace_strict(names, return_dtype=pl.String),
                reward=pl.col("tier").replace_strict(paid, return_dtype=pl.Float64),
            )
        return settled(frame, self.renamed)

    def keep(self, episode: Episode, tiers: list[str]) -> None:
        """Count an episode's turns by their tiers, and move full columns to disk."""
        if episode.counts and tiers:
            self._turns.update(tiers)
            self._tasks.add((episode.source, episode.task))
        if len(self.columns["tier"]) >= CHUNK:
            if self._folder is None:
                self._folder = Path(mkdtemp(prefix="irc-cli-"))
                finalize(self, rmtree, self._folder, ignore_errors=True)
            self._chunks.append(self._folder / f"{len(self._chunks)}.arrow")
            self._last().write_ipc(self._chunks[-1], compression="lz4")
            self.columns = _empty()

    def _last(self) -> pl.DataFrame:
        # Lists of lists enter polars one Python list at a time; as JSON they are read at once.
        names = [orjson.dumps(names).decode() for names in self.columns["tool_names"]]
        lists = pl.Series(names, dtype=pl.String).str.json_decode(TURNS.columns["tool_names"])
        return TURNS.frame(self.columns | {"tool_names": lists})

    def rename_tiers(self, names: Mapping[str, str], rewards: Mapping[str, Reward]) -> None:
        """Call the tiers by other names, and pay their rewards; none depends on gold actions."""
        self._retiered = names, rewards

    def tasks(self) -> int:
        """Return the number of tasks of the episodes that count."""
        return len({self.renamed.get(place, place[1]) for place in self._tasks})

    def tiers(self) -> dict[str, int]:
        """Return the turns of each tier over the episodes that count, most first."""
        names = self._retiered[0] if self._retiered else {}
        turns = Counter[str]()
        for tier, count in self._turns.items():
            turns[names.get(tier, tier)] += count
        return dict(turns.most_common())


class Scorer:
    """Scores the episodes of one trace after another under one set of tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._classifiers = PerDomain(lambda domain: Classifier(tiers, domain))
        self.scored = Scored()

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Score episodes whose tools are those of the domain."""
        classifier = self._classifiers.of(domain)
        for episode in episodes:
            self._add_episode(episode, classifier)

    def _add_episode(self, episode: Episode, classifier: Classifier) -> None:
        self.scored.known_gold |= episode.gold is not None
        counts = self._count(episode)
        notes, failures = (
            (self.scored.notes, self.scored.failures)
            if counts
            else (Counter[str](), Counter[str]())
        )
        turns, columns = classifier.turns(episode, notes, failures), self.scored.columns
        tiers = [turn.tier for turn in turns]
        columns["tier"] += tiers
        columns["match"] += [turn.match and turn.match.kind for turn in turns]
        columns["match_share"] += [turn.match and turn.match.share for turn in turns]
        columns["reward"] += [turn.reward for turn in turns]
        self._add_columns(episode)
        self.scored.keep(episode, tiers)

    def _add_columns(self, episode: Episode) -> None:
        """Add what the trace itself says of the episode's turns."""
        turns, outcome = episode.turns, episode.outcome
        columns, n = self.scored.columns, len(episode.turns)
        columns["source"] += [episode.source] * n
        columns["episode_id"] += [episode.episode_id] * n
        columns["task_id"] += [episode.task] * n
        columns["trial"] += [episode.trial] * n
        columns["group_id"] += [episode.group] * n
        columns["domain"] += [episode.domain] * n
        columns["policy"] += [episode.policy] * n
        columns["turn"] += range(n)
        columns["tool_names"] += [[call.name for call in turn.calls] for turn in turns]
        columns["n_calls"] += [len(turn.calls) for turn in turns]
        columns["outcome"] += [outcome] * n
        columns["success"] += [None if outcome is None else outcome >= SUCCESS] * n
        columns["status"] += [episode.status] * n
        columns["n_tokens"] += [turn.n_tokens for turn in turns]

    def _count(self, episode: Episode) -> bool:
        """Count the episode as scored or excluded, and return whether it counts."""
        scored = self.scored
        scored.without_turns += not episode.turns
        if not episode.counts:
            scored.excluded[why_left_out(episode.status)] += 1
        elif not episode.turns:
            scored.excluded["no turn of the agent"] += 1
        else:
            scored.episodes += 1
            scored.calls += sum(len(turn.calls) for turn in episode.turns)
            if episode.outcome is None:
                scored.notes["episodes without an outcome"] += 1
            return True
        return False
