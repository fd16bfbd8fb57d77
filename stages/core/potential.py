"""The critic of `stages.core.critic`, fitted and applied to arrays of many episodes.

A ridge regression predicts from the turns so far by how much an episode's outcome exceeds its
baseline, the mean outcome of the other episodes of its group. It is cross-fitted (Chernozhukov et
al. 2018): tasks are split into folds, and the weights for a fold are fitted without its tasks. So
no episode's outcome enters its own forecast. An in-sample fit would credit each episode's turns
with the noise of its own outcome.

Source: docs/method.md, "Potential".
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.core.correlation import Bools
from stages.core.critic import FOLDS, MOST_REPEATS, MOST_TURNS
from stages.core.layout import (
    Codes,
    Floats,
    Ints,
    Layout,
    as_codes,
    episode_tiers,
    first_turns_of,
    turn_numbers,
)

RIDGE = 3.0  # in turns; the held-out error hardly changes from 1 to 10
# Scales of repeats and turns relative to presence, so that the ridge penalises all weights alike.
_REPEATS, _TURNS = 3.0, 10.0
_BLOCK = 1 << 13  # turns whose states are in memory at once


class CriticArrays(NamedTuple):
    """The critic's weights as arrays, in units of the outcome; see `stages.core.critic`.

    Row f < FOLDS is fitted without the tasks of fold f, row FOLDS with all tasks.
    """

    turn: Floats  # [FOLDS + 1]
    first: Floats  # [FOLDS + 1, C]
    again: Floats  # [FOLDS + 1, C]


def earlier_turns(tier: Ints, episode: Ints, n_tiers: int) -> Codes:
    """Count the earlier turns of the same tier in each turn's episode.

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
    order = np.argsort(code, kind="stable")
    place = np.arange(code.size)
    begins = np.diff(code[order], prepend=-1) != 0
    earlier = np.empty(code.size, np.intp)
    earlier[order] = place - np.maximum.accumulate(np.where(begins, place, 0))
    return earlier


def fit_critic(
    tier: Ints, outcome: Floats, layout: Layout, fold: Ints, n_tiers: int, ridge: float = RIDGE
) -> CriticArrays:
    """Fit the critic's weights, once without each fold and once with all folds.

    The regression uses the state before each turn except the first, where the forecast is the
    baseline. The baseline of an episode alone in its group is the mean of the fitted episodes.

    Args:
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        outcome: o of each episode, shape [E].
        layout: layout of the N turns and E episodes.
        fold: fold of each episode's task, 0..FOLDS-1, shape [E].
        n_tiers: number of tiers, C.
        ridge: penalty on the squared weights, > 0, in turns.

    Returns:
        Weights in units of the outcome; 0 for a tier absent from the fitted episodes.

    Raises:
        ValueError: the shapes are not those of the layout, or a code is out of range.
    """
    if (tier.shape, outcome.shape) != (layout.episode.shape, layout.group.shape):
        raise ValueError(f"tiers {tier.shape} or outcomes {outcome.shape} not as in the layout")
    if fold.shape != outcome.shape:
        raise ValueError(f"{fold.shape} folds of {outcome.shape} episodes")
    fold = as_codes(fold, FOLDS, "fold")
    squares, products = _sums(tier, _targets(outcome, layout.group), layout, fold, n_tiers)
    episodes = np.bincount(fold, minlength=FOLDS)
    outcomes = np.bincount(fold, outcome, minlength=FOLDS)
    scale = np.repeat([1.0, _REPEATS, _TURNS], [n_tiers, n_tiers, 1])
    weights = np.zeros((FOLDS + 1, scale.size))
    for left_out in range(FOLDS + 1):
        kept = np.arange(FOLDS) != left_out
        mean = outcomes[kept].sum() / max(episodes[kept].sum(), 1)
        grouped, lone, lone_states = products[kept].sum(axis=0).T  # each [P]
        penalised = squares[kept].sum(axis=0) + ridge * np.diag(scale**2)
        weights[left_out] = np.linalg.solve(penalised, grouped + lone - mean * lone_states)
    return CriticArrays(weights[:, -1], weights[:, :n_tiers], weights[:, n_tiers:-1])


