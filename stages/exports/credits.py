"""Rewards and advantages of turns, for the formats that hold them (TURNS, ADVANTAGES -> rows)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from stages.errors import InputError
from stages.tables.turn_arrays import turn_arrays

CREDIT = ("advantage", "return_part", "outcome_part")
SLACK = 1e-9  # tolerance of a sum of rewards, per turn

Row = dict[str, Any]
Credits = Mapping[tuple[str, int], Row]  # by episode and turn


class Earned(NamedTuple):
    """The rewards of the K turns of an episode; the outcome is separate."""

    tiers: list[str]  # [K]
    raw: list[float]  # [K], as scored
    shaped: list[float]  # [K], as calibrated; as scored if no calibration was given
    total: float  # sum of the shaped rewards, as the table sums them
    outcome: float  # in [0, 1]


def credits_of(turns: pl.DataFrame, advantages: pl.DataFrame | None) -> dict[tuple[str, int], Row]:
    """Return the content of `extra.irc_cli` for each turn, by episode and turn.

    Args:
        turns: turns with tiers and raw rewards (TURNS).
        advantages: calibrated rewards, advantages and their parts (ADVANTAGES); None: left out.
    """
    columns = turns.select("episode_id", "turn", "tier", raw_reward="reward")
    if advantages is not None:
        known = advantages.select("episode_id", "turn", "reward", *CREDIT)
        columns = columns.join(known, on=["episode_id", "turn"], how="left")
    rows = columns.iter_rows(named=True)
    return {(row.pop("episode_id"), row["turn"]): row for row in rows}


def check_credits(
    credits: Iterable[tuple[str, int]], n_turns: Mapping[str, int], where: str
) -> None:
    """Raise InputError unless the turns file has exactly the turns of each counted episode.

    Args:
        credits: known turns, as episode and turn.
        n_turns: number of turns of each counted episode.
        where: the file of the turns.

    Raises:
        InputError: an episode has more or fewer turns.
    """
    had = Counter(episode for episode, _ in credits)
    for episode, count in n_turns.items():
        if had[episode] != count:
            what = f"has {had[episode]:,} turns of episode '{episode}', which has {count:,}"
            raise InputError(where, what, "rerun irc-cli score on these traces")


def earned(turns: pl.DataFrame, advantages: pl.DataFrame | None) -> dict[str, Earned]:
    """Return the rewards of each counted episode with an outcome, by its id.

    Args:
        turns: turns with tiers and raw rewards (TURNS).
        advantages: advantages of these turns, with calibrated rewards (ADVANTAGES); None: the raw
            rewards are paid.
    """
    frame = turn_arrays(turns).frame.select(
        "episode_id", "turn", "tier", "outcome", raw="reward", shaped="reward"
    )
    if advantages is not None:
        key = ["episode_id", "turn"]
        known = advantages.select(*key, shaped="reward")
        frame = frame.drop("shaped").join(known, on=key, how="left", maintain_order="left")
    several = ("tier", "raw", "shaped")
    rows = frame.group_by("episode_id", maintain_order=True).agg(
        *several, total=pl.col("shaped").sum(), outcome=pl.col("outcome").first()
    )
    parts = rows.select("episode_id", *several, "total", "outcome").iter_rows()
    return {episode: Earned(*values) for episode, *values in parts}


def check_turn_count(turns: int, gains: Earned, episode: str, what: str) -> None:
    """Raise InputError unless a format separates the turns of an episode as we do.

    Args:
        turns: number of turns that the written format separates.
        gains: rewards of the turns.
        episode: name of the episode in the error.
        what: what is written, such as "a trace".

    Raises:
        InputError: there are more or fewer.
    """
    if turns != len(gains.shaped):
        differ = f"has {len(gains.shaped):,} turns, of which {what} can tell {turns:,}"
        raise InputError(f"episode '{episode}'", differ, "export its messages")


def check_sum(paid: Sequence[float], claimed: float, episode: str) -> None:
    """Raise InputError unless the written rewards add up to the sum in the tables.

    A turn without a place in a format, such as one without tokens, would lose its reward.

    Args:
        paid: the rewards as written.
        claimed: their sum in the tables.
        episode: name of the episode in the error.

    Raises:
        InputError: they add up to something else.
    """
    total = math.fsum(paid)
    if abs(total - claimed) > SLACK * max(1, len(paid)):
        what = f"its rewards add up to {total:g} as written, not to {claimed:g}"
        raise InputError(f"episode '{episode}'", what, "leave it out, or report this as a bug")
