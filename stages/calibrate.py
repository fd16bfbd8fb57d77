"""Measure which tiers tell success from failure, and what each is worth (SUMS -> Calibration)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from stages.core.correlation import (
    Bools,
    Floats,
    TaskSums,
    Which,
    benjamini_hochberg,
    episodes_to_decide,
    pooled,
    sign_reversed,
    within,
)
from stages.core.payment import PAYS, Pay, Values
from stages.core.permutation import pooled_p, within_p
from stages.core.resampling import bootstrap_interval
from stages.sums import TierSums

CORRELATIONS = ("auto", "within", "pooled")
Payment: TypeAlias = Pay | Literal["auto"]
PAYMENTS: tuple[Payment, ...] = ("auto", *PAYS)


@dataclass(frozen=True)
class CalibrateConfig:
    """How a tier's statistics become its value, and what counts as converged."""

    measure: str = "presence"  # presence | count | share of the tier in an episode
    correlation: str = "auto"  # within where two tasks or more have mixed outcomes, else pooled
    delta: float = 0.05  # |r| up to which a tier is worth nothing
    fdr: float = 0.05  # false discovery rate over the tiers; 1: no test
    min_support: int = 20  # episodes with the tier, and, for presence, without it
    effect: float = 0.2  # the smallest |r| that matters: neutral is what rules it out
    alpha: float | None = None  # value = alpha * r; None: the largest |value| is 1
    resamples: int = 2000  # of the tasks, for intervals; and permutations, for pooled p
    eta: float = 0.3  # converged: mean reward and outcome correlate by more than this
    min_tasks: int = 2  # fewer tasks never pass a check
    zero: tuple[str, ...] = ()  # tiers that are worth nothing, whatever they tell
    pay: Payment = "auto"  # turn | once; auto: as often as the measure counts

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
    r_pooled: float | None
    r_within: float | None
    r_turn: float | None  # a description: turns of an episode share its outcome
    ci_low: float | None  # of the chosen r
    ci_high: float | None
    p: float | None  # of the chosen r
    q: float | None
    value: float
    status: str  # discriminative | neutral | undecided | constant
    more_episodes: int | None  # undecided: how many more would decide at 80 % power, if any number
    sign_reversed: bool  # Simpson: pooled and within tasks point opposite ways


class Calibration(NamedTuple):
    """All that a table of sums says."""

    episodes: int
    excluded: int
    tasks: int
    mixed_tasks: int  # with both successes and failures
    pass_rate: float
    correlation: str  # within | pooled
    tiers: list[TierStatistics]
    pay: Pay = "turn"  # which turns of a tier earn its value: see stages.core.payment

    def values(self) -> Values:
        """Return the calibrated value of each tier, and how it is paid."""
        return Values({tier.tier: tier.value for tier in self.tiers}, self.pay)


class Evidence(NamedTuple):
    """What is known of each tier, arrays over C tiers, and of all episodes together."""

    which: Which  # of the correlations sets the values
    r: Floats
    low: Floats
    high: Floats
    p: Floats
    r_within: Floats
    p_within: Floats
    episodes: float  # how many, as evidence
    rarer: Floats  # of them with the tier, or without it if those are fewer
    tells: Bools


def calibrate(
    sums: TierSums, excluded: int, config: CalibrateConfig, rng: np.random.Generator
) -> Calibration:
    """Calibrate the tiers from their sums (SUMS -> Calibration).

    value = alpha r where |r| > delta, q < fdr and the support is enough, else 0: SPEC section 5.
    """
    tasks = sums.tasks
    which: Which = "within" if mixed_tasks(tasks) >= 2 else "pooled"
    if config.correlation != "auto":
        which = "within" if config.correlation == "within" else "pooled"
    r = within(tasks) if which == "within" else pooled(tasks)
    low, high = bootstrap_interval(tasks, which, config.resamples, rng)
    p_within = within_p(tasks)
    p = p_within if which == "within" else pooled_p(tasks, config.resamples, rng)
    episodes = int(tasks.episodes.sum())
    rarer = sums.episodes
    if config.measure == "presence":  # otherwise a tier may be in every episode, more or less often
        rarer = np.minimum(rarer, episodes - rarer)
    with np.errstate(invalid="ignore"):
        tells = np.abs(r) > config.delta
        tells &= (benjamini_hochberg(p) < config.fdr) | (config.fdr == 1)
        tells &= rarer >= config.min_support
    evidence = Evidence(which, r, low, high, p, within(tasks), p_within, episodes, rarer, tells)
    return describe(sums, evidence, excluded, config)


def mixed_tasks(tasks: TaskSums) -> int:
    """Return how many tasks have both successes and failures."""
    return int(((tasks.successes > 0) & (tasks.successes < tasks.episodes)).sum())


def describe(
    sums: TierSums, found: Evidence, excluded: int, config: CalibrateConfig
) -> Calibration:
    """Turn the evidence on the tiers into their values and statuses."""
    supported = found.rarer >= config.min_support
    with np.errstate(invalid="ignore"):
        rules_out = (-config.effect < found.low) & (found.high < config.effect) & supported
    status = np.select(
        [np.isnan(found.r), found.tells, rules_out],
        ["constant", "discriminative", "neutral"],
        "undecided",
    )
    more = _more_episodes(found, config)
    pays = found.tells & ~np.isin(sums.tiers, config.zero)
    values = _values(np.where(pays, found.r, 0.0), config.alpha)
    q = benjamini_hochberg(found.p)
    r_pooled = pooled(sums.tasks)
    q_within = benjamini_hochberg(found.p_within)
    reverses = sign_reversed(r_pooled, found.r_within, q_within, config.delta, config.fdr)
    tiers = [
        TierStatistics(
            tier=tier,
            turns=round(sums.turns[c]),
            episodes=round(sums.episodes[c]),
            r_pooled=defined(r_pooled[c]),
            r_within=defined(found.r_within[c]),
            r_turn=_turn_correlation(sums, c),
            ci_low=defined(found.low[c]),
            ci_high=defined(found.high[c]),
            p=defined(found.p[c]),
            q=defined(q[c]),
            value=float(values[c]),
            status=str(status[c]),
            more_episodes=_whole(more[c]) if status[c] == "undecided" else None,
            sign_reversed=bool(reverses[c]),
        )
        for c, tier in enumerate(sums.tiers)
    ]
    tasks = sums.tasks
    return Calibration(
        episodes=round(tasks.episodes.sum()),
        excluded=excluded,
        tasks=len(tasks.episodes),
        mixed_tasks=mixed_tasks(tasks),
        pass_rate=float(tasks.successes.sum() / tasks.episodes.sum()),
        correlation=found.which,
        tiers=tiers,
        pay=config.payment,
    )


def _values(r: Floats, alpha: float | None) -> Floats:
    largest = np.abs(r).max(initial=0)
    if alpha is None:
        alpha = 1 / largest if largest else 0.0
    return alpha * r


def _more_episodes(found: Evidence, config: CalibrateConfig) -> Floats:
    """How many more episodes would decide, with enough support; infinite if nothing tells; [C]."""
    with np.errstate(divide="ignore"):
        width = np.arctanh(found.high) - np.arctanh(found.low)
    error = width / (2 * NormalDist().inv_cdf(0.975))
    episodes = found.episodes
    for_power = episodes_to_decide(found.r, error, episodes, config.effect)
    needed = episodes * config.min_support / np.maximum(found.rarer, 1)
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
