"""Classification of turns: the tier, match and reward of every turn of an episode."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from stages.core.arguments import PYTHON_REPR
from stages.core.payment import first_turns
from stages.tiers.domains import Domain
from stages.tiers.matching import NO_MATCH, Match, Matcher, Side, agent_gold
from stages.tiers.rules import Tiers
from stages.traces.episode import Episode, Turn

_NAMED = 5  # tools that each kind of note lists by name
_RESULT = {False: "ok", True: "error"}

Judged = tuple[str, Match]  # tier and match of a call


class Classed(NamedTuple):
    """The classification of a turn."""

    tier: str
    match: Match | None  # of its best-ranked call; None: no call, or unknown gold actions
    reward: float  # dimensionless


class KindNotes:
    """Counter of calls of tools whose kind is guessed or unknown, for one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._named: dict[str, set[str]] = {}  # tools that notes name

    def add(self, what: str, tools: list[str], kinds: list[str], notes: Counter[str]) -> None:
        """Count the calls or gold actions whose tool has no stated kind.

        Args:
            what: what is counted, for example "calls".
            tools: tool name of each.
            kinds: assumed kind of each.
            notes: the counter to update.
        """
        if self._domain.guessed:
            for tool, kind in zip(tools, kinds, strict=True):
                if self._domain.guesses(tool):
                    notes[self._note(what, tool, kind)] += 1

    def _note(self, what: str, tool: str, kind: str) -> str:
        """Return the note on a tool; it names only the first few tools."""
        known = "unknown" if kind == "unknown" else "guessed from its name"
        heading = f"{what} whose tool kind is {known}"
        named = self._named.setdefault(heading, set())
        if tool not in named and len(named) == _NAMED:
            return f"{heading}: other tools"
        named.add(tool)
        guess = "" if kind == "unknown" else f" ({kind})"
        return f"{heading}: {tool}{guess}"


class Classifier:
    """Classifier of the turns of one domain's episodes under one set of tiers."""

    def __init__(self, tiers: Tiers, domain: Domain) -> None:
        self._tiers, self._domain = tiers, domain
        self._matcher = Matcher(domain, tiers.arguments, tool_rules=tiers.tool_rules)
        self._table = {tuple(facts): tier for facts, tier in tiers.table().items()}
        self._rank = {tier: i for i, tier in enumerate(tiers.rank)}
        self._fixed = {t: reward.of(0) for t, reward in tiers.rewards.items() if not reward.share}
        self._kind_notes = KindNotes(domain)
        self._tests_repeats = any("repeat" in rule.when for rule in tiers.rules)

    def turns(
        self, episode: Episode, notes: Counter[str], failures: Counter[str] | None = None
    ) -> list[Classed]:
        """Classify every turn of an episode.

        Args:
            episode: an episode of the classifier's domain.
            notes: counter of oddities of the calls, updated in place.
            failures: counter of failed results by rule, updated in place.

        Returns:
            The classification of each turn, in order.
        """
        if failures is None:
            failures = Counter()
        turns = self._by_turn(episode.turns, self._judge(episode, notes, failures))
        if episode.gold is None:
            turns = [(tier, None) for tier, _ in turns]
        classed = [Classed(tier, match, self._reward(tier, match)) for tier, match in turns]
        return classed if self._tiers.pay == "turn" else _paid_once(classed)

    def _reward(self, tier: str, match: Match | None) -> float:
        if tier in self._fixed:
            return self._fixed[tier]
        return self._tiers.rewards[tier].of(match.share if match else 0)

    def _by_turn(self, turns: list[Turn], judged: list[Judged]) -> list[tuple[str, Match | None]]:
        """Return tier and match of each turn's best-ranked call; ties go to the closest match."""
        message: tuple[str, Match | None] = (self._tiers.message, None)
        of_turns: list[tuple[str, Match | None]] = []
        first = 0
        for turn in turns:
            last = first + len(turn.calls)
            if last - first > 1:
                best = min(
                    judged[first:last], key=lambda call: (self._rank[call[0]], -call[1].share)
                )
                of_turns.append(best)
            else:
                of_turns.append(judged[first] if last > first else message)
            first = last
        return of_turns

    def _judge(self, episode: Episode, notes: Counter[str], failures: Counter[str]) -> list[Judged]:
        """Return tier and match of every call of the episode, in order."""
        calls = [call for turn in episode.turns for call in turn.calls]
        if not calls:
            return []
        matcher = self._matcher
        sides = [matcher.read(call) for call in calls]
        rule = self._domain.failures.rule
        failed_by = [rule(call.flagged, call.result) for call in calls]
        failures.update(filter(None, failed_by))
        failed = [
            by is not None or not side.parsed.readable
            for by, side in zip(failed_by, sides, strict=True)
        ]
        gold = [matcher.read_gold(action) for action in agent_gold(episode.gold)]
        if not gold:
            matches = [NO_MATCH] * len(calls)
        elif self._tiers.match == "any":
            matches = matcher.best(sides, gold)
        else:
            matches = matcher.one_to_one(sides, gold, failed)
        self._note_calls(sides, notes)
        repeats = _repeats(sides, failed) if self._tests_repeats else [False] * len(sides)
        return [
            (self._table[match.kind, side.kind, _RESULT[fails], repeat, side.exists], match)
            for match, side, fails, repeat in zip(matches, sides, failed, repeats, strict=True)
        ]

    def _note_calls(self, sides: list[Side], notes: Counter[str]) -> None:
        for problem in filter(None, (side.parsed.problem for side in sides)):
            repr_read = problem == PYTHON_REPR
            what = "read as a Python literal" if repr_read else "unparseable, tiered as errors"
            notes[f"arguments {what}"] += 1
        names, kinds = [side.name for side in sides], [side.kind for side in sides]
        self._kind_notes.add("calls", names, kinds, notes)


def _repeats(sides: list[Side], failed: list[bool]) -> list[bool]:
    """Return which calls repeat an earlier one with no write in between."""
    repeats, seen = [], set[tuple[str, str]]()
    several = Counter([side.name for side in sides])
    for side, fails in zip(sides, failed, strict=True):
        call = (side.name, side.key if several[side.name] > 1 else "")
        repeats.append(call in seen)
        if not fails and (side.kind == "write" or (side.kind == "unknown" and side.exists)):
            seen.clear()  # the environment may have changed, so looking again is no repetition
        seen.add(call)
    return repeats


def _paid_once(turns: list[Classed]) -> list[Classed]:
    """Return the turns of an episode with rewards only for the first turn of each tier."""
    first = first_turns(turn.tier for turn in turns)
    return [
        turn if pays else turn._replace(reward=0.0) for turn, pays in zip(turns, first, strict=True)
    ]
