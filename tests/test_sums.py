from __future__ import annotations

from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.calibration import blocks as module
from stages.calibration.sums import UNITS, lay_out, merge, sum_turns
from stages.core.correlation import Floats, pooled, within
from stages.errors import InputError
from stages.tables.artifacts import SUMS
from tests.builders import Tiered, airline_scored, line_of, needs_shared, turn_frame

MEASURES = tuple(UNITS)
QUICK = settings(max_examples=25, deadline=None, derandomize=True)

EPISODES = st.lists(
    st.builds(
        Tiered,
        task=st.sampled_from(["t", "u", "v"]),
        outcome=st.sampled_from([0.0, 1.0, 1.0, None]),
        tiers=st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=5),
        status=st.sampled_from(["ok", "ok", "ok", "truncated", "error"]),
        group=st.sampled_from([None, "a"]),
    ),
    min_size=1,
    max_size=12,
)


def summed(turns: pl.DataFrame, measure: str = "presence") -> pl.DataFrame:
    return sum_turns(turns.lazy(), measure, "turns").sums


def turns_of(one: Tiered, tier: str | None) -> int:
    return len(one.tiers) if tier is None else sum(t == tier for t in one.tiers)


def measured(one: Tiered, tier: str | None, measure: str) -> int:
    if measure == "share":
        return round(2**20 * turns_of(one, tier) / len(one.tiers))
    return turns_of(one, tier) if measure == "count" else 1


def added_up(having: list[Tiered], tier: str | None, measure: str) -> list[int]:
    """The sums of episodes that have the tier."""
    won = [one for one in having if one.outcome]
    x = [measured(one, tier, measure) for one in having]
    return [
        len(having),
        len(won),
        sum(turns_of(one, tier) for one in having),
        sum(turns_of(one, tier) for one in won),
        sum(x),
        sum(value * value for value in x),
        sum(measured(one, tier, measure) for one in won),
    ]


@pytest.mark.parametrize("measure", MEASURES)
@QUICK
@given(episodes=EPISODES)
def test_sums_equal_adding_up_one_by_one(measure: str, episodes: list[Tiered]) -> None:
    used = [one for one in episodes if one.status != "error" and one.outcome is not None]
    rows = []
    for task, group, length in product("tuv", [None, "a"], range(1, 6)):
        cell = [
            one for one in used if (one.task, one.group, len(one.tiers)) == (task, group, length)
        ]
        for tier in [None, "a", "b", "c"]:
            if having := [one for one in cell if turns_of(one, tier)]:
                name = f"{group}/{task}" if group else task
                of_group = (task, name, "trace", None)
                rows.append((*of_group, length, tier, *added_up(having, tier, measure)))
    rows.sort(key=lambda row: (*row[:2], row[4], row[5] or ""))
    result = sum_turns(turn_frame(episodes).lazy(), measure, "turns")
    assert result.sums.rows() == rows
    assert result.sums.schema == SUMS.columns
    assert result.excluded == len(episodes) - len(used)
    SUMS.check_rows(result.sums, "sums")


@pytest.mark.parametrize("measure", MEASURES)
@QUICK
@given(episodes=EPISODES, data=st.data())
def test_shards_in_any_order_equal_one_run_bit_for_bit(
    measure: str, episodes: list[Tiered], data: st.DataObject
) -> None:
    size = len(episodes)
    shard_of = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size), "shard")
    turns = turn_frame(episodes)
    shard = turns["trial"].replace_strict(list(range(size)), shard_of)  # trials count episodes
    order = data.draw(st.permutations(range(4)), "order")
    parts = [sum_turns(turns.filter(shard == k).lazy(), measure, "shard") for k in order]
    one = sum_turns(turns.lazy(), measure, "turns")
    assert sum(part.excluded for part in parts) == one.excluded
    assert merge([part.sums for part in parts]).equals(one.sums)
    # Merges may be nested: of the first two, and that with the others.
    first = merge([parts[0].sums, parts[1].sums])
    assert merge([parts[3].sums, first, parts[2].sums]).equals(one.sums)


@pytest.mark.parametrize("block", [1, 2, 7])
@pytest.mark.parametrize("measure", MEASURES)
def test_blocks_of_any_size_give_the_same_sums(
    monkeypatch: pytest.MonkeyPatch, measure: str, block: int
) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Tiered(f"task {rng.integers(9)}", float(rng.integers(2)), rng.choice([*"abcde"], n))
        for n in rng.integers(1, 9, 60)
    ]
    turns = turn_frame([*episodes, Tiered("z", None, "ab"), Tiered("z", 1.0, "b", "error")])
    whole = sum_turns(turns.lazy(), measure, "turns")
    assert whole.excluded == 2 and whole.sums.height > 40
    monkeypatch.setattr(module, "_BLOCK", block)
    in_blocks = sum_turns(turns.lazy(), measure, "turns")
    assert in_blocks.excluded == whole.excluded
    assert in_blocks.sums.equals(whole.sums)


