"""Turns drawn from designs in which it is known what a tier tells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from stages.calibrate import calibrate
from stages.calibration.estimate import CalibrateConfig, Calibration
from stages.calibration.sums import TierSums
from stages.core.correlation import Ints, TaskSums
from stages.core.lengths import LengthSums

Rng = np.random.Generator


class Design(NamedTuple):
    """Turns of E episodes, of which only task, group, outcome and tiers matter."""

    task: Ints  # [E], from 0 on, sorted
    group: Ints  # [E], likewise
    success: Ints  # [E] 0 or 1
    counts: Ints  # [E, C] turns of each tier; every turn has one
    stratum: Ints | None = None  # [E]


def tier_sums(turns: Design) -> TierSums:
    """What `sums` makes of such turns: each episode is a cell of its own."""
    length = turns.counts.sum(axis=1)
    x = (turns.counts > 0).astype(np.float64)
    won = turns.success[:, None]
    cells = TaskSums(np.ones_like(turns.success), turns.success, x, x, x * won)
    return TierSums(
        [f"tier {c:02d}" for c in range(x.shape[1])],
        LengthSums(turns.task, turns.group, length, cells, turns.counts.astype(np.float64)),
        x.sum(axis=0),
        (x * won).sum(axis=0),
        turns.counts.sum(axis=0).astype(np.float64),
        (turns.counts * won).sum(axis=0).astype(np.float64),
        float(length.sum()),
        float((length * turns.success).sum()),
        np.zeros_like(turns.task) if turns.stratum is None else turns.stratum,
        ["all"] if turns.stratum is None else [f"p{s}" for s in range(turns.stratum.max() + 1)],
        x,
        x * won,
    )


def calibrated(turns: Design, rng: Rng, config: CalibrateConfig | None = None) -> Calibration:
    """Calibrate a design."""
    return calibrate(tier_sums(turns), 0, config or CalibrateConfig(), rng)


def valued(result: Calibration, tiers: Sequence[int]) -> int:
    """How many of these tiers got a value."""
    return sum(result.tiers[c].value != 0 for c in tiers)


def groups_of(tasks: int, trials: int, iterations: int = 1) -> tuple[Ints, Ints]:
    """Task and group of each episode: every task has a group in every iteration."""
    group = np.repeat(np.arange(tasks * iterations), trials)
    return group // iterations, group


def lengthy(rng: Rng, success: Ints, mean: float = 8.0, rise: float = 0.3) -> Ints:
    """Lengths that correlate with success by about `rise`."""
    shift = rise / np.sqrt(1 - rise**2) * 2 * np.sqrt(mean)
    return np.asarray(2 + rng.poisson(mean + shift * (success - 0.5)), np.int64)


def scattered(rng: Rng, length: Ints, shares: Sequence[float]) -> Ints:
    """Turns of each tier when every turn draws its tier by itself; [E, C]."""
    return np.asarray(rng.multinomial(length, [*shares, 1 - sum(shares)]), np.int64)


def placebo(rng: Rng, share: float, tasks: int = 48, trials: int = 8) -> Design:
    """Tier 0 is put on turns at random, and so are two others; lengths go with success."""
    task, group = groups_of(tasks, trials)
    success = rng.binomial(1, rng.beta(1, 1, tasks)[task])
    length = lengthy(rng, success)
    return Design(task, group, success, scattered(rng, length, [share, 0.3, 0.1]))


def differing(rng: Rng, tasks: int = 24, trials: int = 8, tiers: int = 6) -> Design:
    """Each tier's presence differs by +0.4 or -0.4 between success and failure, by task's coin."""
    task, group = groups_of(tasks, trials)
    success = rng.binomial(1, rng.uniform(0.2, 0.8, tasks)[task])
    effect = 0.4 * rng.choice([-1, 1], (tasks, tiers))[task]
    present = rng.random((len(task), tiers)) < 0.5 + effect * (success[:, None] - 0.5)
    fillers = 4 - present.sum(axis=1, keepdims=True) % 4
    return Design(task, group, success, np.hstack([present, fillers]).astype(np.int64))


def drifting(rng: Rng, tasks: int = 12, trials: int = 8, iterations: int = 8) -> Design:
    """A policy that rises from 30 to 70 %, and uses tier 0 more often; within a group unrelated."""
    task, group = groups_of(tasks, trials, iterations)
    progress = (group % iterations) / (iterations - 1)
    success = rng.binomial(1, 0.3 + 0.4 * progress)
    present = rng.random(len(task)) < 0.2 + 0.6 * progress
    fillers = rng.integers(1, 8, len(task))
    return Design(task, group, success, np.column_stack([present, fillers]).astype(np.int64))


def policies(rng: Rng, count: int, tasks: int = 24, trials: int = 8, spread: float = 0.0) -> Design:
    """Policies on tasks of their own; the later ones succeed and use tiers 0 to 2 more often.

    For a policy the presence of a tier differs between success and failure by an effect that is
    normal with mean 0 and standard deviation `spread`.
    """
    task, group = groups_of(count * tasks, trials)
    policy = task // tasks
    better = policy / (count - 1) - 0.5
    ease = rng.beta(2, 2, count * tasks)[task]
    success = rng.binomial(1, np.clip(ease + 0.25 * better, 0.05, 0.95))
    effect = rng.normal(0, spread, (count, 3))[policy]
    rate = 0.5 + 0.4 * better[:, None] + effect * (success[:, None] - 0.5)
    present = rng.random(rate.shape) < rate
    counts = np.column_stack([present, lengthy(rng, success)]).astype(np.int64)
    return Design(task, group, success, counts, policy)


def planted(rng: Rng, r: float, tasks: int, trials: int = 8, tiers: int = 10) -> Design:
    """Tier 0 correlates by r within tasks; the others are as frequent and tell nothing."""
    task, group = groups_of(tasks, trials)
    success = rng.binomial(1, 0.5, len(task))
    effect = np.zeros(tiers)
    effect[0] = r
    present = rng.random((len(task), tiers)) < 0.5 + effect * (success[:, None] - 0.5)
    fillers = rng.integers(1, 8, (len(task), 1))
    return Design(task, group, success, np.hstack([present, fillers]).astype(np.int64))


def joined(one: Design, other: Design) -> Design:
    """The episodes of both, which share no task."""
    shifted = other._replace(
        task=other.task + one.task[-1] + 1, group=other.group + one.group[-1] + 1
    )
    stratum = None
    if one.stratum is not None and other.stratum is not None:
        stratum = np.concatenate([one.stratum, other.stratum])
    task, group, success, counts = (
        np.concatenate(parts) for parts in zip(one[:4], shifted[:4], strict=True)
    )
    return Design(task, group, success, counts, stratum)


def runs(count: int, seed: int) -> Iterator[Rng]:
    """Generators of independent runs."""
    return (np.random.default_rng([seed, run]) for run in range(count))
