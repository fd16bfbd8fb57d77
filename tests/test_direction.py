from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.advantages import AdvantageConfig, Advantages, Estimator, advantages
from stages.core.correlation import TaskSums, pooled, terms
from stages.core.direction import (
    TierDirections,
    clustered_correlation,
    dead_turn_share,
    direction,
    gradient_mass,
    mean_rewards,
    reward_outcome_correlation,
    rms,
)
from stages.core.layout import Floats, Ints, Layout, turn_layout
from stages.core.resampling import correlation_interval


def of_advantage(advantage: Any, outcome_part: Any = 0.0) -> Advantages:
    a = np.asarray(advantage, np.float64)
    outcome = np.broadcast_to(np.asarray(outcome_part, np.float64), a.shape)
    return Advantages(a, a - outcome, outcome, np.zeros_like(a), np.ones_like(a))


def check(
    advantage: Advantages, tier: Any, task: Any, intended: Any, resamples: int = 400
) -> TierDirections:
    return direction(
        advantage,
        np.asarray(tier, int),
        np.asarray(task, int),
        np.asarray(intended, int),
        resamples,
        np.random.default_rng(0),
    )


# By hand: tier 0 has advantages 1, -3, 2e-9; tier 1 has 0.5 four times; tier 2 has none.
def test_means_and_shares_by_hand() -> None:
    got = check(
        of_advantage([1.0, 0.5, -3.0, 0.5, 2e-9, 0.5, 0.5], [0.0, 0.25, -1.0, 0.25, 0.0, 0.0, 0.0]),
        tier=[0, 1, 0, 1, 0, 1, 1],
        task=[0, 0, 0, 1, 1, 1, 1],
        intended=[1, -1, 1],
    )
    np.testing.assert_array_equal(got.turns, [3, 4, 0])
    np.testing.assert_allclose(got.mean_advantage, [-2 / 3, 0.5, np.nan], rtol=1e-8)
    np.testing.assert_allclose(got.return_part, [-1 / 3, 0.375, np.nan], rtol=1e-8)
    np.testing.assert_allclose(got.outcome_part, [-1 / 3, 0.125, np.nan], rtol=1e-8)
    np.testing.assert_allclose(got.wrong_sign_share, [1 / 3, 1.0, np.nan])
    assert got.verdict.tolist() == ["undecided"] * 3  # two tasks decide nothing


# A tier in each of 30 tasks, clearly up or clearly down, or varying around 0.
@pytest.mark.parametrize(
    ("level", "intended", "verdict"),
    [
        (+1.0, +1, "aligned"),
        (+1.0, -1, "misaligned"),
        (-1.0, +1, "misaligned"),
        (-1.0, -1, "aligned"),
        (0.0, +1, "undecided"),
        (0.0, -1, "undecided"),
        (+1.0, 0, "neutral"),
    ],
)
def test_verdicts(level: float, intended: int, verdict: str) -> None:
    wave = np.where(np.arange(30) % 2 == 0, 0.5, -0.5)
    got = check(of_advantage(level + wave), np.zeros(30), np.arange(30), [intended])
    assert got.verdict.tolist() == [verdict]
    assert got.ci_low[0] < level < got.ci_high[0]
    assert np.isnan(got.wrong_sign_share[0]) == (intended == 0)


# Sums that cancel leave noise of one sign; with task to task differences its interval excludes 0.
@pytest.mark.parametrize("sign", [1, -1])
def test_rounding_noise_has_no_direction(sign: int) -> None:
    noise = sign * 1e-16 * (2 + np.arange(40) % 2)
    got = check(of_advantage(noise), np.zeros(40), np.arange(40), [-sign])
    assert got.ci_low[0] * got.ci_high[0] > 0
    assert got.verdict.tolist() == ["undecided"]
    assert got.wrong_sign_share[0] == 0


def test_interval_is_of_the_mean_over_turns_and_by_task() -> None:
    rng = np.random.default_rng(1)
    task = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    advantage = rng.normal(size=40)[task]  # the turns of a task are one draw, not many
    got = check(of_advantage(advantage), np.zeros_like(task), task, [1])
    n = np.bincount(task)
    error = np.sqrt(np.sum((n * (advantage[np.cumsum(n) - 1] - advantage.mean())) ** 2)) / n.sum()
    half_width = (got.ci_high[0] - got.ci_low[0]) / 2
    assert 1.8 * error < half_width < 2.6 * error


