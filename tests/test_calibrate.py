from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.artifacts import ADVANTAGES
from stages.calibrate import (
    CalibrateConfig,
    Calibration,
    Judgement,
    TierStatistics,
    TurnArrays,
    advantage_frame,
    calibrate,
    flipped,
    given_advantages,
    judge,
    tier_rewards,
    turn_advantages,
    turn_arrays,
)
from stages.core.advantages import AdvantageConfig, Estimator
from stages.errors import InputError
from stages.sums import lay_out, sum_turns
from tests.builders import Tiered, airline_scored, line_of, needs_shared, turn_frame

FEW = CalibrateConfig(resamples=200)


def calibrated(turns: pl.DataFrame, config: CalibrateConfig = FEW, seed: int = 0) -> Calibration:
    summed = sum_turns(turns.lazy(), config.measure, "turns")
    sums = lay_out(summed.sums, config.measure)
    return calibrate(sums, summed.excluded, config, np.random.default_rng(seed))


def by_tier(result: Calibration) -> dict[str, TierStatistics]:
    return {tier.tier: tier for tier in result.tiers}


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
    # SPEC section 10: turns, episodes with it, r_pooled, turn-level r on gpt-4o-airline.json.
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
    # SPEC section 10: presence of a gold write and of a gold read, one-to-one matching.
    result = calibrated(airline_scored("extended").frame())
    assert result.correlation == "within"
    tiers = by_tier(result)
    assert tiers["gold_write"].r_within == pytest.approx(+0.4441, abs=1e-4)
    assert tiers["gold_read"].r_within == pytest.approx(-0.0201, abs=1e-4)
    # SPEC section 2: a gold write or read pooled is near +0.07.
    assert tiers["gold_write"].r_pooled == pytest.approx(+0.07, abs=0.01)


# --- values ---------------------------------------------------------------------------------------


def test_values_follow_the_formula() -> None:
    # SPEC section 5: alpha r where |r| > delta, q < fdr and the support is enough, else 0.
    result = calibrated(PLANTED)
    tiers = by_tier(result)
    largest = max(abs(t.r_within or 0) for t in result.tiers if t.status == "discriminative")
    for tier in result.tiers:
        r, q = tier.r_within, tier.q
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
    assert tiers["good"].value == pytest.approx(2 * (tiers["good"].r_within or 0), abs=1e-15)
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
    for which in ("within", "pooled"):
        result = calibrated(PLANTED, replace(FEW, correlation=which, alpha=1.0))
        good = by_tier(result)["good"]
        r = good.r_within if which == "within" else good.r_pooled
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
    assert other.values() == calibrated(PLANTED, seed=3).values()  # exact p: nothing random in it


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


# --- judging advantages ---------------------------------------------------------------------------

NAIVE = {"gold": 1.0, "read": 0.3, "stop": 0.0}


def farming() -> pl.DataFrame:
    """The classic fault: reads are rewarded, though failures are what is made of them."""
    episodes = []
    rng = np.random.default_rng(0)
    for t in range(30):
        for i in range(8):
            won = i < 4
            reads = int(rng.integers(0, 2) if won else rng.integers(10, 15))
            tiers = ["read"] * reads + ["gold"] * won + ["stop"]
            episodes.append(Tiered(f"{t}", float(won), tiers))
    return turn_frame(episodes, NAIVE)


def judged(
    turns: TurnArrays,
    rewards: dict[str, float],
    values: dict[str, float],
    estimator: Estimator = "hybrid",
) -> Judgement:
    reward = tier_rewards(turns, rewards)
    made = turn_advantages(turns, reward, AdvantageConfig(estimator=estimator))
    return judge(turns, reward, made, values, FEW, np.random.default_rng(0))


def test_a_naive_reward_is_misaligned_and_the_calibrated_one_is_not() -> None:
    frame = farming()
    turns = turn_arrays(frame)
    result = calibrated(frame)
    assert by_tier(result)["read"].value < 0 < by_tier(result)["gold"].value
    before = judged(turns, NAIVE, result.values(), "gtpo")
    after = judged(turns, result.values(), result.values(), "gtpo")
    assert before.misaligned == ["gold", "read"]  # next to reads, solving the task looks poor
    assert not before.converged(eta=-1.0)
    assert after.misaligned == []
    assert {row.tier: row.verdict for row in after.direction} == {
        "gold": "aligned",
        "read": "aligned",
        "stop": "neutral",
    }
    assert after.reward_outcome_correlation is not None
    assert after.reward_outcome_correlation > 0.9
    assert after.converged(eta=0.3)
    assert not after.converged(eta=after.reward_outcome_correlation)
    read = next(row for row in before.direction if row.tier == "read")
    assert (read.mean_advantage or 0) > 0 and (read.ci_low or 0) > 0
    assert (read.wrong_sign_share or 0) > 0.5


