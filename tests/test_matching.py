from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.arguments import Mode, ToolRules
from stages.tiers.domains import Domain
from stages.tiers.matching import (
    FULL,
    NO_MATCH,
    NONE,
    PARTIAL,
    Match,
    Matcher,
    agent_gold,
    best_of_few,
    best_of_many,
)
from stages.traces import Call, GoldAction
from tests.builders import SHOP, call, gold, written


def best(calls: list[Call], expected: list[GoldAction], mode: Mode = "deep") -> list[Match]:
    matcher = Matcher(SHOP, mode)
    return matcher.best([matcher.read(c) for c in calls], [matcher.read_gold(g) for g in expected])


def one_to_one(calls: list[Call], expected: list[GoldAction]) -> list[Match]:
    matcher = Matcher(SHOP)
    sides = [matcher.read(one) for one in calls]
    failed = [bool(call.flagged) for call in calls]
    return matcher.one_to_one(sides, [matcher.read_gold(g) for g in expected], failed)


def test_a_call_finds_its_best_gold_action() -> None:
    expected = [gold("look", id=1), gold("buy", id=1, n=1), gold("buy", id=2, n=2, by="card")]
    found = best(
        [
            call("buy", id=2, n=2, by="card"),
            call("buy", id=2, n=2, by="cash"),
            call("buy", id=1, n=2),
            call("buy", id=9),
            call("ship", id=1),
        ],
        expected,
    )
    assert found == [
        Match(FULL, 1.0, 2),
        Match(PARTIAL, 2 / 3, 2),
        Match(PARTIAL, 1 / 2, 1),
        Match(NONE, 0.0, 1),  # the name is right: gold says which action it was held against
        NO_MATCH,
    ]


def test_a_full_match_wins_over_a_partial_one_with_all_arguments() -> None:
    # The first gold action lacks an argument of the call: all of its own agree, yet it is partial.
    found = best([call("buy", id=1, n=2)], [gold("buy", id=1), gold("buy", id=1, n=2)])
    assert found == [Match(FULL, 1.0, 1)]
    assert best([call("buy", id=1, n=2)], [gold("buy", id=1)]) == [Match(PARTIAL, 1.0, 0)]


def test_an_action_without_arguments_is_met_by_a_call_without() -> None:
    expected = [gold("look")]
    assert best([call("look"), call("look", id=1)], expected) == [
        Match(FULL, 1.0, 0),
        Match(NONE, 0.0, 0),
    ]


@pytest.mark.parametrize("mode", ["exact", "deep", "tau2", "bfcl"])
def test_unparseable_arguments_match_nothing(mode: Mode) -> None:
    for expected in (gold("buy"), GoldAction("buy", "{id:"), GoldAction("buy", None)):
        assert best([written("buy", "{id:")], [expected], mode)[0].kind == NONE


@pytest.mark.parametrize(
    ("mode", "kind"), [("exact", PARTIAL), ("deep", FULL), ("tau2", PARTIAL), ("bfcl", FULL)]
)
def test_modes_compare_differently(mode: Mode, kind: str) -> None:
    found = best([call("buy", id="A", n=2)], [gold("buy", id="a", n=2)], mode)
    assert found[0].kind == kind


def test_tau2_compares_only_the_named_arguments() -> None:
    some = GoldAction("buy", {"id": 1, "note": "x"}, compare_args=("id",))
    every = GoldAction("buy", {"id": 1, "note": "x"})
    nothing = GoldAction("buy", {"id": 1, "note": "x"}, compare_args=())
    # The same arguments three times: what is remembered of one must not decide the others.
    assert best([call("buy", id=1, note="y")], [every], "tau2")[0].kind == PARTIAL
    assert best([call("buy", id=1, note="y")], [every, some], "tau2") == [Match(FULL, 1.0, 1)]
    assert best([call("buy", id=2)], [every, some, nothing], "tau2") == [Match(FULL, 1.0, 2)]


def test_one_matcher_keeps_apart_what_only_looks_alike() -> None:
    matcher = Matcher(SHOP, "exact")
    sides = [
        matcher.read(Call("buy", arguments))
        for arguments in ("{'n': 1}", {"n": 1}, {"n": True}, {"n": 1.0}, "{'n': 1}", '"x"', "x")
    ]
    assert [side.parsed.problem for side in sides[:2]] == ["python repr", None]
    assert [side.parsed.value for side in sides[:2]] == [{"n": 1}, {"n": 1}]
    assert sides[2].parsed.value == {"n": True} and sides[2].parsed.value["n"] is True
    assert sides[4].parsed == sides[0].parsed
    assert sides[5].parsed.readable and not sides[6].parsed.readable


def test_a_tools_own_rules_hold_only_where_asked_for() -> None:
    domain = Domain("d", {"buy": "write"}, {"buy": ToolRules(ignore=frozenset({"note"}))}, False)
    for tool_rules, kind in ((True, FULL), (False, PARTIAL)):
        matcher = Matcher(domain, tool_rules=tool_rules)
        expected = matcher.read_gold(gold("buy", id=1, note="x"))
        assert matcher.match(expected, matcher.read(call("buy", id=1, note="y"))).kind == kind


