from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from stages.check import (
    CheckResult,
    Farming,
    check_both,
    check_rewards,
    flipped,
    given_advantages,
    objections,
)
from stages.core.advantages import AdvantageConfig, Estimator
from stages.core.farmability import return_spread
from stages.core.payment import PAYS, Pay, Values
from stages.errors import InputError
from stages.tables.artifacts import ADVANTAGES
from stages.tables.turn_arrays import (
    TurnArrays,
    advantage_frame,
    tier_rewards,
    turn_advantages,
    turn_arrays,
)
from tests.builders import FEW, Tiered, by_tier, calibrated, line_of, turn_frame
from tests.test_calibration_file import GOLD

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
) -> CheckResult:
    reward = tier_rewards(turns, rewards)
    config = AdvantageConfig(estimator=estimator)
    made = turn_advantages(turns, reward, config)
    return check_rewards(turns, reward, made, values, FEW, config, np.random.default_rng(0))


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
    assert after.reward_outcome_correlation == pytest.approx(0.8149, abs=1e-4)
    every_turn = judged(turns, dict(result.values()), result.values(), "gtpo")
    assert (every_turn.reward_outcome_correlation or 0) > 0.9
    assert after.converged(eta=0.3)
    assert not after.converged(eta=after.reward_outcome_correlation)
    read = next(row for row in before.direction if row.tier == "read")
    assert (read.mean_advantage or 0) > 0 and (read.ci_low or 0) > 0
    assert (read.wrong_sign_share or 0) > 0.5


def test_converged_needs_a_defined_correlation() -> None:
    turns = turn_arrays(farming())
    flat = judged(turns, dict.fromkeys(NAIVE, 0.5), {})
    assert flat.reward_outcome_correlation is flat.ci_low is flat.ci_high is None
    assert flat.misaligned == [] and not flat.converged(eta=-1.0)
    assert not flat.undecided(eta=0.3)


def test_the_interval_decides_what_has_converged() -> None:
    turns = turn_arrays(farming())
    values = calibrated(farming()).values()
    found = judged(turns, values, values, "gtpo")
    low, high = found.ci_low, found.ci_high
    assert low is not None and high is not None and low < high
    assert low < (found.reward_outcome_correlation or 0) < high
    below, between, above = (low - 0.01, (low + high) / 2, high)
    assert [found.converged(eta) for eta in (below, low, between, above)] == [True] + [False] * 3
    assert [found.undecided(eta) for eta in (below, low, between, above)] == [
        *(False, True, True, False)
    ]


# --- payment and farming --------------------------------------------------------------------------


def padded(messages: int = 0) -> pl.DataFrame:
    """Like the demo: writes and messages go with success; failures may be padded by messages."""
    rng = np.random.default_rng(5)
    episodes = []
    for t in range(30):
        for i in range(8):
            won = i < 4
            talk = int(rng.integers(2, 6) if won else rng.integers(0, 4) + messages)
            tiers = ["read"] + ["message"] * talk + (["gold"] if won else ["error"])
            episodes.append(Tiered(f"{t}", float(won), tiers))
    return turn_frame(episodes)


VALUES = {"gold": 1.0, "message": 0.36, "error": -0.8}


@pytest.mark.parametrize("pay", PAYS)
def test_tier_rewards_equal_the_plain_definition(pay: Pay) -> None:
    turns = turn_arrays(padded())
    expected: list[float] = []
    for _, episode in turns.frame.group_by("episode_id", maintain_order=True):
        paid: set[str] = set()
        for tier in episode["tier"]:
            expected.append(0.0 if pay == "once" and tier in paid else VALUES.get(tier, 0.0))
            paid.add(tier)
    assert tier_rewards(turns, Values(VALUES, pay)).tolist() == expected


def both_payments(frame: pl.DataFrame) -> dict[str, tuple[Farming, list[str]]]:
    """What is measured of the demo's values under either payment, and what a check objects to."""
    turns = turn_arrays(frame)
    found: dict[str, tuple[Farming, list[str]]] = {}
    for pay in PAYS:
        tiers = [
            GOLD._replace(tier=tier, value=value, status="discriminative")
            for tier, value in VALUES.items()
        ]
        calibration = calibrated(frame)._replace(tiers=tiers, pay=pay)
        judgement = check_both(turns, calibration, FEW, AdvantageConfig(), 0).after
        found[pay] = judgement.farmability, objections(calibration, judgement, FEW)
    return found


