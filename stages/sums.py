"""Sums per (task, tier): all that calibration needs of the turns, and shards of them add up.

The sums are integers, so that a merge in any order gives the same table, bit for bit. Turns are
read in blocks: memory grows with the tasks, not with the turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.artifacts import SUMS
from stages.core.correlation import TaskSums
from stages.errors import InputError

# The unit of each measure's sums. A share is rounded to 2^-20, which moves r by less than 1e-5.
UNITS = {"presence": 1, "count": 1, "share": 2**20}
COLUMNS = ["episode_id", "task_id", "turn", "tier", "success", "status"]  # all that is read
_BLOCK = 500_000  # turns a block: large enough for numpy, small enough for any machine
_CHANNELS = [name for name in SUMS.columns if name not in SUMS.key]

Ints = npt.NDArray[np.int64]


class Summed(NamedTuple):
    """The sums of some turns, and what was left out of them."""

    sums: pl.DataFrame  # SUMS
    excluded: int  # episodes that crashed, were cut by infrastructure, or have no outcome


def sum_turns(turns: pl.LazyFrame, measure: str, where: str) -> Summed:
    """Sum a measure of the tiers per task (TURNS -> SUMS).

    Args:
        turns: the turns of whole episodes, those of an episode together and in order, as `score`
            writes them.
        measure: presence | count | share of the tier in an episode.
        where: name of the turns in errors.

    Raises:
        InputError: the turns of an episode do not stand together and in order.
    """
    table, excluded = _GrowingTable(), 0
    for block in _episode_blocks(turns.select(COLUMNS), where):
        counts = (pl.col("status") != "error") & pl.col("success").is_not_null()
        used = block.filter(counts)
        excluded += int(block["first"].sum()) - int(used["first"].sum())
        if used.height:
            table.add(*_sum_block(used, measure))
    return Summed(table.frame(), excluded)


def merge(sums: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up tables of sums (SUMS -> SUMS)."""
    return pl.concat(sums).group_by(SUMS.key).agg(pl.col(_CHANNELS).sum()).sort(SUMS.key)


class TierSums(NamedTuple):
    """Sums laid out as arrays; tasks and tiers in the order of their names."""

    tiers: list[str]  # [C]
    tasks: TaskSums  # [T], [T, C]
    episodes: Ints  # [C] with the tier
    turns: Ints  # [C]
    turns_in_successes: Ints  # [C]
    all_turns: int
    all_turns_in_successes: int


def lay_out(sums: pl.DataFrame, measure: str) -> TierSums:
    """Lay out a table of sums (SUMS) as arrays over tasks and tiers."""
    totals = sums.filter(pl.col("tier").is_null()).sort("task_id")
    rows = sums.filter(pl.col("tier").is_not_null())
    tiers = rows["tier"].unique().sort().to_list()
    shape = (totals.height, len(tiers))
    task = rows["task_id"].replace_strict(totals["task_id"], np.arange(shape[0])).to_numpy()
    tier = rows["tier"].replace_strict(tiers, np.arange(shape[1])).to_numpy()

    def scatter(column: str) -> npt.NDArray[np.float64]:
        array = np.zeros(shape)
        array[task, tier] = rows[column].to_numpy()
        return array

    unit = UNITS[measure]
    tasks = TaskSums(
        episodes=totals["episodes"].to_numpy(),
        successes=totals["successes"].to_numpy(),
        x=scatter("x") / unit,
        xx=scatter("xx") / unit**2,
        xo=scatter("xo") / unit,
    )
    by_tier = rows.group_by("tier").agg(pl.col(_CHANNELS).sum()).sort("tier")
    return TierSums(
        tiers,
        tasks,
        by_tier["episodes"].to_numpy(),
        by_tier["turns"].to_numpy(),
        by_tier["turns_in_successes"].to_numpy(),
        int(totals["turns"].sum()),
        int(totals["turns_in_successes"].sum()),
    )


def _episode_blocks(turns: pl.LazyFrame, where: str) -> Iterator[pl.DataFrame]:
    """Yield blocks of whole episodes, with a column `first` that is true at their first turns."""
    start, rest = 0, turns.clear().collect()
    while True:
        read = turns.slice(start, _BLOCK).collect()
        start += read.height
        block = pl.concat([rest, read])
        if not block.height:
            return
        new = pl.col("episode_id").ne_missing(pl.col("episode_id").shift()).fill_null(True)
        block = block.with_columns(first=new)
        _check_order(block, start - block.height, where)
        # The last episode may go on in the next block.
        whole = int(block["first"].arg_true()[-1]) if read.height else block.height
        yield block[:whole]
        rest = block[whole:].drop("first")


