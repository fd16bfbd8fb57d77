"""Pass rates, pass^k and their differences, over tasks with several trials each.

Source: docs/method.md, "Pass rates".
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from stages.core.correlation import Floats, Ints
from stages.core.resampling import unseen_share


def pass_k(episodes: Ints, successes: Ints, k: int) -> tuple[float, int]:
    """pass^k: the probability that k trials of a task all succeed, averaged over tasks.

    The estimate for a task with c successes in n trials is C(c, k) / C(n, k), which is unbiased.
    Tasks with fewer than k trials are left out.

    Args:
        episodes: trials of each task, shape [T].
        successes: successes among them, shape [T].
        k: number of trials, at least 1.

    Returns:
        pass^k in [0, 1], NaN if no task has k trials; and the number of tasks with k trials.

    Raises:
        ValueError: k < 1.

    Source: Yao et al. (2024), tau-bench, arXiv 2406.12045, section 3.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    n, c = episodes[episodes >= k], successes[episodes >= k]
    if len(n) == 0:
        return float("nan"), 0
    i = np.arange(k)[:, None]
    # A product of ratios, because the binomials themselves overflow.
    return float(np.prod(np.maximum(c - i, 0) / (n - i), axis=0).mean()), len(n)


def clustered_proportion(
    episodes: Ints, successes: Ints, level: float = 0.95
) -> tuple[float, float, float]:
    """Pass rate over all episodes, with an interval that allows for correlation within tasks.

    The interval is Wilson's score interval at the effective number of episodes
    n* = (z / t)^2 p (1 - p) / v, where v is the between-task variance of p and t has T - 1 degrees
    of freedom. p (1 - p) / v is capped at the number of episodes. If all outcomes are equal, v is
    unknown and each task counts as one episode.

    Args:
        episodes: trials of each task, shape [T], each at least 1.
        successes: successes among them, shape [T].
        level: probability of covering the pass rate over all such tasks.

    Returns:
        rate, low, high; with a single task low and high are 0 and 1.

    Raises:
        ValueError: no task.

    Source: Korn and Graubard (1998), Survey Methodology 24(2), 193-201, for n*; Dean and Pagano
    (2015), J. Surv. Stat. Methodol. 3(4), 484-503, for Wilson's interval with it.
    """
    tasks = len(episodes)
    if tasks == 0:
        raise ValueError("need at least one task")
    total = int(episodes.sum())
    rate = float(successes.sum() / total)
    if tasks == 1:
        return rate, 0.0, 1.0
    z = NormalDist().inv_cdf((1 + level) / 2)
    between = float(np.square(successes - rate * episodes).sum()) * tasks / (tasks - 1) / total**2
    effective = float(tasks)
    if 0 < rate < 1:
        effective = min(rate * (1 - rate) / between, total) if between > 0 else total
    effective *= (z / _t_quantile(tasks - 1, level)) ** 2
    centre = (rate + z * z / (2 * effective)) / (1 + z * z / effective)
    half = np.sqrt(rate * (1 - rate) / effective + (z / (2 * effective)) ** 2)
    half *= z / (1 + z * z / effective)
    return rate, max(float(centre - half), 0.0), min(float(centre + half), 1.0)


def paired_difference(
    rate: Floats, against: Floats, level: float = 0.95
) -> tuple[float, float, float]:
    """Mean difference of two runs' pass rates over their shared tasks, with its interval.

    The interval is Student's t over the per-task differences; each task counts once. If all
    differences are equal, the variance is unknown and the interval allows for the share of tasks
    that may differ unseen.

    Args:
        rate: pass rate of each shared task in one run, shape [T].
        against: the same in the other run, shape [T].
        level: probability of covering the difference over all such tasks.

    Returns:
        difference (rate - against), low, high, within [-1, 1]; with a single shared task low and
        high are -1 and 1.

    Raises:
        ValueError: the shapes differ, or no task is shared.
    """
    if rate.shape != against.shape or rate.ndim != 1 or len(rate) == 0:
        raise ValueError(f"need rates of the same tasks, not {rate.shape} and {against.shape}")
    each = rate - against
    difference, tasks = float(each.mean()), len(each)
    if tasks == 1:
        return difference, -1.0, 1.0
    half = _t_quantile(tasks - 1, level) * float(each.std(ddof=1)) / tasks**0.5
    if np.ptp(each) < 1e-12:
        unseen = float(unseen_share(tasks, (1 + level) / 2))
        low, high = difference - unseen * (1 + difference), difference + unseen * (1 - difference)
    else:
        low, high = difference - half, difference + half
    return difference, max(low, -1.0), min(high, 1.0)


def unpaired_difference(
    first: tuple[float, float, float], second: tuple[float, float, float]
) -> tuple[float, float, float]:
    """Difference of two independent proportions, from their own intervals.

    low = d - sqrt((p1 - low1)^2 + (high2 - p2)^2), high = d + sqrt((high1 - p1)^2 + (p2 - low2)^2).

    Args:
        first: rate, low, high.
        second: the same for other tasks, at the same level.

    Returns:
        difference (first - second), low, high, within [-1, 1].

    Source: Newcombe (1998), Statistics in Medicine 17(8), 873-890, method 10.
    """
    (p1, low1, high1), (p2, low2, high2) = first, second
    difference = p1 - p2
    below, above = np.hypot(p1 - low1, high2 - p2), np.hypot(high1 - p1, p2 - low2)
    return difference, max(float(difference - below), -1.0), min(float(difference + above), 1.0)


def _t_quantile(degrees: int, level: float) -> float:
    """Two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + level) / 2))
