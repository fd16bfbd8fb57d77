"""The bonus per further turn that estimators hide."""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import factorial

import numpy as np
import pytest

from stages.core.advantages import AdvantageConfig, Estimator, advantages
from stages.core.layout import Floats, Layout, turn_layout
from stages.core.length_bias import LengthBias, length_bias, pull_on_continuing

# After each of at most 4 turns the policy goes on with probability 1/2, in groups of 8.
LENGTHS = {1: 1 / 2, 2: 1 / 4, 3: 1 / 8, 4: 1 / 8}
GROUP = 8
# GN(x) = (x - mean) / (std + eps): with a large eps nothing but the mean is left.
CENTRED = 1e9


def layout_of(lengths: list[int], group: list[int]) -> Layout:
    episode = np.repeat(np.arange(len(lengths)), lengths)
    turn = [k for length in lengths for k in range(length)]
    return turn_layout(episode, np.array(turn), np.array(group))


def expected_pull(estimator: Estimator) -> float:
    """Expectation over all groups of 8, each turn earning 1, in units of the rewards."""
    config = AdvantageConfig(estimator, gamma=1.0, eps=CENTRED)
    total = 0.0
    for lengths in combinations_with_replacement(LENGTHS, GROUP):
        p = float(factorial(GROUP))
        for length, chance in LENGTHS.items():
            p *= chance ** lengths.count(length) / factorial(lengths.count(length))
        layout = layout_of([*lengths], [0] * GROUP)
        ones, none = np.ones(sum(lengths)), np.zeros(GROUP)
        made = advantages(ones, none, layout, config).advantage
        if estimator != "rloo":
            made = made * CENTRED
        last_possible = [k == 3 for length in lengths for k in range(length)]
        chance_to_go_on = np.where(last_possible, 0.0, 0.5)
        total += p * pull_on_continuing(made, layout, chance_to_go_on).sum() / GROUP
    return total


@pytest.mark.parametrize(
    ("estimator", "reported", "exact"),
    [
        ("rloo", 0.690, 0.6875),  # the true gradient, p (1 - p) (1 + 2 p + 3 p^2)
        ("mt-grpo", 0.000, 0.0),  # immediate rewards, centred per turn index
        ("gtpo", 0.559, 0.557999),  # returns-to-go, centred per turn index with their own
    ],
)
def test_the_figures_of_verl_issue_7244(
    estimator: Estimator, reported: float, exact: float
) -> None:
    """github.com/verl-project/verl/issues/7244; its figures are by simulation."""
    found = expected_pull(estimator)
    assert found == pytest.approx(exact, abs=1e-6)
    assert found == pytest.approx(reported, abs=3e-3)


def simulated(config: AdvantageConfig, reward: float, slope: float, seed: int = 0) -> LengthBias:
    """Bias of an estimator on 400 tasks x 8; success changes by `slope` with each turn."""
    rng = np.random.default_rng(seed)
    tasks = 400
    lengths = rng.choice([*LENGTHS], tasks * GROUP, p=[*LENGTHS.values()])
    group = np.repeat(np.arange(tasks), GROUP)
    layout = layout_of(lengths.tolist(), group.tolist())
    outcome = (rng.random(tasks * GROUP) < 0.5 + slope * (lengths - 2)).astype(np.float64)
    rewards = np.full(layout.episode.size, reward)
    made = advantages(rewards, outcome, layout, config).advantage
    task = group[layout.episode]
    rescale = config.estimator != "rloo"
    return length_bias(made, rewards, outcome, layout, task, 200, rng, rescale=rescale)


def test_the_unbiased_estimator_hides_nothing() -> None:
    found = simulated(AdvantageConfig("rloo"), 0.3, -0.1)
    assert found.bonus == 0.0 and found.pull == found.unbiased_pull
    assert found.unbiased_pull == pytest.approx(0.2 * 0.6875, abs=0.02)  # each turn: 0.3 - 0.1


def test_normalising_immediate_rewards_takes_back_what_a_turn_earns() -> None:
    found = simulated(AdvantageConfig("mt-grpo"), 1.0, 0.0)
    assert found.pull == pytest.approx(0.0, abs=0.05)
    assert found.bonus == pytest.approx(-1.0, abs=0.06)
    assert found.ci_low < found.bonus < found.ci_high < -0.9


def test_a_discount_is_a_price_on_every_turn() -> None:
    found = simulated(AdvantageConfig("gtpo", gamma=0.8), 0.0, 0.0)
    assert found.ci_low < found.bonus < found.ci_high < -0.05
    undiscounted = simulated(AdvantageConfig("gtpo", gamma=1.0), 0.0, 0.0)
    assert undiscounted.ci_low < 0 < undiscounted.ci_high
    assert abs(undiscounted.bonus) < 0.01


@pytest.mark.parametrize("slope", [-0.1, 0.1])
def test_the_outcome_alone_is_unbiased(slope: float) -> None:
    found = simulated(AdvantageConfig("grpo"), 0.0, slope)
    assert abs(found.bonus) < 0.01


def test_episodes_of_one_length_tell_nothing() -> None:
    layout = layout_of([2, 2], [0, 0])
    rewards, outcome, task = np.zeros(4), np.array([0.0, 1.0]), np.zeros(4, int)
    rng = np.random.default_rng(0)
    found = length_bias(rewards, rewards, outcome, layout, task, 10, rng, rescale=True)
    assert np.isnan(found).all()


def test_dead_advantages_hide_all_that_pays() -> None:
    rng = np.random.default_rng(0)
    layout = layout_of([1, 2, 3, 1] * 10, [i // 4 for i in range(40)])
    ones: Floats = np.ones(layout.episode.size)
    task = (layout.group // 2)[layout.episode]
    found = length_bias(0 * ones, ones, np.zeros(40), layout, task, 100, rng, rescale=True)
    assert found.bonus == pytest.approx(-1.0) and found.pull == 0.0