def _check_order(block: pl.DataFrame, start: int, where: str) -> None:
    """Raise InputError unless each episode's turns stand together as 0, 1, 2, ..."""
    expected = pl.when("first").then(0).otherwise(pl.col("turn").shift() + 1)
    broken = block.select((pl.col("turn") != expected).arg_true()).to_series()
    if len(broken):
        what = "the turns of an episode do not stand together, in order from 0"
        raise InputError(f"{where}:row {start + broken[0] + 1}", what, "sort by episode_id, turn")


def _sum_block(block: pl.DataFrame, measure: str) -> tuple[list[str], list[str], Ints]:
    """Sum whole episodes per task and tier: tasks [t], tiers [c], sums [t, 1 + c, channels].

    Column 0 of the second axis sums over all of a task's episodes.
    """
    tiers = block["tier"].unique().sort().to_list()
    code = block["tier"].cast(pl.Enum(tiers)).to_physical().to_numpy()
    first = block["first"].to_numpy()
    episode = np.cumsum(first) - 1
    shape = (int(episode[-1]) + 1, 1 + len(tiers))
    turns = np.bincount(episode * shape[1] + 1 + code, minlength=shape[0] * shape[1])
    turns = turns.reshape(shape)
    turns[:, 0] = turns.sum(axis=1)

    task_ids = block["task_id"].filter(first)
    tasks = task_ids.unique().sort()
    task = task_ids.cast(pl.Enum(tasks)).to_physical().to_numpy()
    success = block["success"].filter(first).to_numpy()
    order = np.argsort(task, kind="stable")
    bounds = np.searchsorted(task[order], np.arange(len(tasks)))

    def total(values: Ints) -> Ints:
        """Sum over the episodes of each task: [episodes, 1 + c] -> [t, 1 + c]."""
        return np.add.reduceat(values[order], bounds, axis=0, dtype=np.int64)

    won = success[:, None].astype(np.int64)
    present = (turns > 0).astype(np.int64)
    sums = [total(present), total(present * won), total(turns), total(turns * won)]
    if measure == "presence":
        sums += [sums[0], sums[0], sums[1]]
    else:
        x = turns if measure == "count" else np.rint(UNITS["share"] * turns / turns[:, :1])
        x = x.astype(np.int64)
        sums += [total(x), total(x * x), total(x * won)]
    return tasks.to_list(), tiers, np.stack(sums, axis=-1)


@dataclass
class _GrowingTable:
    """Sums over tasks and tiers that are met one block after another."""

    tasks: dict[str, int] = field(default_factory=dict)
    tiers: dict[str | None, int] = field(default_factory=lambda: {None: 0})
    cells: Ints = field(default_factory=lambda: np.zeros((0, 1, len(_CHANNELS)), np.int64))

    def add(self, tasks: list[str], tiers: list[str], sums: Ints) -> None:
        """Add the sums [t, 1 + c, channels] of these tasks and tiers."""
        rows = [self.tasks.setdefault(task, len(self.tasks)) for task in tasks]
        columns = [0, *(self.tiers.setdefault(tier, len(self.tiers)) for tier in tiers)]
        grown = (len(self.tasks) - len(self.cells), len(self.tiers) - self.cells.shape[1])
        if max(grown) > 0:
            # Doubling keeps the cost of growing in proportion to the result.
            more = max(grown[0], len(self.cells)) if grown[0] > 0 else 0
            self.cells = np.pad(self.cells, ((0, more), (0, max(grown[1], 0)), (0, 0)))
        self.cells[np.ix_(rows, columns)] += sums

    def frame(self) -> pl.DataFrame:
        """Return the rows with at least one episode (SUMS), sorted by their key."""
        tasks = pl.Series(list(self.tasks), dtype=pl.String)
        tiers = pl.Series(list(self.tiers), dtype=pl.String)
        by_task, by_tier = tasks.arg_sort(), tiers.arg_sort()  # null, the totals, sorts first
        cells = self.cells[np.ix_(by_task.to_numpy(), by_tier.to_numpy())]
        task, tier = np.nonzero(cells[:, :, 0])
        columns = {name: cells[task, tier, i] for i, name in enumerate(_CHANNELS)}
        keys = {"task_id": tasks[by_task][task], "tier": tiers[by_tier][tier]}
        return pl.DataFrame(keys | columns, schema=SUMS.columns)
