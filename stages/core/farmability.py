"""Whether rewards can be farmed: do longer failures earn more, and when more than a success?

Source: docs/method.md, "Direction, farming, convergence".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.correlation import Bools
from stages.core.direction import Correlated, clustered_correlation
from stages.core.layout import Floats, Ints, as_codes, episode_tiers

ROOM = 10  # turns by which any failure could be longer, however short episodes have been


class Farmability(NamedTuple):
    """What failures earn; rewards are sums over an episode's turns, without discount or outcome."""

    extra_turns: Floats  # [C] repeats of a tier with which a failure out-earns a success
    slack_turns: int  # by how much the longest episode exceeds the mean failure, at least ROOM
    failure_reward: float  # mean reward sum of the failures
    success_reward: float
    length: Correlated  # of the reward sum with the number of turns, among failures


def first_turns(tier: Ints, episode: Ints, n_tiers: int) -> Bools:
    """Which turns are the first of their tier in their episode.

    Args:
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        episode: episode of each turn, small and >= 0, the turns of an episode in order, shape [N].
        n_tiers: number of tiers, C.

    Returns:
        Shape [N].

    Raises:
        ValueError: the shapes differ, or a tier is out of range.
    """
    code = episode_tiers(tier, episode, n_tiers)
    turns = np.arange(code.size)
    first = np.empty(int(code.max(initial=-1)) + 1, np.int64)
    first[code[::-1]] = turns[::-1]  # of several positions the last one stays: the earliest turn
    return np.asarray(first[code] == turns, np.bool_)


def repeat_rewards(reward: Floats, tier: Ints, first: Bools, n_tiers: int) -> Floats:
    """What one more turn of each tier earns in an episode that has the tier already.

    It is the mean reward of the tier's repeats. Where no episode repeats the tier, it is the mean
    reward of the tier's turns, unless no repeat of any tier earns anything: then it is 0.

    Args:
        reward: of each turn, shape [N], any unit.
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        first: whether the turn is the first of its tier in its episode, shape [N].
        n_tiers: number of tiers, C.

    Returns:
        Shape [C], in the unit of the rewards.
    """
    tier = as_codes(tier, n_tiers, "tier")

    def means(chosen: Bools) -> Floats:
        turns = np.bincount(tier[chosen], minlength=n_tiers)
        return np.bincount(tier[chosen], reward[chosen], minlength=n_tiers) / np.maximum(turns, 1)

    repeated = np.bincount(tier[~first], minlength=n_tiers) > 0
    unseen = means(np.ones_like(first)) if reward[~first].any() else np.zeros(n_tiers)
    return np.asarray(np.where(repeated, means(~first), unseen), np.float64)


def extra_turns_to_outearn(
    failure_reward: float, success_reward: float, repeat_reward: Floats
) -> Floats:
    """Smallest number of repeats of each tier with which a failure out-earns a success.

    The smallest n >= 0 with failure + n * repeat > success.

    Args:
        failure_reward: what a failure earns, any unit.
        success_reward: what a success earns, in the same unit.
        repeat_reward: what one more turn of each tier earns, shape [C], in the same unit.

    Returns:
        Whole numbers, shape [C]; infinite where a repeat earns nothing or costs; else NaN where
        what a failure or a success earns is NaN.
    """
    gap = success_reward - failure_reward
    earns = repeat_reward > 0
    ratio = np.divide(gap, repeat_reward, out=np.full(repeat_reward.shape, np.inf), where=earns)
    # 0.3 / 0.1 is a little below 3: without the slack such a tie would count as out-earned.
    return np.asarray(np.maximum(np.floor(ratio + 1e-9) + 1, 0), np.float64)


