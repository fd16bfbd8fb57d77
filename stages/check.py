"""Check whether rewards give advantages in the direction of the values (TURNS -> ADVANTAGES).

The check covers the rewards as scored (`before`) and the calibrated values (`after`).

Source: docs/method.md, "Direction, farming, convergence".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.calibration.estimate import CalibrateConfig, Calibration, defined
from stages.calibration.file import Previous
from stages.core import direction as directions
from stages.core.advantages import AdvantageConfig, Advantages
from stages.core.correlation import Floats
from stages.core.farmability import farmability, repeat_rewards, return_spread
from stages.core.layout import without_last
from stages.core.length_bias import length_bias
from stages.credit import both_credits, paid_repeats
from stages.errors import InputError
from stages.tables.artifacts import ADVANTAGES
from stages.tables.table import conformed
from stages.tables.turn_arrays import (
    TurnArrays,
    first_of_tier,
    turn_advantages,
    turn_rewards,
)
from stages.traces.episode import SUCCESS

LENGTH_BOUND = 0.3  # farmable if failures' rewards correlate with length by more than this


class Direction(NamedTuple):
    """The direction in which advantages push one tier; None means undefined."""

    tier: str
    mean_advantage: float | None
    return_part: float | None
    outcome_part: float | None
    ci_low: float | None
    ci_high: float | None
    wrong_sign_share: float | None
    verdict: str  # aligned | misaligned | undecided | neutral


class Farming(NamedTuple):
    """Whether repeating turns pays, with rewards summed undiscounted; None means undefined."""

    extra_turns: dict[str, int | None]  # repeats of a tier after which a failure out-earns
    slack_turns: int  # further turns that a failure could take
    failure_reward: float | None  # mean reward sum of the failures
    success_reward: float | None  # mean reward sum of the successes
    length_correlation: float | None  # of reward sum and number of turns, among failures
    ci_low: float | None
    ci_high: float | None
    reward_std: float | None  # within groups, of the discounted rewards in an episode's return
    outcome_std: float | None  # within groups, of the discounted outcome
    reward_share: float | None  # variance of the rewards over the sum of both variances

    def farmable(self) -> dict[str, int]:
        """Return the tiers by which a failure can out-earn within the slack, with extra turns."""
        return {
            tier: extra
            for tier, extra in self.extra_turns.items()
            if extra is not None and extra <= self.slack_turns
        }

    def follows_length(self) -> bool:
        """Return whether repeats pay and failures' rewards significantly grow with length."""
        pays = any(extra is not None for extra in self.extra_turns.values())
        return pays and self.ci_low is not None and self.ci_low > LENGTH_BOUND


class Lengthening(NamedTuple):
    """The implicit bonus of an estimator per further turn; see stages.core.length_bias."""

    bonus: float | None  # in units of the outcome; None: lengths do not vary
    ci_low: float | None
    ci_high: float | None
    pull: float | None  # pull on continuing of the advantages, scaled to the unbiased ones
    unbiased_pull: float | None


class CheckResult(NamedTuple):
    """The check of one set of rewards."""

    direction: list[Direction]
    followed: str  # quantity correlated with the outcome: mean reward | last forecast
    reward_outcome_correlation: float | None
    ci_low: float | None  # of that correlation
    ci_high: float | None
    dead_turn_share: float
    advantage_rms: float
    gradient_mass: dict[str, float | None]
    misaligned: list[str]
    farmability: Farming
    length_bias: Lengthening

    def converged(self, eta: float) -> bool:
        """Return whether no tier is misaligned and the whole correlation interval exceeds eta."""
        return not self.misaligned and self.ci_low is not None and self.ci_low > eta

    def undecided(self, eta: float) -> bool:
        """Return whether the correlation interval contains eta."""
        if self.ci_low is None or self.ci_high is None:
            return False
        return self.ci_low <= eta < self.ci_high