def test_converged_needs_a_defined_correlation() -> None:
    turns = turn_arrays(farming())
    flat = judged(turns, dict.fromkeys(NAIVE, 0.5), {})
    assert flat.reward_outcome_correlation is None
    assert flat.misaligned == [] and not flat.converged(eta=-1.0)


@pytest.mark.parametrize("estimator", ["grpo", "mt-grpo", "gtpo", "hybrid"])
def test_parts_add_up_in_every_direction_and_table(estimator: Estimator) -> None:
    turns = turn_arrays(farming())
    reward = tier_rewards(turns, NAIVE)
    made = turn_advantages(turns, reward, AdvantageConfig(estimator=estimator))
    for row in judge(turns, reward, made, {}, FEW, np.random.default_rng(0)).direction:
        assert row.return_part is not None and row.outcome_part is not None
        assert row.return_part + row.outcome_part == pytest.approx(row.mean_advantage, abs=1e-9)
    frame = advantage_frame(turns, reward, made)
    assert ADVANTAGES.conform(frame, "advantages").equals(frame)
    # SPEC section 6: the parts re-add to A within 1e-6.
    gap = frame["return_part"] + frame["outcome_part"] - frame["advantage"]
    assert gap.abs().max() <= 1e-6  # type: ignore[operator]  # a float, as the column is
    assert frame["reward"].to_list() == turns.frame["reward"].to_list()


def test_gradient_mass_adds_up_to_one_and_weighs_by_tokens() -> None:
    frame = farming()
    found = judged(turn_arrays(frame), NAIVE, {})
    assert found.gradient_mass.keys() == NAIVE.keys()
    assert sum(share or 0 for share in found.gradient_mass.values()) == pytest.approx(1, abs=1e-12)
    tokens = pl.when(tier="read").then(1).otherwise(10**6).cast(pl.Int32)
    weighed = judged(turn_arrays(frame.with_columns(n_tokens=tokens)), NAIVE, {})
    assert (weighed.gradient_mass["read"] or 0) < 1e-4 < (found.gradient_mass["read"] or 0)
    assert sum(s or 0 for s in weighed.gradient_mass.values()) == pytest.approx(1, abs=1e-12)
    # One unknown count makes them all unknown: turns then weigh the same.
    some = frame.with_columns(n_tokens=pl.when(turn=0).then(None).otherwise(tokens))
    assert judged(turn_arrays(some), NAIVE, {}).gradient_mass == found.gradient_mass


def test_dead_turns() -> None:
    # Task 0 always fails and its episodes are alike: its 4 of 8 turns are dead.
    episodes = [Tiered("0", 0.0, "ab")] * 2 + [Tiered("1", 1.0, "ab"), Tiered("1", 0.0, "ab")]
    found = judged(turn_arrays(turn_frame(episodes)), {}, {})
    assert found.dead_turn_share == 0.5
    assert found.gradient_mass == pytest.approx({"a": 0.5, "b": 0.5}, abs=1e-6)
    dead = judged(turn_arrays(turn_frame(episodes[:2])), {}, {})
    assert (dead.dead_turn_share, dead.advantage_rms) == (1.0, 0.0)
    assert dead.gradient_mass == {"a": None, "b": None}


def test_undefined_intervals_are_null() -> None:
    turns = turn_arrays(turn_frame([Tiered("0", 1.0, "a"), Tiered("0", 0.0, "b")]))
    for row in judged(turns, {}, {"a": 1.0}).direction:
        assert (row.ci_low, row.ci_high) == (None, None)
        assert row.verdict == ("undecided" if row.tier == "a" else "neutral")


def test_flipped_counts_turns_that_change_sides() -> None:
    turns = turn_arrays(farming())
    one = turn_advantages(turns, tier_rewards(turns, NAIVE), AdvantageConfig())
    opposite = one._replace(advantage=-one.advantage)
    assert flipped(one, one) == 0
    assert flipped(one, opposite) == np.count_nonzero(one.advantage)
    half = one.advantage.copy()
    half[:3] *= -1
    half[3] = 0.0  # to nothing is no other side
    assert flipped(one, one._replace(advantage=half)) == np.count_nonzero(one.advantage[:3])