def farmability(
    reward: Floats,
    success: Bools,
    episode: Ints,
    task: Ints,
    repeat_reward: Floats,
    resamples: int,
    rng: np.random.Generator,
) -> Farmability:
    """How far repeating turns pays, in failures.

    Args:
        reward: of each turn, shape [N], any unit.
        success: of each episode, shape [E].
        episode: episode of each turn, 0..E-1, each with a turn, shape [N].
        task: task of each episode, small and >= 0, shape [E].
        repeat_reward: what one more turn of each tier earns, shape [C], in the unit of `reward`.
        resamples: number of resamples of the tasks.
        rng: source of randomness.

    Returns:
        Extra turns are NaN without failures or successes. The correlation is over the failures; it
        is NaN where their reward sums or lengths are constant.

    Raises:
        ValueError: the shapes differ, or an episode is out of range.
    """
    if reward.shape != episode.shape or success.shape != task.shape:
        raise ValueError("each turn needs a reward, and each episode an outcome and a task")
    episode = as_codes(episode, success.size, "episode")
    length = np.bincount(episode, minlength=success.size).astype(np.float64)
    earned = np.bincount(episode, reward, minlength=success.size).astype(np.float64)
    failure_reward, success_reward = _mean(earned[~success]), _mean(earned[success])
    typical = _mean(length[~success])
    return Farmability(
        extra_turns=extra_turns_to_outearn(failure_reward, success_reward, repeat_reward),
        slack_turns=ROOM if np.isnan(typical) else max(int(length.max() - typical), ROOM),
        failure_reward=failure_reward,
        success_reward=success_reward,
        length=clustered_correlation(
            earned[~success], length[~success], task[~success], resamples, rng
        ),
    )


class ReturnSpread(NamedTuple):
    """What varies in the return of an episode, within its group."""

    reward_std: float  # of the discounted rewards
    outcome_std: float  # of the discounted outcome
    reward_share: float  # of both variances together that the rewards have


def return_spread(
    reward: Floats, outcome: Floats, episode: Ints, group: Ints, gamma: float
) -> ReturnSpread:
    """How much of the spread of returns comes from rewards, and how much from outcomes.

    The return of the first of K turns is sum over k of gamma^(k-1) r[k], plus gamma^(K-1) o. Both
    parts are held against their group's means, as advantages are; the sums of squares have E - G
    degrees of freedom. The share leaves the covariance of the two parts out, so that it is in
    [0, 1].

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E], in the same unit.
        episode: episode of each turn, 0..E-1, non-decreasing, each with a turn, shape [N].
        group: group of each episode, small and >= 0, shape [E].
        gamma: discount per turn, in [0, 1].

    Returns:
        Deviations in the unit of the rewards, NaN where no group has two episodes; the share is NaN
        also where nothing varies.

    Raises:
        ValueError: the shapes differ, or an episode is out of range.
    """
    if reward.shape != episode.shape or outcome.shape != group.shape:
        raise ValueError("each turn needs a reward, and each episode an outcome and a group")
    episode = as_codes(episode, outcome.size, "episode")
    length = np.bincount(episode, minlength=outcome.size)
    turn = np.arange(episode.size) - np.repeat(np.cumsum(length) - length, length)
    rewards = np.bincount(episode, reward * gamma**turn, minlength=outcome.size)
    reward_variance = _variance_within(rewards.astype(np.float64), group)
    outcome_variance = _variance_within(outcome * gamma ** np.maximum(length - 1, 0), group)
    both = reward_variance + outcome_variance
    return ReturnSpread(
        reward_std=float(np.sqrt(reward_variance)),
        outcome_std=float(np.sqrt(outcome_variance)),
        reward_share=reward_variance / both if both > 0 else np.nan,
    )


def _variance_within(x: Floats, group: Ints) -> float:
    """Variance around the means of the groups; NaN where no group has two members."""
    size = np.bincount(group)
    freedom = x.size - np.count_nonzero(size)
    mean = np.bincount(group, x) / np.maximum(size, 1)
    return float(np.sum((x - mean[group]) ** 2) / freedom) if freedom else np.nan


def _mean(x: Floats) -> float:
    return float(x.mean()) if x.size else np.nan
