"""Whether rewards can be farmed: whether longer failures earn more, or even out-earn a success.

Source: docs/method.md, "Direction, farming, convergence".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.correlation import Bools
from stages.core.direction import Correlated, clustered_correlation
from stages.core.layout import Floats, Ints, as_codes, episode_tiers

ROOM = 10  # further turns that any failure is assumed to be able to take


class Farmability(NamedTuple):
    """What failures earn, with rewards summed per episode, undiscounted and without the outcome."""

    extra_turns: Floats  # [C] repeats of a tier after which a failure out-earns a success
    slack_turns: int  # length of the longest episode less the mean failure's, at least ROOM
    failure_reward: float  # mean reward sum of the failures
    success_reward: float  # mean reward sum of the successes
    length: Correlated  # correlation of reward sum and number of turns among the failures


def first_turns(tier: Ints, episode: Ints, n_tiers: int) -> Bools:
    """Return which turns are the first of their tier in their episode.

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
    first[code[::-1]] = turns[::-1]  # the last write wins, which is the earliest turn
    return np.asarray(first[code] == turns, np.bool_)


def repeat_rewards(reward: Floats, tier: Ints, first: Bools, n_tiers: int) -> Floats:
    """Return what one more turn of each tier earns in an episode that already has the tier.

    This is the mean reward of the tier's repeats. If no episode repeats the tier, it is the mean
    reward of the tier's turns, or 0 if no repeat of any tier earns anything.

    Args:
        reward: reward of each turn, shape [N], any unit.
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
    """Smallest number of repeats of each tier after which a failure out-earns a success.

    This is the smallest n >= 0 with failure + n * repeat > success.

    Args:
        failure_reward: reward sum of a failure, any unit.
        success_reward: reward sum of a success, in the same unit.
        repeat_reward: what one more turn of each tier earns, shape [C], in the same unit.

    Returns:
        Integers, shape [C]; infinite where a repeat earns nothing or costs; otherwise NaN if
        `failure_reward` or `success_reward` is NaN.
    """
    gap = success_reward - failure_reward
    earns = repeat_reward > 0
    ratio = np.divide(gap, repeat_reward, out=np.full(repeat_reward.shape, np.inf), where=earns)
    # 0.3 / 0.1 is a little below 3; without the slack such a tie would count as out-earning.
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
    """Measure whether repeating turns pays in failures.

    Args:
        reward: reward of each turn, shape [N], any unit.
        success: success of each episode, shape [E].
        episode: episode of each turn, 0..E-1, each with a turn, shape [N].
        task: task of each episode, small and >= 0, shape [E].
        repeat_reward: what one more turn of each tier earns, shape [C], in the unit of `reward`.
        resamples: number of resamples of the tasks.
        rng: source of randomness.

    Returns:
        The figures. `extra_turns` is NaN without failures or successes, for tiers whose repeats
        pay. The correlation is NaN if the failures' reward sums or lengths are constant.

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
    """How much the two parts of an episode's return vary within its group."""

    reward_std: float  # of the discounted rewards
    outcome_std: float  # of the discounted outcome
    reward_share: float  # variance of the rewards over the sum of both variances


def return_spread(
    reward: Floats, outcome: Floats, episode: Ints, group: Ints, gamma: float
) -> ReturnSpread:
    """Split the spread of returns into the parts of rewards and outcomes.

    The return of the first of K turns is sum over k of gamma^(k-1) r[k], plus gamma^(K-1) o. Both
    parts are centred on their group's mean, as for advantages; the sums of squares have E - G
    degrees of freedom. The share ignores the covariance of the two parts, so it lies in [0, 1].

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E], in the same unit.
        episode: episode of each turn, 0..E-1, non-decreasing, each with a turn, shape [N].
        group: group of each episode, small and >= 0, shape [E].
        gamma: discount per turn, in [0, 1].

    Returns:
        Standard deviations in the unit of the rewards, NaN if no group has two episodes. The share
        is NaN if nothing varies, too.

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
    """Variance around the group means; NaN if no group has two members."""
    size = np.bincount(group)
    freedom = x.size - np.count_nonzero(size)
    mean = np.bincount(group, x) / np.maximum(size, 1)
    return float(np.sum((x - mean[group]) ** 2) / freedom) if freedom else np.nan


def _mean(x: Floats) -> float:
    return float(x.mean()) if x.size else np.nan
