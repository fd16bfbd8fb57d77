"""Episodes and tasks of a report: states, whether a task teaches, and its leverage on r."""

from __future__ import annotations

from collections import Counter
from typing import Any
from urllib.parse import quote

import numpy as np
import polars as pl

from stages.calibration.estimate import CalibrateConfig, Calibration
from stages.calibration.sums import TierSums
from stages.core.correlation import Floats, correlation
from stages.core.lengths import stratum_terms
from stages.tables.artifacts import COUNTS
from stages.tables.pass_rates import pass_rate

PASSED, FAILED, TRUNCATED, MASKED = STATES = ("passed", "failed", "truncated", "masked")
_OF_EPISODE = ("source", "task_id", "trial", "group_id", "domain", "policy", "outcome", "status")


def episode_rows(turns: pl.DataFrame) -> pl.DataFrame:
    """Return one row per episode with its state, in the order of the turns (TURNS -> episodes)."""
    state = (
        pl.when(~COUNTS | pl.col("success").is_null())
        .then(pl.lit(MASKED))
        .when(pl.col("success"))
        .then(pl.lit(PASSED))
        .when(pl.col("status") == "truncated")
        .then(pl.lit(TRUNCATED))
        .otherwise(pl.lit(FAILED))
    )
    first = [pl.col(name).first() for name in (*_OF_EPISODE, "success")]
    rows = turns.group_by("episode_id", maintain_order=True).agg(*first, turns=pl.len())
    return rows.with_columns(state=state)


def pass_rate_of(episodes: pl.DataFrame) -> dict[str, Any] | None:
    """Return the pass rate of episodes with its 95 % interval, clustered by task."""
    counted = episodes.filter(pl.col("state") != MASKED)
    if not counted.height:
        return None
    return pass_rate(counted)._asdict()


def refs(episodes: pl.DataFrame) -> dict[str, str]:
    """Return the name of each episode in links: task/trial, and a number if several share it.

    Args:
        episodes: result of `episode_rows`.
    """
    names, taken = {}, Counter[str]()
    for name, task, trial in episodes.select("episode_id", "task_id", "trial").iter_rows():
        ref = f"{quote(task, safe='')}/{0 if trial is None else trial}"
        taken[ref] += 1
        names[name] = ref if taken[ref] == 1 else f"{ref}~{taken[ref]}"
    return names


def task_rows(
    episodes: pl.DataFrame, shown: set[str], leverage: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Return one row per task: its episodes, and whether its groups teach anything.

    Args:
        episodes: result of `episode_rows`.
        shown: ids of the episodes whose conversations are shown.
        leverage: result of `leverages`, by task and tier.
    """
    rows, names = [], refs(episodes)
    for (task,), frame in episodes.group_by("task_id", maintain_order=True):
        counted = frame.filter(pl.col("state") != MASKED)
        passed = int((counted["state"] == PASSED).sum())
        rows.append(
            {
                "task": task,
                "episodes": [
                    {
                        "id": episode,
                        "ref": names[episode],
                        "state": state,
                        "shown": episode in shown,
                    }
                    for episode, state in frame.sort("trial", nulls_last=True, maintain_order=True)
                    .select("episode_id", "state")
                    .iter_rows()
                ],
                "counted": counted.height,
                "passed": passed,
                "pass_rate": passed / counted.height if counted.height else None,
                "teaches": _teaches(counted, passed),
                "leverage": leverage.get(str(task), {}),
            }
        )
    return sorted(rows, key=lambda row: natural(str(row["task"])))


def with_silent(
    tasks: list[dict[str, Any]], silent: list[tuple[str, int, str]]
) -> list[dict[str, Any]]:
    """Return the tasks with the episodes in which the agent never spoke, which do not count.

    Args:
        tasks: result of `task_rows`.
        silent: task, trial and id of each such episode.
    """
    rows = {row["task"]: row | {"episodes": list(row["episodes"])} for row in tasks}
    for task, trial, name in silent:
        empty = {"task": task, "episodes": [], "counted": 0, "passed": 0, "pass_rate": None}
        row = rows.setdefault(task, empty | {"teaches": "nothing counts", "leverage": {}})
        ref = f"{quote(task, safe='')}/{trial}"
        row["episodes"].append({"id": name, "ref": ref, "state": MASKED, "shown": False})
    return sorted(rows.values(), key=lambda row: natural(str(row["task"])))


def _teaches(counted: pl.DataFrame, passed: int) -> str:
    """Return "mixed" if outcomes differ within a group, otherwise why nothing is learned."""
    if not counted.height:
        return "nothing counts"
    groups = counted.group_by("group_id", maintain_order=True).agg(
        won=(pl.col("state") == PASSED).mean()
    )
    if groups.select(pl.col("won").is_between(0, 1, closed="none").any()).item():
        return "mixed"
    if passed in (0, counted.height):
        return "all pass" if passed else "all fail"
    return "no group is mixed"


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key under which "9" comes before "10"."""
    parts: list[str] = []
    for character in text:
        if parts and parts[-1].isdecimal() == character.isdecimal():
            parts[-1] += character
        else:
            parts.append(character)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts)


def leverages(
    sums: TierSums, tasks: list[str], result: Calibration, config: CalibrateConfig
) -> dict[str, dict[str, float]]:
    """Return how far each task moves the r that sets a tier's value: r minus r without the task.

    Args:
        sums: sums of the calibrated turns.
        tasks: names of the T tasks, in the order of the sums.
        result: their calibration.
        config: settings of the calibration.

    Returns:
        By task and tier, dimensionless; a tier is missing if r is undefined or moves by less than
        5e-4.
    """
    adjusted = config.adjust == "length"
    apart = config.strata == "auto" and len(sums.strata) > 1 and adjusted
    stratum = sums.stratum if apart else np.zeros_like(sums.stratum)
    terms = stratum_terms(sums.cells, stratum, result.correlation, config.measure, adjust=adjusted)
    moved = left_out(terms)
    return {
        task: {
            tier: float(moved[t, c])
            for c, tier in enumerate(sums.tiers)
            if np.isfinite(moved[t, c]) and abs(moved[t, c]) >= 5e-4
        }
        for t, task in enumerate(tasks)
    }


def left_out(terms: Floats) -> Floats:
    """Return r minus r without each task.

    Args:
        terms: result of `stratum_terms`, shape [T, 3 or 6, C].

    Returns:
        Shape [T, C]; NaN where either r is undefined.
    """
    total = terms.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(correlation(total) - correlation(total - terms), np.float64)
