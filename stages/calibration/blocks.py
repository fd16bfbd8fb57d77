"""Turns read in blocks of whole episodes, each block checked: memory is that of a block."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import polars as pl

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


def episode_blocks(turns: pl.LazyFrame, where: str) -> Iterator[tuple[pl.DataFrame, list[str]]]:
    """Yield blocks of whole episodes, and the tiers met so far.

    Columns are added: `first`, true at an episode's first turn; `counts`, whether the episode does;
    `code`, the position of the turn's tier among the tiers.

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
        while (block := coming.result()).height:
            if block["code"].null_count():
                tiers = list(dict.fromkeys([*tiers, *block["tier"].unique().sort()]))
                block = block.with_columns(code=_code(tiers))
            whole = block.height
            if whole == size:  # the last episode may go on: it is read again with the next block
                whole = int(block["first"].arg_true()[-1])
                size *= 1 if whole else 2
            start += whole
            coming = reader.submit(_read_block, turns, start, size, tiers, where)
            if whole:
                yield block[:whole], tiers


def _read_block(
    turns: pl.LazyFrame, start: int, size: int, tiers: list[str], where: str
) -> pl.DataFrame:
    new = pl.col("episode_id").ne_missing(pl.col("episode_id").shift())
    row = pl.int_range(pl.len())
    counts = COUNTS & pl.col("success").is_not_null()
    columns = {"first": new | (row == 0), "counts": counts, "code": _code(tiers)}
    block = turns.slice(start, size).with_columns(**columns).collect()
    _check_block(block, start, where)
    return block


def _code(tiers: list[str]) -> pl.Expr:
    """Position of each turn's tier among the tiers; null for any other tier."""
    return pl.col("tier").cast(pl.Enum(tiers), strict=False).to_physical()


def _check_block(block: pl.DataFrame, start: int, where: str) -> None:
    rules = {rule: holds for rule, holds in _RULES.items() if _breaks(holds, block)}
    for name in _KNOWN:
        if name in block.columns and block[name].null_count():
            rules[f"{name} not null"] = pl.col(name).is_not_null()
    TURNS.check_rules(rules, block, where, start)
    _check_order(block, start, where)
    _check_episodes(block, start, where)


def _breaks(holds: pl.Expr, block: pl.DataFrame) -> bool:
    """Whether a row breaks a rule; a rule on columns that the block lacks holds."""
    names = set(holds.meta.root_names())
    if not names <= set(block.columns):
        return False
    rows = block.lazy().select(*names, "first")
    if names <= set(OF_EPISODE):  # one value for all turns of an episode, as is checked besides
        rows = rows.filter("first")
    return not rows.select(holds.fill_null(True).all()).collect().item()


def _check_order(block: pl.DataFrame, start: int, where: str) -> None:
    """Raise InputError unless each episode's turns stand together as 0, 1, 2, ..."""
    turn, first = block["turn"].to_numpy(), block["first"].to_numpy()
    expected = np.empty_like(turn)
    np.add(turn[:-1], 1, out=expected[1:])
    expected[first] = 0
    if (turn != expected).any():
        row = start + int(np.argmax(turn != expected)) + 1
        what = "the turns of an episode do not stand together, in order from 0"
        raise InputError(f"{where}:row {row}", what, "sort by episode_id, turn")


def _check_episodes(block: pl.DataFrame, start: int, where: str) -> None:
    """Raise InputError where the turns of an episode differ in what is one for all of them."""
    for name in (name for name in OF_EPISODE if name in block.columns):
        if not _varies(block, name):
            continue
        changes = pl.col(name).ne_missing(pl.col(name).shift()) & ~pl.col("first")
        rows = block.select(changes.arg_true()).to_series()
        if len(rows):
            row = rows[0]
            before, here = (block[name][at] for at in (row - 1, row))
            what = (
                f"the turns of episode '{block['episode_id'][row]}' differ in '{name}': "
                f"{before!r} and {here!r}"
            )
            raise InputError(f"{where}:row {start + row + 1}", what, "give an episode one of them")


def _varies(block: pl.DataFrame, name: str) -> bool:
    """Whether a column has several values, which is cheaper to tell than where they change."""
    return not block.select(pl.col(name).eq_missing(pl.col(name).first()).all()).item()