def check_rewards(
    turns: TurnArrays,
    reward: Floats,
    advantages: Advantages,
    values: Mapping[str, float],
    config: CalibrateConfig,
    estimator: AdvantageConfig,
    rng: np.random.Generator,
    repeats: Floats | None = None,
) -> CheckResult:
    """Compare advantages with the signs of the calibrated values.

    Args:
        turns: the turns that count.
        reward: reward of each turn, [N].
        advantages: advantages of the same turns.
        values: the calibrated values.
        config: how the values were calibrated.
        estimator: estimator of the advantages.
        rng: source of randomness.
        repeats: what one more turn of each tier earns, [C]; None: what repeats earn in `reward`.

    Returns:
        The result of the check.
    """
    intended = np.sign([values.get(tier, 0.0) for tier in turns.tiers]).astype(np.int64)
    by_tier = directions.direction(
        advantages, turns.tier, turns.task, intended, config.resamples, rng
    )
    rows = [
        Direction(
            tier=tier,
            mean_advantage=_finite(by_tier.mean_advantage[c]),
            return_part=_finite(by_tier.return_part[c]),
            outcome_part=_finite(by_tier.outcome_part[c]),
            ci_low=_finite(by_tier.ci_low[c]),
            ci_high=_finite(by_tier.ci_high[c]),
            wrong_sign_share=_finite(by_tier.wrong_sign_share[c]),
            verdict=str(by_tier.verdict[c]),
        )
        for c, tier in enumerate(turns.tiers)
    ]
    mass = directions.gradient_mass(advantages.advantage, turns.tier, len(rows), turns.n_tokens)
    followed, by_episode = _followed(turns, reward, estimator)
    follows = directions.clustered_correlation(
        by_episode, turns.outcome, turns.task[turns.layout.last], config.resamples, rng
    )
    if repeats is None:
        repeats = repeat_rewards(reward, turns.tier, first_of_tier(turns), len(turns.tiers))
    return CheckResult(
        direction=rows,
        followed=followed,
        reward_outcome_correlation=defined(follows.r),
        ci_low=defined(follows.ci_low),
        ci_high=defined(follows.ci_high),
        dead_turn_share=directions.dead_turn_share(advantages.advantage),
        advantage_rms=directions.rms(advantages.advantage),
        gradient_mass={tier: defined(mass[c]) for c, tier in enumerate(turns.tiers)},
        misaligned=[row.tier for row in rows if row.verdict == "misaligned"],
        farmability=_farming(turns, reward, repeats, estimator, config.resamples, rng),
        length_bias=_length_bias(turns, reward, advantages, estimator, config.resamples, rng),
    )


def _followed(turns: TurnArrays, reward: Floats, estimator: AdvantageConfig) -> tuple[str, Floats]:
    """Return the quantity that should correlate with the outcome, with its name; [E].

    For a critic this is the last forecast: the last turn's reward is minus the forecast before it.
    """
    if estimator.estimator == "potential":
        return "last forecast", -reward[turns.layout.last]
    mean = directions.mean_rewards(reward, turns.layout.episode, turns.outcome.size)
    return "mean reward", mean


def _length_bias(
    turns: TurnArrays,
    reward: Floats,
    advantages: Advantages,
    estimator: AdvantageConfig,
    resamples: int,
    rng: np.random.Generator,
) -> Lengthening:
    """Measure the bonus per further turn relative to the return that the estimator estimates."""
    if estimator.estimator in ("grpo", "potential"):
        reward = np.zeros_like(reward)
    elif not estimator.last_turn_reward:
        reward = without_last(reward, turns.layout)
    bias = length_bias(
        advantages.advantage,
        reward,
        turns.outcome,
        turns.layout,
        turns.task,
        resamples,
        rng,
        rescale=estimator.estimator not in ("rloo", "potential"),
    )
    return Lengthening(*map(_finite, bias))


