"""Sums per (task, tier): all that calibration needs of the turns, and shards of them add up.

The sums are integers, so that a merge in any order gives the same table, bit for bit. Turns are
read in blocks: memory grows with the tasks, not with the turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.artifacts import SUMS, TURNS
from stages.core.correlation import Floats, Ints, TaskSums
from stages.errors import InputError

# The unit of each measure's sums. A share is rounded to 2^-20, which moves r by less than 1e-5.
UNITS = {"presence": 1, "count": 1, "share": 2**20}
COLUMNS = ["episode_id", "task_id", "turn", "tier", "success", "status"]  # all that is read
_BLOCK = 500_000  # turns a block: large enough for numpy, small enough for any machine
_CHANNELS = [name for name in SUMS.columns if name not in SUMS.key]


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
    for block, tiers in _episode_blocks(turns.select(COLUMNS), where):
        used = block
        if not block["counts"].all():
            used = block.filter("counts")
            excluded += int(block["first"].sum()) - int(used["first"].sum())
        if used.height:
            tasks, sums = _sum_block(used, tiers, measure)
            table.add(tasks, tiers, sums)
    return Summed(table.frame() if table.tasks else SUMS.empty(), excluded)


def merge(sums: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up tables of sums (SUMS -> SUMS)."""
    return pl.concat(sums).group_by(SUMS.key).agg(pl.col(_CHANNELS).sum()).sort(SUMS.key)


class TierSums(NamedTuple):
    """Sums laid out as arrays; tasks and tiers in the order of their names."""

    tiers: list[str]  # [C]
    tasks: TaskSums  # [T], [T, C]
    episodes: Floats  # [C] with the tier
    turns: Floats  # [C]
    turns_in_successes: Floats  # [C]
    all_turns: float
    all_turns_in_successes: float


def lay_out(sums: pl.DataFrame, measure: str) -> TierSums:
    """Lay out a table of sums (SUMS) as arrays over tasks and tiers."""
    totals = sums.filter(pl.col("tier").is_null()).sort("task_id")
    unit = UNITS[measure]
    tiers, x = grid(sums, "x")
    tasks = TaskSums(
        episodes=totals["episodes"].to_numpy(),
        successes=totals["successes"].to_numpy(),
        x=x / unit,
        xx=grid(sums, "xx")[1] / unit**2,
        xo=grid(sums, "xo")[1] / unit,
    )
    return TierSums(
        tiers,
        tasks,
        grid(sums, "episodes")[1].sum(axis=0),
        grid(sums, "turns")[1].sum(axis=0),
        grid(sums, "turns_in_successes")[1].sum(axis=0),
        float(totals["turns"].to_numpy().sum()),
        float(totals["turns_in_successes"].to_numpy().sum()),
    )


def grid(sums: pl.DataFrame, column: str) -> tuple[list[str], Floats]:
    """Return the tiers, and a column of sums over tasks and tiers [T, C], both by name."""
    tasks = sums["task_id"].unique().sort()
    rows = sums.filter(pl.col("tier").is_not_null())
    tiers = rows["tier"].unique().sort()
    array = np.zeros((len(tasks), len(tiers)))
    task = rows["task_id"].replace_strict(tasks, np.arange(len(tasks))).to_numpy()
    tier = rows["tier"].replace_strict(tiers, np.arange(len(tiers))).to_numpy()
    array[task, tier] = rows[column].to_numpy()
    return tiers.to_list(), array


def _episode_blocks(turns: pl.LazyFrame, where: str) -> Iterator[tuple[pl.DataFrame, list[str]]]:
    """Yield blocks of whole episodes, and the tiers met so far.

    Columns are added: `first`, true at an episode's first turn; `counts`, whether the episode does;
    `code`, the position of the turn's tier among the tiers.
    """
    start, size, tiers = 0, _BLOCK, list[str]()
    with ThreadPoolExecutor(1) as reader:  # reads a block ahead
        coming = reader.submit(_read_block, turns, start, size, tiers)
        while (block := coming.result()).height:
            # Counting nulls is free; the other rules of TURNS hold of what `score` writes.
            for rule in (f"{name} not null" for name in COLUMNS if block[name].null_count()):
                TURNS.check_rules({rule: TURNS.rules.get(rule, pl.lit(True))}, block, where, start)
            _check_order(block, start, where)
            if block["code"].null_count():
                tiers = list(dict.fromkeys([*tiers, *block["tier"].unique().sort()]))
                block = block.with_columns(code=_code(tiers))
            whole = block.height
            if whole == size:  # the last episode may go on: it is read again with the next block
                whole = int(block["first"].arg_true()[-1])
                size *= 1 if whole else 2
            start += whole
            coming = reader.submit(_read_block, turns, start, size, tiers)
            if whole:
                yield block[:whole], tiers


