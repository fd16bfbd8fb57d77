"""Class every turn of traces into a tier and give it its reward (episodes -> TURNS)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import orjson
import polars as pl

from stages.artifacts import TURNS
from stages.core.arguments import PYTHON_REPR
from stages.core.tiers import Tiers
from stages.domains import Domain
from stages.matching import NO_MATCH, Match, Matcher, Side, agent_gold
from stages.traces.episode import Episode, Turn

SUCCESS = 1 - 1e-6  # an outcome from here on is a success
_RESULT = {False: "ok", True: "error"}

Judged = tuple[str, Match]  # tier and match of a call


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
    known_gold: bool = False  # an episode's gold actions are known

    def frame(self) -> pl.DataFrame:
        """Return the turns as a table (TURNS)."""
        # Lists of lists enter polars one Python list at a time; as JSON they are read at once.
        names = [orjson.dumps(names).decode() for names in self.columns["tool_names"]]
        lists = pl.Series(names, dtype=pl.String).str.json_decode(TURNS.columns["tool_names"])
        return TURNS.frame(self.columns | {"tool_names": lists})

    def tiers(self) -> dict[str, int]:
        """Return the turns of each tier over the episodes that count, most first."""
        status, tier = self.columns["status"], self.columns["tier"]
        counting = (t for t, s in zip(tier, status, strict=True) if s != "error")
        return dict(Counter(counting).most_common())


class Scorer:
    """Scores the episodes of one trace after another under one set of tiers."""

    def __init__(self, tiers: Tiers) -> None:
        self._tiers = tiers
        self._table = {tuple(facts): tier for facts, tier in tiers.table().items()}
        self._rank = {tier: i for i, tier in enumerate(tiers.rank)}
        self._tests_repeats = any("repeat" in rule.when for rule in tiers.rules)
        self.scored = Scored()

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Score episodes whose tools are those of the domain."""
        matcher = Matcher(domain, self._tiers.arguments, tool_rules=self._tiers.tool_rules)
        for episode in episodes:
            self._add_episode(episode, domain, matcher)

    def _add_episode(self, episode: Episode, domain: Domain, matcher: Matcher) -> None:
        self.scored.known_gold |= episode.gold is not None
        judged = self._judge(episode, domain, matcher, counts=self._count(episode))
        turns = self._by_turn(episode.turns, judged)
        if episode.gold is None:
            turns = [(tier, None) for tier, _ in turns]
        rewards, columns = self._tiers.rewards, self.scored.columns
        columns["tier"] += [tier for tier, _ in turns]
        columns["match"] += [match and match.kind for _, match in turns]
        columns["match_share"] += [match and match.share for _, match in turns]
        columns["reward"] += [
            rewards[tier].of(match.share if match else 0) for tier, match in turns
        ]
        self._add_columns(episode)

    def _by_turn(self, turns: list[Turn], judged: list[Judged]) -> list[tuple[str, Match | None]]:
        """Return tier and match of each turn: of its best-ranked call, of equals the closest."""
        message: tuple[str, Match | None] = (self._tiers.message, None)
        of_turns: list[tuple[str, Match | None]] = []
        first = 0
        for turn in turns:
            last = first + len(turn.calls)
            if last - first > 1:
                best = min(judged[first:last], key=lambda one: (self._rank[one[0]], -one[1].share))
                of_turns.append(best)
            else:
                of_turns.append(judged[first] if last > first else message)
            first = last
        return of_turns

    def _add_columns(self, episode: Episode) -> None:
        """Add what the trace itself says of the episode's turns."""
        turns, outcome = episode.turns, episode.outcome
        columns, n = self.scored.columns, len(episode.turns)
        columns["source"] += [episode.source] * n
        columns["episode_id"] += [episode.episode_id] * n
        columns["task_id"] += [episode.task_id] * n
        columns["trial"] += [episode.trial] * n
        columns["group_id"] += [episode.group_id] * n
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
        self, episode: Episode, domain: Domain, matcher: Matcher, *, counts: bool
    ) -> list[Judged]:
        """Return tier and match of every call of the episode, in order."""
        calls = [call for turn in episode.turns for call in turn.calls]
        if not calls:
            return []
        sides = [matcher.read(call) for call in calls]
        failed = [
            call.failed or not side.parsed.readable for call, side in zip(calls, sides, strict=True)
        ]
        gold = [matcher.read_gold(action) for action in agent_gold(episode.gold)]
        if not gold:
            matches = [NO_MATCH] * len(calls)
        elif self._tiers.match == "any":
            matches = matcher.best(sides, gold)
        else:
            matches = matcher.one_to_one(sides, gold, failed)
        if counts:
            self._note_calls(sides, domain)
        kinds = [domain.kind(side.name) for side in sides]
        repeats = _repeats(sides, kinds, failed) if self._tests_repeats else [False] * len(sides)
        return [
            (self._table[match.kind, kind, _RESULT[fails], repeat], match)
            for match, kind, fails, repeat in zip(matches, kinds, failed, repeats, strict=True)
        ]

    def _note_calls(self, sides: list[Side], domain: Domain) -> None:
        self.scored.calls += len(sides)
        for side in sides:
            if side.parsed.problem is not None:
                repr_read = side.parsed.problem == PYTHON_REPR
                kind = "read as a Python literal" if repr_read else "unparseable, tiered as errors"
                self.scored.notes[f"arguments {kind}"] += 1
        if domain.guessed:
            self.scored.notes["calls whose tool kind was guessed from its name"] += len(sides)


def _repeats(sides: list[Side], kinds: list[str], failed: list[bool]) -> list[bool]:
    """Return which calls repeat an earlier one with no write in between."""
    repeats, seen = [], set[tuple[str, str]]()
    for side, kind, fails in zip(sides, kinds, failed, strict=True):
        call = (side.name, side.key)
        repeats.append(call in seen)
        if kind == "write" and not fails:
            seen.clear()  # the world has changed: to look again is no repetition
        seen.add(call)
    return repeats
