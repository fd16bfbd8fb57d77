"""The pass rate of a table's episodes, with an interval that is clustered by task."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from stages.core.passk import clustered_proportion


class PassRate(NamedTuple):
    """Pass rate of some of the tasks."""

    episodes: int
    tasks: int
    pass_rate: float
    ci_low: float  # 95 %, clustered by task
    ci_high: float


def pass_rate(counting: pl.DataFrame) -> PassRate:
    """Return the pass rate of counted episodes, at least one.

    Args:
        counting: one row per episode, with `task_id` and a `success` that is never null.
    """
    share = clustered_share(counting, pl.col("success"))
    return PassRate(counting.height, counting["task_id"].n_unique(), *share)


def clustered_share(episodes: pl.DataFrame, holds: pl.Expr) -> tuple[float, float, float]:
    """Return the share of the episodes where a condition holds, with its 95 % interval."""
    counts = episodes.group_by("task_id", maintain_order=True).agg(n=pl.len(), c=holds.sum())
    n, c = (counts[name].cast(pl.Int64).to_numpy() for name in "nc")
    return clustered_proportion(n, c)
