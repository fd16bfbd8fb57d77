"""Estimates from the sums: correlations of each tier, their uncertainty, and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.calibration.landmark import Landmark
from stages.calibration.strata import TierStrata
from stages.calibration.sums import UNITS, TierSums
from stages.core.correlation import (
    Bools,
    Floats,
    Which,
    benjamini_hochberg,
    episodes_to_decide,
    pooled,
    sign_reversed,
)
from stages.core.critic import Critic
from stages.core.lengths import LengthSums, add_by
from stages.core.payment import PAYS, Pay, Values
from stages.core.resampling import Inference, correlation_inference, held_out_correlation
from stages.settings import Setting

CORRELATIONS = ("auto", "within", "pooled")
ADJUSTMENTS = ("length", "none")
STRATA = ("auto", "none")
Payment: TypeAlias = Pay | Literal["auto"]
PAYMENTS: tuple[Payment, ...] = ("auto", *PAYS)
# Panels of the options in --help.
STATISTICS, PAYMENT, CHECK, POLICIES = "Statistics", "Payment", "Check", "Several policies"
MOST_RESAMPLES = 50_000
ACCIDENT = 0.01  # chance probability below which a tier in every success counts as necessary
# Nominal power under the normal approximation; such plans decide in 80 % of simulated runs
# (`make validate`).
PLANNED_POWER = 0.78
SPLITS = 200  # random splits of the tasks into halves, for the held-out correlation


@dataclass(frozen=True)
class CalibrateConfig:
    """How a tier's statistics become its value, and when calibration has converged."""

    measure: Annotated[
        str,
        Setting("How a tier is measured in an episode.", STATISTICS, choices=tuple(UNITS)),
    ] = "presence"
    correlation: Annotated[
        str,
        Setting(
            "Correlation that sets values; auto: within groups if two tasks have both outcomes.",
            STATISTICS,
            choices=CORRELATIONS,
        ),
    ] = "auto"  # within if two tasks or more have mixed outcomes, else pooled
    adjust: Annotated[
        str,
        Setting(
            "Subtract the correlation that episode length explains; none: use the raw one.",
            STATISTICS,
            choices=ADJUSTMENTS,
        ),
    ] = "length"  # the excess sets the values; none: the raw r does
    delta: Annotated[
        float,
        Setting("Absolute correlation that a value must exceed.", STATISTICS, low=0, high=1),
    ] = 0.05
    fdr: Annotated[
        float,
        Setting(
            "False discovery rate over the tiers; 1 switches the test off.",
            STATISTICS,
            low=0,
            high=1,
        ),
    ] = 0.05
    min_support: Annotated[
        int,
        Setting("Minimum episodes with and without a tier for a value.", STATISTICS, low=0),
    ] = 20  # episodes without the tier only count if presence is measured
    effect: Annotated[
        float,
        Setting(
            "Absolute correlation below which an effect is negligible.", STATISTICS, low=0, below=1
        ),
    ] = 0.2  # a tier is neutral if its interval rules this out
    alpha: Annotated[
        float | None,
        Setting(
            "Value of a correlation of 1; default: scale the largest value to 1.", PAYMENT, low=0
        ),
    ] = None  # value = alpha * excess
    resamples: Annotated[
        int,
        Setting(
            "Bootstrap resamples of the tasks, or more if --fdr needs them.", STATISTICS, low=100
        ),
    ] = 2000  # for intervals and p; more if q needs a finer p
    eta: Annotated[
        float,
        Setting(
            "Bound that the whole interval of the correlation of reward and outcome must exceed.",
            CHECK,
            low=-1,
            high=1,
        ),
    ] = 0.3
    min_tasks: Annotated[int, Setting("Tasks that --check requires.", CHECK)] = 2
    zero: Annotated[
        tuple[str, ...],
        Setting("Tier to set to 0; may be repeated.", PAYMENT, metavar="TIER"),
    ] = ()
    pay: Annotated[
        Payment,
        Setting(
            "How often a tier's value is paid: on every turn, or once per episode; auto: once if "
            "--measure is presence.",
            PAYMENT,
            choices=PAYMENTS,
        ),
    ] = "auto"
    strata: Annotated[
        str,
        Setting(
            "Require policies or domains to agree on a value; none: pool all episodes.",
            POLICIES,
            choices=STRATA,
        ),
    ] = "auto"  # by policy and domain where these vary

    @property
    def payment(self) -> Pay:
        """How values are paid; `auto` pays presence once per episode, count and share per turn."""
        if self.pay == "auto":
            return "once" if self.measure == "presence" else "turn"
        return self.pay


