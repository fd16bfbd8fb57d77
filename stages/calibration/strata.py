"""What each policy and domain says of the tiers, and what all of them say together.

Strata are the policies, the domains, or the pairs of both that some turns have. A value is paid to
policies and in domains that were not measured, so it comes from the random-effects mean.

Source: docs/method.md, "Several policies or domains".
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from stages.calibration.sums import TierSums
from stages.core.correlation import Bools, Floats, Which
from stages.core.lengths import length_terms, select
from stages.core.resampling import Inference, correlation_inference
from stages.core.strata import RandomEffects, random_effects

ENOUGH = 3  # strata from which on the interval of their mean decides
WIDEST = np.arctanh(0.99)  # half of an interval of z from which on a stratum says nothing


class Stratum(NamedTuple):
    """What one policy or domain says of a tier; undefined is None."""

    stratum: str
    r: float | None
    ci_low: float | None
    ci_high: float | None


class TierStrata(NamedTuple):
    """What the strata say of one tier, and what they say together; undefined is None."""

    tier: str
    strata: list[Stratum]
    counted: int  # strata whose interval says something; the following are over those
    mean: float | None  # random-effects mean
    ci_low: float | None
    ci_high: float | None
    i2: float | None  # share of the variance between strata that is not chance
    i2_low: float | None
    i2_high: float | None
    reading: str  # alike | differ | unclear
    agree: bool  # whether the strata allow a value


class OverStrata(NamedTuple):
    """The strata of all tiers, and what follows for their values."""

    tiers: list[TierStrata]
    worth: Floats  # [C] r that sets the value
    agree: Bools  # [C]


def over_strata(
    sums: TierSums,
    which: Which,
    measure: str,
    overall: Floats,
    resamples: int,
    rng: np.random.Generator,
    *,
    adjust: bool,
) -> OverStrata:
    """Measure each stratum by itself, and pool what they say of each tier.

    Strata allow a value where their mean surely lies on the side of the overall r: from three
    strata on by the interval of the mean, with two by their signs, because an interval from two
    has a t quantile of 12.7. With fewer than two there is nothing to ask.

    Args:
        sums: of C tiers in two or more strata.
        which: within | pooled.
        measure: presence | count | share.
        overall: r of each tier over all strata, shape [C].
        resamples: of the tasks, for each interval.
        rng: source of randomness.
        adjust: measure the excess instead of the raw r.
    """
    tests = []
    for number in range(len(sums.strata)):
        cells = select(sums.cells, sums.stratum == number)
        terms = length_terms(cells, which, measure, adjust=adjust)
        tests.append(correlation_inference(terms, resamples, rng))
    rows = [_tier(sums, tests, c, overall[c]) for c in range(len(sums.tiers))]
    worth = [overall[c] if row.mean is None else row.mean for c, row in enumerate(rows)]
    return OverStrata(rows, np.array(worth), np.array([row.agree for row in rows], np.bool_))


def _tier(sums: TierSums, tests: list[Inference], c: int, overall: float) -> TierStrata:
    r = np.array([test.r[c] for test in tests])
    with np.errstate(divide="ignore", invalid="ignore"):
        # Half of the interval: of few tasks the standard error alone says too little.
        half = np.array([test.quantile[c] * test.standard_error[c] for test in tests])
        z, error = np.arctanh(r), half / NormalDist().inv_cdf(0.975)
        counted = np.isfinite(z) & (half < WIDEST)
    pooled = random_effects(z[counted], error[counted] ** 2)
    mean, low, high = (_defined(np.tanh(x)) for x in pooled[:3])
    return TierStrata(
        tier=sums.tiers[c],
        strata=[
            Stratum(name, _defined(r[s]), _defined(tests[s].low[c]), _defined(tests[s].high[c]))
            for s, name in enumerate(sums.strata)
        ],
        counted=int(counted.sum()),
        mean=mean,
        ci_low=low,
        ci_high=high,
        i2=_defined(pooled.i2),
        i2_low=_defined(pooled.i2_low),
        i2_high=_defined(pooled.i2_high),
        reading=_reading(pooled),
        agree=_agree(np.sign(overall) * z[counted], np.sign(overall) * np.array(pooled[1:3])),
    )


def _agree(z: Floats, interval: Floats) -> bool:
    """Whether z of the strata, and the interval of their mean, are on the positive side."""
    if len(z) < ENOUGH:
        return bool(len(z) < 2 or (z > 0).all())
    return bool((interval > 0).all())


def _reading(pooled: RandomEffects) -> str:
    """One word on the interval of I2."""
    if pooled.i2_low > 0:
        return "differ"
    return "alike" if pooled.i2_high < 0.5 else "unclear"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
