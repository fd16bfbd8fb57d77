from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stages.core.correlation import TaskSums, pooled, terms, within
from stages.core.resampling import (
    correlation_interval,
    held_out_correlation,
    ratio_interval,
    task_resamples,
    unseen_share,
)
from tests.simulated import Model, alike

# Rates above a half need no column of their own: the tier's absence flips the sign of r, no more.
BASE = np.array([0.05, 0.05, 0.2, 0.5, 0.3, 0.2, 0.1, 0.6])
EFFECT = np.array([0.0, 0.15, 0.0, 0.0, 0.25, 0.4, 0.4, -0.15])


def test_weights_draw_every_task_alike() -> None:
    weights = np.concatenate(list(task_resamples(50, 20_001, np.random.default_rng(0))))
    assert weights.shape == (20_001, 50)
    assert (weights.sum(axis=1) == 50).all()
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=5 / np.sqrt(20_001))
    np.testing.assert_allclose(weights.var(axis=0), 1 - 1 / 50, atol=0.06)


def test_weights_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(task_resamples(7, 100, np.random.default_rng(1))))
    monkeypatch.setattr("stages.core.resampling.BLOCK", 21)
    blocks = list(task_resamples(7, 100, np.random.default_rng(1)))
    assert {len(block) for block in blocks} == {3, 1}
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


@pytest.mark.parametrize("which", ["within", "pooled"])
def test_interval_equals_a_bootstrap_of_episodes_spelled_out(which: Any) -> None:
    """The same interval by centring, correlating and summing influences resample by resample."""
    model = Model(np.arange(2, 14), np.array([0.35]), np.array([0.3]))
    sums = next(model.runs(1, np.random.default_rng(2)))
    estimate = within if which == "within" else pooled

    def z_and_error(drawn: Any) -> tuple[float, float]:
        picked = TaskSums(*(part[drawn] for part in sums))
        total = len(drawn)
        z = np.arctanh(estimate(picked)[0])
        # Influence of each task by numerical derivative: give it a little more weight.
        step = 1e-4
        influence = []
        for t in range(total):
            weight = np.ones(total)
            weight[t] += step
            heavier = [part * (weight if part.ndim == 1 else weight[:, None]) for part in picked]
            influence.append((np.arctanh(_weighted(heavier, weight, which)) - z) / step)
        return z, float(np.sqrt(np.square(influence).sum()))

    z, error = z_and_error(np.arange(12))
    far = []
    for weights in np.concatenate(list(task_resamples(12, 99, np.random.default_rng(3)))):
        resampled = z_and_error(np.repeat(np.arange(12), weights.astype(int)))
        far.append(abs(resampled[0] - z) / resampled[1])
    half = np.sort(far)[94] * error  # the 95th of 99
    low, high = correlation_interval(terms(sums, which), 99, np.random.default_rng(3))
    assert low[0] == pytest.approx(np.tanh(z - half), abs=2e-3)
    assert high[0] == pytest.approx(np.tanh(z + half), abs=2e-3)


def _weighted(parts: list[Any], weight: Any, which: str) -> float:
    """R of weighted sums, straight from the definition."""
    n, s, x, xx, xo = parts
    x, xx, xo = x[:, 0], xx[:, 0], xo[:, 0]
    if which == "pooled":
        n, s, x, xx, xo = (np.array([v.sum()]) for v in (n, s, x, xx, xo))
    covariance = (xo - x * s / n).sum()
    return float(covariance / np.sqrt((xx - x * x / n).sum() * (s - s * s / n).sum()))


@pytest.mark.parametrize(
    ("episodes", "runs"),
    [
        (alike(64, 8), 150),
        (alike(50, 4), 200),
        (alike(30, 8), 200),
        (alike(200, 4), 100),
        (np.random.default_rng(5).integers(1, 13, 64), 150),
    ],
    ids=["64x8", "50x4", "30x8", "200x4", "64 ragged"],
)
def test_intervals_cover(episodes: Any, runs: int) -> None:
    # Issue 2, measure 3: 93 to 97 %. A standard error is 0.5 to 0.8 % over the 8 tiers.
    model = Model(episodes, BASE, EFFECT, pass_a=0.7, pass_b=0.7)
    true_within, true_pooled = model.truth()
    rng = np.random.default_rng(11)
    covered = []
    for sums in model.runs(runs, rng):
        low, high = correlation_interval(terms(sums, "within"), 300, rng)
        pooled_low, pooled_high = correlation_interval(terms(sums, "pooled"), 300, rng)
        covered.append(
            [
                (low <= true_within) & (true_within <= high),
                (pooled_low <= true_pooled) & (true_pooled <= pooled_high),
            ]
        )
    for share in np.mean(covered, axis=(0, 2)):
        assert 0.93 <= share <= 0.97