def shaping_rewards(
    tier: Ints, layout: Layout, critic: CriticArrays, row: Ints, n_tiers: int
) -> Floats:
    """Return each turn's gain in the forecast; the last turn returns the gains of the others.

    Args:
        tier: tier of each turn, 0..n_tiers-1, shape [N].
        layout: layout of the N turns and E episodes.
        critic: the critic's weights.
        row: row of the weights to use for each episode, 0..FOLDS, shape [E].
        n_tiers: number of tiers, C.

    Returns:
        r of each turn, in units of the outcome, shape [N]; the rewards of an episode sum to 0.
    """
    earlier = earlier_turns(tier, layout.episode, n_tiers)
    row, tier = row[layout.episode], as_codes(tier, n_tiers, "tier")
    reward = np.where(turn_numbers(layout) < MOST_TURNS, critic.turn[row], 0.0)
    reward += np.where(earlier == 0, critic.first[row, tier], 0.0)
    reward += np.where(_repeats(earlier), critic.again[row, tier], 0.0)
    reward[layout.last] = 0.0
    reward[layout.last] = -np.bincount(layout.episode, reward, minlength=layout.group.size)
    return reward


class Forecasts(NamedTuple):
    """The forecast of the outcome before and after each turn, in its unit, each [N]."""

    before: Floats
    after: Floats  # at an episode's last turn: the outcome
    error: Floats  # after - before, the temporal-difference error


def forecasts(reward: Floats, baseline: Floats, outcome: Floats, layout: Layout) -> Forecasts:
    """Return the forecasts before and after each turn, recovered from their differences.

    Args:
        reward: rewards of `shaping_rewards`, shape [N].
        baseline: baseline of each turn's episode, shape [N], in units of the outcome.
        outcome: o of each episode, shape [E].
        layout: layout of the N turns and E episodes.

    Returns:
        Forecasts; the errors of an episode sum to its outcome less its baseline.
    """
    total = np.cumsum(reward)
    first = first_turns_of(layout)
    after = baseline + total - (total[first] - reward[first])[layout.episode]
    before = after - reward
    after[layout.last] = outcome
    return Forecasts(before, after, after - before)


def _targets(outcome: Floats, group: Codes) -> Floats:
    """Regression targets of each episode, [E, 3].

    The first column is the outcome's excess over the mean of the group's other episodes. An episode
    alone in its group has 0 there, its outcome in the second column and 1 in the third.
    """
    n = np.bincount(group)[group]
    mean = (np.bincount(group, outcome) / np.maximum(np.bincount(group), 1))[group]
    excess = (outcome - mean) * n / np.maximum(n - 1, 1)
    lone = n == 1
    return np.stack([excess, np.where(lone, outcome, 0.0), lone.astype(np.float64)], axis=1)


def _sums(
    tier: Ints, target: Floats, layout: Layout, fold: Codes, n_tiers: int
) -> tuple[Floats, Floats]:
    """Sum X'X, [FOLDS, P, P], and X' target, [FOLDS, P, 3], over the states of each fold.

    Features are small integers, so X'X is exact in any order.
    """
    size = 2 * n_tiers + 1
    squares, products = np.zeros((FOLDS, size, size)), np.zeros((FOLDS, size, 3))
    turn = turn_numbers(layout)
    earlier = earlier_turns(tier, layout.episode, n_tiers)
    ends = np.zeros(tier.size, np.bool_)
    ends[layout.last] = True  # after the last turn there is no forecast
    for number in range(FOLDS):
        turns = np.flatnonzero(fold[layout.episode] == number)
        for block in _blocks(turns[turn[turns] == 0], turns):
            x = _states(tier[block], earlier[block], turn[block], n_tiers)
            x[ends[block]] = 0.0
            squares[number] += x.T @ x
            products[number] += x.T @ target[layout.episode[block]]
    return squares, products


def _blocks(begins: Codes, turns: Codes) -> Iterator[Codes]:
    """Yield turns in blocks of whole episodes; `begins` are the episodes' first turns."""
    places = np.searchsorted(turns, begins)
    cuts = places[np.searchsorted(places, np.arange(0, turns.size, _BLOCK), side="right") - 1]
    yield from np.split(turns, np.unique(cuts)[1:])


def _states(tier: Ints, earlier: Codes, turn: Codes, n_tiers: int) -> Floats:
    """Features after each turn, for whole episodes: presence, repeats, turns; [n, 2 C + 1]."""
    rows = np.arange(tier.size)
    added = np.zeros((tier.size, 2 * n_tiers + 1))
    added[rows, tier] = earlier == 0
    added[rows, n_tiers + tier] = _repeats(earlier)
    added[:, -1] = turn < MOST_TURNS
    total = added.cumsum(axis=0)
    first = rows - turn
    states: Floats = total - (total[first] - added[first])
    return states


def _repeats(earlier: Codes) -> Bools:
    """Return whether each turn is a repeat of its tier that still adds to the forecast."""
    return (earlier > 0) & (earlier <= MOST_REPEATS)
