from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.core import payment
from stages.core.correlation import Floats, Ints
from stages.core.farmability import (
    extra_turns_to_outearn,
    farmability,
    first_turns,
    repeat_rewards,
    return_spread,
)

EPISODES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


def laid_out(episodes: list[list[int]]) -> tuple[Ints, Ints]:
    """Tier and episode of each turn."""
    tier = np.array([tier for tiers in episodes for tier in tiers])
    return tier, np.repeat(np.arange(len(episodes)), [len(tiers) for tiers in episodes])


# --- first turns and repeats ----------------------------------------------------------------------


@given(EPISODES)
def test_first_turns_equal_the_plain_definition(episodes: list[list[int]]) -> None:
    expected = [first for tiers in episodes for first in payment.first_turns(tiers)]
    assert first_turns(*laid_out(episodes), 4).tolist() == expected


def test_first_turns_of_no_turn() -> None:
    assert first_turns(np.zeros(0, int), np.zeros(0, int), 3).tolist() == []


# By hand: tier 0 repeats twice, earning 0.2 and 0.4; tier 1 never repeats.
def test_repeat_rewards_by_hand() -> None:
    tier, episode = laid_out([[0, 0, 1], [0, 1], [0, 0]])
    first = first_turns(tier, episode, 3)
    reward = np.array([1.0, 0.2, 0.5, 1.0, 0.7, 1.0, 0.4])
    np.testing.assert_allclose(repeat_rewards(reward, tier, first, 3), [0.3, 0.6, 0.0])
    # Where no repeat earns anything, a tier that never repeats pays once, too.
    paid_once = np.where(first, reward, 0.0)
    np.testing.assert_array_equal(repeat_rewards(paid_once, tier, first, 3), 0.0)


# --- extra turns ----------------------------------------------------------------------------------


# The demo of irc-cli 1: a failure with ten messages more earns 2.93, a clean success 2.61.
def test_ten_messages_out_earn_a_success_by_the_old_payment() -> None:
    failure, message, success = -0.67, 0.36, 2.61
    assert failure + 10 * message == pytest.approx(2.93)
    np.testing.assert_array_equal(
        extra_turns_to_outearn(failure, success, np.array([message, 0.0, -message])),
        [10, np.inf, np.inf],
    )


@pytest.mark.parametrize(
    ("failure", "success", "repeat", "extra"),
    [
        (0.0, 0.3, 0.1, 4),  # three times 0.1 is a tie, whatever rounding makes of it
        (0.0, 1.0, 2.0, 1),
        (1.0, 1.0, 0.5, 1),
        (2.0, 1.0, 0.5, 0),
        (2.0, 1.0, 0.0, np.inf),
        (np.nan, 1.0, 1.0, np.nan),
    ],
)
def test_extra_turns_by_hand(failure: float, success: float, repeat: float, extra: float) -> None:
    got = extra_turns_to_outearn(failure, success, np.array([repeat]))
    np.testing.assert_array_equal(got, [extra])


@given(st.integers(-40, 40), st.integers(-40, 40), st.integers(-3, 9))
def test_extra_turns_equal_counting_up(failure: int, success: int, repeat: int) -> None:
    expected = np.inf
    if repeat > 0:
        expected = next(n for n in range(100) if failure + n * repeat > success)
    got = extra_turns_to_outearn(failure / 10, success / 10, np.array([repeat / 10]))
    assert got.tolist() == [expected]


# --- farmability ----------------------------------------------------------------------------------


def measured(
    reward: Any, success: Any, episode: Any, task: Any, repeat: Any = (0.0,)
) -> tuple[Any, ...]:
    arrays = np.asarray(reward, float), np.asarray(success, bool), np.asarray(episode, int)
    rng = np.random.default_rng(0)
    return farmability(*arrays, np.asarray(task, int), np.asarray(repeat, float), 100, rng)


# By hand: failures earn 1, 2, 3 with 1, 2, 3 turns, the success 4 with 5 turns.
def test_farmability_by_hand() -> None:
    episode = [0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3]
    reward = [1.0] * 6 + [0.8] * 5
    success, task = [False, False, False, True], [0, 1, 2, 0]
    extra, slack, failure, reward_of_success, length = measured(
        reward, success, episode, task, [1.0, 0.0]
    )
    np.testing.assert_array_equal(extra, [3, np.inf])
    assert (slack, failure, reward_of_success) == (10, 2.0, 4.0)
    assert length.r == pytest.approx(1)


