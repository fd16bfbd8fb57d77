"""Read advantages that `calibrate` wrote, and check them against the turns they are used for."""

from __future__ import annotations

import numpy as np
import polars as pl

from stages.core.correlation import Floats
from stages.core.payment import Values
from stages.errors import InputError
from stages.tables.artifacts import ADVANTAGES
from stages.tables.files import digest
from stages.tables.paths import remote
from stages.tables.table_file import made_from, read_table
from stages.tables.turn_arrays import TurnArrays, potential_rewards, tier_rewards

KEY = ["episode_id", "turn"]
RERUN = "rerun irc-cli calibrate on these turns"
SLACK = 1e-9  # tolerance between a reward in the table and the calibration's


def inspected_advantages(
    path: str, turns: TurnArrays, where: str, values: Values | None = None
) -> pl.DataFrame:
    """Return a file's advantages of the given turns, in their order.

    Args:
        path: path of the advantages that `calibrate` wrote.
        turns: counted turns, each of which must have an advantage.
        where: path of the turns.
        values: value of each tier by a calibration; None: none was given.

    Returns:
        A row for each turn (ADVANTAGES).

    Raises:
        InputError: the advantages are of other turns, lack a turn, or have other rewards.
    """
    known = read_table(ADVANTAGES, path)
    _check_origin(path, where)
    frame = turns.frame.select(*KEY, "tier")
    if known.join(frame, on=KEY, how="semi").is_empty():
        raise InputError(path, f"has no turn of the episodes in {where}", RERUN)
    lacking = frame.join(known, on=KEY, how="anti", maintain_order="left")
    for episode, turn, _ in lacking.head(1).iter_rows():
        what = f"no advantage of turn {turn} of episode '{episode}' ({lacking.height:,} lacking)"
        raise InputError(path, what, RERUN)
    table = frame.join(known, on=KEY, how="left", maintain_order="left", suffix="_known")
    differ = table.filter(pl.col("tier") != pl.col("tier_known"))
    for episode, turn, tier, other in differ.select(*KEY, "tier", "tier_known").head(1).iter_rows():
        what = f"turn {turn} of episode '{episode}' is of tier '{other}', in {where} of '{tier}'"
        raise InputError(path, what, RERUN)
    if values is not None:
        worth = tier_rewards(turns, values)
        if values.critic and table["forecast_before"].is_not_null().any():
            worth = potential_rewards(turns, values.critic)
        _check_values(path, table, worth)
    return table.select(list(ADVANTAGES.columns))


def _check_origin(path: str, turns: str) -> None:
    """Raise InputError if the advantages record that they were made from other turns.

    Episodes of two iterations may have the same names and tiers, so that only this distinguishes
    them.
    """
    known = set(made_from(path).values())
    if not known or None in known or turns == "-" or remote(turns):
        return
    if digest(turns) not in known:
        raise InputError(path, f"was made from other turns than {turns}", RERUN)


def _check_values(path: str, table: pl.DataFrame, worth: Floats) -> None:
    """Raise InputError if rewards are not those of the calibration."""
    far = np.abs(table["reward"].to_numpy() - worth) > SLACK
    for episode, turn in table.filter(pl.Series(far)).select(KEY).head(1).iter_rows():
        what = f"turn {turn} of episode '{episode}' has another reward than --calibration gives"
        raise InputError(path, what, "give the calibration.yaml beside it, or leave that out")
