from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tiers.rules import (
    CONDITIONS,
    CallFacts,
    Reward,
    Rule,
    Tiers,
    all_facts,
    first_rules,
)


def rule(tier: str, **when: Any) -> Rule:
    return Rule(tier, {name: frozenset(allowed) for name, allowed in when.items()})


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """A rule with any conditions, also such that it never applies."""
    names = draw(st.sets(st.sampled_from(sorted(CONDITIONS))))
    return rule(
        draw(st.sampled_from("abc")),
        **{name: draw(st.sets(st.sampled_from(CONDITIONS[name]))) for name in sorted(names)},
    )


def test_every_possible_call_is_seen_once() -> None:
    facts = all_facts()
    assert len(facts) == len(set(facts)) == 3 * 5 * 2 * 2 * 2
    assert list(CONDITIONS) == list(CallFacts._fields)


def test_a_rule_applies_where_all_of_its_conditions_hold() -> None:
    found = rule("x", match=["full", "partial"], repeat=[False])
    assert found.applies(CallFacts("partial", "read", "ok", repeat=False))
    assert not found.applies(CallFacts("partial", "read", "ok", repeat=True))
    assert not found.applies(CallFacts("none", "read", "ok", repeat=False))
    assert rule("any").applies(CallFacts("none", "unknown", "error", repeat=True))


def test_the_first_rule_that_applies_decides() -> None:
    tiers = Tiers(
        "mine",
        (rule("failed", result=["error"]), rule("gold", match=["full"]), rule("rest")),
        "message",
        ("gold", "rest", "failed", "message"),
        {},
    )
    table = tiers.table()
    assert table[CallFacts("full", "read", "error", repeat=False)] == "failed"
    assert table[CallFacts("full", "read", "ok", repeat=True)] == "gold"
    assert table[CallFacts("none", "write", "ok", repeat=True)] == "rest"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(rules(), max_size=5))
def test_deciding_rules_equal_trying_them_one_by_one(some: list[Rule]) -> None:
    first = first_rules(some)
    for values in product(*CONDITIONS.values()):
        facts = dict(zip(CONDITIONS, values, strict=True))
        deciding = None
        for i in reversed(range(len(some))):
            if not any(facts[name] not in allowed for name, allowed in some[i].when.items()):
                deciding = i
        assert first.get(CallFacts(**facts)) == deciding  # type: ignore[arg-type]  # as CONDITIONS


@pytest.mark.parametrize(
    ("reward", "share", "expected", "text"),
    [
        (Reward(0.3), 0.9, 0.3, "0.3"),
        (Reward(-0.1), 0.0, -0.1, "-0.1"),
        (Reward(0.5, 0.5), 0.5, 0.75, "0.5 + 0.5 x share"),
        (Reward(0.5, 0.5, 0.99), 1.0, 0.99, "0.5 + 0.5 x share, at most 0.99"),
        (Reward(2.0, cap=1.0), 0.2, 1.0, "1"),
    ],
)
def test_a_reward(reward: Reward, share: float, expected: float, text: str) -> None:
    assert reward.of(share) == pytest.approx(expected, abs=1e-15)
    assert str(reward) == text
