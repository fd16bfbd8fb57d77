from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tables.turn_arrays import turn_arrays
from tests.builders import (
    FEW,
    Tiered,
    airline_scored,
    by_tier,
    calibrated,
    needs_shared,
    turn_frame,
)


def planted(tasks: int = 40, trials: int = 8) -> list[Tiered]:
    """Half of a task's episodes succeed; "good" and "bad" go with that, "noise" with nothing.

    "always" is in every episode, and "rare" in four of all.
    """
    rng = np.random.default_rng(1)
    episodes = []
    for t in range(tasks):
        for i in range(trials):
            won = i % 2 == 0
            present = {
                "always": True,
                "good": rng.random() < (0.8 if won else 0.2),
                "bad": rng.random() < (0.3 if won else 0.7),
                "noise": rng.random() < 0.5,
                "rare": t < 4 and i == t,
            }
            episodes.append(
                Tiered(f"{t}", float(won), [t for t, is_in in present.items() if is_in])
            )
    return episodes


PLANTED = turn_frame(planted())


# --- reference figures ----------------------------------------------------------------------------


@needs_shared
def test_the_reference_figures_of_flat() -> None:
    # docs/method.md, "Reference figures": turns, episodes with it, r_pooled, turn-level r on
    # gpt-4o-airline.json.
    reference: dict[str, tuple[int, int, float | None, float]] = {
        "gold": (397, 113, +0.0723, +0.0185),
        "soft": (55, 47, -0.4000, -0.0907),
        "state_change": (44, 40, -0.4255, -0.0965),
        "handoff": (48, 48, +0.3520, +0.1169),
        "read_only": (547, 123, -0.0970, -0.0637),
        "error": (73, 36, -0.1614, -0.0591),
        "message": (1290, 200, None, +0.0797),
    }
    result = calibrated(airline_scored("flat").frame())
    assert (result.episodes, result.tasks, result.excluded) == (200, 50, 0)
    assert result.pass_rate == pytest.approx(0.42, abs=1e-12)
    tiers = by_tier(result)
    assert tiers.keys() == reference.keys()
    for name, (turns, episodes, r_pooled, r_turn) in reference.items():
        tier = tiers[name]
        assert (tier.turns, tier.episodes) == (turns, episodes)
        assert tier.r_pooled == pytest.approx(r_pooled, abs=1e-4)
        assert tier.r_turn == pytest.approx(r_turn, abs=1e-4)


@needs_shared
def test_the_reference_figures_within_tasks() -> None:
    # docs/method.md, "Reference figures": presence of a gold write and of a gold read, one-to-one
    # matching.
    result = calibrated(airline_scored("extended").frame())
    assert result.correlation == "within"
    tiers = by_tier(result)
    assert tiers["gold_write"].r_within == pytest.approx(+0.4441, abs=1e-4)
    assert tiers["gold_read"].r_within == pytest.approx(-0.0201, abs=1e-4)
    # docs/method.md, "Reference figures": a gold write or read pooled is near +0.07.
    assert tiers["gold_write"].r_pooled == pytest.approx(+0.07, abs=0.01)


# --- values ---------------------------------------------------------------------------------------


def test_values_follow_the_formula() -> None:
    # docs/method.md, "Values": alpha r where |r| > delta, q < fdr and the support is enough, else
    # 0.
    result = calibrated(PLANTED)
    tiers = by_tier(result)
    largest = max(abs(t.excess or 0) for t in result.tiers if t.status == "discriminative")
    for tier in result.tiers:
        r, q = tier.excess, tier.q
        tells = r is not None and q is not None and abs(r) > 0.05 and q < 0.05
        if tells and 20 <= tier.episodes <= 300:
            assert tier.status == "discriminative"
            assert tier.value == pytest.approx((r or 0) / largest, abs=1e-12)
        else:
            assert tier.status != "discriminative"
            assert tier.value == 0
    assert max(abs(t.value) for t in result.tiers) == pytest.approx(1, abs=1e-15)
    assert tiers["good"].value > 0 > tiers["bad"].value
    assert result.values() == {t.tier: t.value for t in result.tiers}


