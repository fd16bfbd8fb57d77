"""Sums per group, length and tier: the sufficient statistics of calibration.

The sums are integers, so merging shards in any order gives the same table, bit for bit. Turns are
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
_CELLS = 1 << 13  # cells summed at once
_UPPER = 32  # bits; an integer packs two counts below 2^32, or a group and a length
_LOWER = 2**_UPPER - 1
_CHANNELS = [name for name in SUMS.columns if name not in SUMS.key]


class Summed(NamedTuple):
    """The sums over some turns, and the number of excluded episodes."""

    sums: pl.DataFrame  # SUMS
    excluded: int  # episodes that crashed, were cut by infrastructure, or have no outcome
    fingerprint: Fingerprint | None = None  # of the episodes; None: unknown


def sum_turns(turns: pl.LazyFrame, measure: str, where: str) -> Summed:
    """Sum a measure of the tiers per group and length (TURNS -> SUMS).

    Args:
        turns: turns of whole episodes, each episode contiguous and in order, as `score` writes
            them.
        measure: presence | count | share of the tier in an episode.
        where: name of the turns in errors.

    Returns:
        The sums with the fingerprint of the episodes.

    Raises:
        InputError: a row breaks a rule of TURNS, the turns of an episode are not contiguous and in
            order, or they differ in a column that has one value per episode.
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
    """Sums as arrays; tasks, groups and tiers are sorted by name."""

    tiers: list[str]  # [C]
    cells: LengthSums
    episodes: Floats  # [C] episodes with the tier
    successes: Floats  # [C] successes among them
    turns: Floats  # [C] turns of the tier
    turns_in_successes: Floats  # [C] turns of the tier in successes
    all_turns: float
    all_turns_in_successes: float
    stratum: Ints  # [L] stratum of each cell
    strata: list[str]  # names of the strata: policy and domain, as far as they vary
    having: Floats  # [L, C] episodes with the tier, whatever the measure
    won: Floats  # [L, C] successes among them

    @property
    def tasks(self) -> TaskSums:
        """The sums per task, over all lengths and groups."""
        return TaskSums(*(add_by(part, self.cells.task) for part in self.cells.sums))


class Grid:
    """A table of sums as arrays over cells and tiers [L, C], both sorted by name."""

    def __init__(self, sums: pl.DataFrame, cell: list[str]) -> None:
        """Index a table whose columns `cell` identify a cell; the row with tier null is its total.

        Args:
            sums: a table with the columns of SUMS or ONLINE.
            cell: names of the columns that identify a cell.
        """
        sums = sums.sort([*cell, "tier"])  # null sorts first, so a cell's total comes first
        total = sums["tier"].is_null()
        tiers = sums["tier"].drop_nulls().unique().sort()
        self.totals, self.rows = sums.filter(total), sums.filter(~total)
        self.tiers: list[str] = tiers.to_list()
        self.cell = total.cum_sum().filter(~total).to_numpy().astype(np.int64) - 1
        self.tier = self.rows["tier"].cast(pl.Enum(tiers)).to_physical().to_numpy()

    def __call__(self, name: str) -> Floats:
        """Return a column as an array [L, C]; 0 where a cell lacks the tier."""
        array = np.zeros((self.totals.height, len(self.tiers)))
        array[self.cell, self.tier] = self.rows[name].to_numpy()
        return array


def lay_out(sums: pl.DataFrame, measure: str) -> TierSums:
    """Convert a table of sums (SUMS) to arrays over groups, lengths and tiers.

    Args:
        sums: SUMS.
        measure: presence | count | share, the measure of the sums.

    Returns:
        The arrays, in the unit of the measure.
    """
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
    """Give each group a single policy and domain.

    If a trace states groups but no policy, the file name stands for the policy. A group spread over
    several files then has several policies but is still one group.
    """
    named = sums.with_columns(pl.col("policy", "domain").min().over("task_id", "group_id"))
    return sums if named.equals(sums) else merge([named])


def tier_sums(grid: Grid, task: Ints, group: Ints, length: Ints, unit: int) -> TierSums:
    """Return the sums of a grid as arrays.

    Args:
        grid: grid of L cells and C tiers.
        task: number of each cell's task, sorted, shape [L].
        group: number of each cell's group, sorted, shape [L].
        length: number of turns of each cell's episodes, shape [L].
        unit: unit of the measure's sums, see UNITS.

    Returns:
        The arrays, with a single stratum.
    """
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
    """Sum whole episodes per cell (group and length) and per tier.

    Args:
        block: turns of E episodes.
        group: number of each episode's group, shape [E].
        tiers: names of the C tiers, indexed by the turns' codes.
        measure: presence | count | share.

    Returns:
        Cells encoded as group << 32 | length, shape [n]; and sums, shape [channels, n, 1 + C],
        whose column 0 is the total over a cell's episodes.
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
    # Sum over the episodes of each cell, [E, 1 + C] -> [n, 1 + C], in chunks that fit the cache.
    sums = np.empty((2 if measure == "presence" else 5, len(bounds), shape[1]), np.int64)
    for at in range(0, len(bounds), _CELLS):
        some = slice(bounds[at], bounds[at + _CELLS] if at + _CELLS < len(bounds) else shape[0])
        begins = bounds[at : at + _CELLS] - bounds[at]
        channels = _channels(turns[some], won[some], measure)
        for value, out in zip(channels, sums[:, at : at + _CELLS], strict=True):
            np.add.reduceat(value, begins, axis=0, out=out)
    return cell[bounds], sums


def _channels(turns: Ints, won: Ints, measure: str) -> list[Ints]:
    """Return the summands per episode [E, 1 + C], from turns [E, 1 + C] and success [E, 1]."""
    # Packing halves the sums: the lower half counts all episodes, the upper half successes.
    both = 1 + (won << _UPPER)
    channels = [(turns > 0) * both, turns * both]
    if measure == "presence":
        return channels
    x = turns if measure == "count" else np.rint(UNITS["share"] * turns / turns[:, :1])
    x = x.astype(np.int64)
    return [*channels, x, x * x, x * won]


class _GrowingTable:
    """Sums over cells and tiers, extended block by block."""

    def __init__(self) -> None:
        self.groups = pl.DataFrame(schema={**_GROUP_TYPES, "number": pl.Int64()})
        self.tiers: list[str] = []
        self.cells: Ints = np.zeros(0, np.int64)  # sorted
        self.rows: Ints = np.zeros(0, np.int64)  # row of each cell in the sums
        self.sums: Ints = np.zeros((0, 0, 1), np.int64)  # [channels, rows, 1 + C]

    def number(self, episodes: pl.DataFrame) -> Ints:
        """Return the number of each episode's group, shape [E]; `episodes` has columns `_GROUP`."""
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
        """Return the number of each group; null for a new group."""
        joined = groups.join(
            self.groups, on=_GROUP, how="left", nulls_equal=True, maintain_order="left"
        )
        return joined["number"]

    def add(self, cells: Ints, tiers: list[str], sums: Ints) -> None:
        """Add the sums [channels, n, 1 + C] of n cells; `tiers` may only grow at the end."""
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
            # Doubling keeps the total cost of growing linear in the result.
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
