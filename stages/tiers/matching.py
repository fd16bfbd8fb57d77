"""Matching of an episode's calls with the task's gold actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from stages.core.arguments import (
    NO_RULES,
    Mode,
    Parsed,
    Prepared,
    ToolRules,
    bfcl_answer,
    canonical,
    equal,
    matched_arguments,
    parse_arguments,
    prepare,
    share,
)
from stages.tiers.domains import Domain
from stages.traces.episode import Call, GoldAction

FULL, PARTIAL, NONE = "full", "partial", "none"
_REMEMBERED = 100_000  # most entries of each cache

# Weights of the one-to-one assignment: as many full matches as possible, then the largest matched
# shares; among equal matches, calls that worked, then earlier calls.
_FULL_WEIGHT, _FAILED_COSTS, _LATER_COSTS = 1e3, 1e-3, 1e-6
_SEARCHED = 6  # up to so many gold actions, trying all pairings is faster than importing scipy

Weights = Mapping[tuple[int, int], float]  # by positions of call and gold action


class Side:
    """A call or a gold action with parsed arguments, prepared for comparison on first use."""

    __slots__ = ("_key", "_prepared", "_rules", "compare_args", "exists", "kind", "name", "parsed")

    def __init__(self, name: str, parsed: Parsed, domain: Domain, rules: ToolRules) -> None:
        self.name, self.parsed, self._rules = name, parsed, rules
        self.kind, self.exists = domain.kind(name, parsed.value), domain.has(name)
        self.compare_args: tuple[str, ...] | None = None
        self._prepared: Prepared | None = None
        self._key: str | None = None

    @property
    def prepared(self) -> Prepared:
        """The arguments as `deep` compares them; unparseable ones have no items."""
        if self._prepared is None:
            self._prepared = prepare(self.parsed.value, self._rules)
        return self._prepared

    @property
    def key(self) -> str:
        """Text that is equal for calls that repeat each other; ignored free text counts here."""
        if self._key is None:
            ignores = bool(self._rules.ignore)
            self._key = canonical(self.parsed.value) if ignores else self.prepared.key
        return self._key


class Match(NamedTuple):
    """How a call matches the gold actions."""

    kind: str  # full | partial | none
    share: float = 0.0  # share of the gold action's arguments that the call has equal
    gold: int | None = None  # position of that gold action; None: none of its name, or none left


NO_MATCH, _FULL_MATCH = Match(NONE), Match(FULL, 1.0)


class Matcher:
    """Comparison of calls with gold actions in one mode, with or without the tools' own rules."""

    def __init__(self, domain: Domain, mode: Mode = "deep", *, tool_rules: bool = False) -> None:
        self._domain, self._mode = domain, mode
        self._rules = domain.rules if tool_rules else {}
        # Trials of a task repeat its gold actions and many calls verbatim, so results are cached.
        self._sides: dict[tuple[str, str | bytes], Side] = {}
        self._matches: dict[tuple[Side, Side], Match] = {}

    def read(self, action: Call | GoldAction) -> Side:
        """Read the arguments of a call or a gold action."""
        arguments = action.arguments
        key = action.name, arguments if type(arguments) is str else _written(arguments)
        side = self._sides.get(key)
        if side is None:
            side = self._side(action.name, parse_arguments(arguments))
            if len(self._sides) < _REMEMBERED:
                self._sides[key] = side
        return side

    def _side(self, name: str, parsed: Parsed) -> Side:
        return Side(name, parsed, self._domain, self._rules.get(name, NO_RULES))

    def read_gold(self, action: GoldAction) -> Side:
        """Read a gold action as the mode needs it: `compare_args`, or allowed values for `bfcl`."""
        side = self.read(action)
        if action.compare_args is None and self._mode != "bfcl":
            return side
        parsed = side.parsed
        if self._mode == "bfcl" and isinstance(parsed.value, dict):
            parsed = Parsed(bfcl_answer(parsed.value))
        gold = self._side(side.name, parsed)
        gold.compare_args = action.compare_args
        return gold

    def match(self, gold: Side, call: Side) -> Match:
        """Compare one call with one gold action of the same name."""
        match = self._matches.get((gold, call))
        if match is None:
            match = self._match(gold, call)
            if len(self._matches) < _REMEMBERED:
                self._matches[gold, call] = match
        return match

    def _match(self, gold: Side, call: Side) -> Match:
        if not call.parsed.readable:
            return NO_MATCH
        if self._mode == "deep":
            equal_share = share(gold.prepared, call.prepared)
            if equal_share == 1 and gold.prepared.key == call.prepared.key:
                return _FULL_MATCH
        else:
            expected, actual = gold.parsed.value, call.parsed.value
            if equal(expected, actual, self._mode, compare_args=gold.compare_args):
                return _FULL_MATCH
            equal_share = self._share(expected, actual, len(gold.prepared.items))
        return Match(PARTIAL, equal_share) if equal_share > 0 else NO_MATCH

    def _share(self, expected: Any, actual: Any, arguments: int) -> float:
        if not (isinstance(expected, dict) and isinstance(actual, dict) and arguments):
            return 0.0
        return matched_arguments(expected, actual, self._mode) / arguments

    def best(self, calls: Sequence[Side], gold: Sequence[Side]) -> list[Match]:
        """Return each call's best match; many calls may match the same gold action."""
        by_name, matches = _places(gold), []
        for call in calls:
            best = NO_MATCH
            for j in by_name.get(call.name, ()):
                match = self.match(gold[j], call)
                if best.gold is None or match.share > best.share or match.kind == FULL:
                    best = Match(match.kind, match.share, j)
                if match.kind == FULL:
                    break
            matches.append(best)
        return matches

    def one_to_one(
        self, calls: Sequence[Side], gold: Sequence[Side], failed: Sequence[bool]
    ) -> list[Match]:
        """Return each call's match if each gold action may be matched once.

        The assignment has the greatest total weight; see the weights above.
        """
        by_name = _places(gold)
        pairs = {
            (i, j): match
            for i, call in enumerate(calls)
            for j in by_name.get(call.name, ())
            if (match := self.match(gold[j], call)).kind != NONE
        }
        matches = [NO_MATCH] * len(calls)
        for i, j in _assignment(pairs, failed):
            matches[i] = Match(pairs[i, j].kind, pairs[i, j].share, j)
        return matches