def test_alpha_is_the_value_of_a_correlation_of_one() -> None:
    tiers = by_tier(calibrated(PLANTED, replace(FEW, alpha=2.0)))
    assert tiers["good"].value == pytest.approx(2 * (tiers["good"].excess or 0), abs=1e-15)
    assert tiers["noise"].value == 0


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, "discriminative"),
        ({"delta": 0.9}, "undecided"),
        ({"fdr": 0.0}, "undecided"),
        ({"min_support": 200}, "undecided"),
        ({"delta": 0.9, "effect": 0.95}, "neutral"),
        ({"delta": 0.9, "effect": 0.95, "min_support": 200}, "undecided"),
    ],
)
def test_each_bar_counts(change: dict[str, Any], status: str) -> None:
    good = by_tier(calibrated(PLANTED, replace(FEW, **change)))["good"]
    assert good.status == status
    assert (good.value != 0) == (status == "discriminative")
    assert (good.more_episodes is not None) == (status == "undecided")


def test_statuses_by_construction() -> None:
    tiers = by_tier(calibrated(PLANTED))
    assert {name: tier.status for name, tier in tiers.items()} == {
        "always": "constant",
        "good": "discriminative",
        "bad": "discriminative",
        "noise": "neutral",
        "rare": "undecided",
    }
    constant = tiers["always"]
    assert (constant.episodes, constant.turns) == (320, 320)
    assert (constant.r_pooled, constant.r_within, constant.p, constant.q) == (None,) * 4
    assert (constant.ci_low, constant.ci_high, constant.more_episodes) == (None,) * 3
    noise = tiers["noise"]
    assert noise.ci_low is not None and noise.ci_high is not None
    assert -0.2 < noise.ci_low < 0 < noise.ci_high < 0.2  # rules out what matters (effect)


def test_more_episodes_are_enough_for_power_and_for_support() -> None:
    tiers = by_tier(calibrated(PLANTED))
    assert {name for name, tier in tiers.items() if tier.more_episodes is not None} == {"rare"}
    # 4 of 320 episodes have it: 20 of them take 1,600.
    assert (tiers["rare"].more_episodes or 0) >= 1600 - 320
    # Fewer tasks don't rule out an effect that matters, and more are asked for.
    fewer = by_tier(calibrated(turn_frame(planted(tasks=6)), replace(FEW, min_support=1)))
    assert fewer["noise"].status == "undecided"
    assert (fewer["noise"].more_episodes or 0) > 48


def test_nothing_tells_apart_what_all_episodes_share() -> None:
    tiers = calibrated(turn_frame([Tiered(f"{i % 5}", float(i % 2), "a") for i in range(40)])).tiers
    assert [(t.status, t.value, t.r_turn) for t in tiers] == [("constant", 0.0, None)]


def test_what_no_success_lacks_is_necessary_by_definition() -> None:
    episodes = [
        Tiered(f"{i % 9}", float(i % 2), ["needed", "any"] if i % 4 else ["any"] * (1 + i % 3))
        for i in range(100)
    ]
    tiers = by_tier(calibrated(turn_frame(episodes)))
    # 25 failures lack it, and no success; all episodes have the other.
    assert (tiers["needed"].necessary, tiers["any"].necessary) == (True, False)
    one_more = [*episodes, Tiered("0", 1.0, ["any"])]
    assert not by_tier(calibrated(turn_frame(one_more)))["needed"].necessary
    # Tasks of which no success has it ask for something else.
    others = [Tiered(f"other {i % 9}", float(i % 2), ["any"]) for i in range(100)]
    assert by_tier(calibrated(turn_frame([*episodes, *others])))["needed"].necessary


@pytest.mark.parametrize(("failures", "necessary"), [(6, False), (7, True)])
def test_what_is_lacked_too_rarely_may_be_an_accident(failures: int, necessary: bool) -> None:
    # In so many tasks one of two episodes lacks it, the failure: by chance 2^-6, or 2^-7 < 1 %.
    episodes = [
        Tiered(f"{t}", float(won), ["needed"] if won or t >= failures else ["any"])
        for t in range(failures + 2)
        for won in (0, 1)
    ]
    assert by_tier(calibrated(turn_frame(episodes)))["needed"].necessary is necessary


@needs_shared
def test_a_gold_write_is_necessary_on_a_real_trace() -> None:
    tiers = by_tier(calibrated(airline_scored("extended").frame()))
    assert [name for name, tier in tiers.items() if tier.necessary] == ["gold_write"]


# --- which correlation ----------------------------------------------------------------------------