def test_messages_farm_when_every_turn_is_paid() -> None:
    found = both_payments(padded(messages=4))
    farming, reasons = found["turn"]
    assert (farming.failure_reward or 0) < (farming.success_reward or 0)
    gap = (farming.success_reward or 0) - (farming.failure_reward or 0)
    gold, messages = (next(n for n in range(50) if n * value > gap) for value in (1.0, 0.36))
    assert farming.extra_turns == {"error": None, "gold": gold, "message": messages, "read": None}
    assert (farming.ci_low or 0) > 0.8, "the longer a failure, the more it earns"
    assert [reason.split(":")[0] for reason in reasons] == ["misaligned", "farmable", "farmable"]
    assert reasons[1] == (
        "farmable: a failure out-earns a success by repeating a tier: "
        f"{gold} x gold, {messages} x message"
    )
    once, reasons = found["once"]
    assert once.extra_turns == dict.fromkeys(("error", "gold", "message", "read"))
    assert reasons == ["misaligned: message"], "padded failures have most messages; none farms"


def test_a_tier_farms_only_where_a_failure_has_room_for_its_repeats() -> None:
    farming, _ = both_payments(padded())["turn"]
    assert farming.extra_turns == {"error": None, "gold": 3, "message": 8, "read": None}
    assert farming.farmable() == {"gold": 3, "message": 8}
    assert farming._replace(slack_turns=7).farmable() == {"gold": 3}
    assert farming._replace(slack_turns=2).farmable() == {}


def test_rewards_kept_are_judged_by_what_their_repeats_earn() -> None:
    turns = turn_arrays(padded())
    every, once = (tier_rewards(turns, Values(VALUES, pay)) for pay in ("turn", "once"))
    made = turn_advantages(turns, every, AdvantageConfig())
    config = AdvantageConfig()
    found = [
        check_rewards(turns, reward, made, {}, FEW, config, np.random.default_rng(0))
        for reward in (every, once)
    ]
    assert found[0].farmability == both_payments(padded())["turn"][0]
    assert found[1].farmability == both_payments(padded())["once"][0]


def test_a_last_turn_without_reward_farms_nothing() -> None:
    turns = turn_arrays(turn_frame([Tiered("0", 1.0, "ab"), Tiered("0", 0.0, "a")]))
    reward = np.array([1.0, 5.0, 3.0])
    config = AdvantageConfig(last_turn_reward=False)
    made = turn_advantages(turns, reward, config)
    found = check_rewards(
        turns, reward, made, {}, FEW, config, np.random.default_rng(0)
    ).farmability
    assert (found.failure_reward, found.success_reward) == (0.0, 1.0)


def test_the_share_of_rewards_in_the_return_takes_the_estimators_discount() -> None:
    turns = turn_arrays(padded())
    reward = tier_rewards(turns, VALUES)
    shares = {}
    for name in ("mt-grpo", "hybrid"):
        config = AdvantageConfig(estimator=name)
        made = turn_advantages(turns, reward, config)
        found = check_rewards(
            turns, reward, made, {}, FEW, config, np.random.default_rng(0)
        ).farmability
        gamma = 1.0 if name == "mt-grpo" else 0.9
        spread = return_spread(
            reward, turns.outcome, turns.layout.episode, turns.layout.group, gamma
        )
        assert found.reward_share == spread.reward_share
        shares[name] = found.reward_share
    assert shares["hybrid"] != shares["mt-grpo"]


def test_an_interval_too_wide_to_say_asks_for_more_episodes() -> None:
    frame = padded()
    calibration = calibrated(frame)
    values = calibration.values()
    found = judged(turn_arrays(frame), values, values)
    r, low, high = found.reward_outcome_correlation or 0, found.ci_low or 0, found.ci_high or 0
    says = f"mean reward and outcome correlate by {r:.3f} [{low:.3f}, {high:.3f}]"
    config = replace(FEW, eta=(low + high) / 2)
    assert objections(calibration, found, config) == [
        f"undecided: {says}, want surely more than {config.eta:g}; collect more episodes"
    ]
    config = replace(FEW, eta=high)
    assert objections(calibration, found, config) == [f"{says}, not more than {high:g}"]


@pytest.mark.parametrize("estimator", ["grpo", "mt-grpo", "gtpo", "hybrid"])
def test_parts_add_up_in_every_direction_and_table(estimator: Estimator) -> None:
    turns = turn_arrays(farming())
    reward = tier_rewards(turns, NAIVE)
    made = turn_advantages(turns, reward, AdvantageConfig(estimator=estimator))
    for row in judged(turns, NAIVE, {}, estimator).direction:
        assert row.return_part is not None and row.outcome_part is not None
        assert row.return_part + row.outcome_part == pytest.approx(row.mean_advantage, abs=1e-9)
    frame = advantage_frame(turns, reward, made, AdvantageConfig())
    assert ADVANTAGES.conform(frame, "advantages").equals(frame)
    # docs/method.md, "Advantages": the parts re-add to A within 1e-6.
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
    rng, config = np.random.default_rng(0), AdvantageConfig()
    result = check_rewards(turns, np.zeros(3), found, {"a": 1.0}, FEW, config, rng)
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
