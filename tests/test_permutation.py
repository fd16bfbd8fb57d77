from __future__ import annotations

from itertools import combinations, product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stages.core.correlation import Floats, TaskSums, benjamini_hochberg, pooled, within
from stages.core.permutation import pooled_p, stratified_p, within_p
from tests.simulated import Model, alike

BASE = np.array([0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.1, 0.3])
NULL = Model(alike(64, 8), BASE, np.zeros(8), pass_a=0.5, pass_b=0.5)
RAGGED = np.random.default_rng(5).integers(1, 13, 64)


def presence(n: list[int], k: list[int], m: list[int], found: list[int]) -> TaskSums:
    x = np.array(m, np.float64)[:, None]
    return TaskSums(np.array(n), np.array(k), x, x, np.array(found, np.float64)[:, None])


def test_one_task_equals_fishers_exact_test() -> None:
    # Symmetric margins, where both definitions of two-sided agree.
    table = np.array([[8, 2], [2, 8]])
    expected = stats.fisher_exact(table).pvalue
    assert within_p(presence([20], [10], [10], [8]))[0] == pytest.approx(expected, rel=1e-12)


def test_a_large_task_equals_scipy_hypergeom() -> None:
    law = stats.hypergeom(1_000_000, 333_333, 400_000)
    off = abs(134_000 - law.mean())
    p = law.sf(np.ceil(law.mean() + off) - 1) + law.cdf(np.floor(law.mean() - off))
    ours = within_p(presence([1_000_000], [333_333], [400_000], [134_000]))[0]
    assert ours == pytest.approx(p, rel=1e-8)


strata = st.integers(1, 6).flatmap(
    lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(strata, min_size=1, max_size=4), st.data())
