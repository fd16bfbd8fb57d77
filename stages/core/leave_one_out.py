"""Estimators whose baseline is the other episodes of the group, and that normalise nothing.

A baseline that an episode's own acts move biases the gradient. Normalisation within the group does
that: through the episode itself, through the std, and where it is by turn index through which
episodes get that far. What the other episodes came to, and which turn it is, move nothing.

Sources: RLOO, arXiv 2402.14740; GAE, arXiv 1506.02438; docs/method.md, "Leave-one-out" and
"Potential".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.layout import Codes, Floats, Layout, first_turns_of, suffix_sums, turn_numbers


class Parts(NamedTuple):
    """What an advantage is the sum of, and the baseline in it, each [N]."""

    return_part: Floats
    outcome_part: Floats
    baseline: Floats


def rloo_parts(reward: Floats, outcome: Floats, layout: Layout) -> Parts:
    """Return-to-go against that of the other episodes at the same turn, or at their last one.

    All others count at every turn: which of them get that far is settled without this episode, so
    the advantage is unbiased however lengths differ. Without rewards it is RLOO's at every turn.

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E], in the same unit.
        layout: of these N turns and E episodes.

    Returns:
        Parts in the unit of the rewards. An episode alone in its group is held against all others;
        those of an only episode are 0.
    """
    to_go = suffix_sums(reward.astype(np.float64), 1.0, layout)
    expected = _others_to_go(to_go, layout)
    baseline = mean_of_others(outcome, layout.group)[layout.episode]
    return Parts(to_go - expected, outcome[layout.episode] - baseline, expected + baseline)


def gae_parts(reward: Floats, outcome: Floats, layout: Layout, gae_lambda: float) -> Parts:
    """Discounted sums of the temporal-difference errors of a critic.

    The critic's forecast is the mean outcome of the group's other episodes, plus what the turns so
    far add; the rewards are its differences from turn to turn, as in `stages.core.critic`. With
    GAE's gamma of 1 an error is d = r, and at the last turn d = r + o - baseline.

    Args:
        reward: r of each turn, shape [N], in units of the outcome.
        outcome: o of each episode, shape [E].
        layout: of these N turns and E episodes.
        gae_lambda: in [0, 1]; 1: outcomes less forecasts, 0: the next forecast less this one.

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
    """Mean of the other members of each one's group: a baseline that no act of its own moves.

    Args:
        x: of each episode, shape [E], any unit.
        group: group of each episode, small and >= 0, shape [E].

    Returns:
        Shape [E], in the unit of x. For an episode alone in its group the mean of all others; for
        an only episode its own x, against which it is neither good nor bad.

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
    """Mean return-to-go of the other episodes of the group at turn k, or at their last turn; [N].

    All of them count at every turn: which of them get that far is settled without this episode.
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
    """Sum to_go over a set's episodes at the turn of each cell, or at their last turn; [N].

    cell: one code for each set and turn, a set's in order; start: a set's first cell, [E].
    """
    here = np.bincount(cell, to_go)
    ended = np.bincount(cell[layout.last], to_go[layout.last], minlength=here.size)
    before = np.cumsum(ended) - ended
    total: Floats = (here + before)[cell] - before[start][layout.episode]
    return total
