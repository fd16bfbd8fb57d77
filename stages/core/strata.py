"""Random-effects mean over several policies or domains, and their heterogeneity."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.correlation import Floats


class RandomEffects(NamedTuple):
    """The combination of several estimates; NaN with fewer than two."""

    mean: float
    low: float  # 95 % interval of the mean
    high: float
    tau2: float  # variance of the true values between strata
    i2: float  # share of the variance of the estimates that is between strata, in [0, 1]
    i2_low: float
    i2_high: float


def random_effects(estimate: Floats, variance: Floats, level: float = 0.95) -> RandomEffects:
    """Combine the estimates of several strata by a random-effects model.

    The variance between strata solves Q(tau2) = k - 1 (Paule and Mandel), where Q is the weighted
    sum of squares around the weighted mean. The interval of the mean is Hartung and Knapp's, with
    Student's t and their scale factor kept from falling below 1, so it is wide for two strata. The
    interval of I2 is the Q-profile interval.

    Args:
        estimate: estimate of each stratum, shape [k], on a scale where it is approximately normal
            (Fisher's z). Entries that are not finite are dropped.
        variance: squared standard error of each estimate, shape [k], above 0.
        level: coverage probability.

    Returns:
        The mean, in units of the estimates, and the heterogeneity.

    Source: Paule and Mandel (1982), J. Res. NBS 87(5), 377-385; Hartung and Knapp (2001), Stat.
    Med. 20(12), 1771-1782; Roever, Knapp and Friede (2015), BMC Med. Res. Methodol. 15:99, for the
    bound on its length; Viechtbauer (2007), Stat. Med. 26(1), 37-52, for the interval of I2.
    """
    from scipy.stats import chi2, t

    known = np.isfinite(estimate) & np.isfinite(variance)
    y, v = estimate[known], variance[known]
    freedom = len(y) - 1
    if freedom < 1:
        return RandomEffects(*[float("nan")] * 7)
    tail = (1 - level) / 2
    tau2, most, least = (
        _between(y, v, q) for q in (freedom, chi2.ppf(tail, freedom), chi2.ppf(1 - tail, freedom))
    )
    w = 1 / (v + tau2)
    mean = float(w @ y / w.sum())
    # Hartung and Knapp multiply by sqrt(Q / (k - 1)), which is 1 where tau2 > 0, else below.
    half = float(t.ppf(1 - tail, freedom) / np.sqrt(w.sum()))
    fixed = 1 / v
    typical = freedom * fixed.sum() / (fixed.sum() ** 2 - np.square(fixed).sum())
    i2, i2_low, i2_high = (float(x / (x + typical)) for x in (tau2, least, most))
    return RandomEffects(mean, mean - half, mean + half, tau2, i2, i2_low, i2_high)


def _between(y: Floats, v: Floats, target: float) -> float:
    """Return the tau2 at which Q equals the target; 0 if Q is at most the target at tau2 = 0."""
    from scipy.optimize import brentq

    def excess(tau2: float) -> float:
        w = 1 / (v + tau2)
        return float(w @ np.square(y - w @ y / w.sum()) - target)

    if excess(0.0) <= 0:
        return 0.0
    top = float(np.ptp(y) ** 2 + v.max())
    while excess(top) > 0:
        top *= 2
    return float(brentq(excess, 0.0, top))
