"""Turns in checked blocks of whole episodes, so that memory holds only a few blocks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.correlation import Ints
from stages.errors import InputError
from stages.tables.artifacts import COUNTS, TURNS
from stages.traces.episode import SUCCESS

# Columns with one value per episode; turns may lack the last one.
OF_EPISODE = ["task_id", "group_id", "policy", "domain", "success", "status", "outcome"]
COLUMNS = ["episode_id", "turn", "tier", "reward", *OF_EPISODE]  # the columns that are read
_ONLY_CHECKED = ("reward", "outcome")  # not summed, so turns may lack them
_KNOWN = ("episode_id", "task_id", "group_id", "turn", "tier", "reward", "status")  # never null
# Without null rules, because null counts are free, and without the rule on `turn`, because
# `_check_order` is stricter.
_RULES = {
    rule: holds
    for rule, holds in TURNS.rules.items()
    if not rule.endswith("not null") and holds.meta.root_names() != ["turn"]
} | {"success as the outcome says": pl.col("success").eq_missing(pl.col("outcome") >= SUCCESS)}
_BLOCK = 1 << 19  # turns; two of polars' row groups


class Block(NamedTuple):
    """Turns of whole episodes."""

    turns: pl.DataFrame  # [N] COLUMNS, and `code`: position of the turn's tier among the tiers
    episodes: pl.DataFrame  # [E] the columns with one value per episode
    begins: Ints  # [E] row of each episode's first turn

    @property
    def lengths(self) -> Ints:
        """Number of turns of each episode, [E]."""
        return np.diff(self.begins, append=self.turns.height)

    def without_last(self) -> Block:
        """Return the block without its last episode."""
        return Block(self.turns[: int(self.begins[-1])], self.episodes[:-1], self.begins[:-1])

    def counting(self) -> Block:
        """Return the block without excluded episodes and episodes of unknown success."""
        counts = self.episodes.select(COUNTS & pl.col("success").is_not_null()).to_series()
        if counts.all():
            return self
        lengths, kept = self.lengths, counts.to_numpy()
        turns = self.turns.filter(pl.Series(np.repeat(kept, lengths)))
        ends = np.cumsum(lengths[kept])
        return Block(turns, self.episodes.filter(counts), ends - lengths[kept])


def episode_blocks(turns: pl.LazyFrame, where: str) -> Iterator[tuple[Block, list[str]]]:
    """Yield blocks of whole episodes, with the tiers seen so far.

    Args:
        turns: turns with the columns `COLUMNS`, each episode contiguous and in order.
        where: name of the turns in errors.

    Yields:
        A block, and the names of the tiers that its codes index.

    Raises:
        InputError: a row breaks a rule of TURNS, the turns of an episode are not contiguous and in
            order, or they differ in a column that has one value per episode.
    """
    held = turns.collect_schema().names()
    turns = turns.select(n for n in COLUMNS if n in held or n not in _ONLY_CHECKED)
    start, size, tiers = 0, _BLOCK, list[str]()
    with ThreadPoolExecutor(1) as reader:  # reads and checks a block ahead
        coming = reader.submit(_read_block, turns, start, size, tiers, where)
        while rows := (block := coming.result()).turns.height:
            if block.turns["code"].null_count():
                tiers = list(dict.fromkeys([*tiers, *block.turns["tier"].unique().sort()]))
                block = block._replace(turns=block.turns.with_columns(code=_code(tiers)))
            if rows == size:  # the last episode may continue, so the next block reads it again
                block = block.without_last()
                size *= 1 if block.turns.height else 2
            start += block.turns.height
            coming = reader.submit(_read_block, turns, start, size, tiers, where)
            if block.turns.height:
                yield block, tiers


def _read_block(turns: pl.LazyFrame, start: int, size: int, tiers: list[str], where: str) -> Block:
    # Computing the columns in the same query as the read costs twice as much.
    rows = turns.slice(start, size).collect().with_columns(code=_code(tiers))
    new = pl.col("episode_id").ne_missing(pl.col("episode_id").shift())
    first = rows.select(new).to_series()
    held = [name for name in rows.columns if name in ("episode_id", *OF_EPISODE)]
    block = Block(rows, rows.select(held).filter(first), np.flatnonzero(first.to_numpy()))
    _check_rows(block, start, where)
    _check_order(block, start, where)
    _check_episodes(rows, first, start, where)
    return block


def _code(tiers: list[str]) -> pl.Expr:
    """Return the position of each turn's tier among the tiers; null for any other tier."""
    return pl.col("tier").cast(pl.Enum(tiers), strict=False).to_physical()


def _check_rows(block: Block, start: int, where: str) -> None:
    rules = {
        f"{name} not null": pl.col(name).is_not_null()
        for name in _KNOWN
        if name in block.turns.columns and block.turns[name].null_count()
    }
    # Columns with one value per episode (see `_check_episodes`) are tested on the first turn only.
    for rows, names in ((block.episodes, set(OF_EPISODE)), (block.turns, {"reward"})):
        of_rows = {
            rule: holds
            for rule, holds in _RULES.items()
            if set(holds.meta.root_names()) <= names & set(rows.columns)
        }
        hold = rows.select(**{rule: holds.fill_null(True).all() for rule, holds in of_rows.items()})
        rules |= {rule: holds for rule, holds in of_rows.items() if not hold[rule].all()}
    TURNS.check_rules(rules, block.turns, where, start)


def _check_order(block: Block, start: int, where: str) -> None:
    """Raise InputError unless each episode's turns are contiguous and numbered 0, 1, 2, ..."""
    turn = block.turns["turn"].to_numpy()
    expected = np.empty_like(turn)
    np.add(turn[:-1], 1, out=expected[1:])
    expected[block.begins] = 0
    if (turn != expected).any():
        row = start + int(np.argmax(turn != expected)) + 1
        what = "the turns of an episode are not consecutive rows, in order from 0"
        raise InputError(f"{where}:row {row}", what, "sort by episode_id, turn")


def _check_episodes(turns: pl.DataFrame, first: pl.Series, start: int, where: str) -> None:
    """Raise InputError if the turns of an episode differ in a column with one value per episode."""
    names = _varying(turns)
    goes_on = pl.lit(~first)
    changes = {name: goes_on & pl.col(name).ne_missing(pl.col(name).shift()) for name in names}
    changed = turns.select(**{name: change.any() for name, change in changes.items()})
    for name in names:
        if changed[name].any():
            row = turns.select(changes[name].arg_true()).to_series()[0]
            before, here = turns[name][row - 1], turns[name][row]
            what = (
                f"the turns of episode '{turns['episode_id'][row]}' differ in '{name}': "
                f"{before!r} and {here!r}"
            )
            raise InputError(f"{where}:row {start + row + 1}", what, "give an episode one of them")


def _varying(turns: pl.DataFrame) -> list[str]:
    """Return the columns of `OF_EPISODE` that have several values.

    This is cheaper than finding where values change.
    """
    held = [turns[name] for name in OF_EPISODE if name in turns.columns and turns.height]
    alike = [column.name for column in held if column[0] == column[-1]]
    same = turns.select(pl.col(name).eq_missing(pl.col(name).first()).all() for name in alike)
    return [column.name for column in held if column.name not in alike or not same[column.name][0]]