def _farming(
    turns: TurnArrays,
    reward: Floats,
    repeats: Floats,
    estimator: AdvantageConfig,
    resamples: int,
    rng: np.random.Generator,
) -> Farming:
    """Measure whether repeating turns pays, with the rewards that the estimator counts."""
    episode, last = turns.layout.episode, turns.layout.last
    if estimator.estimator == "potential":
        reward = np.zeros_like(reward)  # the rewards of an episode sum to 0 up to rounding
    elif not estimator.last_turn_reward:
        reward = without_last(reward, turns.layout)
    success = turns.outcome >= SUCCESS
    measured = farmability(reward, success, episode, turns.task[last], repeats, resamples, rng)
    gamma = estimator.gamma if estimator.estimator in ("gtpo", "hybrid") else 1.0
    spread = return_spread(reward, turns.outcome, episode, turns.layout.group, gamma)
    extra = [int(n) if np.isfinite(n) else None for n in measured.extra_turns]
    return Farming(
        extra_turns=dict(zip(turns.tiers, extra, strict=True)),
        slack_turns=measured.slack_turns,
        failure_reward=defined(measured.failure_reward),
        success_reward=defined(measured.success_reward),
        length_correlation=defined(measured.length.r),
        ci_low=defined(measured.length.ci_low),
        ci_high=defined(measured.length.ci_high),
        reward_std=defined(spread.reward_std),
        outcome_std=defined(spread.outcome_std),
        reward_share=defined(spread.reward_share),
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def flipped(before: Advantages, after: Advantages) -> int:
    """Count the turns whose advantages have opposite signs in two sets.

    Args:
        before: advantages of some turns.
        after: other advantages of the same turns.

    Returns:
        A number of turns.
    """
    return int((before.advantage * after.advantage < 0).sum())


def given_advantages(turns: TurnArrays, given: pl.DataFrame, where: str) -> Advantages:
    """Return advantages computed by another program for these turns.

    Args:
        turns: the turns that count.
        given: columns episode_id, turn, advantage, and optionally return_part and outcome_part.
        where: name of the table in errors.

    Returns:
        The advantages; unknown parts are NaN.

    Raises:
        InputError: a column is missing or of another type, or a turn does not have exactly one
            advantage.
    """
    parts = [name for name in ("return_part", "outcome_part") if name in given.columns]
    if missing := [n for n in ("episode_id", "turn", "advantage") if n not in given.columns]:
        raise InputError(where, f"no column '{missing[0]}'", "give episode_id, turn, advantage")
    types = {name: ADVANTAGES.columns[name] for name in ("episode_id", "turn", "advantage", *parts)}
    given = conformed(given, types, where, "write it as such")
    keys = turns.frame.select("episode_id", "turn")
    joined = keys.join(given, on=["episode_id", "turn"], how="left", maintain_order="left")
    if joined.height != keys.height:
        raise InputError(where, "several advantages for one turn", "give one each")
    # Other programs write NaN for missing values.
    lacking = joined.filter(~pl.col("advantage").is_finite().fill_null(False))
    if lacking.height:
        episode, turn = lacking.row(0)[:2]
        what = f"no advantage for turn {turn} of episode '{episode}' ({lacking.height:,} lacking)"
        raise InputError(where, what, "give one for every turn that counts")
    unknown = np.full(keys.height, np.nan)
    columns = {name: joined[name].to_numpy() for name in ("advantage", *parts)}
    return Advantages(
        columns["advantage"],
        columns.get("return_part", unknown),
        columns.get("outcome_part", unknown),
        unknown,
        unknown,
    )


class BothChecks(NamedTuple):
    """The checks of the rewards as scored and the calibrated ones, and the chosen of the two."""

    before: CheckResult
    after: CheckResult
    chosen: CheckResult
    reward: Floats  # [N] the chosen rewards
    advantages: Advantages  # of the chosen rewards


def check_both(
    turns: TurnArrays,
    calibration: Calibration,
    config: CalibrateConfig,
    estimator: AdvantageConfig,
    seed: int = 0,
    *,
    keep_rewards: bool = False,
    given: Advantages | None = None,
) -> BothChecks:
    """Check the rewards as scored and the calibrated ones.

    Args:
        turns: the turns that count.
        calibration: calibration of these turns.
        config: how they were calibrated.
        estimator: estimator of the advantages.
        seed: seed of the resamples; shared, so that the checks differ only where the rewards do.
        keep_rewards: choose the rewards as scored instead of the calibrated ones.
        given: advantages of another program, which replace ours for the chosen rewards.

    Returns:
        Both checks.
    """
    values = calibration.values()
    sides = [*both_credits(turns, values, estimator)]
    chosen = 0 if keep_rewards else 1
    if given is not None:
        sides[chosen] = sides[chosen]._replace(advantages=given)
    before, after = (
        check_rewards(
            turns,
            side.reward,
            side.advantages,
            values,
            config,
            side.estimator,
            np.random.default_rng(seed),
            repeats,
        )
        for side, repeats in zip(sides, (None, paid_repeats(turns, values, estimator)), strict=True)
    )
    side = sides[chosen]
    return BothChecks(before, after, (before, after)[chosen], side.reward, side.advantages)


def objections(calibration: Calibration, chosen: CheckResult, config: CalibrateConfig) -> list[str]:
    """Return the reasons for which a check fails; empty if it passes.

    Args:
        calibration: the calibration.
        chosen: the check of the chosen rewards.
        config: thresholds of the check.

    Returns:
        Reasons, as users read them.
    """
    reasons = []
    if chosen.misaligned:
        reasons.append(f"misaligned: {', '.join(chosen.misaligned)}")
    if not chosen.converged(config.eta) and (reason := _weak_rewards(chosen, config.eta)):
        reasons.append(reason)
    reasons += _farming_objections(chosen.farmability)
    if calibration.tasks < config.min_tasks:
        reasons.append(f"{calibration.tasks} tasks, fewer than {config.min_tasks}")
    return reasons


def _weak_rewards(chosen: CheckResult, eta: float) -> str | None:
    """Return why rewards do not follow outcomes closely enough; None if they do."""
    r, low, high = chosen.reward_outcome_correlation, chosen.ci_low, chosen.ci_high
    if r is None or low is None or high is None:
        return f"the {chosen.followed} of an episode does not vary with its outcome"
    if low > eta:
        return None
    measured = f"{chosen.followed} and outcome correlate by {r:.3f} [{low:.3f}, {high:.3f}]"
    if chosen.undecided(eta):
        return f"undecided: {measured}, want surely more than {eta:g}; collect more episodes"
    return f"{measured}, not more than {eta:g}"


def _farming_objections(farming: Farming) -> list[str]:
    reasons = []
    if farmable := farming.farmable():
        fewest_first = sorted(farmable.items(), key=lambda item: item[1])
        repeats = ", ".join(f"{extra} x {tier}" for tier, extra in fewest_first)
        reasons.append(f"farmable: a failure out-earns a success by repeating a tier: {repeats}")
    if farming.follows_length():
        reasons.append(
            "farmable: the reward sum of failures follows their length, "
            f"r = {farming.length_correlation:.3f} [{farming.ci_low:.3f}, {farming.ci_high:.3f}]"
        )
    return reasons


class TierChange(NamedTuple):
    """The change of one tier; None where it is new or gone."""

    tier: str
    value_then: float | None
    value_now: float | None
    status_then: str | None
    status_now: str | None


class Changes(NamedTuple):
    """The changes from an earlier calibration to the current one."""

    tiers: list[TierChange]
    flipped_advantages: int  # turns whose advantages have opposite signs in the two
    turns: int


def changes_since(
    previous: Previous, calibration: Calibration, turns: TurnArrays, estimator: AdvantageConfig
) -> Changes:
    """Compare a calibration with an earlier one, on the same turns.

    Args:
        previous: the earlier calibration.
        calibration: the current calibration.
        turns: turns on which the advantages are compared.
        estimator: estimator of the advantages.

    Returns:
        The changes.
    """
    now = {tier.tier: tier for tier in calibration.tiers}
    rows = [
        TierChange(
            tier=tier,
            value_then=previous.values.get(tier),
            value_now=now[tier].value if tier in now else None,
            status_then=previous.statuses.get(tier),
            status_now=now[tier].status if tier in now else None,
        )
        for tier in dict.fromkeys([*now, *previous.values])
    ]
    made = [
        turn_advantages(turns, turn_rewards(turns, values, estimator), estimator)
        for values in (previous.values, calibration.values())
    ]
    return Changes(rows, flipped(*made), len(turns.tier))