def test_within_is_chosen_from_two_mixed_tasks_on() -> None:
    mixed = [Tiered("t", 1.0, "a"), Tiered("t", 0.0, "b")]
    plain = [Tiered("v", 1.0, "a"), Tiered("w", 0.0, "b")]
    two = [*mixed, *(one._replace(task="u") for one in mixed)]
    assert calibrated(turn_frame(two + plain)).correlation == "within"
    one_mixed = calibrated(turn_frame(mixed + plain))
    assert (one_mixed.correlation, one_mixed.mixed_tasks, one_mixed.tasks) == ("pooled", 1, 3)
    forced = calibrated(turn_frame(mixed + plain), replace(FEW, correlation="within"))
    assert forced.correlation == "within"
    forced = calibrated(turn_frame(two), replace(FEW, correlation="pooled"))
    assert forced.correlation == "pooled"


def test_the_chosen_correlation_sets_interval_and_value() -> None:
    for which, adjust in product(("within", "pooled"), ("length", "none")):
        config = replace(FEW, correlation=which, adjust=adjust, alpha=1.0)
        good = by_tier(calibrated(PLANTED, config))["good"]
        raw = good.r_within if which == "within" else good.r_pooled
        assert (good.explained or 0) + (good.excess or 0) == pytest.approx(raw, abs=1e-12)
        r = good.excess if adjust == "length" else raw
        assert good.ci_low is not None and good.ci_high is not None and r is not None
        assert good.ci_low < r < good.ci_high
        assert good.value == pytest.approx(r, abs=1e-15)


def test_a_planted_reversal_is_warned_of() -> None:
    # Simpson: "write" helps within every task, and the tasks that need it are the hard ones.
    rng = np.random.default_rng(0)
    episodes = []
    for t in range(40):
        hard = t % 2 == 0
        for _ in range(8):
            writes = rng.random() < (0.8 if hard else 0.2)
            won = rng.random() < (0.1 if hard else 0.6) + 0.3 * writes
            tiers = ["write" if writes else "talk", *["noise"] * int(rng.integers(2))]
            episodes.append(Tiered(f"{t}", float(won), tiers))
    found = by_tier(calibrated(turn_frame(episodes)))
    write = found["write"]
    assert (write.r_within or 0) > 0.2 and (write.r_pooled or 0) < -0.05
    assert write.sign_reversed and not found["noise"].sign_reversed
    assert write.value > 0
    assert not any(tier.sign_reversed for tier in calibrated(PLANTED).tiers)


# --- turns ----------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.booleans(), st.lists(st.sampled_from("ab"), min_size=1, max_size=4)),
        min_size=2,
        max_size=8,
    )
)
def test_turn_r_equals_the_correlation_over_turns(episodes: list[tuple[bool, list[str]]]) -> None:
    turns = turn_frame(Tiered("t", float(won), tiers) for won, tiers in episodes)
    sums = calibrated(turns, replace(FEW, correlation="within"))
    outcome = turns["outcome"].to_numpy()
    for tier in sums.tiers:
        x = (turns["tier"] == tier.tier).to_numpy().astype(np.float64)
        expected = None
        if np.ptp(x) and np.ptp(outcome):
            expected = pytest.approx(np.corrcoef(x, outcome)[0, 1], abs=1e-12)
        assert tier.r_turn == expected


def test_what_is_left_out_does_not_count() -> None:
    out = [Tiered("0", 1.0, ["bad"] * 9, "error"), Tiered("0", None, ["bad"] * 9)]
    more = pl.concat([PLANTED, turn_frame(out, first=1000)])
    assert calibrated(more) == calibrated(PLANTED)._replace(excluded=2)
    assert turn_arrays(more).frame.equals(PLANTED)


def test_a_seed_gives_the_same_figures_again() -> None:
    assert calibrated(PLANTED, seed=3) == calibrated(PLANTED, seed=3)
    other = calibrated(PLANTED, seed=4)
    assert by_tier(other)["good"].ci_low != by_tier(calibrated(PLANTED, seed=3))["good"].ci_low
    assert other.values() == calibrated(PLANTED, seed=3).values()  # p decides, r pays


@pytest.mark.parametrize("measure", ["presence", "count", "share"])
def test_measures(measure: str) -> None:
    episodes = [
        Tiered(f"{t}", float(i % 2), ["a"] * (3 if i % 2 else 1) + ["b"] * 2)
        for t in range(10)
        for i in range(8)
    ]
    result = by_tier(calibrated(turn_frame(episodes), replace(FEW, measure=measure)))
    # In every episode, but more often in the successful ones.
    expected = {"presence": (None, None), "count": (1.0, None), "share": (1.0, -1.0)}[measure]
    assert result["a"].r_within == pytest.approx(expected[0], abs=1e-4)
    assert result["b"].r_within == pytest.approx(expected[1], abs=1e-4)
    assert (result["a"].episodes, result["a"].turns) == (80, 160)