def test_groups_are_compared_among_themselves() -> None:
    frame = turn_frame([Tiered("0", 1.0, "a"), Tiered("0", 0.0, "a")] * 2)
    grouped = frame.with_columns(group_id=pl.Series(["g", "h", "h", "g"]))
    apart = frame.with_columns(group_id=pl.Series(["g", "h", "g", "h"]))
    config = AdvantageConfig(estimator="grpo")
    both = [turn_arrays(one) for one in (grouped, apart)]
    live, dead = (turn_advantages(t, np.zeros(4), config).advantage for t in both)
    assert (np.abs(live) > 0.5).all()
    assert (dead == 0).all()


# --- advantages of another program ----------------------------------------------------------------

TWO = turn_frame([Tiered("0", 1.0, "ab"), Tiered("0", 0.0, "a")])
GIVEN = pl.DataFrame({"turn": [0, 0, 1], "episode_id": ["e1", "e0", "e0"], "advantage": [3, 1, 2]})


def test_given_advantages_are_put_to_their_turns() -> None:
    found = given_advantages(turn_arrays(TWO), GIVEN, "a.parquet")
    assert found.advantage.tolist() == [1.0, 2.0, 3.0]
    assert np.isnan(found.return_part).all() and np.isnan(found.group_std).all()
    parts = GIVEN.with_columns(return_part=pl.col("advantage") * 0.5, other=pl.lit("x"))
    found = given_advantages(turn_arrays(TWO), parts, "a.parquet")
    assert found.return_part.tolist() == [0.5, 1.0, 1.5]
    extra = pl.concat([GIVEN, GIVEN.with_columns(episode_id=pl.lit("e9"))])
    assert given_advantages(turn_arrays(TWO), extra, "a").advantage.tolist() == [1.0, 2.0, 3.0]
    numbered = TWO.with_columns(episode_id=pl.col("episode_id").str.strip_chars("e"))
    as_numbers = GIVEN.with_columns(
        episode_id=pl.Series([1, 0, 0]), turn=pl.Series([0.0, 0.0, 1.0])
    )
    found = given_advantages(turn_arrays(numbered), as_numbers, "a.parquet")
    assert found.advantage.tolist() == [1.0, 2.0, 3.0]


def test_given_advantages_can_be_judged() -> None:
    turns = turn_arrays(TWO)
    found = given_advantages(turns, GIVEN, "a.parquet")
    result = judge(turns, np.zeros(3), found, {"a": 1.0}, FEW, np.random.default_rng(0))
    rows = {row.tier: row for row in result.direction}
    assert rows["a"].mean_advantage == 2.0 and rows["a"].return_part is None


@pytest.mark.parametrize(
    ("given_frame", "line"),
    [
        (
            GIVEN.drop("advantage"),
            "a.parquet: no column 'advantage'; give episode_id, turn, advantage",
        ),
        (
            GIVEN.drop("turn", "episode_id"),
            "a.parquet: no column 'episode_id'; give episode_id, turn, advantage",
        ),
        (
            GIVEN[1:],
            "a.parquet: no advantage for turn 0 of episode 'e1' (1 lacking); give one for every "
            "turn that counts",
        ),
        (
            GIVEN.with_columns(advantage=pl.Series([3.0, None, np.nan])),
            "a.parquet: no advantage for turn 0 of episode 'e0' (2 lacking); give one for every "
            "turn that counts",
        ),
        (
            pl.concat([GIVEN, GIVEN[:1]]),
            "a.parquet: several advantages for one turn; give one each",
        ),
        (
            GIVEN.with_columns(turn=pl.lit("first")),
            "a.parquet: column 'turn' is String, not Int32; write it as such",
        ),
        (
            GIVEN.with_columns(advantage=pl.struct("turn")),
            "a.parquet: column 'advantage' is Struct({'turn': Int64}), not Float64; write it as "
            "such",
        ),
    ],
)
def test_bad_given_advantages_are_one_line(given_frame: pl.DataFrame, line: str) -> None:
    with pytest.raises(InputError) as caught:
        given_advantages(turn_arrays(TWO), given_frame, "a.parquet")
    assert line_of(caught) == line
