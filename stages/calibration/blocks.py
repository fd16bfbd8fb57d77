"""Turns read in blocks of whole episodes, each block checked: memory is that of a block."""

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

# One value for all turns of an episode; the last one where the turns have it.
OF_EPISODE = ["task_id", "group_id", "policy", "domain", "success", "status", "outcome"]
COLUMNS = ["episode_id", "turn", "tier", "reward", *OF_EPISODE]  # all that is read
_ONLY_CHECKED = ("reward", "outcome")  # not summed, so turns may lack them
_KNOWN = ("episode_id", "task_id", "group_id", "turn", "tier", "reward", "status")  # never null
# Nulls are counted apart, for nothing, and the order of turns says more than their rule.
_RULES = {
    rule: holds
    for rule, holds in TURNS.rules.items()
    if not rule.endswith("not null") and holds.meta.root_names() != ["turn"]
} | {"success as the outcome says": pl.col("success").eq_missing(pl.col("outcome") >= SUCCESS)}
_BLOCK = 1 << 19  # turns: two of the row groups that polars writes


class Block(NamedTuple):
    """Turns of whole episodes."""

    turns: pl.DataFrame  # [N] COLUMNS, and `code`: position of the turn's tier among the tiers
    episodes: pl.DataFrame  # [E] their first turns
    begins: Ints  # [E] rows of the first turns

    @property
    def lengths(self) -> Ints:
        """Turns of each episode, [E]."""
        return np.diff(self.begins, append=self.turns.height)

    def without_last(self) -> Block:
        """Return the block without its last episode."""
        return Block(self.turns[: int(self.begins[-1])], self.episodes[:-1], self.begins[:-1])

    def counting(self) -> Block:
        """Return the episodes that count and have an outcome."""
        counts = self.episodes.select(COUNTS & pl.col("success").is_not_null()).to_series()
        if counts.all():
            return self
        lengths, kept = self.lengths, counts.to_numpy()
        turns = self.turns.filter(pl.Series(np.repeat(kept, lengths)))
        ends = np.cumsum(lengths[kept])
        return Block(turns, self.episodes.filter(counts), ends - lengths[kept])


def episode_blocks(turns: pl.LazyFrame, where: str) -> Iterator[tuple[Block, list[str]]]:
    """Yield blocks of whole episodes, and the tiers met so far.

    Args:
        turns: those of an episode together and in order, with the columns `COLUMNS`.
        where: name of the turns in errors.

    Raises:
        InputError: a row breaks a rule of TURNS, the turns of an episode do not stand together
            and in order, or they differ in what is one for all of them.
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
            if rows == size:  # the last episode may go on: it is read again with the next block
                block = block.without_last()
                size *= 1 if block.turns.height else 2
            start += block.turns.height
            coming = reader.submit(_read_block, turns, start, size, tiers, where)
            if block.turns.height:
                yield block, tiers


def _read_block(turns: pl.LazyFrame, start: int, size: int, tiers: list[str], where: str) -> Block:
    # What is computed in one query with the reading costs twice as much.
    rows = turns.slice(start, size).collect().with_columns(code=_code(tiers))
    new = pl.col("episode_id").ne_missing(pl.col("episode_id").shift())
    first = rows.select(first=new).to_series()
    block = Block(rows, rows.filter(first), np.flatnonzero(first.to_numpy()))
    _check_rows(block, start, where)
    _check_order(block, start, where)
    _check_episodes(rows, first, start, where)
    return block


def _code(tiers: list[str]) -> pl.Expr:
    """Position of each turn's tier among the tiers; null for any other tier."""
    return pl.col("tier").cast(pl.Enum(tiers), strict=False).to_physical()


def _check_rows(block: Block, start: int, where: str) -> None:
    rules = {rule: holds for rule, holds in _RULES.items() if _breaks(holds, block)}
    for name in _KNOWN:
        if name in block.turns.columns and block.turns[name].null_count():
            rules[f"{name} not null"] = pl.col(name).is_not_null()
    TURNS.check_rules(rules, block.turns, where, start)


def _breaks(holds: pl.Expr, block: Block) -> bool:
    """Whether a row breaks a rule; a rule on columns that the block lacks holds."""
    names = set(holds.meta.root_names())
    if not names <= set(block.turns.columns):
        return False
    # One value for all turns of an episode, as is checked besides.
    rows = block.episodes if names <= set(OF_EPISODE) else block.turns
    return not rows.select(holds.fill_null(True).all()).item()


def _check_order(block: Block, start: int, where: str) -> None:
    """Raise InputError unless each episode's turns stand together as 0, 1, 2, ..."""
    turn = block.turns["turn"].to_numpy()
    expected = np.empty_like(turn)
    np.add(turn[:-1], 1, out=expected[1:])
    expected[block.begins] = 0
    if (turn != expected).any():
        row = start + int(np.argmax(turn != expected)) + 1
        what = "the turns of an episode do not stand together, in order from 0"
        raise InputError(f"{where}:row {row}", what, "sort by episode_id, turn")


def _check_episodes(turns: pl.DataFrame, first: pl.Series, start: int, where: str) -> None:
    """Raise InputError where the turns of an episode differ in what is one for all of them."""
    for name in (name for name in OF_EPISODE if name in turns.columns):
        column = turns[name]
        if not _varies(column):
            continue
        changes = column.ne_missing(column.shift()) & ~first
        if changes.any():
            row = int(changes.arg_true()[0])
            what = (
                f"the turns of episode '{turns['episode_id'][row]}' differ in '{name}': "
                f"{column[row - 1]!r} and {column[row]!r}"
            )
            raise InputError(f"{where}:row {start + row + 1}", what, "give an episode one of them")


def _varies(column: pl.Series) -> bool:
    """Whether a column has several values, which is cheaper to tell than where they change."""
    if not len(column):
        return False
    return column[0] != column[-1] or not column.eq_missing(column.first()).all()
