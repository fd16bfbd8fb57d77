from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from stages.calibration.estimate import CalibrateConfig, Calibration
from stages.calibration.strata import TierStrata
from stages.calibration.sums import lay_out, sum_turns
from stages.core.lengths import length_terms, select, stratum_terms
from tests.builders import FEW, Tiered, by_tier, calibrated, turn_frame
from tests.conftest import Cli
from tests.designs import Design, Rng, groups_of, lengthy, runs, valued
from tests.designs import calibrated as calibrated_design


def of_policies(effects: dict[str, float], tasks: int = 40, trials: int = 6) -> pl.DataFrame:
    """Turns of one policy each on the same tasks; "x" and success go together by its effect."""
    rng = np.random.default_rng(0)
    frames = []
    for at, (policy, effect) in enumerate(effects.items()):
        episodes = []
        for task in range(tasks):
            for trial in range(trials):
                present = rng.random() < 0.5 + effect * (trial % 2 - 0.5)
                tiers = ["x"] * present + ["other"] * int(rng.integers(1, 4))
                episodes.append(Tiered(f"{task}", float(trial % 2), tiers, group=policy))
        frame = turn_frame(episodes, first=at * tasks * trials)
        frames.append(frame.with_columns(policy=pl.lit(policy), domain=pl.lit("shop")))
    return pl.concat(frames)


def strata_of(result: Calibration) -> dict[str, TierStrata]:
    return {tier.tier: tier for tier in result.strata}


# --- what sets the value --------------------------------------------------------------------------


def test_each_policy_is_what_it_is_alone() -> None:
    turns = of_policies({"a": 0.6, "b": 0.4, "c": 0.5})
    x = strata_of(calibrated(turns))["x"]
    for stratum in x.strata:
        alone = by_tier(calibrated(turns.filter(policy=stratum.stratum)))["x"]
        assert stratum.r == pytest.approx(alone.excess, abs=1e-12)
        assert stratum.ci_low == pytest.approx(alone.ci_low, abs=0.03)  # of other resamples
    assert x.mean is not None and x.ci_low is not None
    assert min(s.r or 0 for s in x.strata) < x.mean < max(s.r or 0 for s in x.strata)
    assert (x.counted, x.agree) == (3, True) and x.ci_low > 0


def test_the_value_is_the_random_effects_mean() -> None:
    config = replace(FEW, alpha=2.0)
    result = calibrated(of_policies({"a": 0.7, "b": 0.4, "c": 0.5}), config)
    x = by_tier(result)["x"]
    mean = strata_of(result)["x"].mean
    assert mean is not None and x.value == pytest.approx(2 * mean, abs=1e-15)
    assert x.value != pytest.approx(2 * (x.excess or 0), abs=1e-4)
    together = by_tier(
        calibrated(of_policies({"a": 0.7, "b": 0.4}), replace(config, strata="none"))
    )
    assert together["x"].value == pytest.approx(2 * (together["x"].excess or 0), abs=1e-15)


@pytest.mark.parametrize(
    ("effects", "agree"),
    [
        ({"a": 0.9, "b": -0.3}, False),  # signs differ
        ({"a": 0.9, "b": 0.2}, True),
        ({"a": 0.9, "b": 0.8, "c": -0.4}, False),  # the interval of the mean holds 0
        ({"a": 0.5, "b": 0.5, "c": 0.5}, True),
    ],
)
def test_policies_that_disagree_leave_no_value(effects: dict[str, float], agree: bool) -> None:
    turns = of_policies(effects)
    result = calibrated(turns)
    x = by_tier(result)["x"]
    assert strata_of(result)["x"].agree is agree
    assert (x.value != 0, x.held_back) == (agree, not agree)
    assert x.q is not None and x.q < 0.05  # over all episodes it tells
    assert by_tier(calibrated(turns, replace(FEW, strata="none")))["x"].value != 0
    if not agree:
        assert (x.status, x.more_episodes) == ("undecided", None)


@pytest.mark.parametrize(
    ("effects", "word"),
    [
        ((0.9, -0.6, 0.3), "differ"),
        ((0.5, 0.45, 0.4), "alike"),
        ((0.6, 0.3, 0.45), "unclear"),
    ],
)
def test_how_much_they_differ_is_one_word(effects: tuple[float, ...], word: str) -> None:
    turns = of_policies(dict(zip("abc", effects, strict=True)), 30)
    x = strata_of(calibrated(turns))["x"]
    assert x.reading == word
    assert x.i2_low is not None and x.i2_high is not None
    assert (x.i2_low > 0, x.i2_high < 0.5) == (word == "differ", word == "alike")


def test_one_policy_gives_what_it_gave() -> None:
    one = of_policies({"a": 0.5})
    assert calibrated(one) == calibrated(one, replace(FEW, strata="none"))
    assert calibrated(one).strata == ()


