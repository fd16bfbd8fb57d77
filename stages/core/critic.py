"""A critic made of tiers: what the turns so far add to the forecast of an episode's outcome.

The first turn of a tier adds `first`, each of its next turns adds `again`, and every turn whatever
its tier adds `turn`; from `MOST_REPEATS` repeats and `MOST_TURNS` turns on nothing more is added.
With P the sum over the turns before turn k, a turn earns what it adds (potential-based shaping):

    r[k] = P[k+1] - P[k]  for k < K-1,    r[K-1] = -P[K-1]

The last turn gives back what the others earned, because then the outcome itself counts. So the
rewards of an episode sum to 0 whatever its turns are, and no turn can be added that pays.

Source: Ng, Harada and Russell (1999), ICML; docs/method.md, "Potential". `stages.core.potential`
fits the critic and is the same over the arrays of many episodes.

Importing this loads neither numpy nor polars: `irc_cli.scorer` runs inside other programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

FOLDS = 5  # of the tasks; each fold has weights that were fitted without it
MOST_REPEATS = 3  # of a tier, after its first turn
MOST_TURNS = 30


class Weights(NamedTuple):
    """What a turn adds to the forecast, in units of the outcome."""

    turn: float  # of any tier
    first: Mapping[str, float]  # the first turn of a tier adds besides; 0 where it names none
    again: Mapping[str, float]  # each of the tier's next turns


class Critic(NamedTuple):
    """Weights fitted to all tasks, and for each fold of the tasks to all others."""

    every: Weights
    folds: tuple[Weights, ...]

    def weights(self, task_id: str | None) -> Weights:
        """Return the weights that no episode of a task had a part in.

        Args:
            task_id: as TURNS has it; None: of no episode that the critic was fitted to.
        """
        return self.every if task_id is None else self.folds[fold_of(task_id)]


class Gain(NamedTuple):
    """What a turn of a tier adds to the forecast, each with its standard error."""

    tier: str
    first: tuple[float, float]  # where it is the first of its tier
    again: tuple[float, float]


def gains(critic: Critic) -> list[Gain]:
    """Return what turns of each tier add, that of any turn included; most first.

    Args:
        critic: whose folds tell how much the weights vary with the tasks.

    Returns:
        A row for each tier, in units of the outcome, with the errors of a jackknife over folds.

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
    """Return the fold of a task, which does not depend on what other tasks there are.

    Args:
        task_id: as TURNS has it.

    Returns:
        0..FOLDS-1.
    """
    return crc32(task_id.encode()) % FOLDS


def potential_rewards(tiers: Sequence[str], weights: Weights) -> list[float]:
    """Return what each turn of one episode earns.

    Args:
        tiers: tier of each turn, in order, shape [K].
        weights: of the critic.

    Returns:
        r of each turn, in units of the outcome, shape [K]; they sum to 0.
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
    """What a turn adds that has so many earlier ones of its tier, and in all."""
    gain = weights.turn if turn < MOST_TURNS else 0.0
    if earlier == 0:
        return gain + weights.first.get(tier, 0.0)
    return gain + (weights.again.get(tier, 0.0) if earlier <= MOST_REPEATS else 0.0)
