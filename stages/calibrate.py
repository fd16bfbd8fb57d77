"""Measure which tiers tell success from failure, and what each is worth (SUMS -> Calibration)."""

from __future__ import annotations

import numpy as np

from stages.calibration.estimate import CalibrateConfig, Calibration, describe, mixed_tasks, weigh
from stages.calibration.strata import OverStrata, over_strata
from stages.calibration.sums import TierSums
from stages.core.correlation import (
    Which,
    benjamini_hochberg,
)
from stages.core.lengths import length_terms, stratum_terms


def calibrate(
    sums: TierSums, excluded: int, config: CalibrateConfig, rng: np.random.Generator
) -> Calibration:
    """Calibrate the tiers from their sums (SUMS -> Calibration).

    value = alpha * excess where |excess| > delta, q < fdr and the support is enough, else 0. The
    false discoveries that q counts are tiers that tell nothing, or nothing beyond length. With
    several policies or domains the excess is their random-effects mean, if they agree on it. The
    raw r of `adjust` none is over all episodes.
    """
    which: Which = "within" if mixed_tasks(sums.cells) >= 2 else "pooled"
    if config.correlation != "auto":
        which = "within" if config.correlation == "within" else "pooled"
    adjusted = config.adjust == "length"
    apart = config.strata == "auto" and len(sums.strata) > 1
    stratum = sums.stratum if apart and adjusted else np.zeros_like(sums.stratum)
    raw, excess = (
        stratum_terms(sums.cells, stratum, which, config.measure, adjust=adjust)
        for adjust in (False, True)
    )
    within = raw
    if which == "pooled":
        within = length_terms(sums.cells, "within", config.measure, adjust=False)
    episodes = int(sums.tasks.episodes.sum())
    rarer = sums.episodes
    if config.measure == "presence":  # otherwise a tier may be in every episode, more or less often
        rarer = np.minimum(rarer, episodes - rarer)
    found = weigh(which, raw, excess, within, episodes, rarer, config, rng)
    over: OverStrata | None = None
    if apart:
        over = over_strata(
            sums, which, config.measure, found.chosen.r, config.resamples, rng, adjust=adjusted
        )
    worth = over.worth if over and adjusted else found.chosen.r
    with np.errstate(invalid="ignore"):
        tells = np.abs(worth) > config.delta
        tells &= (benjamini_hochberg(found.p) < config.fdr) | (config.fdr == 1)
    tells &= rarer >= config.min_support
    held_back = tells & ~over.agree if over and adjusted else np.zeros_like(tells)
    result = describe(sums, found, tells & ~held_back, excluded, config, worth, held_back)
    return result._replace(strata=over.tiers) if over else result
