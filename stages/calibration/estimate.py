"""What the sums tell of each tier: correlations, their uncertainty, and values."""

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
# Panels of the help.
STATISTICS, PAYMENT, CHECK, POLICIES = "Statistics", "Payment", "Check", "Several policies"
MOST_RESAMPLES = 50_000
ACCIDENT = 0.01  # probability below which no accident keeps a tier in every success
# By the normal law of the rule; in simulated runs such plans decide in 80 % (`make validate`).
PLANNED_POWER = 0.78
SPLITS = 200  # of the tasks into halves, for what a value is worth elsewhere


@dataclass(frozen=True)
class CalibrateConfig:
    """How a tier's statistics become its value, and what counts as converged."""

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
    ] = "auto"  # within where two tasks or more have mixed outcomes, else pooled
    adjust: Annotated[
        str,
        Setting(
            "Subtract the correlation that episode length explains; none: use the raw one.",
            STATISTICS,
            choices=ADJUSTMENTS,
        ),
    ] = "length"  # the excess over what length explains sets values; none: the raw r
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
    ] = 20  # without it only where presence is measured
    effect: Annotated[
        float,
        Setting(
            "Absolute correlation below which an effect is negligible.", STATISTICS, low=0, below=1
        ),
    ] = 0.2  # neutral is what rules it out
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
    ] = 2000  # for intervals and p; more where q needs them
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
        """How values are paid: presence is measured once per episode, count and share by turns."""
        if self.pay == "auto":
            return "once" if self.measure == "presence" else "turn"
        return self.pay


class TierStatistics(NamedTuple):
    """One tier's evidence and what follows from it; undefined is None."""

    tier: str
    turns: int
    episodes: int
    r_pooled: float | None  # raw: over all episodes
    r_within: float | None  # raw: centred on the means of each group
    r_turn: float | None  # a description: turns of an episode share its outcome
    explained: float | None  # the part of the chosen raw r that the lengths of episodes explain
    excess: float | None  # the rest
    ci_low: float | None  # of what sets the value: the excess, or with adjust none the raw r
    ci_high: float | None
    p: float | None  # of the same, from the same bootstrap of tasks
    q: float | None  # over the tiers: that the tier tells, and with adjust length beyond length
    r_cv: float | None  # of what sets the value, on tasks that did not choose the tier
    r_landmark: float | None  # raw, of the first turns alone; None also where sums hold no turns
    value: float
    status: str  # discriminative | neutral | undecided | constant
    more_episodes: int | None  # undecided: so many more decide at 80 % power; None: no number
    more_low: int | None  # the same if |r| lies a standard deviation above what is expected
    more_high: int | None  # and below
    sign_reversed: bool  # Simpson: pooled and within tasks point opposite ways
    held_back: bool  # no value, only because policies or domains do not agree on one
    necessary: bool  # no success lacks it, though episodes do: r is a definition, not a discovery


class Calibration(NamedTuple):
    """All that a table of sums says."""

    episodes: int
    excluded: int
    tasks: int
    mixed_tasks: int  # with both successes and failures in one group
    pass_rate: float
    correlation: Which
    adjust: str  # length | none
    tiers: list[TierStatistics]
    pay: Pay = "turn"  # which turns of a tier earn its value: see stages.core.payment
    strata: Sequence[TierStrata] = ()  # of several policies or domains, for each tier
    landmark: int | None = None  # turns that r_landmark is of
    critic: Critic | None = None  # what turns add to a forecast; None: only sums are known

    def values(self) -> Values:
        """Return the calibrated value of each tier, how it is paid, and the critic."""
        return Values({tier.tier: tier.value for tier in self.tiers}, self.pay, self.critic)


def chosen_r(tier: TierStatistics, calibration: Calibration) -> float | None:
    """Return the correlation that sets the tier's value, and that its interval is of."""
    if calibration.adjust == "length":
        return tier.excess
    return tier.r_within if calibration.correlation == "within" else tier.r_pooled


