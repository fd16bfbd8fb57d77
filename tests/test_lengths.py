from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.calibration.sums import lay_out, merge, sum_turns
from stages.core.correlation import TaskSums, correlation
from stages.core.lengths import LengthSums, add_by, expected_measure, length_terms
from tests.builders import Tiered, turn_frame
from tests.designs import calibrated, differing, drifting, placebo, runs, valued

QUICK = settings(max_examples=50, deadline=None, derandomize=True)
MEASURES = ("presence", "count", "share")

# The excess of each tier, from the definition: e by the gamma function, centred by group.
EXCESS = """
    with turns as (select * from read_parquet($path)),
    episodes as (
        select task_id, group_id, episode_id, any_value(success)::int as o, count(*) as k
        from turns group by all),
    groups as (select group_id, count(*) as all_turns from turns group by all),
    of_tier as (
        select group_id, tiers.tier, count(*) filter (turns.tier = tiers.tier) as n
        from turns, (select distinct tier from turns) as tiers(tier) group by all),
    present as (
        select e.*, t.tier, t.n, g.all_turns as total,
            (select count(*) from turns where turns.episode_id = e.episode_id
             and turns.tier = t.tier) as c
        from episodes e join of_tier t using (group_id) join groups g using (group_id)),
    expected as (
        select *, case when total - n < k then 1
            else 1 - exp(lgamma(total - n + 1) - lgamma(total - n - k + 1)
                         - lgamma(total + 1) + lgamma(total - k + 1)) end as e from present),
    y as (
        select tier, group_id, o, case measure
            when 'presence' then (c > 0)::int - e when 'count' then c - k * n / total
            else c / k - n / total end as y
        from expected, (select $measure as measure)),
    centred as (
        select tier, y - avg(y) over w as y, o - avg(o) over w as o from y
        window w as (partition by tier, group_id))
    select tier, sum(y * o) / sqrt(sum(y * y) * sum(o * o)) as r from centred
    group by tier order by tier
"""


def episodes_of_groups(seed: int = 0, count: int = 300) -> list[Tiered]:
    """Tasks with groups of two policies; long episodes succeed, and tier b goes with failure."""
    rng = np.random.default_rng(seed)
    episodes = []
    for i in range(count):
        won = rng.random() < 0.4
        weight = np.array([3, 1.0 if won else 2.0, 0.3])
        tiers = rng.choice([*"abc"], rng.integers(1, 6 + 6 * won), p=weight / weight.sum())
        episodes.append(Tiered(f"{i % 10}", float(won), tiers.tolist(), group=f"p{i % 3 // 2}"))
    return episodes


def excess(turns: pl.DataFrame, measure: str = "presence") -> list[float]:
    sums = lay_out(sum_turns(turns.lazy(), measure, "turns").sums, measure)
    return list(correlation(length_terms(sums.cells, "within", measure, adjust=True).sum(axis=0)))


# --- the expectation ------------------------------------------------------------------------------


def test_chance_by_hand() -> None:
    # Of 4 turns 2 are of the tier; an episode of 2 holds neither with probability 1 / C(4, 2).
    four, two = np.array([4.0]), np.array([2.0])
    assert expected_measure(np.array([2]), two, four, "presence") == pytest.approx(1 - 1 / 6)
    assert expected_measure(np.array([2]), two, four, "count") == pytest.approx(1)
    assert expected_measure(np.array([2]), two, four, "share") == pytest.approx(0.5)


@QUICK
@given(st.integers(1, 60), st.data())
def test_chance_equals_binomials_of_whole_numbers(total: int, data: st.DataObject) -> None:
    n, k = data.draw(st.integers(0, total)), data.draw(st.integers(1, total))
    arrays = np.array([k]), np.array([float(n)]), np.array([float(total)])
    expected = 1 - comb(total - n, k) / comb(total, k)
    assert expected_measure(*arrays, "presence") == pytest.approx(expected, abs=1e-12)


def test_chance_among_a_billion_turns() -> None:
    # Then draws are independent: 1 - (1 - p)^K.
    args = np.array([20]), np.array([1e7]), np.array([1e9])
    assert expected_measure(*args, "presence") == pytest.approx(1 - 0.99**20, rel=1e-5)


@pytest.mark.parametrize("measure", MEASURES)
def test_scattering_has_the_expected_measure(measure: str) -> None:
    """The definition itself: shuffle the tiers over the turns of a group."""
    rng = np.random.default_rng(0)
    lengths = np.array([1, 3, 3, 8, 15])
    tiers = np.arange(lengths.sum()) < 7
    episode = np.repeat(np.arange(5), lengths)
    shuffled = rng.permuted(np.tile(tiers, (20_000, 1)), axis=1)
    count = np.stack([shuffled[:, episode == i].sum(axis=1) for i in range(5)], axis=1)
    drawn = {"presence": count > 0, "count": count, "share": count / lengths}[measure]
    chance = expected_measure(lengths, np.array(7.0), np.array(30.0), measure)
    np.testing.assert_allclose(drawn.mean(axis=0), chance, atol=0.02)


