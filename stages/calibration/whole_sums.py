"""Consistency checks of sums, which may come from other machines and other programs."""

from __future__ import annotations

import polars as pl

from stages.calibration.sums import UNITS
from stages.errors import InputError
from stages.tables.artifacts import SUMS

_CELL = [name for name in SUMS.key if name != "tier"]
_COUNTS = ["episodes", "successes", "turns", "turns_in_successes"]
_LARGEST = 2**40  # of a count; sums of squared shares then stay below 2^63 for realistic data


def check_sums(sums: pl.DataFrame, measure: str, where: str) -> None:
    """Raise InputError if no turns can have these sums.

    Args:
        sums: SUMS.
        measure: presence | count | share, the measure of the sums.
        where: name of the sums in errors.

    Raises:
        InputError: a count is impossible, or the tiers of a cell do not add up to its total.
    """
    SUMS.check_rules(_rules(measure), sums, where)
    of_tier = sums.filter(pl.col("tier").is_not_null())
    added = of_tier.group_by(_CELL).agg(
        pl.col("turns", "turns_in_successes").sum(),
        most=pl.col("episodes").max(),
        most_won=pl.col("successes").max(),
        most_lost=(pl.col("episodes") - pl.col("successes")).max(),
    )
    totals = sums.filter(pl.col("tier").is_null())
    both = totals.join(added, on=_CELL, how="full", nulls_equal=True, suffix="_added")
    lost = pl.col("episodes") - pl.col("successes")
    fits = (
        (pl.col("turns") == pl.col("turns_added"))
        & (pl.col("turns_in_successes") == pl.col("turns_in_successes_added"))
        & (pl.col("most") <= pl.col("episodes"))
        & (pl.col("most_won") <= pl.col("successes"))
        & (pl.col("most_lost") <= lost)
    )
    wrong = both.filter(~fits.fill_null(False))
    if wrong.height:
        row = wrong.row(0, named=True)
        task, length = (
            row[n] if row[n] is not None else row[f"{n}_added"] for n in ("task_id", "length")
        )
        what = f"the tiers of task '{task}' at length {length} do not add up to its total"
        raise InputError(where, what, f"rerun {SUMS.made_by}")


def _rules(measure: str) -> dict[str, pl.Expr]:
    """Return the rules that each row must satisfy, by the name that users read."""
    total, unit = pl.col("tier").is_null(), UNITS[measure]
    episodes, won, turns, turns_won = (pl.col(name) for name in _COUNTS)
    x, xx, xo, length = (pl.col(name) for name in ("x", "xx", "xo", "length"))
    rules = {
        "tasks, groups and sums not null": pl.all_horizontal(
            pl.col(name).is_not_null()
            for name in ("task_id", "group_id", "length", *_COUNTS, "x", "xx", "xo")
        ),
        "counts from 0 to 2^40": pl.all_horizontal(
            pl.col(name).is_between(0, _LARGEST) for name in _COUNTS
        ),
        "length and episodes at least 1": (length >= 1) & (episodes >= 1),
        "successes at most episodes": won <= episodes,
        "turns as long as the episodes": pl.when(total)
        .then((turns == episodes * length) & (turns_won == won * length))
        .otherwise(
            turns.is_between(episodes, episodes * length)
            & turns_won.is_between(won, won * length)
            & (turns - turns_won).is_between(episodes - won, (episodes - won) * length)
        ),
    }
    sums = {
        "presence": (x == episodes) & (xx == episodes) & (xo == won),
        "count": (x == turns) & (xo == turns_won) & (xx >= x),
        "share": (x >= xo) & (xo >= 0) & (x <= episodes * unit) & (xx <= x * unit) & (xx >= 0),
    }
    return rules | {f"x, xx and xo of measure {measure}": sums[measure]}
