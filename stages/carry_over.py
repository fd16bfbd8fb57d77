"""Test whether a calibration carries over to other turns (Calibration, TURNS -> Elsewhere)."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.calibrate import calibrate_summed
from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics, chosen_r
from stages.calibration.shards import Turns, as_turns
from stages.calibration.sums import sum_turns
from stages.check import Farming, check_rewards
from stages.core.advantages import AdvantageConfig
from stages.credit import paid_repeats
from stages.tables.turn_arrays import TurnArrays, turn_advantages, turn_arrays, turn_rewards


class TierElsewhere(NamedTuple):
    """A tier's value, and its correlation on the other turns; None means undefined."""

    tier: str
    value: float
    r: float | None  # on the other turns: the excess, or the raw r if `adjust` is none
    ci_low: float | None
    ci_high: float | None
    verdict: str | None  # carries over | reversed | undecided; None: the value is 0


class Elsewhere(NamedTuple):
    """The result of a calibration on other turns; None means undefined."""

    turns: str  # name of the other turns
    episodes: int
    tasks: int
    pass_rate: float
    correlation: str  # within | pooled
    tiers: list[TierElsewhere]
    followed: str  # quantity correlated with the outcome: mean reward | last forecast
    reward_outcome_correlation: float | None
    ci_low: float | None
    ci_high: float | None
    farmability: Farming


def carry_over_turns(
    calibration: Calibration,
    turns: Turns | pl.DataFrame,
    config: CalibrateConfig,
    estimator: AdvantageConfig,
    seed: int = 0,
    name: str = "turns",
) -> Elsewhere:
    """Test the values of a calibration on other turns (Calibration, TURNS -> Elsewhere).

    Args:
        calibration: calibration to test.
        turns: the other turns.
        config: how the values were calibrated.
        estimator: estimator of advantages.
        seed: seed of the resamples.
        name: name of the other turns.

    Returns:
        The result on the other turns.

    Raises:
        InputError: the other turns can't be calibrated.
    """
    turns = as_turns(turns, name)
    rng = np.random.default_rng(seed)
    sums = sum_turns(turns.frame.lazy(), config.measure, turns.where)
    there = calibrate_summed(sums, replace(config, zero=()), rng, where=turns.where)
    arrays = turn_arrays(turns.frame)
    return carry_over(calibration, name, arrays, there, config, estimator, rng)


def carry_over(
    calibration: Calibration,
    where: str,
    turns: TurnArrays,
    there: Calibration,
    config: CalibrateConfig,
    estimator: AdvantageConfig,
    rng: np.random.Generator,
) -> Elsewhere:
    """Test the values of a calibration on other turns, given their own calibration.

    Args:
        calibration: calibration to test.
        where: name of the other turns.
        turns: the other turns.
        there: their own calibration, whose values are not used.
        config: how both were calibrated.
        estimator: estimator of advantages.
        rng: source of randomness.

    Returns:
        The result on the other turns.
    """
    values = calibration.values()
    reward = turn_rewards(turns, values, estimator)
    made = turn_advantages(turns, reward, estimator)
    repeats = paid_repeats(turns, values, estimator)
    check = check_rewards(turns, reward, made, values, config, estimator, rng, repeats)
    by_name = {tier.tier: tier for tier in there.tiers}
    return Elsewhere(
        turns=where,
        episodes=there.episodes,
        tasks=there.tasks,
        pass_rate=there.pass_rate,
        correlation=there.correlation,
        tiers=[_tested(t.tier, t.value, by_name.get(t.tier), there) for t in calibration.tiers],
        followed=check.followed,
        reward_outcome_correlation=check.reward_outcome_correlation,
        ci_low=check.ci_low,
        ci_high=check.ci_high,
        farmability=check.farmability,
    )


def _tested(
    name: str, value: float, tier: TierStatistics | None, there: Calibration
) -> TierElsewhere:
    r = chosen_r(tier, there) if tier else None
    if tier is None or r is None or tier.ci_low is None or tier.ci_high is None:
        return TierElsewhere(name, value, None, None, None, "undecided" if value else None)
    verdict = None
    if value:
        sure = tier.ci_low > 0 or tier.ci_high < 0
        verdict = ("carries over" if r * value > 0 else "reversed") if sure else "undecided"
    return TierElsewhere(name, value, r, tier.ci_low, tier.ci_high, verdict)