@pytest.mark.parametrize("block", [1, 3, 500_000])
@pytest.mark.parametrize(
    ("order", "row"),
    [
        ([0, 2, 1, 3, 4], 2),  # turns of the first episode out of order
        ([1, 2, 3, 4], 1),  # its first turn is missing
        ([0, 1, 3, 4, 2], 5),  # its last turn stands after the second episode
        ([0, 1, 1, 2, 3, 4], 3),  # a turn twice
        ([0, 1, 2, 4, 3], 4),
    ],
)
def test_turns_out_of_order_are_one_line(
    monkeypatch: pytest.MonkeyPatch, order: list[int], row: int, block: int
) -> None:
    turns = turn_frame([Tiered("t", 1.0, "aab"), Tiered("u", 0.0, "ba")])[order]
    monkeypatch.setattr(module, "_BLOCK", block)
    with pytest.raises(InputError) as caught:
        sum_turns(turns.lazy(), "presence", "runs/turns.parquet")
    assert line_of(caught) == (
        f"runs/turns.parquet:row {row}: the turns of an episode are not consecutive rows, "
        "in order from 0; sort by episode_id, turn"
    )


def test_no_turns_have_no_sums() -> None:
    none = turn_frame([Tiered("t", None, "a")])
    for turns in (none, none.clear()):
        assert summed(turns).rows() == []
        assert summed(turns).schema == SUMS.columns


def test_the_layout_is_in_the_order_of_names() -> None:
    turns = turn_frame([Tiered("u", 1.0, "bb"), Tiered("t", 0.0, "ab"), Tiered("t", 1.0, "c")])
    sums = lay_out(summed(turns, "count").sample(fraction=1.0, shuffle=True, seed=1), "count")
    assert sums.tiers == ["a", "b", "c"]
    assert sums.tasks.episodes.tolist() == [2, 1]
    assert sums.tasks.successes.tolist() == [1, 1]
    assert sums.tasks.x.tolist() == [[1, 1, 1], [0, 2, 0]]
    assert sums.tasks.xx.tolist() == [[1, 1, 1], [0, 4, 0]]
    assert sums.tasks.xo.tolist() == [[0, 0, 1], [0, 2, 0]]
    assert sums.episodes.tolist() == [1, 2, 1]
    assert sums.turns.tolist() == [1, 3, 1]
    assert sums.turns_in_successes.tolist() == [0, 2, 1]
    assert (sums.all_turns, sums.all_turns_in_successes) == (5, 3)


def correlation(x: Floats, o: Floats) -> float:
    scale = np.sqrt((x @ x) * (o @ o))
    return float(x @ o / scale) if scale > 1e-9 else np.nan


ONE = st.tuples(st.integers(0, 2), st.booleans(), st.lists(st.sampled_from("ab"), min_size=1))


# A share is rounded to 2^-20.
@pytest.mark.parametrize(
    ("measure", "tolerance"), [("presence", 1e-9), ("count", 1e-9), ("share", 1e-5)]
)
@QUICK
@given(episodes=st.lists(ONE, min_size=2, max_size=15))
def test_r_from_sums_equals_r_from_arrays(
    measure: str, tolerance: float, episodes: list[tuple[int, bool, list[str]]]
) -> None:
    task = np.array([task for task, _, _ in episodes])
    outcome = np.array([float(won) for _, won, _ in episodes])
    same_task = (task[:, None] == task).astype(np.float64)
    of_task = same_task / same_task.sum(axis=1)  # a row takes the mean over the episode's task
    turns = turn_frame(Tiered(f"{t}", float(won), tiers) for t, won, tiers in episodes)
    sums = lay_out(summed(turns, measure), measure)
    r_pooled, r_within = pooled(sums.tasks), within(sums.tasks)
    for c, tier in enumerate(sums.tiers):
        x = np.array([tiers.count(tier) for _, _, tiers in episodes], np.float64)
        if measure == "share":
            x /= [len(tiers) for _, _, tiers in episodes]
        elif measure == "presence":
            x = np.minimum(x, 1)
        slow = correlation(x - x.mean(), outcome - outcome.mean())
        assert r_pooled[c] == pytest.approx(slow, abs=tolerance, nan_ok=True)
        slow = correlation(x - of_task @ x, outcome - of_task @ outcome)
        assert r_within[c] == pytest.approx(slow, abs=tolerance, nan_ok=True)


@needs_shared
def test_shards_of_a_real_trace_merge_into_one_run() -> None:
    turns = airline_scored("extended").frame()
    episode = turns["episode_id"].rle_id()
    shards = [summed(turns.filter(episode % 3 == k), "share") for k in (2, 0, 1)]
    assert merge(shards).equals(summed(turns, "share"))
