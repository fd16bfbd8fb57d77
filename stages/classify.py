"""The tier, the match and the reward of every turn of an episode, by its calls."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from stages.core.arguments import PYTHON_REPR
from stages.core.payment import first_turns
from stages.core.tiers import Tiers
from stages.domains import Domain
from stages.matching import NO_MATCH, Match, Matcher, Side, agent_gold
from stages.traces.episode import Episode, Turn

_RESULT = {False: "ok", True: "error"}

Judged = tuple[str, Match]  # tier and match of a call


class Classed(NamedTuple):
    """What a turn is, and what it is worth."""

    tier: str
    match: Match | None  # of its best-ranked call; None: no call, or gold actions unknown
    reward: float  # dimensionless


class Classifier:
    """Classes the turns of one domain's episodes under one set of tiers."""

    def __init__(self, tiers: Tiers, domain: Domain) -> None:
        self._tiers, self._domain = tiers, domain
        self._matcher = Matcher(domain, tiers.arguments, tool_rules=tiers.tool_rules)
        self._table = {tuple(facts): tier for facts, tier in tiers.table().items()}
        self._rank = {tier: i for i, tier in enumerate(tiers.rank)}
        self._tests_repeats = any("repeat" in rule.when for rule in tiers.rules)

    def turns(self, episode: Episode, notes: Counter[str]) -> list[Classed]:
        """Class every turn of an episode.

        Args:
            episode: whose tools are those of the domain.
            notes: counts what was odd about its calls.
        """
        turns = self._by_turn(episode.turns, self._judge(episode, notes))
        if episode.gold is None:
            turns = [(tier, None) for tier, _ in turns]
        rewards = self._tiers.rewards
        classed = [
            Classed(tier, match, rewards[tier].of(match.share if match else 0))
            for tier, match in turns
        ]
        return classed if self._tiers.pay == "turn" else _paid_once(classed)

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

    def _judge(self, episode: Episode, notes: Counter[str]) -> list[Judged]:
        """Return tier and match of every call of the episode, in order."""
        calls = [call for turn in episode.turns for call in turn.calls]
        if not calls:
            return []
        matcher = self._matcher
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
        self._note_calls(sides, notes)
        kinds = [self._domain.kind(side.name) for side in sides]
        repeats = _repeats(sides, kinds, failed) if self._tests_repeats else [False] * len(sides)
        return [
            (self._table[match.kind, kind, _RESULT[fails], repeat], match)
            for match, kind, fails, repeat in zip(matches, kinds, failed, repeats, strict=True)
        ]

    def _note_calls(self, sides: list[Side], notes: Counter[str]) -> None:
        for side in sides:
            if side.parsed.problem is not None:
                repr_read = side.parsed.problem == PYTHON_REPR
                kind = "read as a Python literal" if repr_read else "unparseable, tiered as errors"
                notes[f"arguments {kind}"] += 1
        if self._domain.guessed:
            notes["calls whose tool kind was guessed from its name"] += len(sides)


def _paid_once(turns: list[Classed]) -> list[Classed]:
    """Return the turns of an episode with a reward for the first of each tier only."""
    first = first_turns(turn.tier for turn in turns)
    return [
        turn if pays else turn._replace(reward=0.0) for turn, pays in zip(turns, first, strict=True)
    ]


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