# --- the excess -----------------------------------------------------------------------------------


@pytest.mark.parametrize("measure", MEASURES)
def test_duckdb_finds_the_same_excess(measure: str, tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs irc-cli[dev]")
    turns = turn_frame(episodes_of_groups())
    path = str(tmp_path / "turns.parquet")
    turns.write_parquet(path)
    with duckdb.connect() as connection:
        rows = connection.execute(EXCESS, {"measure": measure, "path": path}).fetchall()
    assert [row[0] for row in rows] == ["a", "b", "c"]
    tolerance = 1e-5 if measure == "share" else 1e-10  # a share is rounded to 2^-20
    np.testing.assert_allclose(excess(turns, measure), [row[1] for row in rows], atol=tolerance)
    assert rows[1][1] < -0.1  # there is something to find


@QUICK
@given(st.integers(0, 2**32 - 1), st.sampled_from(MEASURES))
def test_a_group_that_is_split_over_shards_merges_right(seed: int, measure: str) -> None:
    rng = np.random.default_rng(seed)
    turns = turn_frame(episodes_of_groups(seed, 30))
    shard = turns["trial"].replace_strict(list(range(30)), rng.integers(0, 3, 30).tolist())
    parts = [sum_turns(turns.filter(shard == k).lazy(), measure, "t").sums for k in (2, 0, 1)]
    whole = sum_turns(turns.lazy(), measure, "t").sums
    assert merge(parts).equals(whole)


def test_share_needs_no_adjustment() -> None:
    turns = turn_frame(episodes_of_groups())
    sums = lay_out(sum_turns(turns.lazy(), "share", "turns").sums, "share")
    raw, adjusted = (
        length_terms(sums.cells, "within", "share", adjust=adjust) for adjust in (False, True)
    )
    np.testing.assert_allclose(raw, adjusted, atol=1e-9)


@pytest.mark.parametrize("which", ["within", "pooled"])
def test_a_tier_in_every_episode_tells_nothing(which: Any) -> None:
    length = np.array([2, 5, 2, 5])
    ones = np.ones((4, 1))
    won = np.array([0, 1, 0, 1])
    sums = TaskSums(np.ones(4, np.int64), won, ones, ones, won[:, None].astype(np.float64))
    task = np.array([0, 0, 1, 1])
    cells = LengthSums(task, task, length, sums, ones)
    for adjust in (False, True):
        terms = length_terms(cells, which, "presence", adjust=adjust)
        assert np.isnan(correlation(terms.sum(axis=0))[0])


@pytest.mark.parametrize("which", ["within", "pooled"])
def test_terms_add_up_by_task(which: Any) -> None:
    turns = turn_frame(episodes_of_groups())
    sums = lay_out(sum_turns(turns.lazy(), "presence", "turns").sums, "presence")
    terms = length_terms(sums.cells, which, "presence", adjust=True)
    assert terms.shape == (10, 3 if which == "within" else 6, 3)
    one_task = sums.cells._replace(task=np.zeros_like(sums.cells.task))
    together = length_terms(one_task, which, "presence", adjust=True)
    np.testing.assert_allclose(terms.sum(axis=0), together[0], atol=1e-9)


def test_rows_add_up_by_number() -> None:
    values = np.array([[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(add_by(values, np.array([0, 0, 1])), [[4, 6], [5, 6]])


# --- what is valued: small versions of `make validate` --------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_placebo_is_worth_nothing(share: float) -> None:
    results = [calibrated(placebo(rng, share), rng) for rng in runs(60, 1)]
    assert np.mean([result.tiers[0].explained or 0 for result in results]) > 0.02
    assert abs(np.mean([result.tiers[0].excess or 0 for result in results])) < 0.02
    assert sum(valued(result, [0]) for result in results) <= 3


def test_effects_that_differ_by_task_are_worth_nothing() -> None:
    results = [calibrated(differing(rng), rng) for rng in runs(60, 2)]
    assert sum(valued(result, range(6)) > 0 for result in results) <= 5


def test_a_drifting_policy_makes_no_value() -> None:
    results = [calibrated(drifting(rng), rng) for rng in runs(60, 3)]
    assert np.mean([result.tiers[0].r_pooled or 0 for result in results]) > 0.05
    assert sum(valued(result, [0]) for result in results) <= 5


def test_no_value_has_0_in_its_own_interval() -> None:
    for rng in runs(40, 4):
        for tier in calibrated(differing(rng, tasks=8), rng).tiers:
            if tier.value:
                assert tier.ci_low is not None and tier.ci_high is not None
                assert tier.ci_low > 0 or tier.ci_high < 0
            if tier.p is not None and tier.ci_low is not None and tier.ci_high is not None:
                assert (tier.p < 0.05) == (not tier.ci_low <= 0 <= tier.ci_high)
