"""Whether advantages push each tier in the direction of its value.

Means over a tier are a diagnosis of the sampled turns, not proof of causal credit.

Source: docs/method.md, "Direction, farming, convergence".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.core.advantages import Advantages
from stages.core.layout import Codes, Floats, Ints, as_codes
from stages.core.resampling import correlation_interval, ratio_interval

DEAD = 1e-8  # an advantage of at most this size does not move the policy


class TierDirections(NamedTuple):
    """The direction in which the advantages push each tier, each [C]."""

    turns: Ints
    mean_advantage: Floats  # return_part + outcome_part
    return_part: Floats
    outcome_part: Floats
    ci_low: Floats
    ci_high: Floats
    wrong_sign_share: Floats
    verdict: npt.NDArray[np.str_]  # aligned | misaligned | undecided | neutral


def direction(
    advantages: Advantages,
    tier: Ints,
    task: Ints,
    intended: Ints,
    resamples: int,
    rng: np.random.Generator,
    level: float = 0.95,
) -> TierDirections:
    """Compare the mean advantage of each tier with the sign of its value.

    A tier is `neutral` if its value is 0. It is `aligned` or `misaligned` if its mean and its whole
    interval have the intended or the opposite sign. Otherwise it is `undecided`.

    Args:
        advantages: advantages of N turns.
        tier: tier of each turn, 0..C-1, shape [N].
        task: task of each turn, 0..T-1, shape [N].
        intended: sign of each tier's value, -1, 0 or 1, shape [C].
        resamples: number of resamples of the tasks.
        rng: source of randomness.
        level: probability that an interval covers the mean among all such tasks.

    Returns:
        Means and intervals are dimensionless, like the advantages. They are NaN for a tier without
        turns; the interval is infinite if too few tasks have the tier. `wrong_sign_share` counts no
        dead turn as wrong and is NaN for a neutral tier, too.

    Raises:
        ValueError: the shapes differ, or a code is out of range.
    """
    if not advantages.advantage.shape == tier.shape == task.shape:
        raise ValueError(f"{advantages.advantage.shape} advantages of {tier.shape}, {task.shape}")
    n_tiers, n_tasks = intended.size, int(task.max(initial=0)) + 1
    tier, task = as_codes(tier, n_tiers, "tier"), as_codes(task, n_tasks, "task")
    turns = np.bincount(tier, minlength=n_tiers)

    def mean(x: Floats) -> Floats:  # [C]
        return _share(_sums(x, tier, n_tiers), turns)

    def task_sums(x: Floats) -> Floats:  # [T, C]
        return _sums(x, task * n_tiers + tier, n_tasks * n_tiers).reshape(n_tasks, n_tiers)

    mean_advantage = mean(advantages.advantage)
    ci_low, ci_high = ratio_interval(
        task_sums(advantages.advantage), task_sums(np.ones(tier.shape)), resamples, rng, level
    )
    wrong_sign = (intended[tier] * advantages.advantage < -DEAD).astype(np.float64)
    return TierDirections(
        turns=turns,
        mean_advantage=mean_advantage,
        return_part=mean(advantages.return_part),
        outcome_part=mean(advantages.outcome_part),
        ci_low=ci_low,
        ci_high=ci_high,
        wrong_sign_share=np.where(intended == 0, np.nan, mean(wrong_sign)),
        verdict=_verdicts(intended, mean_advantage, ci_low, ci_high),
    )


def _verdicts(intended: Ints, mean: Floats, low: Floats, high: Floats) -> npt.NDArray[np.str_]:
    # Scores of a group cancel only up to rounding, so the sign of a mean below DEAD is noise.
    up, down = (mean > DEAD) & (low > 0), (mean < -DEAD) & (high < 0)
    aligned = np.where(intended > 0, up, down)
    misaligned = np.where(intended > 0, down, up)
    return np.select(
        [intended == 0, aligned, misaligned], ["neutral", "aligned", "misaligned"], "undecided"
    )


def gradient_mass(
    advantage: Floats, tier: Ints, n_tiers: int, n_tokens: Ints | None = None
) -> Floats:
    """Share of each tier in the sum of |A| * tokens over the turns that are not dead.

    Args:
        advantage: A of each turn, shape [N].
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        n_tiers: number of tiers, C.
        n_tokens: tokens that the policy wrote in each turn, shape [N]. None if not all are known;
            each turn then weighs 1.

    Returns:
        Shares in [0, 1] that sum to 1, shape [C]; all NaN if every turn is dead.

    Raises:
        ValueError: the shapes differ, or a tier is out of range.
    """
    weight = np.ones(advantage.shape) if n_tokens is None else n_tokens
    if not advantage.shape == tier.shape == weight.shape:
        raise ValueError(f"{advantage.shape} advantages of {tier.shape}, {weight.shape}")
    size = np.abs(advantage)
    live_mass = np.where(size > DEAD, size * weight, 0.0)
    mass = _sums(live_mass, as_codes(tier, n_tiers, "tier"), n_tiers)
    return _share(mass, mass.sum())


def dead_turn_share(advantage: Floats) -> float:
    """Share of turns with |A| <= 1e-8, which contribute no gradient.

    Args:
        advantage: A of each turn, shape [N], dimensionless.

    Returns:
        A share in [0, 1]; NaN without turns.
    """
    return float(np.mean(np.abs(advantage) <= DEAD)) if advantage.size else np.nan


def rms(advantage: Floats) -> float:
    """Root mean square of the advantages, which scales the training step.

    Args:
        advantage: A of each turn, shape [N], dimensionless.

    Returns:
        At least 0, dimensionless; NaN without turns.
    """
    return float(np.sqrt(np.mean(advantage**2))) if advantage.size else np.nan


class Correlated(NamedTuple):
    """A correlation with its interval, dimensionless."""

    r: float
    ci_low: float
    ci_high: float


def reward_outcome_correlation(reward: Floats, outcome: Floats, episode: Ints) -> float:
    """Pearson correlation, over episodes, of the mean reward per turn with the outcome.

    Args:
        reward: reward of each turn, shape [N], any unit.
        outcome: outcome of each episode, shape [E].
        episode: episode of each turn, 0..E-1, each with a turn, shape [N].

    Returns:
        r in [-1, 1]; NaN where the mean rewards or the outcomes are constant.

    Raises:
        ValueError: the shapes differ, or an episode is out of range or without turns.
    """
    return _correlation(mean_rewards(reward, episode, outcome.size), outcome)


def mean_rewards(reward: Floats, episode: Ints, n_episodes: int) -> Floats:
    """Mean reward per turn of each episode.

    Args:
        reward: reward of each turn, shape [N], any unit.
        episode: episode of each turn, 0..n_episodes-1, each with a turn, shape [N].
        n_episodes: number of episodes, E.

    Returns:
        Shape [E], in the unit of the rewards.

    Raises:
        ValueError: the shapes differ, or an episode is out of range or without turns.
    """
    episode = as_codes(episode, n_episodes, "episode")
    length = np.bincount(episode, minlength=n_episodes)
    if reward.shape != episode.shape or not length.all():
        raise ValueError("each turn needs a reward, and each episode a turn")
    return _sums(reward, episode, n_episodes) / length


def clustered_correlation(
    x: Floats, y: Floats, task: Ints, resamples: int, rng: np.random.Generator, level: float = 0.95
) -> Correlated:
    """Pearson correlation over episodes, with an interval that resamples tasks.

    Args:
        x: value of each episode, shape [E], any unit.
        y: other value of each episode, shape [E], any unit.
        task: task of each episode, small and >= 0, shape [E].
        resamples: number of resamples.
        rng: source of randomness.
        level: probability that the interval covers the correlation among all such tasks.

    Returns:
        r and interval in [-1, 1]; all NaN if x or y is constant. The interval is [-1, 1] with three
        tasks or fewer.

    Raises:
        ValueError: the shapes differ.

    Source: symmetric bootstrap-t, see `stages.core.resampling.correlation_interval`.
    """
    if not x.shape == y.shape == task.shape:
        raise ValueError(f"{x.shape} values with {y.shape}, of {task.shape}")
    r = _correlation(x, y)
    if np.isnan(r):
        return Correlated(np.nan, np.nan, np.nan)
    _, task = np.unique(task, return_inverse=True)
    x, y = x - x.mean(), y - y.mean()
    columns = (x * y, x * x, y * y, np.ones_like(x), x, y)
    n_tasks = int(task.max()) + 1
    parts = np.stack([_sums(column, task, n_tasks) for column in columns], axis=1)  # [T, 6]
    low, high = correlation_interval(parts[:, :, None], resamples, rng, level)
    return Correlated(r, float(low[0]), float(high[0]))


def _correlation(x: Floats, y: Floats) -> float:
    """Pearson's r; NaN if either input is constant."""
    if _constant(x) or _constant(y):
        return np.nan
    return float(np.corrcoef(x, y)[0, 1])


def _constant(x: Floats) -> bool:
    """Return whether values are equal up to rounding: the mean of three 0.1 is not quite 0.1."""
    return x.size < 2 or bool(np.ptp(x) <= 1e-12 * np.abs(x).max())


def _sums(x: Floats, code: Codes, n_codes: int) -> Floats:
    return np.bincount(code, x, minlength=n_codes).astype(np.float64, copy=False)


def _share(part: Floats, whole: Floats | Ints) -> Floats:
    """Part over whole; NaN where the whole is 0."""
    share = np.full(part.shape, np.nan)
    np.divide(part, whole, out=share, where=whole > 0)
    return share
