"""A linear critic over tiers: it forecasts an episode's outcome from the turns so far.

The first turn of a tier adds `first` to the forecast, each later turn of the tier adds `again`, and
every turn adds `turn`. Repeats beyond `MOST_REPEATS` and turns beyond `MOST_TURNS` add nothing.
With P[k] the sum over the turns before turn k, a turn earns its gain (potential-based shaping):

    r[k] = P[k+1] - P[k]  for k < K-1,    r[K-1] = -P[K-1]

The last turn returns the earnings of the others, because the outcome itself counts there. So the
rewards of an episode sum to 0 whatever its turns, and no additional turn pays.

Source: Ng, Harada and Russell (1999), ICML; docs/method.md, "Potential". `stages.core.potential`
fits the critic and applies it to arrays of many episodes.

Importing this loads neither numpy nor polars: `irc_cli.scorer` runs inside other programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

FOLDS = 5  # cross-fitting folds of the tasks; each has weights that were fitted without it
MOST_REPEATS = 3  # of a tier, after its first turn
MOST_TURNS = 30


class Weights(NamedTuple):
    """What a turn adds to the forecast, in units of the outcome."""

    turn: float  # a turn of any tier
    first: Mapping[str, float]  # in addition, the first turn of the tier; 0 for a tier not listed
    again: Mapping[str, float]  # in addition, each later turn of the tier; 0 for one not listed


class Critic(NamedTuple):
    """Weights fitted to all tasks, and for each fold to the tasks of the other folds."""

    every: Weights
    folds: tuple[Weights, ...]

    def weights(self, task_id: str | None) -> Weights:
        """Return the weights that were fitted without a task.

        Args:
            task_id: as in TURNS. None for an episode that the critic was not fitted to, which
                takes the weights of all tasks.

        Returns:
            The weights of the task's fold, or those of all tasks.
        """
        return self.every if task_id is None else self.folds[fold_of(task_id)]


class Gain(NamedTuple):
    """What a turn of a tier adds to the forecast, each with its standard error."""

    tier: str
    first: tuple[float, float]  # as the first turn of its tier
    again: tuple[float, float]  # as a later turn of its tier


def gains(critic: Critic) -> list[Gain]:
    """Return what a turn of each tier adds to the forecast, including the weight of any turn.

    Args:
        critic: the critic; the spread of its folds gives the standard errors.

    Returns:
        A row per tier, largest first gain first, in units of the outcome, with standard errors by
        the jackknife over folds.

    Source: Efron and Stein (1981), Ann. Statist. 9(3), 586-596.
    """
    rows = [
        Gain(tier, _with_error(critic, "first", tier), _with_error(critic, "again", tier))
        for tier in critic.every.first
    ]
    return sorted(rows, key=lambda row: (-row.first[0], row.tier))


def _with_error(critic: Critic, part: str, tier: str) -> tuple[float, float]:
    """Return a weight of a tier plus that of any turn, and its standard error."""
    gain, *others = (
        row.turn + getattr(row, part).get(tier, 0.0) for row in (critic.every, *critic.folds)
    )
    mean = sum(others) / len(others)
    squares = sum((other - mean) ** 2 for other in others)
    return gain, ((len(others) - 1) / len(others) * squares) ** 0.5


def fold_of(task_id: str) -> int:
    """Return the fold of a task, which does not depend on the other tasks.

    Args:
        task_id: as in TURNS.

    Returns:
        0..FOLDS-1.
    """
    return crc32(task_id.encode()) % FOLDS


def potential_rewards(tiers: Sequence[str], weights: Weights) -> list[float]:
    """Return what each turn of one episode earns.

    Args:
        tiers: tier of each turn, in order, shape [K].
        weights: the critic's weights.

    Returns:
        r of each turn, in units of the outcome, shape [K]; the rewards sum to 0.
    """
    seen = Counter[str]()
    rewards = []
    for turn, tier in enumerate(tiers):
        rewards.append(_gain(tier, seen[tier], turn, weights))
        seen[tier] += 1
    if rewards:
        rewards[-1] = -sum(rewards[:-1])
    return rewards


def _gain(tier: str, earlier: int, turn: int, weights: Weights) -> float:
    """Return what turn number `turn` adds after `earlier` turns of its tier."""
    gain = weights.turn if turn < MOST_TURNS else 0.0
    if earlier == 0:
        return gain + weights.first.get(tier, 0.0)
    return gain + (weights.again.get(tier, 0.0) if earlier <= MOST_REPEATS else 0.0)