def _written(arguments: Any) -> bytes:
    """Encode arguments that are not text as a cache key that distinguishes 1, 1.0 and true."""
    try:
        return msgspec.msgpack.encode(arguments)
    except (OverflowError, TypeError, RecursionError):
        return repr(arguments).encode()


def _places(gold: Sequence[Side]) -> dict[str, list[int]]:
    """Return the positions of the gold actions by tool name."""
    places: dict[str, list[int]] = {}
    for j, action in enumerate(gold):
        places.setdefault(action.name, []).append(j)
    return places


def _assignment(
    pairs: dict[tuple[int, int], Match], failed: Sequence[bool]
) -> list[tuple[int, int]]:
    """Return the pairs of the best one-to-one assignment."""
    sure = _alone([pair for pair, match in pairs.items() if match.kind == FULL])
    calls, gold = {i for i, _ in sure}, {j for _, j in sure}
    rest = [(i, j) for i, j in pairs if i not in calls and j not in gold]
    if len(_alone(rest)) == len(rest):
        return sure + rest  # no pair competes with another
    weights = {(i, j): _weight(pairs[i, j], i, failed[i]) for i, j in rest}
    few = len({j for _, j in rest}) <= _SEARCHED
    return sure + (best_of_few(weights) if few else best_of_many(weights))


def _weight(match: Match, place: int, fails: bool) -> float:
    value = match.share - _LATER_COSTS * place - _FAILED_COSTS * fails
    return value + _FULL_WEIGHT if match.kind == FULL else value


def best_of_few(weights: Weights) -> list[tuple[int, int]]:
    """Return the one-to-one pairs with the greatest total weight by exhaustive search.

    Args:
        weights: positive weights by call and gold action. The time is exponential in the number of
            gold actions.

    Returns:
        The pairs of call and gold action.
    """
    best: dict[frozenset[int], tuple[float, list[tuple[int, int]]]] = {frozenset(): (0.0, [])}
    for call in sorted({i for i, _ in weights}):
        more = dict(best)  # best pairing by the set of gold actions in use
        for taken, (total, chosen) in best.items():
            for (i, j), weight in weights.items():
                if i != call or j in taken:
                    continue
                if total + weight > more.get(taken | {j}, (0.0,))[0]:
                    more[taken | {j}] = total + weight, [*chosen, (i, j)]
        best = more
    return max(best.values(), key=lambda entry: entry[0])[1]


def best_of_many(weights: Weights) -> list[tuple[int, int]]:
    """Return the one-to-one pairs with the greatest total weight by linear sum assignment.

    Args:
        weights: positive weights by call and gold action.

    Returns:
        The pairs of call and gold action.
    """
    # Imported late, because the imports take longer than scoring most traces.
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    rows, columns = sorted({i for i, _ in weights}), sorted({j for _, j in weights})
    matrix = np.zeros((len(rows), len(columns)))
    for (i, j), weight in weights.items():
        matrix[rows.index(i), columns.index(j)] = weight
    chosen = zip(*linear_sum_assignment(matrix, maximize=True), strict=True)
    return [pair for a, b in chosen if (pair := (rows[a], columns[b])) in weights]


def _alone(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the pairs whose call and gold action are in no other pair.

    Full matches outweigh all else, so a full match with no competitor among the full matches is in
    the best assignment.
    """
    calls, gold = [i for i, _ in pairs], [j for _, j in pairs]
    return [(i, j) for i, j in pairs if calls.count(i) == gold.count(j) == 1]


def agent_gold(gold: tuple[GoldAction, ...] | None) -> list[GoldAction]:
    """Return the gold actions of the agent, without those of the simulated user."""
    return [action for action in gold or () if action.requestor != "user"]
