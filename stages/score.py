"""Class every turn of traces into a tier and give it its reward (episodes -> TURNS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from stages.core.statuses import LEFT_OUT
from stages.tables.artifacts import TURNS
from stages.tiers.classify import Classifier
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.rules import Reward, Tiers
from stages.traces.episode import SUCCESS, Episode
from stages.traces.identity import Renamed, settled
from stages.traces.notes import why_left_out


@dataclass
class Scored:
    """Turns as columns of TURNS, and counts of what was met on the way."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in TURNS.columns}
    )
    episodes: int = 0  # that count
    excluded: Counter[str] = field(default_factory=Counter)  # left out, by reason
    without_turns: int = 0  # of those left out: no row tells of them
    calls: int = 0  # of the episodes that count
    notes: Counter[str] = field(default_factory=Counter)  # what was odd, by name
    failures: Counter[str] = field(default_factory=Counter)  # failed tool results, by rule
    known_gold: bool = False  # an episode's gold actions are known
    renamed: Renamed = field(default_factory=dict)  # tasks that got another name at the end

    def frame(self) -> pl.DataFrame:
        """Return the turns as a table (TURNS)."""
        # Lists of lists enter polars one Python list at a time; as JSON they are read at once.
        names = [orjson.dumps(names).decode() for names in self.columns["tool_names"]]
        lists = pl.Series(names, dtype=pl.String).str.json_decode(TURNS.columns["tool_names"])
        frame = TURNS.frame(self.columns | {"tool_names": lists})
        return settled(frame, self.renamed)

    def rename_tiers(self, names: Mapping[str, str], rewards: Mapping[str, Reward]) -> None:
        """Call the tiers by other names, and pay their rewards; none depends on gold actions."""
        tiers = [names[tier] for tier in self.columns["tier"]]
        self.columns["tier"] = tiers
        self.columns["reward"] = [rewards[tier].of(0.0) for tier in tiers]

    def tasks(self) -> int:
        """Return the number of tasks of the episodes that count."""
        columns = (self.columns[name] for name in ("source", "task_id", "status"))
        rows = {row[:2] for row in zip(*columns, strict=True) if row[2] not in LEFT_OUT}
        return len({self.renamed.get(row, row[1]) for row in rows})

    def tiers(self) -> dict[str, int]:
        """Return the turns of each tier over the episodes that count, most first."""
        status, tier = self.columns["status"], self.columns["tier"]
        counting = (t for t, s in zip(tier, status, strict=True) if s not in LEFT_OUT)
        return dict(Counter(counting).most_common())


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
        columns["tier"] += [turn.tier for turn in turns]
        columns["match"] += [turn.match and turn.match.kind for turn in turns]
        columns["match_share"] += [turn.match and turn.match.share for turn in turns]
        columns["reward"] += [turn.reward for turn in turns]
        self._add_columns(episode)

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