class TierStatistics(NamedTuple):
    """One tier's evidence and the results derived from it; None means undefined.

    The chosen r is the r that sets the value: the excess, or the raw r if `adjust` is none.
    """

    tier: str
    turns: int
    episodes: int
    r_pooled: float | None  # raw, over all episodes
    r_within: float | None  # raw, centred on the means of each group
    r_turn: float | None  # descriptive only, because the turns of an episode share its outcome
    explained: float | None  # the part of the raw r that the lengths of episodes explain
    excess: float | None  # the rest
    ci_low: float | None  # interval of the chosen r
    ci_high: float | None
    p: float | None  # of the chosen r, from the same bootstrap over tasks
    q: float | None  # over the tiers, from the larger p of the raw and the chosen r
    r_cv: float | None  # held-out chosen r, on tasks that did not select the tier
    r_landmark: float | None  # raw, over the first turns only; None too if the turns are unknown
    value: float
    status: str  # discriminative | neutral | undecided | constant
    more_episodes: int | None  # episodes to decide with 80 % power; None: decided, or no number
    more_low: int | None  # the same if |z| is 1.28 standard deviations above its expectation
    more_high: int | None  # ... or 1.28 below
    sign_reversed: bool  # Simpson's paradox: pooled and within-task r have opposite signs
    held_back: bool  # no value, only because the policies or domains disagree
    necessary: bool  # every success has it but not every episode: true by definition of the task


class Calibration(NamedTuple):
    """The result of calibrating a table of sums."""

    episodes: int
    excluded: int
    tasks: int
    mixed_tasks: int  # with both successes and failures in one group
    pass_rate: float
    correlation: Which
    adjust: str  # length | none
    tiers: list[TierStatistics]
    pay: Pay = "turn"  # which turns of a tier earn its value; see stages.core.payment
    strata: Sequence[TierStrata] = ()  # per tier; empty with a single policy and domain
    landmark: int | None = None  # number of turns that r_landmark covers
    critic: Critic | None = None  # None: only the sums are known, not the turns

    def values(self) -> Values:
        """Return the calibrated value of each tier, how it is paid, and the critic."""
        return Values({tier.tier: tier.value for tier in self.tiers}, self.pay, self.critic)


def chosen_r(tier: TierStatistics, calibration: Calibration) -> float | None:
    """Return the correlation that sets the tier's value; its interval is `ci_low`, `ci_high`."""
    if calibration.adjust == "length":
        return tier.excess
    return tier.r_within if calibration.correlation == "within" else tier.r_pooled


class Evidence(NamedTuple):
    """The evidence on C tiers, as arrays over the tiers."""

    which: Which  # the correlation that sets the values
    raw: Inference  # that correlation, unadjusted
    chosen: Inference  # what sets the values: the excess, or the raw correlation
    excess: Floats  # [C] r of the excess
    within: Inference  # the raw correlation within groups
    held_out: Floats  # [C] the chosen r on tasks that did not select the tier
    episodes: float  # effective number of episodes
    rarer: Floats  # [C] episodes with the tier or without it, whichever are fewer

    @property
    def p(self) -> Floats:
        """The p-value that decides, [C]: the larger of raw and chosen; 1 if their signs differ.

        A tier with exactly one turn in every episode has a raw r of 0, and an excess below 0 if
        long episodes succeed more often. A tier scattered at random has an excess of 0 and then a
        raw r above 0. Neither is informative, so both must be significant.
        """
        agree = np.sign(self.chosen.r) == np.sign(self.raw.r)
        p = np.where(agree, np.maximum(self.chosen.p, self.raw.p), 1.0)
        return np.where(np.isnan(self.chosen.r), np.nan, p)

    @property
    def weaker(self) -> Inference:
        """The less significant of the chosen and the raw correlation, per tier."""
        raw = self.raw.p > self.chosen.p
        pairs = zip(self.raw, self.chosen, strict=True)
        return Inference(*(np.where(raw, of_raw, of_chosen) for of_raw, of_chosen in pairs))


def weigh(
    which: Which,
    raw: Floats,
    excess: Floats,
    within: Floats,
    episodes: float,
    rarer: Floats,
    config: CalibrateConfig,
    rng: np.random.Generator,
) -> Evidence:
    """Infer the correlations and their uncertainty from each task's share of the sums.

    Args:
        which: the correlation that sets the values.
        raw: terms of that correlation, shape [T, 3 or 6, C].
        excess: terms of its excess over the length adjustment, of the same shape.
        within: terms of the raw correlation within groups, shape [T, 3, C].
        episodes: effective number of episodes.
        rarer: episodes with the tier or without it, whichever are fewer, shape [C].
        config: how values are set.
        rng: source of randomness.

    Returns:
        The evidence on C tiers.
    """
    resamples = enough_resamples(config, raw.shape[2])
    test_raw, test_excess = (
        correlation_inference(terms, resamples, rng) for terms in (raw, excess)
    )
    return Evidence(
        which,
        test_raw,
        test_excess if config.adjust == "length" else test_raw,
        test_excess.r,
        test_raw if within is raw else correlation_inference(within, resamples, rng),
        held_out_correlation(excess if config.adjust == "length" else raw, SPLITS, rng),
        episodes,
        rarer,
    )