def test_the_longest_episode_sets_the_slack_beyond_ten_turns() -> None:
    episode = np.repeat([0, 1, 2], [30, 4, 7])
    _, slack, *_ = measured(np.zeros(41), [True, False, False], episode, [0, 0, 0])
    assert slack == 24, "30 turns, where failures have 5.5"


def test_without_failures_or_successes_nothing_is_known() -> None:
    for success in (True, False):
        extra, _, failure, earned, length = measured([1.0, 2.0], [success] * 2, [0, 1], [0, 1], [1])
        assert np.isnan(extra).all() and np.isnan(failure) == success
        assert np.isnan(earned) == (not success)
        assert np.isnan(length.r), "of no failure, or of failures all as long"


def test_the_length_of_failures_is_told_from_that_of_successes() -> None:
    rng = np.random.default_rng(3)
    length = rng.integers(1, 12, 400)
    success = np.arange(400) % 2 == 0
    per_turn = np.where(success, 1.0, 0.0)  # successes are paid by the turn, failures are not
    episode = np.repeat(np.arange(400), length)
    reward = per_turn[episode] + rng.normal(size=length.sum()) / np.repeat(length, length)
    found = farmability(reward, success, episode, np.arange(400) // 8, np.ones(1), 400, rng).length
    assert found.ci_low < 0 < found.ci_high and abs(found.r) < 0.15


# What pays once can't be farmed: no number of repeats in a failure raises what it earns.
@given(EPISODES, st.integers(0, 3), st.integers(1, 30))
def test_repeats_earn_nothing_when_paid_once(
    episodes: list[list[int]], tier: int, extra: int
) -> None:
    values = np.array([1.0, 0.5, -0.25, 0.0])  # whose sums are exact

    def earned(tiers: list[int]) -> float:
        first = first_turns(np.array(tiers), np.zeros(len(tiers), int), 4)
        return float((values[tiers] * first).sum())

    for tiers in episodes:
        one_more, many_more = earned([*tiers, tier]), earned([*tiers, *[tier] * extra])
        assert many_more == one_more
        assert one_more <= earned(tiers) + max(values[tier], 0)
        assert tier not in tiers or one_more == earned(tiers)


# --- spread of the return -------------------------------------------------------------------------


# By hand at gamma 0.5: returns of rewards 1 + 0.5 = 1.5 and 1, of outcomes 0.5 and 0.
def test_return_spread_by_hand() -> None:
    args = (np.ones(3), np.array([1.0, 0.0]), np.array([0, 0, 1]), np.zeros(2, int))
    found = return_spread(*args, gamma=0.5)
    expected = np.sqrt(2 * 0.25**2)
    assert found.reward_std == pytest.approx(expected)
    assert found.outcome_std == pytest.approx(expected)
    assert found.reward_share == pytest.approx(0.5)


def test_return_spread_is_within_groups() -> None:
    reward, outcome = np.array([1.0, 1.0, 5.0, 5.0]), np.array([1.0, 0.0, 1.0, 0.0])
    episode, group = np.arange(4), np.array([0, 0, 1, 1])
    found = return_spread(reward, outcome, episode, group, 1.0)
    assert (found.reward_std, found.reward_share) == (0.0, 0.0)
    assert found.outcome_std == pytest.approx(np.sqrt(0.5))
    alone = return_spread(reward, outcome, episode, np.arange(4), 1.0)
    assert np.isnan([*alone]).all()


@pytest.mark.parametrize("size", [2, 4])
def test_shapes_are_checked(size: int) -> None:
    three: Floats = np.zeros(3)
    codes, few = np.arange(3), np.zeros(size, int)
    with pytest.raises(ValueError, match="turns"):
        first_turns(few, codes, 3)
    with pytest.raises(ValueError, match="needs a reward"):
        measured(np.zeros(size), three, codes, codes)
    with pytest.raises(ValueError, match="needs a reward"):
        return_spread(three, three, codes, few, 1.0)
