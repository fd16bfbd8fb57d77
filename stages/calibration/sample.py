"""A sample of whole groups from files of turns, small enough for memory.

Advantages compare the episodes of a group, so a check needs all turns of a group or none. The
sample has the groups with the smallest hashes of their ids: a random choice that does not depend on
how groups are spread over files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.calibration.fingerprint import text_hashes
from stages.tables.artifacts import COUNTS, TURNS
from stages.tables.table_file import read_table, reading, scan_table

LIMIT = 250_000  # turns
# The columns that checks need; the others are not read.
_COLUMNS = [
    *("episode_id", "task_id", "group_id", "turn", "tier", "reward"),
    *("outcome", "success", "status", "n_tokens"),
]


class Sample(NamedTuple):
    """The turns of sampled groups, and the sizes of the sample and the whole."""

    turns: pl.DataFrame  # `_COLUMNS` of TURNS, without excluded episodes
    groups: int  # sampled groups
    of_groups: int  # all groups
    of_turns: int  # all turns

    @property
    def is_all(self) -> bool:
        """Whether the sample has all groups."""
        return self.groups == self.of_groups

    def document(self) -> dict[str, int]:
        """Return the sizes as JSON values."""
        return {
            "groups": self.groups,
            "of_groups": self.of_groups,
            "turns": self.turns.height,
            "of_turns": self.of_turns,
        }


def sample_groups(sums: pl.DataFrame, paths: Sequence[str], limit: int = LIMIT) -> Sample:
    """Read the turns of whole groups (SUMS, TURNS -> TURNS).

    Args:
        sums: sums over all turns in the files.
        paths: paths of the files.
        limit: most turns to read; at least one group is read.

    Returns:
        The sample.

    Raises:
        InputError: a file can't be read.
    """
    totals = sums.filter(pl.col("tier").is_null()).group_by("group_id").agg(pl.col("turns").sum())
    totals = totals[np.argsort(text_hashes(totals["group_id"]), kind="stable")]
    chosen = totals.filter((pl.col("turns").cum_sum() <= limit) | (pl.int_range(pl.len()) == 0))
    groups = chosen["group_id"]
    turns = pl.concat(_turns_of(groups, path) for path in paths)
    return Sample(turns, len(groups), totals.height, int(totals["turns"].sum()))


def _turns_of(groups: pl.Series, path: str) -> pl.DataFrame:
    """Return the turns of these groups in one file."""
    lazy = scan_table(TURNS, path)
    turns = (read_table(TURNS, path).lazy() if lazy is None else lazy).select(_COLUMNS)
    wanted = turns.filter(pl.col("group_id").is_in(groups.implode()) & COUNTS)
    return reading(path, lambda: wanted.collect(engine="streaming"))