def enough_resamples(config: CalibrateConfig, tiers: int) -> int:
    """Return how many resamples let q fall to a tenth of `fdr`, up to `MOST_RESAMPLES`."""
    needed = 10 * tiers / config.fdr if config.fdr else 0
    return max(config.resamples, round(min(needed, MOST_RESAMPLES)))


def mixed_tasks(cells: LengthSums) -> int:
    """Count the tasks that have a group with both successes and failures."""
    n, s = (add_by(part, cells.group) for part in (cells.sums.episodes, cells.sums.successes))
    first = np.flatnonzero(np.diff(cells.group, prepend=-1))
    mixed = (s > 0) & (s < n)
    return int(np.count_nonzero(add_by(mixed.astype(np.int64), cells.task[first])))


def describe(
    sums: TierSums,
    evidence: Evidence,
    has_value: Bools,
    excluded: int,
    config: CalibrateConfig,
    worth: Floats | None = None,
    held_back: Bools | None = None,
) -> Calibration:
    """Turn the evidence on the tiers into their values and statuses.

    Args:
        sums: sums of C tiers.
        evidence: evidence on these tiers.
        has_value: whether each tier has a value, shape [C].
        excluded: number of excluded episodes.
        config: how values are set.
        worth: r to which values are proportional, shape [C]; None: the chosen r.
        held_back: whether a tier has no value only because the strata disagree, shape [C]. More
            episodes of the same policies and domains would not decide it.

    Returns:
        The calibration.
    """
    held = np.zeros(len(sums.tiers), np.bool_) if held_back is None else held_back
    status = _statuses(evidence, has_value, config)
    plans = _plans(evidence, has_value, (status == "undecided") & ~held, config)
    pays = has_value & ~np.isin(sums.tiers, config.zero)
    values = _values(np.where(pays, evidence.chosen.r if worth is None else worth, 0), config.alpha)
    tasks = sums.tasks
    return Calibration(
        episodes=round(tasks.episodes.sum()),
        excluded=excluded,
        tasks=len(tasks.episodes),
        mixed_tasks=mixed_tasks(sums.cells),
        pass_rate=float(tasks.successes.sum() / tasks.episodes.sum()),
        correlation=evidence.which,
        adjust=config.adjust,
        tiers=_tier_rows(sums, evidence, status, values, plans, held, config),
        pay=config.payment,
    )


def _statuses(
    evidence: Evidence, has_value: Bools, config: CalibrateConfig
) -> npt.NDArray[np.str_]:
    """Return the status of each tier; [C]."""
    negligible = _within(evidence.chosen, config.effect) | _within(evidence.raw, config.effect)
    supported = evidence.rarer >= config.min_support
    return np.select(
        [np.isnan(evidence.chosen.r), has_value, negligible & supported],
        ["constant", "discriminative", "neutral"],
        "undecided",
    )


def _plans(
    evidence: Evidence, has_value: Bools, undecided: Bools, config: CalibrateConfig
) -> tuple[Floats, Floats, Floats]:
    """Return the further episodes to decide, and their range; infinite: no number; each [C]."""
    tested = max(np.isfinite(evidence.chosen.r).sum(), 1)
    level = max(config.fdr * (has_value.sum() + 1) / tested, 1e-9)
    # 80 % of the distribution of |z| lies within 1.28 standard deviations.
    more, low, high = (
        np.where(undecided, _more_episodes(evidence, config, min(level, config.fdr), shift), np.inf)
        for shift in (0, 1.28, -1.28)
    )
    return more, np.minimum(more, low), np.maximum(more, high)


