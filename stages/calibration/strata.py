"""Results per policy and domain, and their combination.

Strata are the policies, the domains, or the pairs of both that occur in the turns. A value is also
paid to policies and in domains that were not measured, so it follows the random-effects mean.

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

ENOUGH = 3  # from this many strata on, the interval of their mean decides
WIDEST = np.arctanh(0.99)  # a stratum whose half-interval of z is at least this does not count


class Stratum(NamedTuple):
    """The result of one policy or domain for a tier; None means undefined."""

    stratum: str
    r: float | None
    ci_low: float | None
    ci_high: float | None


class TierStrata(NamedTuple):
    """The strata of one tier and their combination; None means undefined."""

    tier: str
    strata: list[Stratum]
    counted: int  # strata with a narrow enough interval; the figures below are over these
    mean: float | None  # random-effects mean
    ci_low: float | None
    ci_high: float | None
    i2: float | None  # share of the variance of the estimates that lies between strata
    i2_low: float | None
    i2_high: float | None
    reading: str  # alike | differ | unclear, from the interval of I2
    agree: bool  # whether the strata allow a value


class OverStrata(NamedTuple):
    """The strata of all tiers, and the consequences for their values."""

    tiers: list[TierStrata]
    worth: Floats  # [C] r that sets the value
    agree: Bools  # [C] whether the strata allow a value


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
    """Measure each stratum separately and combine the strata of each tier.

    The strata allow a value if their mean lies on the side of the overall r. From three strata on
    the interval of the mean decides. With two their signs decide, because the interval of two has a
    t quantile of 12.7. With fewer than two a value is always allowed.

    Args:
        sums: sums of C tiers in two or more strata.
        which: within | pooled.
        measure: presence | count | share.
        overall: r of each tier over all strata, shape [C].
        resamples: number of resamples of the tasks for each interval.
        rng: source of randomness.
        adjust: measure the excess instead of the raw r.

    Returns:
        The strata of each tier, and the consequences for the values.
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
        # The half-interval, because with few tasks the standard error alone is too small.
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
    """Return whether the strata allow a value, with z and interval on the overall r's side > 0."""
    if len(z) < ENOUGH:
        return bool(len(z) < 2 or (z > 0).all())
    return bool((interval > 0).all())


def _reading(pooled: RandomEffects) -> str:
    """Return a one-word reading of the interval of I2."""
    if pooled.i2_low > 0:
        return "differ"
    return "alike" if pooled.i2_high < 0.5 else "unclear"


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
