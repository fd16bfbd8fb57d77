"""Sums per group, length and tier: all that calibration needs of the turns; shards add up.

The sums are integers, so that a merge in any order gives the same table, bit for bit. Turns are
read in blocks: memory grows with the groups and the lengths in each, not with the turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.calibration.blocks import Block, episode_blocks
from stages.calibration.fingerprint import Fingerprint, Fingerprinter
from stages.core.correlation import Floats, Ints, TaskSums
from stages.core.lengths import LengthSums, add_by
from stages.tables.artifacts import SUMS

# The unit of each measure's sums. A share is rounded to 2^-20, which moves r by less than 1e-5.
UNITS = {"presence": 1, "count": 1, "share": 2**20}
_GROUP = ["task_id", "group_id", "policy", "domain"]
_GROUP_TYPES = {name: SUMS.columns[name] for name in _GROUP}
_CELLS = 1 << 13  # summed at once
_UPPER = 32  # bits: a number holds two counts below 2^32, or a group and a length
_LOWER = 2**_UPPER - 1
_CHANNELS = [name for name in SUMS.columns if name not in SUMS.key]


class Summed(NamedTuple):
    """The sums of some turns, and what was left out of them."""

    sums: pl.DataFrame  # SUMS
    excluded: int  # episodes that crashed, were cut by infrastructure, or have no outcome
    fingerprint: Fingerprint | None = None  # of the episodes; None: not known


def sum_turns(turns: pl.LazyFrame, measure: str, where: str) -> Summed:
    """Sum a measure of the tiers per group and length (TURNS -> SUMS).

    Args:
        turns: the turns of whole episodes, those of an episode together and in order, as `score`
            writes them.
        measure: presence | count | share of the tier in an episode.
        where: name of the turns in errors.

    Returns:
        The sums with the fingerprint of the episodes.

    Raises:
        InputError: a row breaks a rule of TURNS, the turns of an episode do not stand together
            and in order, or they differ in what is one for all of them.
    """
    table, fingerprinter, excluded = _GrowingTable(), Fingerprinter(), 0
    with ThreadPoolExecutor(1) as aside:
        taken = aside.submit(lambda: None)
        for block, tiers in episode_blocks(turns, where):
            used = block.counting()
            excluded += block.episodes.height - used.episodes.height
            if used.episodes.height:
                taken.result()
                taken = aside.submit(fingerprinter.add, used, tiers)
                group = table.number(used.episodes.select(_GROUP))
                cells, sums = _sum_block(used, group, tiers, measure)
                table.add(cells, tiers, sums)
        taken.result()
    frame = table.frame() if table.groups.height else SUMS.empty()
    return Summed(frame, excluded, fingerprinter.taken())


def merge(sums: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Add up tables of sums (SUMS -> SUMS)."""
    return pl.concat(sums).group_by(SUMS.key).agg(pl.col(_CHANNELS).sum()).sort(SUMS.key)


class TierSums(NamedTuple):
    """Sums laid out as arrays; tasks, groups and tiers in the order of their names."""

    tiers: list[str]  # [C]
    cells: LengthSums
    episodes: Floats  # [C] with the tier
    successes: Floats  # [C] among them
    turns: Floats  # [C]
    turns_in_successes: Floats  # [C]
    all_turns: float
    all_turns_in_successes: float
    stratum: Ints  # [L] of each cell
    strata: list[str]  # their names: policy and domain, as far as they vary
    having: Floats  # [L, C] episodes with the tier, whatever the measure
    won: Floats  # [L, C] successes among them

    @property
    def tasks(self) -> TaskSums:
        """The sums over each task's episodes, whatever their lengths and groups."""
        return TaskSums(*(add_by(part, self.cells.task) for part in self.cells.sums))


class Grid:
    """Rows of sums as arrays over cells and tiers [L, C], both in the order of their names."""

    def __init__(self, sums: pl.DataFrame, cell: list[str]) -> None:
        """Columns `cell` name a cell; the row of a cell with tier null holds its total."""
        sums = sums.sort([*cell, "tier"])  # a cell's total comes first
        total = sums["tier"].is_null()
        tiers = sums["tier"].drop_nulls().unique().sort()
        self.totals, self.rows = sums.filter(total), sums.filter(~total)
        self.tiers: list[str] = tiers.to_list()
        self.cell = total.cum_sum().filter(~total).to_numpy().astype(np.int64) - 1
        self.tier = self.rows["tier"].cast(pl.Enum(tiers)).to_physical().to_numpy()

    def __call__(self, name: str) -> Floats:
        """Return a column of the tiers' rows; 0 where a cell lacks the tier."""
        array = np.zeros((self.totals.height, len(self.tiers)))
        array[self.cell, self.tier] = self.rows[name].to_numpy()
        return array


