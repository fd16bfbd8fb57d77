"""Class every turn of traces into a tier and give it its reward (episodes -> TURNS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stages.artifacts import TURNS
from stages.core.arguments import PYTHON_REPR
from stages.core.tiers import CallFacts, Tiers
from stages.domains import Domain
from stages.matching import NO_MATCH, Match, Matcher, Side, agent_gold
from stages.traces.episode import Episode

SUCCESS = 1 - 1e-6  # an outcome from here on is a success


@dataclass
class Scored:
    """Turns as columns of TURNS, and counts of what was met on the way."""

    columns: dict[str, list[Any]] = field(
        default_factory=lambda: {name: [] for name in TURNS.columns}
    )
    episodes: int = 0  # that count
    excluded: Counter[str] = field(default_factory=Counter)  # left out, by reason
    calls: int = 0  # of the episodes that count
    notes: Counter[str] = field(default_factory=Counter)  # what was odd, by name
    known_gold: bool = False  # an episode's gold actions are known

    def frame(self) -> pl.DataFrame:
        """Return the turns as a table (TURNS)."""
        return TURNS.frame(self.columns)

    def tiers(self) -> dict[str, int]:
        """Return the turns of each tier over the episodes that count, most first."""
        status, tier = self.columns["status"], self.columns["tier"]
        counting = (t for t, s in zip(tier, status, strict=True) if s != "error")
        return dict(Counter(counting).most_common())


class Scorer:
    """Scores the episodes of one trace after another under one set of tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers, self._table = tiers, tiers.table()
        self._rank = {tier: i for i, tier in enumerate(tiers.rank)}
        self.scored = Scored()

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Score episodes whose tools are those of the domain."""
        matcher = Matcher(domain, self._tiers.arguments, tool_rules=self._tiers.tool_rules)
        for episode in episodes:
            self._add_episode(episode, domain, matcher)

    def _add_episode(self, episode: Episode, domain: Domain, matcher: Matcher) -> None:
        scored = self.scored
        counts = self._count(episode)
        scored.known_gold |= episode.gold is not None
        facts = self._judge(episode, domain, matcher, counts)
        first = 0
        for k, turn in enumerate(episode.turns):
            last = first + len(turn.calls)
            self._add_turn(episode, k, facts[first:last])
            first = last

    def _count(self, episode: Episode) -> bool:
        """Count the episode as scored or excluded, and return whether it counts."""
        scored = self.scored
        if episode.status == "error":
            scored.excluded["crashed or cut by infrastructure"] += 1
        elif not episode.turns:
            scored.excluded["no turn of the agent"] += 1
        else:
            scored.episodes += 1
            if episode.outcome is None:
                scored.notes["episodes without an outcome"] += 1
            return True
        return False

    def _judge(
        self, episode: Episode, domain: Domain, matcher: Matcher, counts: bool
    ) -> list[tuple[str, Match]]:
        """Return tier and match of every call of the episode, in order."""
        calls = [call for turn in episode.turns for call in turn.calls]
        if not calls:
            return []
        sides = [matcher.read(call) for call in calls]
        failed = [
            call.failed or not side.parsed.readable for call, side in zip(calls, sides, strict=True)
        ]
        gold = [matcher.read(action) for action in agent_gold(episode.gold)]
        if not gold:
            matches = [NO_MATCH] * len(calls)
        elif self._tiers.match == "any":
            matches = matcher.best(sides, gold)
        else:
            matches = matcher.one_to_one(sides, gold, failed)
        if counts:
            self._note_calls(sides, domain)
        judged: list[tuple[str, Match]] = []
        seen: set[tuple[str, str]] = set()
        for side, match, fails in zip(sides, matches, failed, strict=True):
            kind = domain.kind(side.name)
            call_key = (side.name, side.prepared.key)
            facts = CallFacts(match.kind, kind, "error" if fails else "ok", call_key in seen)
            judged.append((self._table[facts], match))
            if kind == "write" and not fails:
                seen.clear()  # the world has changed: to look again is no repetition
            seen.add(call_key)
        return judged

    def _note_calls(self, sides: list[Side], domain: Domain) -> None:
        self.scored.calls += len(sides)
        for side in sides:
            if side.parsed.problem is not None:
                repr_read = side.parsed.problem == PYTHON_REPR
                kind = "read as a Python literal" if repr_read else "unparseable, tiered as errors"
                self.scored.notes[f"arguments {kind}"] += 1
        if domain.guessed:
            self.scored.notes["calls whose tool kind was guessed from its name"] += len(sides)

    def _add_turn(self, episode: Episode, k: int, judged: list[tuple[str, Match]]) -> None:
        turn = episode.turns[k]
        columns = self.scored.columns
        tier, match = self._tiers.message, None
        if judged:
            tier, match = min(judged, key=lambda one: self._rank[one[0]])
            if episode.gold is None:
                match = None
        columns["source"].append(episode.source)
        columns["episode_id"].append(episode.episode_id)
        columns["task_id"].append(episode.task_id)
        columns["trial"].append(episode.trial)
        columns["group_id"].append(episode.group_id)
        columns["turn"].append(k)
        columns["tool_names"].append([call.name for call in turn.calls])
        columns["n_calls"].append(len(turn.calls))
        columns["tier"].append(tier)
        columns["match"].append(match.kind if match else None)
        columns["match_share"].append(match.share if match else None)
        columns["reward"].append(self._tiers.rewards[tier].of(match.share if match else 0.0))
        columns["outcome"].append(episode.outcome)
        columns["success"].append(None if episode.outcome is None else episode.outcome >= SUCCESS)
        columns["status"].append(episode.status)
        columns["n_tokens"].append(turn.n_tokens)