def test_a_policy_of_few_tasks_does_not_count() -> None:
    few = of_policies({"a": 0.6, "b": 0.6}).filter(
        (pl.col("policy") == "a") | pl.col("task_id").is_in(["0", "1", "2"])
    )
    x = strata_of(calibrated(few))["x"]
    assert (x.counted, x.mean, x.agree, len(x.strata)) == (1, None, True, 2)


def test_domains_count_too_and_unknown_is_one() -> None:
    turns = of_policies({"a": 0.5, "b": 0.5})
    of_b = pl.when(policy="b").then(None).otherwise("domain")
    by_both = turns.with_columns(domain=of_b)
    named = [s.stratum for s in strata_of(calibrated(by_both))["x"].strata]
    assert named == ["a, shop", "b, unknown"]
    by_domain = by_both.with_columns(policy=pl.lit("p"))
    assert [s.stratum for s in strata_of(calibrated(by_domain))["x"].strata] == ["shop", "unknown"]


def test_a_group_that_is_spread_over_files_is_one() -> None:
    # The name of a file stands for a policy that the trace does not state.
    turns = of_policies({"a": 0.5})
    file = pl.concat_str(pl.lit("file "), pl.col("trial") % 3)
    assert calibrated(turns.with_columns(policy=file)) == calibrated(turns)


# --- pooled: no group has both outcomes -----------------------------------------------------------


def confounded(rng: Rng, tasks: int = 200) -> Design:
    """Two policies, an episode a task; the better one uses tier 0 more often, and for nothing."""
    task, group = groups_of(2 * tasks, 1)
    better = (task >= tasks).astype(np.int64)
    success = rng.binomial(1, 0.3 + 0.4 * better)
    present = rng.binomial(1, 0.2 + 0.6 * better)
    counts = np.column_stack([present, lengthy(rng, success)])
    return Design(task, group, success, counts, better)


def test_a_better_policy_of_other_habits_makes_no_value() -> None:
    results = [calibrated_design(confounded(rng), rng) for rng in runs(25, 5)]
    assert {result.correlation for result in results} == {"pooled"}
    assert np.mean([result.tiers[0].r_pooled or 0 for result in results]) > 0.15
    assert sum(valued(result, [0]) for result in results) <= 3


def test_terms_of_strata_are_around_their_own_means() -> None:
    turns = of_policies({"a": 0.5, "b": -0.2}, 10)
    sums = lay_out(sum_turns(turns.lazy(), "presence", "t").sums, "presence")
    together = stratum_terms(sums.cells, sums.stratum, "pooled", "presence", adjust=True)
    apart = [
        length_terms(select(sums.cells, sums.stratum == s), "pooled", "presence", adjust=True)
        for s in range(2)
    ]
    np.testing.assert_allclose(together, apart[0][:, :3] + apart[1][:, :3], atol=1e-12)
    assert np.abs([part[:, 4:].sum(axis=0) for part in apart]).max() < 1e-9


# --- the command ----------------------------------------------------------------------------------


def test_report_file_and_json_say_what_each_policy_says(run: Cli, tmp_path: Path) -> None:
    of_policies({"a": 0.6, "b": 0.5, "c": 0.4}).write_parquet("turns.parquet")
    document = run("calibrate", "turns.parquet", "-o", "c.yaml", "--json").json()
    (x,) = (tier for tier in document["strata"] if tier["tier"] == "x")
    assert [stratum["stratum"] for stratum in x["strata"]] == ["a", "b", "c"]
    assert x["ci_low"] < x["mean"] < x["ci_high"] and x["i2_low"] <= x["i2"] <= x["i2_high"]
    assert yaml.safe_load(Path("c.yaml").read_text())["strata"] == document["strata"]
    printed = run("calibrate", "turns.parquet").out.decode()
    assert "mean over 3" in printed and "policy or domain" in printed
    streamed = run("calibrate", "turns.parquet", "--stream", "--json").json()
    assert streamed["strata"] == document["strata"]
    refused = run("calibrate", "turns.parquet", "--strata", "policy")
    assert refused.code == 2
    assert refused.err == "error: --strata: unknown value 'policy'; use auto | none\n"


def test_a_tier_that_is_held_back_says_why(run: Cli) -> None:
    of_policies({"a": 0.9, "b": -0.3}).write_parquet("turns.parquet")
    (x,) = (
        tier
        for tier in run("calibrate", "turns.parquet", "--json").json()["tiers"]
        if tier["tier"] == "x"
    )
    assert x["held_back"] and x["value"] == 0


CONFIG = CalibrateConfig(resamples=200)


def test_null_tiers_of_several_policies_are_worth_nothing() -> None:
    def draw(rng: Rng) -> Design:
        task, group = groups_of(24, 8, 3)
        success = rng.binomial(1, rng.beta(2, 2, 24)[task])
        length = lengthy(rng, success)
        scattered = rng.binomial(length, 0.1)
        return Design(task, group, success, np.column_stack([scattered, length]), group % 3)

    results = [calibrated_design(draw(rng), rng, CONFIG) for rng in runs(40, 6)]
    assert all(len(result.strata[0].strata) == 3 for result in results)
    assert sum(valued(result, [0]) for result in results) <= 4