def lay_out(sums: pl.DataFrame, measure: str) -> TierSums:
    """Lay out a table of sums (SUMS) as arrays over groups, lengths and tiers."""
    grid = Grid(_of_one_policy(sums), [*_GROUP, "length"])
    task, group = (
        grid.totals.select(pl.struct(names).rle_id()).to_series().to_numpy().astype(np.int64)
        for names in (_GROUP[:1], _GROUP)
    )
    laid_out = tier_sums(grid, task, group, grid.totals["length"].to_numpy(), UNITS[measure])
    varying = [name for name in ("policy", "domain") if grid.totals[name].n_unique() > 1]
    if not varying:
        return laid_out
    names = grid.totals.select(
        pl.concat_str([pl.col(name).fill_null("unknown") for name in varying], separator=", ")
    ).to_series()
    strata = names.unique().sort()
    number = names.cast(pl.Enum(strata)).to_physical().to_numpy().astype(np.int64)
    return laid_out._replace(stratum=number, strata=strata.to_list())


def _of_one_policy(sums: pl.DataFrame) -> pl.DataFrame:
    """Give each group one policy and domain.

    Where a trace states groups but no policy, the name of its file stands for the policy. A group
    that is spread over files then has several, and is still one.
    """
    named = sums.with_columns(pl.col("policy", "domain").min().over("task_id", "group_id"))
    return sums if named.equals(sums) else merge([named])


def tier_sums(grid: Grid, task: Ints, group: Ints, length: Ints, unit: int) -> TierSums:
    """Sum up a grid whose cells have these tasks, groups and lengths, each of shape [L]."""
    episodes, successes, turns, turns_in_successes = (
        grid.totals[name].to_numpy()
        for name in ("episodes", "successes", "turns", "turns_in_successes")
    )
    by_cell = TaskSums(
        episodes, successes, grid("x") / unit, grid("xx") / unit**2, grid("xo") / unit
    )
    of_tier, having, won = grid("turns"), grid("episodes"), grid("successes")
    return TierSums(
        grid.tiers,
        LengthSums(task, group, length, by_cell, of_tier),
        having.sum(axis=0),
        won.sum(axis=0),
        of_tier.sum(axis=0),
        grid("turns_in_successes").sum(axis=0),
        float(turns.sum()),
        float(turns_in_successes.sum()),
        np.zeros_like(task),
        ["all"],
        having,
        won,
    )


def _sum_block(block: Block, group: Ints, tiers: list[str], measure: str) -> tuple[Ints, Ints]:
    """Sum whole episodes per cell, which is a group and a length, and per tier.

    Args:
        block: turns of E episodes.
        group: number of each episode's group, shape [E].
        tiers: names of the C tiers that codes stand for.
        measure: of a tier in an episode.

    Returns:
        Cells in the form group << 32 | length, shape [n]; sums, shape [channels, n, 1 + C],
        whose column 0 sums over all of a cell's episodes.
    """
    shape = (len(group), 1 + len(tiers))
    place = np.repeat(np.arange(shape[0]) * shape[1] + 1, block.lengths)
    place += block.turns["code"].to_numpy()
    turns = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    turns[:, 0] = block.lengths

    cell = (group << _UPPER) + turns[:, 0]
    order = np.argsort(cell, kind="stable")
    cell, turns = cell[order], turns[order]
    bounds = np.flatnonzero(np.diff(cell, prepend=-1))
    won = block.episodes["success"].to_numpy()[order, None].astype(np.int64)
    # Over the episodes of each cell: [E, 1 + C] -> [n, 1 + C], as many as the cache holds at once.
    sums = np.empty((2 if measure == "presence" else 5, len(bounds), shape[1]), np.int64)
    for at in range(0, len(bounds), _CELLS):
        some = slice(bounds[at], bounds[at + _CELLS] if at + _CELLS < len(bounds) else shape[0])
        begins = bounds[at : at + _CELLS] - bounds[at]
        channels = _channels(turns[some], won[some], measure)
        for value, out in zip(channels, sums[:, at : at + _CELLS], strict=True):
            np.add.reduceat(value, begins, axis=0, out=out)
    return cell[bounds], sums


