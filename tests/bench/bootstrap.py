"""Speed of the bootstrap against the simplest vectorised one: Poisson weights and a matmul."""

from __future__ import annotations

import numpy as np

from stages.core.correlation import TaskSums, terms
from stages.core.resampling import correlation_interval
from tests.bench.timing import Row, row

TASKS, TRIALS, TIERS, RESAMPLES = 12_500, 8, 10, 1_000


def bench() -> list[Row]:
    """Draw 1,000 bootstrap resamples of 100,000 episodes (12,500 tasks of 8) and 10 tiers.

    The peer only computes the sums that ours turns into studentised intervals.
    """
    rng = np.random.default_rng(0)
    sums = _random_sums(rng)
    table = np.column_stack([sums.episodes, sums.successes, sums.x, sums.xo]).astype(np.float64)

    def peer() -> object:
        return rng.poisson(1.0, (RESAMPLES, TASKS)) @ table

    def within() -> object:
        return correlation_interval(terms(sums, "within"), RESAMPLES, rng)

    def pooled() -> object:
        return correlation_interval(terms(sums, "pooled"), RESAMPLES, rng)

    return [
        row("bootstrap of r within", "Poisson weights, matmul", within, peer, 1.2, runs=5),
        row("bootstrap of r pooled", "Poisson weights, matmul", pooled, peer, 1.2, runs=5),
    ]


def _random_sums(rng: np.random.Generator) -> TaskSums:
    success = rng.random((TASKS, TRIALS)) < rng.random((TASKS, 1))
    present = rng.random((TIERS, TASKS, TRIALS)) < 0.3
    x = present.sum(axis=2).T.astype(np.float64)
    xo = (present & success).sum(axis=2).T.astype(np.float64)
    return TaskSums(np.full(TASKS, TRIALS), success.sum(axis=1), x, x, xo)