def test_one_to_one_meets_each_action_once() -> None:
    twice = [call("buy", id=1), call("buy", id=1)]
    assert best(twice, [gold("buy", id=1)]) == [Match(FULL, 1.0, 0)] * 2
    assert one_to_one(twice, [gold("buy", id=1)]) == [Match(FULL, 1.0, 0), NO_MATCH]
    both = one_to_one(twice, [gold("buy", id=1), gold("buy", id=1)])
    assert sorted(match.gold for match in both if match.gold is not None) == [0, 1]


def test_the_call_that_worked_meets_the_action() -> None:
    retried = [call("buy", failed=True, id=1), call("look", id=1), call("buy", id=1)]
    assert one_to_one(retried, [gold("buy", id=1)]) == [NO_MATCH, NO_MATCH, Match(FULL, 1.0, 0)]
    only_failed = [call("buy", failed=True, id=1)]
    assert one_to_one(only_failed, [gold("buy", id=1)]) == [Match(FULL, 1.0, 0)]


def test_a_call_gives_way_to_one_that_has_no_other_action() -> None:
    # The greedy choice would be the partial match of the second call with the first action.
    calls = [call("buy", id=1, n=1), call("buy", id=1, n=2)]
    expected = [gold("buy", id=1, n=2), gold("buy", id=7, n=1)]
    assert one_to_one(calls, expected) == [Match(PARTIAL, 1 / 2, 1), Match(FULL, 1.0, 0)]


def test_a_full_match_is_worth_more_than_many_partial_ones() -> None:
    whole = {"a": 1, "b": 1, "c": 1}
    calls = [Call("buy", whole, flagged=True)] * 2 + [call("buy", a=3, b=1, c=1)]
    expected = [GoldAction("buy", whole), gold("buy", a=1), gold("buy", a=1)]
    # Without the full match all three actions are met, in 1 + 1 + 2/3 of their arguments.
    found = one_to_one(calls, expected)
    assert sorted(match.kind for match in found) == [FULL, NONE, PARTIAL]


Purchase = dict[str, int]
NAME, DIGIT = st.sampled_from(["buy", "look"]), st.integers(0, 1)
PURCHASE = st.fixed_dictionaries({"id": DIGIT}, optional={"n": DIGIT, "by": DIGIT})


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    calls=st.lists(st.tuples(NAME, PURCHASE, st.booleans()), max_size=4),
    expected=st.lists(st.tuples(NAME, PURCHASE), max_size=4),
)
def test_one_to_one_equals_trying_every_pairing(
    calls: list[tuple[str, Purchase, bool]], expected: list[tuple[str, Purchase]]
) -> None:
    def merit(pairing: Iterable[tuple[int, int]]) -> tuple[int, int, Fraction, int]:
        """Full matches, those among them that worked, the shares of all, the earliest calls."""
        full = worked = place = 0
        shares = Fraction(0)
        for i, j in pairing:
            (name, arguments, failed), (gold_name, wanted) = calls[i], expected[j]
            share = Fraction(len(wanted.items() & arguments.items()), len(wanted))
            if name == gold_name and share:
                full += arguments == wanted
                worked += arguments == wanted and not failed
                shares += share
                place -= i
        return full, worked, shares, place

    found = one_to_one(
        [Call(name, arguments, flagged=failed) for name, arguments, failed in calls],
        [GoldAction(name, arguments) for name, arguments in expected],
    )
    pairing = [(i, match.gold) for i, match in enumerate(found) if match.gold is not None]
    assert len({j for _, j in pairing}) == len(pairing)
    slots = [*range(len(calls)), *[None] * len(expected)]
    every = {
        tuple((i, j) for j, i in enumerate(chosen) if i is not None)
        for chosen in permutations(slots, len(expected))
    }
    assert merit(pairing)[:3] == max(map(merit, every))[:3]


def test_gold_actions_of_the_user_are_not_the_agents() -> None:
    actions = (gold("buy"), gold("look", requestor="user"), gold("ship"))
    assert agent_gold(actions) == [actions[0], actions[2]]
    assert agent_gold(None) == agent_gold(()) == []


@settings(deadline=None)  # the first run loads scipy
@given(
    st.dictionaries(
        st.tuples(st.integers(0, 7), st.integers(0, 5)),
        st.floats(0.01, 2) | st.sampled_from([0.25, 0.5, 1.0]),
        min_size=1,
    )
)
def test_few_gold_actions_are_paired_as_by_the_hungarian_method(
    weights: dict[tuple[int, int], float],
) -> None:
    few, many = best_of_few(weights), best_of_many(weights)
    for pairs in (few, many):
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    assert sum(weights[pair] for pair in few) == pytest.approx(sum(weights[p] for p in many))
