"""What a tier's presence owes to the length of episodes, and what is left of it.

Long episodes hold more of everything, and length goes with success. So a tier that was put on turns
at random correlates with the outcome. The remedy is to subtract what chance would give: what an
episode of its length would hold, on average, if the tier's turns were scattered at random over all
turns of the episode's group. What is left, the excess, has expectation 0 under such scattering,
whatever the lengths and the outcomes.

Source: docs/method.md, "Length".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.correlation import Bools, Floats, Ints, TaskSums, Which, pooled_terms, within_terms


class LengthSums(NamedTuple):
    """Sums over episodes of one group and one length, in L cells, for each of C tiers.

    A group is the episodes of one task under one policy. Cells stand in the order of their groups,
    groups in the order of their tasks.
    """

    task: Ints  # [L] number of the task, from 0 on, each with a cell
    group: Ints  # [L] number of the group, likewise
    length: Ints  # [L] turns of each of the cell's episodes
    sums: TaskSums  # [L], [L, C]
    turns: Floats  # [L, C] of the tier


def expected_measure(length: Ints, tier_turns: Floats, all_turns: Floats, measure: str) -> Floats:
    """Expected measure of a tier in an episode whose turns are drawn at random from all turns.

    With n of the N turns of the tier, an episode of K turns holds it with probability
    e = 1 - C(N-n, K) / C(N, K), the hypergeometric law's. Its expected count is K n / N, and its
    expected share n / N.

    Args:
        length: K, broadcast against the others.
        tier_turns: n, likewise.
        all_turns: N, likewise, at least K and at least n.
        measure: presence | count | share.

    Returns:
        e, of the broadcast shape, in the unit of the measure.
    """
    if measure == "share":
        return np.broadcast_to(
            tier_turns / all_turns, np.broadcast_shapes(length.shape, tier_turns.shape)
        )
    if measure == "count":
        return np.asarray(length * tier_turns / all_turns, np.float64)
    from scipy.special import betaln

    others = all_turns - tier_turns
    fits = others >= length  # else no K turns are without the tier
    # C(M, K) = 1 / (K B(M-K+1, K)); betaln keeps its digits however large M is.
    log_all = betaln(all_turns - length + 1, length)
    log_none = log_all - betaln(np.where(fits, others - length, 0) + 1, length)
    return np.where(fits, -np.expm1(np.minimum(log_none, 0.0)), 1.0)


def length_terms(cells: LengthSums, which: Which, measure: str, *, adjust: bool) -> Floats:
    """Each task's share of the sums that a correlation of measure and outcome is a function of.

    Within, both are centred on the mean of the episode's group, and scattering is over the group's
    turns. Pooled, they are centred on the overall mean, and scattering is over all turns.

    Args:
        cells: of T tasks and C tiers, in the measure's own unit.
        which: within | pooled.
        measure: presence | count | share.
        adjust: subtract the expected measure; otherwise the terms are those of the raw r.

    Returns:
        Terms for `correlation`, shape [T, 3, C] within and [T, 6, C] pooled. Their sum over tasks
        gives r, which is undefined for a tier whose raw r is.
    """
    raw = _terms(cells, which, cells.sums)
    if not adjust:
        return raw
    over = cells.group if which == "within" else np.zeros_like(cells.group)
    tier_turns = add_by(cells.turns, over)[over]  # [L, C]
    all_turns = add_by(cells.length * cells.sums.episodes, over)[over, None].astype(np.float64)
    chance = expected_measure(cells.length[:, None], tier_turns, all_turns, measure)
    terms = _terms(cells, which, _less(cells.sums, chance))
    if which == "pooled":
        terms[:, 0] -= _rate_influence(cells, tier_turns, all_turns, measure)
    constant = raw[:, 1].sum(axis=0) <= 0
    for row in (0, 1, 4)[: 2 if which == "within" else 3]:  # those that x is in
        terms[:, row, constant] = 0.0
    return terms


def stratum_terms(
    cells: LengthSums, stratum: Ints, which: Which, measure: str, *, adjust: bool
) -> Floats:
    """Sum the terms of several strata, each around means of its own.

    Else a policy that succeeds more often, and uses a tier more often, would make a pooled
    correlation that no policy has. Within groups nothing changes: a group has one stratum.

    Args:
        cells: of T tasks and C tiers.
        stratum: of each cell, from 0 on, shape [L].
        which: within | pooled.
        measure: presence | count | share.
        adjust: as for `length_terms`.

    Returns:
        The terms of `length_terms` where they hold of one stratum or are within, else [T, 3, C].
    """
    names = np.unique(stratum)
    if which == "within" or len(names) == 1:
        return length_terms(cells, which, measure, adjust=adjust)
    terms = np.zeros((int(cells.task[-1]) + 1, 3, cells.turns.shape[1]))
    for name in names:
        chosen = stratum == name
        part = length_terms(select(cells, chosen), which, measure, adjust=adjust)
        # Around the stratum's means, the sums of x and o are 0.
        terms[np.unique(cells.task[chosen])] += part[:, :3]
    return terms


def select(cells: LengthSums, chosen: Bools) -> LengthSums:
    """Return some of the cells, with tasks and groups numbered anew.

    Args:
        cells: of L cells.
        chosen: which of them, at least one, shape [L].

    Returns:
        The chosen cells, in their order.
    """
    task, group = (
        np.unique(numbers[chosen], return_inverse=True)[1].astype(np.int64)
        for numbers in (cells.task, cells.group)
    )
    n, s, x, xx, xo = cells.sums
    sums = TaskSums(n[chosen], s[chosen], x[chosen], xx[chosen], xo[chosen])
    return LengthSums(task, group, cells.length[chosen], sums, cells.turns[chosen])


def _terms(cells: LengthSums, which: Which, sums: TaskSums) -> Floats:
    if which == "pooled":
        return pooled_terms(TaskSums(*(add_by(part, cells.task) for part in sums)))
    groups = TaskSums(*(add_by(part, cells.group) for part in sums))
    first = np.flatnonzero(np.diff(cells.group, prepend=-1))
    return add_by(within_terms(groups), cells.task[first])


def _less(sums: TaskSums, chance: Floats) -> TaskSums:
    """Sums of x - e instead of x."""
    n, s = sums.episodes[:, None], sums.successes[:, None]
    return sums._replace(
        x=sums.x - n * chance,
        xx=sums.xx - 2 * chance * sums.x + n * chance**2,
        xo=sums.xo - s * chance,
    )


def _rate_influence(
    cells: LengthSums, tier_turns: Floats, all_turns: Floats, measure: str
) -> Floats:
    """By how much a task moves the sum of xo through the overall rate n / N; shape [T, C].

    It adds up to 0: what it changes is how uncertain the sum is.
    """
    slope = (
        expected_measure(cells.length[:, None], tier_turns + 0.5, all_turns + 0.5, measure)
        - expected_measure(cells.length[:, None], tier_turns - 0.5, all_turns + 0.5, measure)
    ) * all_turns  # de/d(n/N)
    n, s = cells.sums.episodes[:, None], cells.sums.successes[:, None]
    total = (slope * (s - n * s.sum() / n.sum())).sum(axis=0)
    rate = tier_turns[:1] / all_turns[:1]
    mine = add_by(cells.turns - rate * cells.length[:, None] * n, cells.task)
    return np.asarray(total * mine / all_turns[0], np.float64)


def add_by(values: Floats | Ints, number: Ints) -> Floats:
    """Sum the rows of each number.

    Args:
        values: shape [L, ...].
        number: shape [L], sorted, each number from 0 to its largest.

    Returns:
        Sums, shape [largest number + 1, ...].
    """
    return np.add.reduceat(values, np.flatnonzero(np.diff(number, prepend=-1)), axis=0)
