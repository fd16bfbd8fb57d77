from __future__ import annotations

import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stages.core.passk import (
    clustered_proportion,
    paired_difference,
    pass_k,
    unpaired_difference,
)
from tests.simulated import alike

AIRLINE = Path(__file__).resolve().parents[2] / "shared/data/tau-bench/gpt-4o-airline.json"


@pytest.mark.skipif(not AIRLINE.exists(), reason="no shared data beside the checkout")
def test_pass_k_of_gpt_4o_airline() -> None:
    # docs/method.md, "Reference figures": pass^1..4 = 0.4200, 0.2733, 0.2200, 0.2000
    runs = json.loads(AIRLINE.read_text())
    n = Counter(run["task_id"] for run in runs)
    c = Counter(run["task_id"] for run in runs if run["reward"] >= 1 - 1e-6)
    episodes, successes = np.array([n[t] for t in n]), np.array([c[t] for t in n])
    values = [pass_k(episodes, successes, k) for k in range(1, 6)]
    np.testing.assert_allclose([v for v, _ in values], [0.42, 0.2733, 0.22, 0.2, np.nan], atol=5e-5)
    assert [tasks for _, tasks in values] == [50, 50, 50, 50, 0]


def wilson(successes: int, n: int) -> tuple[float, float, float]:
    interval = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    return successes / n, interval.low, interval.high


def test_the_difference_of_newcombes_example() -> None:
    # Source: Newcombe (1998), Statistics in Medicine 17(8), table II, example a, method 10.
    found = unpaired_difference(wilson(56, 70), wilson(48, 80))
    assert found == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(*[st.tuples(st.integers(0, 20), st.integers(1, 20)).filter(lambda x: x[0] <= x[1])] * 2)
def test_an_unpaired_difference_turns_with_its_sides(
    one: tuple[int, int], two: tuple[int, int]
) -> None:
    difference, low, high = unpaired_difference(wilson(*one), wilson(*two))
    assert -1 <= low <= difference <= high <= 1
    back = unpaired_difference(wilson(*two), wilson(*one))
    assert back == pytest.approx((-difference, -high, -low), abs=1e-12)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.integers(1, 9))
def test_pass_k_equals_the_share_of_subsets(outcomes: list[bool], k: int) -> None:
    value, tasks = pass_k(np.array([len(outcomes)]), np.array([sum(outcomes)]), k)
    subsets = [all(subset) for subset in combinations(outcomes, k)]
    assert tasks == bool(subsets)
    assert value == pytest.approx(np.mean(subsets) if subsets else np.nan, nan_ok=True)


def test_pass_k_leaves_out_short_tasks() -> None:
    assert pass_k(np.array([2, 4, 4]), np.array([2, 4, 2]), 3) == (0.5, 2)
    assert pass_k(np.array([5000]), np.array([4999]), 2500)[0] == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least 1"):
        pass_k(np.array([2]), np.array([1]), 0)


def test_lone_episodes_give_wilsons_interval() -> None:
    # One trial a task and many tasks: t is z and nothing clusters.
    # SciPy's Wilson interval as the reference.
    outcomes = np.arange(20_000) < 7_000
    rate, low, high = clustered_proportion(alike(20_000, 1), outcomes.astype(np.int64))
    wilson = stats.binomtest(7_000, 20_000).proportion_ci(method="wilson")
    assert rate == 0.35
    assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=2e-5)


def test_outcomes_alike_within_tasks_count_once() -> None:
    once = clustered_proportion(alike(50, 1), (np.arange(50) < 20).astype(np.int64))
    copied = clustered_proportion(alike(50, 8), 8 * (np.arange(50) < 20).astype(np.int64))
    assert copied == pytest.approx(once, abs=0.003)
    all_pass = clustered_proportion(alike(50, 8), alike(50, 8))
    assert all_pass[2] == 1
    assert 0.9 < all_pass[1] < 0.95  # of 50, not of 400
    assert clustered_proportion(alike(1, 8), np.array([4])) == (0.5, 0.0, 1.0)


def test_equal_tasks_are_no_better_than_independent_episodes() -> None:
    _, low, high = clustered_proportion(alike(50, 4), np.full(50, 2))
    wilson = stats.binomtest(100, 200).proportion_ci(method="wilson")
    assert high - low >= wilson.high - wilson.low


@pytest.mark.parametrize(
    ("tasks", "trials", "a", "b"), [(50, 4, 0.5, 0.5), (64, 8, 1, 1), (30, 8, 0.4, 0.6)]
)
def test_clustered_proportion_covers(tasks: int, trials: int, a: float, b: float) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(2500):  # a standard error of 0.44 %
        successes = rng.binomial(trials, rng.beta(a, b, tasks))
        _, low, high = clustered_proportion(alike(tasks, trials), successes)
        covered.append(low <= a / (a + b) <= high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_paired_difference_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    rate, against = rng.binomial(4, 0.6, 50) / 4, rng.binomial(4, 0.5, 50) / 4
    expected = stats.ttest_rel(rate, against).confidence_interval(0.95)
    difference, low, high = paired_difference(rate, against)
    assert difference == pytest.approx((rate - against).mean())
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_paired_difference_of_equal_runs_is_not_certain() -> None:
    same = np.linspace(0, 1, 50)
    difference, low, high = paired_difference(same, same)
    assert difference == 0
    assert high == -low == pytest.approx(1 - 0.025 ** (1 / 50))
    assert paired_difference(np.ones(30), np.zeros(30))[::2] == (1.0, 1.0)
    assert paired_difference(np.ones(1), np.zeros(1)) == (1.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="same tasks"):
        paired_difference(same, same[:3])