def _channels(turns: Ints, won: Ints, measure: str) -> list[Ints]:
    """Return what is summed over episodes [E, 1 + C], from turns [E, 1 + C] and success [E, 1]."""
    # Half as many sums: a number counts all episodes in its lower half, successes in its upper.
    both = 1 + (won << _UPPER)
    channels = [(turns > 0) * both, turns * both]
    if measure == "presence":
        return channels
    x = turns if measure == "count" else np.rint(UNITS["share"] * turns / turns[:, :1])
    x = x.astype(np.int64)
    return [*channels, x, x * x, x * won]


class _GrowingTable:
    """Sums over cells and tiers that are met one block after another."""

    def __init__(self) -> None:
        self.groups = pl.DataFrame(schema={**_GROUP_TYPES, "number": pl.Int64()})
        self.tiers: list[str] = []
        self.cells: Ints = np.zeros(0, np.int64)  # sorted
        self.rows: Ints = np.zeros(0, np.int64)  # of each cell in the sums
        self.sums: Ints = np.zeros((0, 0, 1), np.int64)  # [channels, rows, 1 + C]

    def number(self, episodes: pl.DataFrame) -> Ints:
        """Return the number of each episode's group, shape [E]; episodes hold `_GROUP`."""
        changes = (pl.col(name).ne_missing(pl.col(name).shift()) for name in _GROUP)
        first = pl.int_range(pl.len()) == 0
        begins = episodes.select(pl.any_horizontal(first, *changes)).to_series()
        runs = episodes.filter(begins)
        numbers = self._known(runs)
        if numbers.null_count():
            new = runs.filter(numbers.is_null()).unique(maintain_order=True)
            row = pl.int_range(self.groups.height, self.groups.height + new.height, eager=True)
            self.groups = pl.concat([self.groups, new.with_columns(number=row)])
            numbers = self._known(runs)
        run = np.cumsum(begins.to_numpy()) - 1
        return np.asarray(numbers.to_numpy()[run], np.int64)

    def _known(self, groups: pl.DataFrame) -> pl.Series:
        """Return the number of each group; null where it is new."""
        joined = groups.join(
            self.groups, on=_GROUP, how="left", nulls_equal=True, maintain_order="left"
        )
        return joined["number"]

    def add(self, cells: Ints, tiers: list[str], sums: Ints) -> None:
        """Add the sums [channels, n, 1 + C] of these cells; tiers go on where the last ended."""
        self.tiers = tiers
        at = np.searchsorted(self.cells, cells)
        new = np.ones(len(cells), np.bool_)
        inside = at < len(self.cells)
        new[inside] = self.cells[at[inside]] != cells[inside]
        if new.any():
            rows = len(self.cells) + np.arange(np.count_nonzero(new))
            self.rows = np.insert(self.rows, at[new], rows)
            self.cells = np.insert(self.cells, at[new], cells[new])
            at = np.searchsorted(self.cells, cells)
        (_, rows_had, tiers_had), need = self.sums.shape, len(self.cells)
        if need > rows_had or sums.shape[2] > tiers_had:
            # Doubling keeps the cost of growing in proportion to the result.
            grown = np.zeros((len(sums), max(need, 2 * rows_had), sums.shape[2]), np.int64)
            grown[: len(self.sums), :rows_had, :tiers_had] = self.sums
            self.sums = grown
        rows = self.rows[at]
        for total, part in zip(self.sums, sums, strict=True):
            total[rows] += part

    def frame(self) -> pl.DataFrame:
        """Return the rows with at least one episode (SUMS), sorted by their key."""
        groups = self.groups
        tiers = pl.Series([None, *self.tiers], dtype=pl.String)
        by_tier = tiers.arg_sort().to_numpy()  # null, the totals, sorts first
        rank = groups.sort(_GROUP)["number"].arg_sort().to_numpy()
        group, length = self.cells >> _UPPER, self.cells & _LOWER
        by_cell = np.lexsort((length, rank[group]))
        rows = self.rows[by_cell]
        cell, tier = np.nonzero(self.sums[0][rows[:, None], by_tier])
        sums = self.sums[:, rows[cell], by_tier[tier]]
        episodes, successes = sums[0] & _LOWER, sums[0] >> _UPPER
        # For presence, x is 0 or 1.
        x, xx, xo = sums[2:] if len(sums) > 2 else (episodes, episodes, successes)
        cell = by_cell[cell]
        columns = {
            **{name: groups[name][group[cell]] for name in _GROUP},
            "length": length[cell],
            "tier": tiers[by_tier][tier],
            "episodes": episodes,
            "successes": successes,
            "turns": sums[1] & _LOWER,
            "turns_in_successes": sums[1] >> _UPPER,
            "x": x,
            "xx": xx,
            "xo": xo,
        }
        return pl.DataFrame(columns, schema=SUMS.columns)