def test_the_model_is_true() -> None:
    model = Model(alike(200_000, 8), BASE, EFFECT, pass_a=0.7, pass_b=0.7)
    sums = next(model.runs(1, np.random.default_rng(0)))
    np.testing.assert_allclose(within(sums), model.truth()[0], atol=0.005)
    np.testing.assert_allclose(pooled(sums), model.truth()[1], atol=0.005)


def test_ratio_interval_covers() -> None:
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(400):
        turns = rng.poisson(rng.gamma(1.0, 4.0, (40, 5)))
        level = rng.standard_normal((40, 5))  # of the task: all its turns share it
        total = turns * (0.3 + level) + np.sqrt(turns) * rng.standard_normal((40, 5))
        low, high = ratio_interval(total, turns.astype(np.float64), 300, rng)
        covered.append((low <= 0.3) & (high >= 0.3))
    assert 0.93 <= np.mean(covered) <= 0.97


def test_ratio_interval_follows_the_unit() -> None:
    rng = np.random.default_rng(5)
    top, bottom = rng.random((20, 3)), rng.integers(0, 5, (20, 3)).astype(np.float64)
    low, high = ratio_interval(top, bottom, 200, np.random.default_rng(0))
    low2, high2 = ratio_interval(-8 * top, bottom, 200, np.random.default_rng(0))
    np.testing.assert_allclose(low2, -8 * high)
    np.testing.assert_allclose(high2, -8 * low)
    with pytest.raises(ValueError, match="two \\[T, C\\] arrays"):
        ratio_interval(top, bottom[:, :2], 10, rng)


@pytest.mark.parametrize("which", ["within", "pooled"])
def test_interval_of_constant_and_rare_and_perfect_tiers(which: Any) -> None:
    n, s = alike(60, 8), np.tile([2, 4, 6], 20)
    x = np.zeros((60, 5))
    xo = np.zeros((60, 5))
    x[:, 1], xo[:, 1] = n, s  # in every episode
    x[7, 2], xo[7, 2] = 3, 3  # in one task only
    x[:, 3] = xo[:, 3] = s  # in just the successes
    x[:, 4] = n - s  # in just the failures
    parts = terms(TaskSums(n, s, x, x, xo), which)
    low, high = correlation_interval(parts, 500, np.random.default_rng(0))
    unseen = 2 * float(unseen_share(60, 0.95))
    np.testing.assert_allclose(low, np.array([np.nan, np.nan, -1, 1 - unseen, -1]))
    np.testing.assert_allclose(high, np.array([np.nan, np.nan, 1, 1, -1 + unseen]))


def test_one_task_says_nothing_about_others() -> None:
    n, x = np.array([40]), np.array([[12.0]])
    sums = TaskSums(n, np.array([20]), x, x, np.array([[9.0]]))
    low, high = correlation_interval(terms(sums, "within"), 100, np.random.default_rng(0))
    assert (low[0], high[0]) == (-1, 1)
    low, high = ratio_interval(x, x, 100, np.random.default_rng(0))
    assert (low[0], high[0]) == (-np.inf, np.inf)


def test_unseen_share_is_the_rule_of_three() -> None:
    # Hanley and Lippman-Hand (1983): 0 of 100 excludes, at 95 %, more than 3 %
    assert float(unseen_share(100, 0.95)) == pytest.approx(0.03, abs=6e-4)


def test_held_out_correlation_is_what_is_left_elsewhere() -> None:
    """What halves choose came out high; on the other tasks it is as it truly is."""
    model = Model(alike(32, 8), np.array([0.3, 0.3, 0.3]), np.array([0.0, 0.1, 0.4]), spread=0.0)
    rng = np.random.default_rng(0)
    parts = [terms(sums, "within") for sums in model.runs(200, rng)]
    left = np.array([held_out_correlation(part, 20, rng) for part in parts])
    truth = model.truth()[0]
    assert abs(np.nanmean(left[:, 0])) < 0.04
    assert np.nanmean(left[:, 2]) == pytest.approx(truth[2], abs=0.02)
    # What chose the weak one: beyond 1.96 standard errors of half of the episodes.
    assert np.nanmean(left[:, 1]) < truth[1] + 0.02 < 1.96 / np.sqrt(16 * 8)


def test_held_out_correlation_of_constant_and_lone_tiers() -> None:
    assert np.isnan(held_out_correlation(np.zeros((6, 3, 2)), 5, np.random.default_rng(0))).all()
    for rows in (3, 6):
        lone = np.ones((1, rows, 1))
        assert np.isnan(held_out_correlation(lone, 5, np.random.default_rng(0))).all()
