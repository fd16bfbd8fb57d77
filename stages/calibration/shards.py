"""Files of turns summed one after another, and files of such sums added up.

Memory grows with the groups, not with the turns or the files.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import polars as pl

from stages.calibration.sums import Summed, merge, sum_turns
from stages.errors import InputError
from stages.tables.artifacts import SUMS, TURNS, made_by, read_table, reading, scan_table


def sum_file(path: str, measure: str) -> Summed:
    """Sum a measure of the tiers over one file (TURNS -> SUMS).

    Raises:
        InputError: the file is no table of turns, or an episode's turns do not stand together.
    """
    lazy = scan_table(TURNS, path)
    turns = read_table(TURNS, path).lazy() if lazy is None else lazy
    one = reading(path, partial(sum_turns, turns, measure, path))
    return one._replace(excluded=one.excluded + unseen(path))


def read_sums(path: str, measure: str) -> Summed:
    """Read sums that were written with their `summary` (SUMS).

    Raises:
        InputError: the file is no table of sums, or they are of another measure.
    """
    recorded = made_by(path).get("summary", {})
    if recorded.get("measure", measure) != measure:
        what = f"holds sums of measure '{recorded['measure']}', not '{measure}'"
        raise InputError(path, what, f"pass --measure {recorded['measure']}")
    return Summed(read_table(SUMS, path), recorded.get("excluded", 0))


def add_up(shards: Iterable[Summed]) -> Summed:
    """Add up sums (SUMS -> SUMS) as they come, in the memory of two."""
    sums, excluded = SUMS.empty(), 0
    for shard in shards:
        sums = merge([sums, shard.sums])
        excluded += shard.excluded
    return Summed(sums, excluded)


def summary(summed: Summed, measure: str) -> dict[str, Any]:
    """Return what a file of sums records of what they cover."""
    totals = summed.sums.filter(pl.col("tier").is_null())
    return {
        "measure": measure,
        "episodes": int(totals["episodes"].sum()),
        "excluded": summed.excluded,
        "tasks": totals["task_id"].n_unique(),
    }


def unseen(path: str) -> int:
    """Return how many episodes a file of turns left out before they became rows."""
    return int(made_by(path).get("summary", {}).get("excluded_without_turns", 0))
