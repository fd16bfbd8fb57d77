"""Length bias: the implicit bonus per further turn in an estimator's advantages.

If the policy decides when an episode ends, a baseline that depends on that decision is biased.
Normalisation per turn index subtracts a term for every further turn, and a discount shrinks late
outcomes. Both change the incentive to take another turn. The measure is the pull on continuing: the
policy gradient of the decision whether to take another turn,

    pull(A) = sum over turns of A (c - p) / episodes

with c = 1 if another turn follows, and p its probability. The reference is the pull of the
leave-one-out return-to-go S on the same episodes, which is unbiased. Dividing by the pull of a
reward of 1 per turn makes the difference a bonus per turn:

    bonus = (pull(A) - pull(S)) / pull(S of rewards 1)

Source: docs/method.md, "Length bias"; the bias: github.com/verl-project/verl/issues/7244.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.advantages import AdvantageConfig, advantages
from stages.core.layout import Codes, Floats, Ints, Layout, as_codes, turn_numbers
from stages.core.resampling import ratio_interval

UNBIASED = AdvantageConfig("rloo")


class LengthBias(NamedTuple):
    """The implicit bonus of an estimator per further turn; NaN if lengths do not vary."""

    bonus: float  # in units of the outcome
    ci_low: float
    ci_high: float
    pull: float  # of the advantages, per episode
    unbiased_pull: float  # of the leave-one-out return-to-go


def pull_on_continuing(
    advantage: Floats, layout: Layout, chance: Floats | float | None = None
) -> Floats:
    """Contribution of each turn to the pull on continuing, A (c - p).

    Args:
        advantage: A of each turn, shape [N], any unit.
        layout: layout of the N turns.
        chance: p of each turn, shape [N] or a number. None: the share of the episodes that reach
            this turn index and go on after it.

    Returns:
        Shape [N], in the unit of A; 0 at turn indices after which no episode goes on.
    """
    goes_on = np.ones(advantage.shape)
    goes_on[layout.last] = 0
    turn = turn_numbers(layout)
    share = np.bincount(turn, goes_on) / np.bincount(turn)
    p = share[turn] if chance is None else chance
    return np.where(share[turn] > 0, advantage * (goes_on - p), 0.0)


def length_bias(
    advantage: Floats,
    reward: Floats,
    outcome: Floats,
    layout: Layout,
    task: Ints,
    resamples: int,
    rng: np.random.Generator,
    *,
    rescale: bool,
) -> LengthBias:
    """Implicit bonus per further turn in the advantages.

    Args:
        advantage: A of each turn, shape [N], any unit.
        reward: r of each turn, from which the advantages were computed, shape [N], in units of the
            outcome.
        outcome: o of each episode, shape [E].
        layout: layout of the N turns and E episodes.
        task: task of each turn, 0..T-1, shape [N].
        resamples: number of resamples of the tasks.
        rng: source of randomness.
        rescale: whether the advantages are normalised. If so, they are first scaled to the root
            mean square of the unbiased ones.

    Returns:
        Bonus with its 95 % interval, and the pulls. All are NaN if the pull of a reward of 1 per
        turn is not positive. The interval is infinite if there are too few tasks or nothing varies.

    Raises:
        ValueError: the shapes are not those of the layout, or a task is negative.
    """
    unbiased = advantages(reward, outcome, layout, UNBIASED).advantage
    per_turn = advantages(np.ones(reward.shape), np.zeros(outcome.shape), layout, UNBIASED)
    if rescale and (size := np.mean(advantage**2)) > 0:
        advantage = advantage * np.sqrt(np.mean(unbiased**2) / size)
    pulls, unbiased_pulls, unit_pulls = (
        pull_on_continuing(a, layout) for a in (advantage, unbiased, per_turn.advantage)
    )
    unit = unit_pulls.sum()
    if not unit > 1e-9 * layout.group.size:
        return LengthBias(*[np.nan] * 5)
    low, high = ratio_interval(
        _by_task(pulls - unbiased_pulls, task), _by_task(unit_pulls, task), resamples, rng
    )
    return LengthBias(
        bonus=float((pulls.sum() - unbiased_pulls.sum()) / unit),
        ci_low=float(low[0]),
        ci_high=float(high[0]),
        pull=float(pulls.sum() / layout.group.size),
        unbiased_pull=float(unbiased_pulls.sum() / layout.group.size),
    )


def _by_task(x: Floats, task: Ints) -> Floats:
    """Sums over the tasks, [T, 1]."""
    n_tasks = int(task.max(initial=0)) + 1
    code: Codes = as_codes(task, n_tasks, "task")
    return np.bincount(code, x, minlength=n_tasks)[:, None].astype(np.float64)