def _tier_rows(
    sums: TierSums,
    evidence: Evidence,
    status: npt.NDArray[np.str_],
    values: Floats,
    plans: tuple[Floats, Floats, Floats],
    held_back: Bools,
    config: CalibrateConfig,
) -> list[TierStatistics]:
    """Return the row of each tier."""
    chosen, r_within, q = evidence.chosen, evidence.within.r, benjamini_hochberg(evidence.p)
    r_pooled, q_within = pooled(sums.tasks), benjamini_hochberg(evidence.within.p)
    reverses = sign_reversed(r_pooled, r_within, q_within, config.delta, config.fdr)
    necessary = _necessary(sums, evidence.which)
    more, low, high = plans
    return [
        TierStatistics(
            tier=tier,
            turns=round(sums.turns[c]),
            episodes=round(sums.episodes[c]),
            r_pooled=defined(r_pooled[c]),
            r_within=defined(r_within[c]),
            r_turn=_turn_correlation(sums, c),
            explained=defined(evidence.raw.r[c] - evidence.excess[c]),
            excess=defined(evidence.excess[c]),
            ci_low=defined(chosen.low[c]),
            ci_high=defined(chosen.high[c]),
            p=defined(chosen.p[c]),
            q=defined(q[c]),
            r_cv=defined(evidence.held_out[c]),
            r_landmark=None,
            value=float(values[c]),
            status=str(status[c]),
            more_episodes=_whole(more[c]),
            more_low=_whole(low[c]),
            more_high=_whole(high[c]),
            sign_reversed=bool(reverses[c]),
            held_back=bool(held_back[c]),
            necessary=bool(necessary[c]),
        )
        for c, tier in enumerate(sums.tiers)
    ]


def with_landmark(result: Calibration, at: Landmark) -> Calibration:
    """Return the calibration with `r_landmark` filled in."""
    tiers = [tier._replace(r_landmark=at.r.get(tier.tier)) for tier in result.tiers]
    return result._replace(tiers=tiers, landmark=at.k)


def _necessary(sums: TierSums, which: Which) -> Bools:
    """Return whether a tier is necessary: no success lacks it, beyond chance; [C].

    Only tasks where some success has the tier count, because other tasks do not ask for it. A task
    has n episodes, s successes and m episodes without the tier. If those m were drawn at random,
    they would all be failures with probability C(n - s, m) / C(n, m); the product over the tasks
    must be below `ACCIDENT`.
    """
    from scipy.special import gammaln

    task = sums.cells.task if which == "within" else np.zeros_like(sums.cells.task)
    n, s = (
        add_by(part, task)[:, None]
        for part in (sums.cells.sums.episodes, sums.cells.sums.successes)
    )
    having, won = add_by(sums.having, task), add_by(sums.won, task)
    asked = won > 0
    lacking = np.maximum(n - having, 0)  # sums with forgetting carry rounding errors
    lost = np.maximum(n - s, lacking)
    log_chance = gammaln(lost + 1) - gammaln(lost - lacking + 1)
    log_chance += gammaln(having + 1) - gammaln(n + 1)
    unlikely = np.where(asked, log_chance, 0.0).sum(axis=0) < np.log(ACCIDENT)
    won_without = np.where(asked, s - won, 0.0).sum(axis=0)
    return np.asarray(unlikely & (won_without < 1e-6), np.bool_)


def _within(test: Inference, effect: float) -> Bools:
    """Return whether the interval rules out every correlation that matters; [C]."""
    with np.errstate(invalid="ignore"):
        return np.asarray((-effect < test.low) & (test.high < effect), np.bool_)


def _values(r: Floats, alpha: float | None) -> Floats:
    largest = np.abs(r).max(initial=0)
    if alpha is None:
        return r / largest if largest else r
    return alpha * r


def _more_episodes(
    evidence: Evidence, config: CalibrateConfig, level: float, shift: float
) -> Floats:
    """Return the further episodes needed to decide with enough support; infinite: no number; [C].

    `level` is the level that one more tier faces under Benjamini-Hochberg.
    """
    weaker, episodes = evidence.weaker, evidence.episodes
    for_power = episodes_to_decide(
        weaker.r,
        weaker.standard_error,
        weaker.quantile,
        episodes,
        config.effect,
        level,
        PLANNED_POWER,
        shift=shift,
    )
    needed = episodes * config.min_support / np.maximum(evidence.rarer, 1)
    return np.maximum(np.maximum(for_power, np.ceil(needed) - episodes), 1)


def _turn_correlation(sums: TierSums, c: int) -> float | None:
    """Return phi of "the turn has the tier" and "its episode succeeds", from counts of turns."""
    n, s = sums.all_turns, sums.all_turns_in_successes
    x, xo = float(sums.turns[c]), float(sums.turns_in_successes[c])
    spread = x * (n - x) * s * (n - s)
    return (n * xo - x * s) / spread**0.5 if spread > 0 else None


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None


def defined(value: float) -> float | None:
    """Return the number, or None if it is NaN."""
    return None if np.isnan(value) else float(value)
