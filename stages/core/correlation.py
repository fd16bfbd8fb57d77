"""Correlation of tiers with outcomes, from sums per (task, tier).

Outcomes are yes/no. Every statistic here is a function of a `TaskSums` table. Tables of integers
(the measures presence and count) add up exactly, so shards merge into the same result wherever they
were computed.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Bools: TypeAlias = npt.NDArray[np.bool_]
Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Which: TypeAlias = Literal["within", "pooled"]

# A variance below this share of the mean square is rounding, not variation. For presence the test
# is exact, because the smallest non-zero share is 1/N and the sums are integers.
ROUNDING = 1e-10


class TaskSums(NamedTuple):
    """Sums over the episodes of each of T tasks, for each of C tiers; x is the measure.

    Each task has at least one episode. Tasks have a fixed order, so that sums repeat exactly. Sums
    with forgetting count an episode by its weight and need not be integers.
    """

    episodes: Ints | Floats  # [T]
    successes: Ints | Floats  # [T]
    x: Floats  # [T, C] sum of x; for presence, the episodes with the tier
    xx: Floats  # [T, C] sum of squares; for presence, the same as x
    xo: Floats  # [T, C] sum over the successful episodes; for presence, successes with the tier


def point_biserial(outcome: Bools, score: Floats) -> float:
    """Point-biserial correlation of a yes/no outcome with a score.

    r = (mean1 - mean0) / s * sqrt(p q), with s of ddof=0: Pearson's r with the outcome as 0/1.

    Args:
        outcome: success of each episode (or of each turn's episode), shape [N].
        score: score of each episode (or turn), shape [N], any unit.

    Returns:
        r in [-1, 1], dimensionless; NaN if either input is constant, where r is undefined.

    Raises:
        ValueError: the shapes differ, or N < 2.

    Source: Tate (1954), Ann. Math. Statist. 25(3), 603-607.
    """
    if outcome.ndim != 1 or outcome.shape != score.shape or len(score) < 2:
        raise ValueError(f"need two arrays of one length >= 2, not {outcome.shape}, {score.shape}")
    p = float(outcome.mean())
    s = float(score.std())
    if p in (0.0, 1.0) or s * s <= ROUNDING * float(np.square(score).mean()):
        return float("nan")
    r = (score[outcome].mean() - score[~outcome].mean()) / s * np.sqrt(p * (1 - p))
    return float(np.clip(r, -1, 1))


def pooled(sums: TaskSums) -> Floats:
    """Point-biserial correlation of measure and outcome over all episodes (`r_pooled`).

    Args:
        sums: over the episodes of T tasks, for C tiers.

    Returns:
        r of each tier, shape [C]; NaN where the measure or the outcome is constant.

    Raises:
        ValueError: the shapes do not fit, or a task has no episode.

    Source: docs/method.md, "Evidence for a tier".
    """
    return correlation(pooled_terms(sums).sum(axis=0))


def within(sums: TaskSums) -> Floats:
    """Correlation after subtracting the task's means from measure and outcome (`r_within`).

    This is the pooled within-group correlation: the summed products of deviations, over the root of
    the product of the summed squared deviations. Tasks that vary more weigh more.

    Args:
        sums: over the episodes of T tasks, for C tiers.

    Returns:
        r of each tier, shape [C]; NaN where measure or outcome varies within no task.

    Raises:
        ValueError: the shapes do not fit, or a task has no episode.

    Source: docs/method.md, "Evidence for a tier".
    """
    return correlation(within_terms(sums).sum(axis=0))


def terms(sums: TaskSums, which: Which) -> Floats:
    """Return each task's share of the sums that determine the correlation `which`.

    Args:
        sums: over the episodes of T tasks, for C tiers.
        which: within | pooled.

    Returns:
        Terms for `correlation`, shape [T, 3, C] within and [T, 6, C] pooled.

    Raises:
        ValueError: the shapes do not fit, or a task has no episode.

    Source: docs/method.md, "Evidence for a tier".
    """
    return within_terms(sums) if which == "within" else pooled_terms(sums)


def within_terms(sums: TaskSums) -> Floats:
    """Return each task's sums of xo, xx and oo around the task's means.

    Args:
        sums: over the episodes of T tasks, for C tiers.

    Returns:
        Sums of products of deviations, shape [T, 3, C].

    Raises:
        ValueError: the shapes do not fit, or a task has no episode.

    Source: docs/method.md, "Evidence for a tier".
    """
    _check(sums)
    n, s = sums.episodes[:, None].astype(np.float64), sums.successes[:, None].astype(np.float64)
    # n * sum - sum * sum is exact on integers, so a constant measure gives exactly 0.
    xx = n * sums.xx - sums.x * sums.x
    xx[xx <= ROUNDING * n * sums.xx] = 0.0
    xo = n * sums.xo - sums.x * s
    xo[xx == 0] = 0.0
    oo = np.broadcast_to(s * (n - s), xx.shape)
    return np.stack([xo, xx, oo], axis=1) / n[:, None]


def pooled_terms(sums: TaskSums) -> Floats:
    """Return each task's sums of xo, xx, oo, 1, x and o around the overall means.

    Args:
        sums: over the episodes of T tasks, for C tiers.

    Returns:
        Shape [T, 6, C].

    Raises:
        ValueError: the shapes do not fit, or a task has no episode.

    Source: docs/method.md, "Evidence for a tier".
    """
    _check(sums)
    n, s = sums.episodes[:, None].astype(np.float64), sums.successes[:, None].astype(np.float64)
    total = n.sum()
    mean_x, mean_o = sums.x.sum(axis=0) / total, s.sum() / total
    # r is the same around any origin, but centring on the means avoids cancellation.
    xo = sums.xo - mean_x * s - mean_o * sums.x + n * mean_x * mean_o
    xx = sums.xx - 2 * mean_x * sums.x + n * mean_x * mean_x
    oo = s - 2 * mean_o * s + n * mean_o * mean_o
    constant = total * sums.xx.sum(axis=0) - sums.x.sum(axis=0) ** 2
    xx[:, constant <= ROUNDING * total * sums.xx.sum(axis=0)] = 0.0
    if s.sum() in (0.0, total):
        oo = np.zeros_like(oo)
    ones = np.ones_like(mean_x)
    return np.stack([xo, xx, oo * ones, n * ones, sums.x - n * mean_x, (s - n * mean_o) * ones], 1)


def correlation(totals: Floats) -> Floats:
    """Return the correlation from totals of `within_terms` or `pooled_terms`.

    Args:
        totals: shape [..., 3, C] (xo, xx, oo around means) or [..., 6, C] (around any origin).

    Returns:
        r in [-1, 1], shape [..., C]; NaN where either variance is 0.

    Source: docs/method.md, "Evidence for a tier".
    """
    return _correlation_and_deviations(totals)[0]


def fisher_z(totals: Floats) -> tuple[Floats, Floats]:
    """Return Fisher's z = atanh r and its gradient with respect to the totals.

    Args:
        totals: as for `correlation`.

    Returns:
        z, shape [..., C], NaN where r is undefined and infinite where |r| = 1; the gradient, of the
        shape of totals, meaningless where z is not finite.

    Source: Fisher (1921), Metron 1, 3-32, for z; the gradient is its derivative.
    """
    r, xx, oo, mean_x, mean_o = _correlation_and_deviations(totals)
    with np.errstate(divide="ignore", invalid="ignore"):
        d_xo = 1 / (np.sqrt(xx * oo) * (1 - r * r))
        d_xx = -r / (2 * xx * (1 - r * r))
        d_oo = -r / (2 * oo * (1 - r * r))
        gradient = [d_xo, d_xx, d_oo]
        if totals.shape[-2] == 6:
            d_n = d_xo * mean_x * mean_o + d_xx * mean_x**2 + d_oo * mean_o**2
            d_x = -d_xo * mean_o - 2 * d_xx * mean_x
            d_o = -d_xo * mean_x - 2 * d_oo * mean_o
            gradient += [d_n, d_x, d_o]
        return np.arctanh(r), np.stack(gradient, axis=-2)


def _correlation_and_deviations(totals: Floats) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    """R, squared deviations of x and of o, and their means; each [..., C]."""
    xo, xx, oo = (totals[..., i, :] for i in range(3))
    mean_x = mean_o = np.zeros_like(xo)
    raw_xx, raw_oo = xx, oo
    if totals.shape[-2] == 6:
        n, x, o = (totals[..., i, :] for i in range(3, 6))
        mean_x, mean_o = x / n, o / n
        xo, xx, oo = xo - x * mean_o, xx - x * mean_x, oo - o * mean_o
    varies = (xx > ROUNDING * raw_xx) & (oo > ROUNDING * raw_oo)
    r = np.divide(
        xo,
        np.sqrt(xx * oo, where=varies, out=np.ones_like(xx)),
        where=varies,
        out=np.full_like(xo, np.nan),
    )
    # An r one ulp below 1 would give a huge but finite z.
    r = np.where(np.abs(r) > 1 - 1e-12, np.sign(r), r)
    return r, xx, oo, mean_x, mean_o


def sign_reversed(
    r_pooled: Floats,
    r_within: Floats,
    q_within: Floats,
    delta: float = 0.05,
    fdr: float = 0.05,
) -> Bools:
    """Detect Simpson's paradox: pooled and within-task correlation have opposite signs.

    Both |r| must exceed delta and r_within must be significant. r_pooled need not be significant,
    because its reader is misled either way. If a significant r_pooled were enough, a tier that only
    goes with hard tasks and has no effect within them would raise a false alarm in 13-20 % of runs.

    Args:
        r_pooled: pooled correlation of each tier, shape [C].
        r_within: within-task correlation of each tier, shape [C].
        q_within: q of r_within, shape [C].
        delta: |r| up to which a correlation counts as none.
        fdr: threshold for q.

    Returns:
        True where the signs are opposite, shape [C]; False where either correlation is undefined.
    """
    opposite = np.sign(r_pooled) * np.sign(r_within) < 0
    sizable = np.minimum(np.abs(r_pooled), np.abs(r_within)) > delta
    return np.asarray(opposite & sizable & (q_within < fdr), np.bool_)


def episodes_to_decide(
    r: Floats,
    standard_error: Floats,
    quantile: Floats,
    episodes: float,
    effect: float,
    level: float = 0.05,
    power: float = 0.8,
    shift: float = 0.0,
) -> Floats:
    """Estimate how many more episodes, of tasks like these, would decide whether a tier counts.

    A tier is decided if it is detected (|z| beyond the quantile of `level`) or ruled out (a 95 %
    interval within `effect`). Planning with the observed r alone gives too little power: r is
    uncertain, and an undecided tier tends to be an underestimated one. So |z| has a normal prior
    with mean atanh(effect) and a quarter of that as standard deviation, updated by the observed z.
    The power is the mean over the posterior. It must suffice both for new episodes added to the
    present ones and for as many episodes collected anew. `make validate` measures how often that
    decides at r = 0.2.

    A standard error s counts as 1 / s^2 + 3 independent episodes, so clustering and uninformative
    tasks cost as much as observed.

    Args:
        r: observed correlation, shape [C].
        standard_error: standard error of Fisher's z, clustered by task, shape [C].
        quantile: half-width of the 95 % interval of z, in standard errors, shape [C].
        episodes: present number of episodes.
        effect: the smallest |r| that matters, in [0, 1); 0 plans with the observed z alone.
        level: two-sided level of the detection, as the tier faces it under Benjamini-Hochberg.
        power: mean probability of deciding.
        shift: if not 0, plan for a known |z| this many standard deviations above its mean.

    Returns:
        Number of further episodes, an integer >= 0, shape [C]; infinite if the standard error is,
        or if up to 400 times as many episodes do not decide; NaN where r is NaN.

    Source: Spiegelhalter, Freedman and Blackburn (1986), Controlled Clinical Trials 7(1), 8-17,
    for the predictive power of a trial that goes on.
    """
    from scipy.special import ndtr

    z, prior = np.abs(np.arctanh(np.clip(r, -1 + 1e-9, 1 - 1e-9))), np.arctanh(effect)
    error = np.maximum(standard_error, 1e-9)
    if effect == 0:
        mean, spread = z, error
    else:
        spread = (error**-2.0 + (prior / 4) ** -2.0) ** -0.5
        mean = spread**2 * (z / error**2 + prior / (prior / 4) ** 2)
    mean, spread = (mean, spread) if not shift else (mean + shift * spread, 0 * spread)
    times = np.exp(np.linspace(0, np.log(400), 1200))[1:, None]  # all episodes over present ones
    final = error / np.sqrt(times)
    new = 1 - 1 / times  # share of new episodes
    alone = mean, np.sqrt(spread**2 + final**2)
    added = z / times + new * mean, new * np.sqrt(spread**2 + error**2 / (times - 1))
    # With few tasks the quantile exceeds the normal one; the excess falls as 1 / tasks.
    length = final * (1 + (quantile / NormalDist().inv_cdf(0.975) - 1) / times)
    with np.errstate(invalid="ignore"):  # without a test, --fdr 1, 0 times an infinite error
        to_find, to_rule_out = (
            NormalDist().inv_cdf(1 - x / 2) * length for x in (max(level, 1e-12), 0.05)
        )
    room = np.maximum(prior - to_rule_out, 0)
    enough = np.ones(final.shape, np.bool_)
    for at, wide in (alone, added):
        with np.errstate(invalid="ignore"):
            decided = ndtr((at - to_find) / wide) + ndtr((-at - to_find) / wide)
            decided += ndtr((room - at) / wide) - ndtr((-room - at) / wide)
            enough &= decided >= power
    first = times[enough.argmax(axis=0), 0]
    have = error**-2.0 + 3
    needed = np.ceil((first * error**-2.0 + 3) * episodes / have - episodes - 1e-9)
    return np.where(np.isnan(z), np.nan, np.where(enough.any(axis=0), needed, np.inf))


def benjamini_hochberg(p: Floats) -> Floats:
    """Benjamini-Hochberg q: the false discovery rate at which each test is just rejected.

    q_(i) = min over j >= i of p_(j) m / j, over the m defined tests.

    Args:
        p: p-values, shape [C]; NaN means no test and does not count.

    Returns:
        q, shape [C], in [p, 1]; NaN where p is NaN.

    Source: Benjamini and Hochberg (1995), J. R. Statist. Soc. B 57(1), 289-300.
    """
    q = np.full_like(p, np.nan)
    tests = np.flatnonzero(~np.isnan(p))
    order = tests[np.argsort(-p[tests], kind="stable")]
    rank = np.arange(len(order), 0, -1)
    q[order] = np.minimum(np.minimum.accumulate(p[order] * len(order) / rank), 1)
    return q


def _check(sums: TaskSums) -> None:
    tasks = len(sums.episodes)
    shapes = {a.shape for a in (sums.x, sums.xx, sums.xo)}
    if len(shapes) != 1 or sums.x.ndim != 2 or not tasks == len(sums.successes) == len(sums.x):
        raise ValueError("sums need shapes [T], [T], and [T, C] three times")
    if tasks == 0 or sums.episodes.min() <= 0:
        raise ValueError("each task needs at least one episode")
