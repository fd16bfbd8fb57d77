"""Estimators with a leave-one-out baseline and without normalisation.

A baseline that depends on the episode's own actions biases the gradient. Normalisation within the
group introduces this dependence in three ways: the episode is part of its own mean, it is part of
the std, and, per turn index, its actions decide which episodes count. The results of the other
episodes and the turn's own index do not depend on the episode's actions.

Sources: RLOO, arXiv 2402.14740; GAE, arXiv 1506.02438; docs/method.md, "Leave-one-out" and
"Potential".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.layout import Codes, Floats, Layout, first_turns_of, suffix_sums, turn_numbers


class Parts(NamedTuple):
    """The two parts of an advantage and its baseline, each [N]."""

    return_part: Floats
    outcome_part: Floats
    baseline: Floats


def rloo_parts(reward: Floats, outcome: Floats, layout: Layout) -> Parts:
    """Return-to-go less the mean return-to-go of the group's other episodes at the same turn.

    An episode that is already over counts with the return-to-go of its last turn. So all others
    count at every turn and the advantage is unbiased whatever the lengths. Without rewards it is
    RLOO's advantage at every turn.

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E], in the same unit.
        layout: layout of the N turns and E episodes.

    Returns:
        Parts in the unit of the rewards. The baseline of an episode alone in its group is taken
        over all other episodes. If there is one episode only, its parts are 0.
    """
    to_go = suffix_sums(reward.astype(np.float64), 1.0, layout)
    expected = _others_to_go(to_go, layout)
    baseline = mean_of_others(outcome, layout.group)[layout.episode]
    return Parts(to_go - expected, outcome[layout.episode] - baseline, expected + baseline)


def gae_parts(reward: Floats, outcome: Floats, layout: Layout, gae_lambda: float) -> Parts:
    """Sums of a critic's temporal-difference errors, discounted by GAE's lambda.

    The critic's forecast is the mean outcome of the group's other episodes plus the gains of the
    turns so far. The rewards are the forecast's changes from turn to turn, see
    `stages.core.critic`. With gamma 1 the error is d = r, at the last turn d = r + o - baseline.

    Args:
        reward: r of each turn, shape [N], in units of the outcome.
        outcome: o of each episode, shape [E].
        layout: layout of the N turns and E episodes.
        gae_lambda: in [0, 1]. 1: outcome less forecast; 0: next forecast less this one.

    Returns:
        Parts in units of the outcome.
    """
    baseline = mean_of_others(outcome, layout.group)
    surprise = np.zeros(reward.shape)
    surprise[layout.last] = outcome - baseline
    return Parts(
        suffix_sums(reward.astype(np.float64), gae_lambda, layout),
        suffix_sums(surprise, gae_lambda, layout),
        baseline[layout.episode],
    )


def mean_of_others(x: Floats, group: Codes) -> Floats:
    """Mean over the other episodes of each episode's group: the leave-one-out baseline.

    Args:
        x: value of each episode, shape [E], any unit.
        group: group of each episode, small and >= 0, shape [E].

    Returns:
        Shape [E], in the unit of x. An episode alone in its group gets the mean of all others. If
        there is one episode only, it gets its own x, so that its advantage is 0.

    Source: RLOO, arXiv 2402.14740; Kool, van Hoof and Welling (2019).
    """
    others = np.bincount(group)[group] - 1
    total = np.bincount(group, x)[group]
    alone = others == 0
    if x.size > 1:
        others[alone], total[alone] = x.size - 1, x.sum()
    mean: Floats = (total - x) / np.maximum(others, 1)
    return mean if x.size > 1 else x.astype(np.float64)


def _others_to_go(to_go: Floats, layout: Layout) -> Floats:
    """Mean return-to-go of the group's other episodes at turn k, or at their last turn; [N].

    All of them count at every turn, so the mean does not depend on this episode.
    """
    size = np.bincount(layout.group)[layout.group]
    in_group = _at_turn(to_go, layout.cell, layout.cell[first_turns_of(layout)], layout)
    others = np.maximum(size - 1, 1)[layout.episode]
    mean = (in_group - to_go) / others
    alone = (size == 1)[layout.episode]
    if alone.any():
        everywhere = _at_turn(to_go, turn_numbers(layout), np.zeros_like(size), layout)
        mean[alone] = ((everywhere - to_go) / max(size.size - 1, 1))[alone]
    return to_go.copy() if size.size == 1 else mean


def _at_turn(to_go: Floats, cell: Codes, start: Codes, layout: Layout) -> Floats:
    """Sum to_go over the episodes of a set at each turn's index, or at their last turn; [N].

    cell [N] has one code per (set, turn index), consecutive within a set; start [E] is the first
    cell of each episode's set.
    """
    here = np.bincount(cell, to_go)
    ended = np.bincount(cell[layout.last], to_go[layout.last], minlength=here.size)
    before = np.cumsum(ended) - ended
    total: Floats = (here + before)[cell] - before[start][layout.episode]
    return total