# Two ways to work, GOLD with reward 1 and READ with the naive 0.3 of the paper's rewards. Each
# group has two episodes of either kind; gold turns lead to success. Every READ turn is rewarded
# and yet below its group, so its advantage is negative: dense rewards that mean "keep reading"
# teach "stop reading", which arXiv 2604.02869 calls misalignment.
# Source: docs/method.md, "Direction, farming, convergence".
GOLD, READ = 0, 1


def naive_rollouts(n_tasks: int = 20) -> tuple[Layout, Ints, Ints, Floats]:
    """Layout, tier and task of each turn, and outcomes; the groups differ in one coin."""
    kinds = [GOLD, GOLD, READ, READ]
    rng = np.random.default_rng(0)
    tier, task, outcome = [], [], []
    for i in range(n_tasks):
        for kind in kinds:
            first = READ if rng.random() < 0.3 else kind
            tier += [first, kind, kind]
            task += [i] * 3
            outcome.append(float(kind == GOLD))
    n_episodes = len(outcome)
    layout = turn_layout(
        np.repeat(np.arange(n_episodes), 3),
        np.tile(np.arange(3), n_episodes),
        np.repeat(np.arange(n_tasks), len(kinds)),
    )
    return layout, np.array(tier), np.array(task), np.array(outcome)


@pytest.mark.parametrize("estimator", ["mt-grpo", "gtpo", "hybrid"])
def test_naive_dense_rewards_are_misaligned(estimator: Estimator) -> None:
    layout, tier, task, outcome = naive_rollouts()
    config = AdvantageConfig(estimator)

    naive = np.array([1.0, 0.3])
    got = check(advantages(naive[tier], outcome, layout, config), tier, task, np.sign(naive), 1000)
    assert got.verdict.tolist() == ["aligned", "misaligned"]
    assert got.mean_advantage[READ] < -0.3
    assert got.return_part[READ] < 0
    assert got.wrong_sign_share[READ] > 0.5

    calibrated = np.array([1.0, -0.3])  # the sign of the tier's correlation with success
    got = check(
        advantages(calibrated[tier], outcome, layout, config), tier, task, np.sign(calibrated), 1000
    )
    assert got.verdict.tolist() == ["aligned", "aligned"]


def test_gradient_mass_by_hand() -> None:
    advantage = np.array([0.5, -1.5, 1e-8, 2.0])
    tier = np.array([0, 1, 2, 0])
    np.testing.assert_allclose(gradient_mass(advantage, tier, 4), [2.5 / 4, 1.5 / 4, 0, 0])
    tokens = np.array([10, 20, 1000, 5])
    np.testing.assert_allclose(gradient_mass(advantage, tier, 4, tokens), [15 / 45, 30 / 45, 0, 0])


def test_gradient_mass_without_live_turns_is_undefined() -> None:
    np.testing.assert_array_equal(
        gradient_mass(np.array([0.0, -1e-9]), np.array([0, 1]), 2), np.nan
    )


def test_dead_turns_and_rms_by_hand() -> None:
    assert dead_turn_share(np.array([0.0, 1e-8, -1e-8, -2e-8])) == 0.75
    assert rms(np.array([3.0, -4.0, 0.0, 0.0])) == 2.5
    assert np.isnan(dead_turn_share(np.zeros(0)))
    assert np.isnan(rms(np.zeros(0)))


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 3), st.integers(0, 4)), min_size=1))
def test_tiers_partition_the_turns(turns: list[tuple[float, int, int]]) -> None:
    advantage, tier, task = (np.array(column) for column in zip(*turns, strict=True))
    got = check(of_advantage(advantage), tier, task, [1, -1, 1, 0], resamples=20)
    total = np.nansum(got.mean_advantage * got.turns)
    assert total == pytest.approx(advantage.sum(), abs=1e-9)
    mass = gradient_mass(advantage, tier, 4)
    assert np.isnan(mass).all() or mass.sum() == pytest.approx(1)


# By hand: mean rewards 0.5, 0, 1 against outcomes 1, 0, 1: covariance 1/4 over sqrt(1/4 * 1/3).
def test_reward_outcome_correlation_by_hand() -> None:
    got = reward_outcome_correlation(
        np.array([0.0, 1.0, 0.0, 1.0, 1.0, 1.0]),
        np.array([1.0, 0.0, 1.0]),
        np.array([0, 0, 1, 2, 2, 2]),
    )
    assert got == pytest.approx(0.75**0.5)


