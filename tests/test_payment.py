from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from stages.core.payment import Values, first_turns, pay_of

TIERS = st.lists(st.sampled_from("abc"), max_size=12)


def test_a_plain_mapping_pays_every_turn() -> None:
    assert pay_of({"a": 1.0}) == pay_of(Values({"a": 1.0})) == "turn"
    assert pay_of(Values({"a": 1.0}, "once")) == "once"


def test_values_are_a_dict_that_keeps_its_payment_in_other_processes() -> None:
    values = Values({"a": 1.0, "b": -0.5}, "once")
    copied = pickle.loads(pickle.dumps(values))
    assert copied == values == {"a": 1.0, "b": -0.5}
    assert copied.pay == "once"


def test_the_first_turn_of_each_tier_by_hand() -> None:
    assert first_turns("abacba") == [True, True, False, True, False, False]
    assert first_turns([]) == []


@given(TIERS, TIERS)
def test_each_tier_has_one_first_turn_and_what_follows_changes_none(start: str, rest: str) -> None:
    first = first_turns([*start, *rest])
    assert first[: len(start)] == first_turns(start)
    assert sum(first) == len({*start, *rest})
