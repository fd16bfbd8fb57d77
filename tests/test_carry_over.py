from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.calibration.estimate import Calibration
from stages.carry_over import Elsewhere, carry_over
from stages.core.advantages import AdvantageConfig
from stages.tables.turn_arrays import tier_rewards, turn_arrays
from tests.builders import FEW, Tiered, by_tier, calibrated, turn_frame
from tests.conftest import Cli


def turns_of(effect: float, tasks: int = 30, other: str = "other") -> pl.DataFrame:
    """Turns in which "x" goes with success, and "y" with failure, by this effect."""
    rng = np.random.default_rng(round(10 * abs(effect)))
    episodes = []
    for task in range(tasks):
        for trial in range(6):
            up, down = (rng.random() < 0.5 + sign * effect * (trial % 2 - 0.5) for sign in (1, -1))
            tiers = ["x"] * up + ["y"] * down + [other] * int(rng.integers(1, 4))
            episodes.append(Tiered(f"{task}", float(trial % 2), tiers))
    return turn_frame(episodes)


def judged(here: pl.DataFrame, there: pl.DataFrame) -> tuple[Calibration, Elsewhere]:
    result = calibrated(here)
    made = carry_over(
        result,
        "there",
        turn_arrays(there),
        calibrated(there),
        FEW,
        AdvantageConfig(),
        np.random.default_rng(0),
    )
    return result, made


@pytest.mark.parametrize(
    ("effect", "verdict"), [(0.5, "carries over"), (-0.5, "reversed"), (0.0, "undecided")]
)
def test_a_value_carries_over_or_not(effect: float, verdict: str) -> None:
    here, there = turns_of(0.6), turns_of(effect)
    _, made = judged(here, there)
    rows = {row.tier: row for row in made.tiers}
    assert rows["x"].value > 0 > rows["y"].value
    assert (rows["x"].verdict, rows["y"].verdict) == (verdict, verdict)
    # A tier without a value has nothing to carry over.
    assert rows["other"].value == 0 and rows["other"].verdict is None
    own = by_tier(calibrated(there))["x"]
    assert (rows["x"].r, rows["x"].ci_low, rows["x"].ci_high) == (
        own.excess,
        own.ci_low,
        own.ci_high,
    )


def test_rewards_there_are_of_the_values_from_here() -> None:
    there = turns_of(-0.5)
    result, made = judged(turns_of(0.6), there)
    turns = turn_arrays(there)
    reward = tier_rewards(turns, result.values())
    mean = np.bincount(turns.layout.episode, reward) / np.bincount(turns.layout.episode)
    r = np.corrcoef(mean, turns.outcome)[0, 1]
    assert made.reward_outcome_correlation == pytest.approx(r, abs=1e-9)
    assert r < -0.3
    earned = np.bincount(turns.layout.episode, reward)
    assert made.farmability.failure_reward == pytest.approx(earned[turns.outcome == 0].mean())


def test_a_tier_that_is_not_there_is_undecided() -> None:
    renamed = pl.col("tier").replace("y", "z")
    _, made = judged(turns_of(0.6), turns_of(0.5).with_columns(tier=renamed))
    row = next(row for row in made.tiers if row.tier == "y")
    assert (row.r, row.ci_low, row.verdict) == (None, None, "undecided")


def test_the_command_judges_each_of_the_others(run: Cli, tmp_path: Path) -> None:
    turns_of(0.6).write_parquet("here.parquet")
    turns_of(0.5).write_parquet("same.parquet")
    turns_of(-0.5).write_parquet("against.parquet")
    options = ("--test", "same.parquet", "--test", "against.parquet")
    document = run("calibrate", "here.parquet", *options, "--json").json()
    assert [one["turns"] for one in document["test"]] == ["same.parquet", "against.parquet"]
    verdicts = [
        {row["tier"]: row["verdict"] for row in one["tiers"]}["x"] for one in document["test"]
    ]
    assert verdicts == ["carries over", "reversed"]
    assert document["tiers"] == run("calibrate", "here.parquet", "--json").json()["tiers"]
    assert "test" not in run("calibrate", "here.parquet", "--json").json()
    printed = run("calibrate", "here.parquet", *options).out.decode()
    assert "on same.parquet: 180 episodes of 30 tasks" in printed and "carries over" in printed


def test_what_cannot_be_tested_is_one_line(run: Cli, tmp_path: Path) -> None:
    turns_of(0.6).write_parquet("here.parquet")
    turns_of(0.5).filter(pl.col("success")).write_parquet("won.parquet")
    for args, line in [
        (
            ("--test", "won.parquet"),
            "won.parquet: all 90 episodes are successes; collect both successes and failures",
        ),
        (
            ("--stream", "--test", "won.parquet"),
            "--stream: sums hold no turns to judge advantages by; calibrate the turns themselves "
            "for that",
        ),
        (("--test", "none.parquet"), "none.parquet: no such file"),
    ]:
        refused = run("calibrate", "here.parquet", *args, "-o", "c.yaml")
        assert refused.code == 2
        assert refused.err.startswith(f"error: {line}")
        assert not Path("c.yaml").exists()