@pytest.mark.parametrize(
    ("reward", "outcome"),
    [
        ([0.1, 0.1, 0.1, 0.1], [1.0, 0.0]),  # means of 1 and of 3 turns: equal but for rounding
        ([0.3, 0.1, 0.1, 0.1], [1.0, 1.0]),
        ([0.0, 0.0, 0.0, 0.0], [1.0, 0.0]),
    ],
)
def test_correlation_with_a_constant_is_undefined(
    reward: list[float], outcome: list[float]
) -> None:
    episode = np.array([0, 1, 1, 1])
    assert np.isnan(reward_outcome_correlation(np.array(reward), np.array(outcome), episode))


def test_no_turns() -> None:
    got = check(of_advantage([]), [], [], [1, 0])
    np.testing.assert_array_equal(got.turns, [0, 0])
    assert np.isnan([got.mean_advantage, got.ci_low, got.ci_high, got.wrong_sign_share]).all()
    assert got.verdict.tolist() == ["undecided", "neutral"]
    empty = np.zeros(0, int)
    assert np.isnan(gradient_mass(np.zeros(0), empty, 2)).all()
    assert np.isnan(reward_outcome_correlation(np.zeros(0), np.zeros(0), empty))


def test_small_code_types_do_not_overflow() -> None:
    task = np.arange(100).astype(np.int8)
    tier = np.full(100, 9, np.int8)
    got = direction(
        of_advantage(np.ones(100)), tier, task, np.ones(10, int), 20, np.random.default_rng(0)
    )
    assert got.turns[9] == 100


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check(of_advantage([1.0]), [0, 0], [0], [1]), "(1,) advantages of (2,), (1,)"),
        (lambda: check(of_advantage([1.0]), [1], [0], [1]), "a code of tier is not in 0..0"),
        (lambda: check(of_advantage([1.0]), [0], [-1], [1]), "a code of task is not in 0..0"),
        (
            lambda: gradient_mass(np.zeros(2), np.zeros(2, int), 1, np.zeros(3, int)),
            "(2,) advantages of (2,), (3,)",
        ),
        (
            lambda: gradient_mass(np.zeros(1), np.array([2]), 2),
            "a code of tier is not in 0..1",
        ),
        (
            lambda: reward_outcome_correlation(np.zeros(2), np.zeros(2), np.zeros(2, int)),
            "each turn needs a reward, and each episode a turn",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


# --- correlations over episodes -------------------------------------------------------------------


def test_clustered_correlation_of_presence_is_that_of_tiers() -> None:
    """A special case: presence and outcome, whose interval `correlation_interval` gives."""
    rng = np.random.default_rng(2)
    task = np.repeat(np.arange(30), 8)
    outcome = rng.random(240) < 0.5
    presence = rng.random(240) < np.where(outcome, 0.7, 0.3)
    counts = [np.bincount(task, values) for values in (presence, presence & outcome)]
    x, xo = (count[:, None].astype(np.float64) for count in counts)
    sums = TaskSums(np.bincount(task), np.bincount(task, outcome), x, x, xo)
    low, high = correlation_interval(terms(sums, "pooled"), 500, np.random.default_rng(0))
    got = clustered_correlation(
        presence.astype(float), outcome.astype(float), task, 500, np.random.default_rng(0)
    )
    assert got.r == pytest.approx(pooled(sums)[0])
    assert [got.ci_low, got.ci_high] == pytest.approx([low[0], high[0]])
    assert 0.2 < got.ci_low < got.r < got.ci_high < 0.6


def test_clustered_correlation_of_few_tasks_or_constants() -> None:
    x, y = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.0, 1.0, 1.0, 0.0])
    rng = np.random.default_rng(0)
    got = clustered_correlation(x, y, np.array([5, 5, 9, 9]), 200, rng)
    assert got.r == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert (got.ci_low, got.ci_high) == (-1, 1)
    flat = clustered_correlation(np.full(4, 0.1), y, np.arange(4), 200, rng)
    assert np.isnan([*flat]).all()
    with pytest.raises(ValueError, match="values with"):
        clustered_correlation(x, y[:3], np.arange(4), 200, rng)


def test_mean_rewards_by_hand() -> None:
    got = mean_rewards(np.array([1.0, 0.0, 3.0]), np.array([0, 0, 1]), 2)
    assert got.tolist() == [0.5, 3.0]