def _read_block(turns: pl.LazyFrame, start: int, size: int, tiers: list[str]) -> pl.DataFrame:
    new = pl.col("episode_id").ne_missing(pl.col("episode_id").shift())
    row = pl.int_range(pl.len())
    counts = (pl.col("status") != "error") & pl.col("success").is_not_null()
    columns = {"first": new | (row == 0), "counts": counts, "code": _code(tiers)}
    return turns.slice(start, size).with_columns(**columns).collect()


def _code(tiers: list[str]) -> pl.Expr:
    """Position of each turn's tier among the tiers; null for any other tier."""
    return pl.col("tier").cast(pl.Enum(tiers), strict=False).to_physical()


def _check_order(block: pl.DataFrame, start: int, where: str) -> None:
    """Raise InputError unless each episode's turns stand together as 0, 1, 2, ..."""
    turn, first = block["turn"].to_numpy(), block["first"].to_numpy()
    expected = np.where(first, 0, np.roll(turn, 1) + 1)
    if (turn != expected).any():
        row = start + int(np.argmax(turn != expected)) + 1
        what = "the turns of an episode do not stand together, in order from 0"
        raise InputError(f"{where}:row {row}", what, "sort by episode_id, turn")


def _sum_block(block: pl.DataFrame, tiers: list[str], measure: str) -> tuple[list[str], Ints]:
    """Sum whole episodes per task and tier: tasks [t], sums [t, 1 + c, channels].

    Column 0 of the second axis sums over all of a task's episodes.
    """
    first = block["first"].to_numpy()
    episode = np.cumsum(first) - 1
    shape = (int(episode[-1]) + 1, 1 + len(tiers))
    cell = episode * shape[1] + 1 + block["code"].to_numpy()
    turns = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    turns[:, 0] = turns.sum(axis=1)

    names = block["task_id"].filter(block["first"])
    tasks = names.unique()
    task = names.cast(pl.Enum(tasks)).to_physical().to_numpy()
    order = np.argsort(task, kind="stable")
    bounds = np.searchsorted(task[order], np.arange(len(tasks)))
    turns = turns[order]
    won = block["success"].filter(block["first"]).to_numpy()[order, None].astype(np.int64)
    present = (turns > 0).astype(np.int64)
    values = [present, present * won, turns, turns * won]
    if measure != "presence":
        x = turns if measure == "count" else np.rint(UNITS["share"] * turns / turns[:, :1])
        x = x.astype(np.int64)
        values += [x, x * x, x * won]
    # Over the episodes of each task: [episodes, 1 + c] -> [t, 1 + c].
    sums = [np.add.reduceat(value, bounds, axis=0, dtype=np.int64) for value in values]
    return tasks.to_list(), np.stack(sums, axis=-1)


class _GrowingTable:
    """Sums over tasks and tiers that are met one block after another."""

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self.tiers: dict[str | None, int] = {None: 0}  # None: the sums over all episodes
        self.cells: Ints = np.zeros((0, 1, 0), np.int64)

    def add(self, tasks: list[str], tiers: list[str], sums: Ints) -> None:
        """Add the sums [t, 1 + c, channels] of these tasks and tiers."""
        rows = np.array([self.tasks.setdefault(task, len(self.tasks)) for task in tasks])
        columns = [0, *(self.tiers.setdefault(tier, len(self.tiers)) for tier in tiers)]
        have, need = self.cells.shape, (len(self.tasks), len(self.tiers), sums.shape[2])
        if need[0] > have[0] or need[1] > have[1]:
            # Doubling keeps the cost of growing in proportion to the result.
            grown = np.zeros((max(need[0], 2 * have[0]), *need[1:]), np.int64)
            grown[: have[0], : have[1], : have[2]] = self.cells
            self.cells = grown
        self.cells[rows[:, None], columns] += sums

    def frame(self) -> pl.DataFrame:
        """Return the rows with at least one episode (SUMS), sorted by their key."""
        tasks = pl.Series(list(self.tasks), dtype=pl.String)
        tiers = pl.Series(list(self.tiers), dtype=pl.String)
        by_task, by_tier = tasks.arg_sort(), tiers.arg_sort()  # null, the totals, sorts first
        cells = self.cells[by_task.to_numpy()[:, None], by_tier.to_numpy()]
        task, tier = np.nonzero(cells[:, :, 0])
        columns = dict(zip(_CHANNELS, cells[task, tier].T, strict=False))
        if "x" not in columns:  # presence: x is 0 or 1
            columns |= {"x": columns["episodes"], "xx": columns["episodes"]}
            columns["xo"] = columns["successes"]
        keys = {"task_id": tasks[by_task][task], "tier": tiers[by_tier][tier]}
        return pl.DataFrame(keys | columns, schema=SUMS.columns)
