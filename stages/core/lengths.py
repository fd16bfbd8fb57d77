"""Correlation of tiers with outcomes, adjusted for episode length.

Long episodes hold more of everything, and length correlates with success. So even a tier assigned
to turns at random correlates with the outcome. The adjustment subtracts the chance level: the
expected measure of an episode of the same length if the tier's turns were scattered at random over
all turns of the episode's group. The remainder, the excess, has expectation 0 under such
scattering, whatever the lengths and the outcomes.

Source: docs/method.md, "Length".
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stages.core.correlation import Bools, Floats, Ints, TaskSums, Which, pooled_terms, within_terms


class LengthSums(NamedTuple):
    """Sums per cell, that is per group and episode length, over L cells and C tiers.

    A group is the episodes of one task under one policy. Cells are sorted by group, groups by task.
    """

    task: Ints  # [L] number of the task, 0..T-1, each with a cell
    group: Ints  # [L] number of the group, 0..G-1, each with a cell
    length: Ints  # [L] number of turns of every episode in the cell
    sums: TaskSums  # [L], [L, C] sums over the cell's episodes
    turns: Floats  # [L, C] turns of the tier


def expected_measure(length: Ints, tier_turns: Floats, all_turns: Floats, measure: str) -> Floats:
    """Expected measure of a tier in an episode whose turns are drawn at random from all turns.

    If n of the N turns have the tier, an episode of K turns holds it with the hypergeometric
    probability e = 1 - C(N-n, K) / C(N, K). The expected count is K n / N, the expected share n/N.

    Args:
        length: K, broadcast against the others.
        tier_turns: n, broadcast against the others.
        all_turns: N, broadcast against the others, at least K and at least n.
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
    fits = others >= length  # otherwise any K turns include one of the tier
    # C(M, K) = 1 / (K B(M-K+1, K)); betaln stays accurate for large M.
    log_all = betaln(all_turns - length + 1, length)
    log_none = log_all - betaln(np.where(fits, others - length, 0) + 1, length)
    return np.where(fits, -np.expm1(np.minimum(log_none, 0.0)), 1.0)


def length_terms(cells: LengthSums, which: Which, measure: str, *, adjust: bool) -> Floats:
    """Return each task's share of the sums that determine a correlation of measure and outcome.

    For `within`, both are centred on the mean of the episode's group and the tier's turns are
    scattered over the group's turns. For `pooled`, both are centred on the overall mean and the
    tier's turns are scattered over all turns.

    Args:
        cells: cells of T tasks and C tiers, summed in the unit of the measure.
        which: within | pooled.
        measure: presence | count | share.
        adjust: whether to subtract the expected measure; otherwise the terms give the raw r.

    Returns:
        Terms for `correlation`, shape [T, 3, C] within and [T, 6, C] pooled; their sum over tasks
        gives r. r is undefined wherever the raw r is.
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
    for row in (0, 1, 4)[: 2 if which == "within" else 3]:  # xo, xx and x
        terms[:, row, constant] = 0.0
    return terms


def stratum_terms(
    cells: LengthSums, stratum: Ints, which: Which, measure: str, *, adjust: bool
) -> Floats:
    """Sum the terms of several strata, each centred on its own means.

    Otherwise a policy that both succeeds more often and uses a tier more often would create a
    pooled correlation that no single policy has. For `within` nothing changes, because a group
    belongs to one stratum.

    Args:
        cells: cells of T tasks and C tiers.
        stratum: stratum of each cell, 0, 1, ..., shape [L].
        which: within | pooled.
        measure: presence | count | share.
        adjust: as for `length_terms`.

    Returns:
        The terms of `length_terms` for `within` or a single stratum; otherwise shape [T, 3, C].
    """
    names = np.unique(stratum)
    if which == "within" or len(names) == 1:
        return length_terms(cells, which, measure, adjust=adjust)
    terms = np.zeros((int(cells.task[-1]) + 1, 3, cells.turns.shape[1]))
    for name in names:
        chosen = stratum == name
        part = length_terms(select(cells, chosen), which, measure, adjust=adjust)
        # Centred on the stratum's means, x and o sum to 0: the last three terms are not needed.
        terms[np.unique(cells.task[chosen])] += part[:, :3]
    return terms


def select(cells: LengthSums, chosen: Bools) -> LengthSums:
    """Return a selection of cells, with tasks and groups renumbered.

    Args:
        cells: L cells.
        chosen: whether to keep each cell, at least one, shape [L].

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
    """Influence of each task on the sum of xo through the overall rate n / N; shape [T, C].

    It sums to 0 over tasks: it changes the standard error, not the sum.
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
    """Sum the rows that have the same number.

    Args:
        values: rows, shape [L, ...].
        number: number of each row, sorted, with every number from 0 to the largest, shape [L].

    Returns:
        Sums, shape [largest number + 1, ...].
    """
    return np.add.reduceat(values, np.flatnonzero(np.diff(number, prepend=-1)), axis=0)