class Evidence(NamedTuple):
    """What is known of each tier, arrays over C tiers, and of all episodes together."""

    which: Which  # of the correlations sets the values
    raw: Inference  # that correlation, as it is
    chosen: Inference  # what sets the values: the excess over what length explains, or the same
    excess: Floats
    within: Inference  # the raw correlation within groups
    held_out: Floats  # the chosen r on tasks that did not choose it
    episodes: float  # how many, as evidence
    rarer: Floats  # of them with the tier, or without it if those are fewer

    @property
    def p(self) -> Floats:
        """P of a tier that tells: the larger of both, and 1 where the two disagree in sign.

        A tier of which each episode has one turn, whatever its length, has a raw r of 0 and an
        excess below 0 where long episodes succeed. A tier scattered at random has an excess of 0
        and a raw r above it. Neither tells anything.
        """
        agree = np.sign(self.chosen.r) == np.sign(self.raw.r)
        p = np.where(agree, np.maximum(self.chosen.p, self.raw.p), 1.0)
        return np.where(np.isnan(self.chosen.r), np.nan, p)

    @property
    def weaker(self) -> Inference:
        """Of the chosen r and the raw one, what lies fewer standard errors from 0."""
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
    """Infer from each task's share of the sums how sure the correlations are.

    Args:
        which: of the correlations sets the values.
        raw: the terms of that correlation, shape [T, 3 or 6, C].
        excess: the same, less what length explains.
        within: the terms of the raw correlation within groups.
        episodes: how many there are, as evidence.
        rarer: of them with the tier, or without it if those are fewer; shape [C].
        config: how values are set.
        rng: source of randomness.
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
    """Return how many resamples let q fall to a tenth of its bar, up to `MOST_RESAMPLES`."""
    needed = 10 * tiers / config.fdr if config.fdr else 0
    return max(config.resamples, round(min(needed, MOST_RESAMPLES)))


def mixed_tasks(cells: LengthSums) -> int:
    """Return how many tasks have a group with both successes and failures."""
    n, s = (add_by(part, cells.group) for part in (cells.sums.episodes, cells.sums.successes))
    first = np.flatnonzero(np.diff(cells.group, prepend=-1))
    mixed = (s > 0) & (s < n)
    return int(np.count_nonzero(add_by(mixed.astype(np.int64), cells.task[first])))


def describe(
    sums: TierSums,
    evidence: Evidence,
    tells: Bools,
    excluded: int,
    config: CalibrateConfig,
    worth: Floats | None = None,
    held_back: Bools | None = None,
) -> Calibration:
    """Turn the evidence on the tiers into their values and statuses.

    Args:
        sums: of C tiers.
        evidence: on them.
        tells: which have a value, shape [C].
        excluded: episodes that were left out.
        config: how values are set.
        worth: r that the values follow, shape [C]; None: the chosen r.
        held_back: which have none only because the strata disagree, shape [C]; more episodes of
            the same policies and domains do not decide those.
    """
    held = np.zeros(len(sums.tiers), np.bool_) if held_back is None else held_back
    status = _statuses(evidence, tells, config)
    plans = _plans(evidence, tells, (status == "undecided") & ~held, config)
    pays = tells & ~np.isin(sums.tiers, config.zero)
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


def _statuses(evidence: Evidence, tells: Bools, config: CalibrateConfig) -> npt.NDArray[np.str_]:
    """Return the status of each tier; [C]."""
    negligible = _within(evidence.chosen, config.effect) | _within(evidence.raw, config.effect)
    supported = evidence.rarer >= config.min_support
    return np.select(
        [np.isnan(evidence.chosen.r), tells, negligible & supported],
        ["constant", "discriminative", "neutral"],
        "undecided",
    )


def _plans(
    evidence: Evidence, tells: Bools, undecided: Bools, config: CalibrateConfig
) -> tuple[Floats, Floats, Floats]:
    """Return how many more episodes decide, and at least and at most; infinite: no number; [C]."""
    tested = max(np.isfinite(evidence.chosen.r).sum(), 1)
    level = max(config.fdr * (tells.sum() + 1) / tested, 1e-9)
    # 80 % of what |r| may be lies within 1.28 standard deviations.
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
    """Gather what is known of each tier."""
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
    """Return the calibration with what its tiers tell early."""
    tiers = [tier._replace(r_landmark=at.r.get(tier.tier)) for tier in result.tiers]
    return result._replace(tiers=tiers, landmark=at.k)


def _necessary(sums: TierSums, which: Which) -> Bools:
    """Whether no success lacks a tier, which is no accident; [C].

    Within tasks, those count of which some success has the tier: no other asks for it. It is no
    accident if failures drawn at random among a task's episodes would all miss the successes with
    a probability below `ACCIDENT`, which is a product of C(n - s, m) / C(n, m) over tasks.
    """
    from scipy.special import gammaln

    task = sums.cells.task if which == "within" else np.zeros_like(sums.cells.task)
    n, s = (
        add_by(part, task)[:, None]
        for part in (sums.cells.sums.episodes, sums.cells.sums.successes)
    )
    having, won = add_by(sums.having, task), add_by(sums.won, task)
    asked = won > 0
    lacking = np.maximum(n - having, 0)  # sums that forget are rounded
    lost = np.maximum(n - s, lacking)
    log_chance = gammaln(lost + 1) - gammaln(lost - lacking + 1)
    log_chance += gammaln(having + 1) - gammaln(n + 1)
    unlikely = np.where(asked, log_chance, 0.0).sum(axis=0) < np.log(ACCIDENT)
    won_without = np.where(asked, s - won, 0.0).sum(axis=0)
    return np.asarray(unlikely & (won_without < 1e-6), np.bool_)


def _within(test: Inference, effect: float) -> Bools:
    """Whether an interval rules out every correlation that matters."""
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
    """How many more episodes would decide, with enough support; infinite if nothing tells; [C].

    level: that Benjamini and Hochberg's procedure asks of one more tier.
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
    """Phi of "the turn has the tier" and "its episode succeeds", from the counts of turns."""
    n, s = sums.all_turns, sums.all_turns_in_successes
    x, xo = float(sums.turns[c]), float(sums.turns_in_successes[c])
    spread = x * (n - x) * s * (n - s)
    return (n * xo - x * s) / spread**0.5 if spread > 0 else None


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None


def defined(value: float) -> float | None:
    """Return the number, or None where it is NaN: undefined."""
    return None if np.isnan(value) else float(value)