def test_several_tasks_equal_enumeration(
    triples: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    ranges = [range(max(0, k + m - n), min(k, m) + 1) for n, k, m in triples]
    found = [data.draw(st.sampled_from(r)) for r in ranges]
    expected = sum(k * m / n for n, k, m in triples)
    p = 0.0
    for values in product(*ranges):
        ways = [
            comb(m, v) * comb(n - m, k - v) / comb(n, k)
            for (n, k, m), v in zip(triples, values, strict=True)
        ]
        if abs(sum(values) - expected) >= abs(sum(found) - expected) - 1e-9:
            p += float(np.prod(ways))
    n, k, m = np.array(triples).T
    assert stratified_p(n, k, m, sum(found)) == pytest.approx(p, rel=1e-9)


def test_exact_p_equals_shuffled_labels() -> None:
    # The definition itself: all arrangements of the outcomes of two tasks of four episodes.
    x = np.array([[1, 1, 0, 0], [1, 1, 1, 0]])
    arrangements = [
        [np.isin(np.arange(4), chosen) for chosen in combinations(range(4), k)] for k in (2, 1)
    ]
    sums = np.array([(x * np.array(pair)).sum() for pair in product(*arrangements)])
    p = np.mean(np.abs(sums - sums.mean()) >= abs(3 - sums.mean()) - 1e-9)
    assert within_p(presence([4, 4], [2, 1], [2, 3], [2, 1]))[0] == pytest.approx(p)


def test_many_tasks_agree_with_cochran_mantel_haenszel() -> None:
    model = Model(alike(12_500, 8), np.array([0.3, 0.05]), np.array([0.012, 0.004]))
    sums = next(model.runs(1, np.random.default_rng(4)))
    n, k = sums.episodes[:, None].astype(float), sums.successes[:, None].astype(float)
    off = (sums.xo - k * sums.x / n).sum(axis=0)
    variance = (k * (n - k) * sums.x * (n - sums.x) / (n * n * (n - 1))).sum(axis=0)
    # Half a step of continuity makes the normal tail that of the exact, discrete law.
    chi2 = (np.abs(off) - 0.5) ** 2 / variance
    np.testing.assert_allclose(within_p(sums), stats.chi2.sf(chi2, 1), rtol=0.02)


def test_tiny_p_keeps_its_digits() -> None:
    # 40 tasks of 8, the tier in just the 4 successes of each: p = 2 C(8, 4)^-40
    sums = presence([8] * 40, [4] * 40, [4] * 40, [4] * 40)
    assert within_p(sums)[0] == pytest.approx(2.0 * comb(8, 4) ** -40, rel=1e-9)


def test_undefined_and_uninformative() -> None:
    constant = presence([4, 4], [2, 2], [4, 0], [2, 0])
    assert np.isnan(within_p(constant)[0])
    elsewhere = presence([4, 4], [2, 0], [4, 2], [2, 0])  # the tier varies where no outcome does
    assert within_p(elsewhere)[0] == 1
    everywhere = presence([4, 4], [2, 1], [4, 4], [2, 1])
    assert np.isnan(pooled_p(everywhere, 20, np.random.default_rng(0))[0])


def test_counts_agree_with_shuffling() -> None:
    rng = np.random.default_rng(1)
    outcome = rng.random((40, 8)) < rng.random((40, 1))
    count = rng.poisson(0.8 + 0.2 * outcome).astype(np.float64)
    shuffled = rng.permuted(np.broadcast_to(outcome, (4000, 40, 8)), axis=2)
    sums = TaskSums(
        alike(40, 8),
        outcome.sum(axis=1),
        count.sum(axis=1)[:, None],
        (count**2).sum(axis=1)[:, None],
        (count * outcome).sum(axis=1)[:, None],
    )
    law = (shuffled * count).sum(axis=(1, 2))
    expected = (count.sum(axis=1) * outcome.mean(axis=1)).sum()
    p = np.mean(np.abs(law - expected) >= abs((count * outcome).sum() - expected))
    assert 0.005 < p < 0.5  # somewhere worth comparing
    assert within_p(sums)[0] == pytest.approx(p, abs=4 * np.sqrt(p / 4000) + 0.1 * p)


def test_lone_episodes_are_the_plain_permutation_test() -> None:
    rng = np.random.default_rng(2)
    outcome = rng.random(120) < 0.4
    present = (rng.random(120) < 0.3 + 0.15 * outcome).astype(np.float64)
    x = present[:, None]
    sums = TaskSums(alike(120, 1), outcome.astype(np.int64), x, x, x * outcome[:, None])
    exact = stratified_p(
        np.array([120]),
        outcome.sum()[None],
        present.sum().astype(int)[None],
        int(present @ outcome),
    )
    p = pooled_p(sums, 4000, rng)[0]
    assert 0.01 < exact < 0.5
    assert p == pytest.approx(exact, abs=4 * np.sqrt(exact / 4000))


@pytest.mark.parametrize("episodes", [alike(12, 4), np.array([1, 2, 3, 4, 5, 6] * 2)])
def test_clustered_p_agrees_with_shuffling_episodes(episodes: Floats) -> None:
    rng = np.random.default_rng(6)
    trials = episodes.astype(np.int64)
    outcome = [rng.random(n) < p for n, p in zip(trials, rng.random(12), strict=True)]
    present = [
        (rng.random(n) < q + 0.25 * o).astype(np.float64)
        for n, q, o in zip(trials, rng.random(12) * 0.7, outcome, strict=True)
    ]

    def r(outcomes: list[Floats]) -> float:
        return float(np.corrcoef(np.concatenate(present), np.concatenate(outcomes))[0, 1])

    def given(donor: Floats, size: int) -> Floats:
        repeats = -(-size // len(donor))
        pool = np.concatenate([rng.permutation(donor) for _ in range(repeats)])[:size]
        return rng.permutation(pool)

    observed = r([o.astype(np.float64) for o in outcome])
    shuffled = np.array(
        [
            r([given(outcome[d].astype(float), n) for d, n in zip(donors, trials, strict=True)])
            for donors in (rng.permutation(12) for _ in range(2000))
        ]
    )
    far = np.abs(shuffled) - abs(observed)
    p = np.mean(far > 1e-12) + np.mean(np.abs(far) <= 1e-12) / 2  # ties count half
    x = np.array([v.sum() for v in present])[:, None]
    xo = np.array([v @ o for v, o in zip(present, outcome, strict=True)])[:, None]
    sums = TaskSums(trials, np.array([o.sum() for o in outcome]), x, x, xo)
    assert pooled(sums)[0] == pytest.approx(observed)
    assert 0.02 < p < 0.7
    assert pooled_p(sums, 2000, rng)[0] == pytest.approx(p, rel=0.1, abs=0.02)


@pytest.mark.parametrize("episodes", [alike(64, 8), alike(50, 4), RAGGED], ids=["8", "4", "ragged"])
def test_no_effect_is_rarely_called_one(episodes: Floats) -> None:
    # Issue 2, measure 3. Outcomes and tiers both cluster by task; 8 tiers a run.
    rng = np.random.default_rng(7)
    runs = list(NULL._replace(episodes=episodes.astype(np.int64)).runs(150, rng))
    for p in (
        np.array([within_p(sums) for sums in runs]),
        np.array([pooled_p(sums, 200, rng) for sums in runs]),
    ):
        tests = np.count_nonzero(~np.isnan(p))
        q = np.array([benjamini_hochberg(row) for row in p])
        assert np.count_nonzero(q < 0.05) <= 0.07 * tests
        # 1,200 tests at a true 5 %: a standard error of 0.63 %
        assert 0.005 * tests < np.count_nonzero(p <= 0.05) <= 0.07 * tests


def test_planted_effect_is_found() -> None:
    # Issue 2, measure 3: r_within = 0.2 in one of 8 tiers, 64 tasks x 8, outcomes clustered.
    effect = np.array([0.23939] + [0.0] * 7)
    base = np.array([0.3, 0.1, 0.2, 0.3, 0.4, 0.5, 0.05, 0.3])
    model = Model(alike(64, 8), base, effect, spread=0.0)
    assert model.truth()[0][0] == pytest.approx(0.2, abs=1e-4)
    runs = list(model.runs(400, np.random.default_rng(9)))
    q = np.array([benjamini_hochberg(within_p(sums)) for sums in runs])
    assert np.mean(q[:, 0] < 0.05) >= 0.9
    assert np.mean([within(sums)[0] for sums in runs]) == pytest.approx(0.2, abs=0.01)
