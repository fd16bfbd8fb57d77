"""What each turn earned, for the formats that hold it (TURNS, ADVANTAGES -> rows by turn)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from stages.errors import InputError
from stages.tables.turn_arrays import turn_arrays

CREDIT = ("advantage", "return_part", "outcome_part")
SLACK = 1e-9  # that a sum of rewards may be off by, per turn

Row = dict[str, Any]
Credits = Mapping[tuple[str, int], Row]  # by episode and turn


class Earned(NamedTuple):
    """What the K turns of an episode earned; the outcome is kept apart."""

    tiers: list[str]  # [K]
    raw: list[float]  # [K], as scored
    shaped: list[float]  # [K], as calibrated; as scored where no calibration was given
    total: float  # of the shaped rewards, summed in the table
    outcome: float  # in [0, 1]


def credits_of(turns: pl.DataFrame, advantages: pl.DataFrame | None) -> dict[tuple[str, int], Row]:
    """Return what `extra.irc_cli` of each turn says.

    Args:
        turns: with their tiers and raw rewards (TURNS).
        advantages: with the calibrated reward, and the advantage and its parts (ADVANTAGES).
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
    """Raise InputError unless each of some episodes has all of its turns and no other.

    Args:
        credits: the turns that are known, as episode and number.
        n_turns: of each episode that counts.
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
    """Return what each episode that counts and has an outcome earned, by its id.

    Args:
        turns: with their tiers and raw rewards (TURNS).
        advantages: of these turns, whose rewards are the calibrated ones (ADVANTAGES).
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


def check_told(turns: int, gains: Earned, episode: str, what: str) -> None:
    """Raise InputError unless a format tells the turns of an episode apart as we do.

    Args:
        turns: that can be told in what is written.
        gains: what the turns earned.
        episode: name of the episode in the error.
        what: is written, such as "a trace".

    Raises:
        InputError: there are more or fewer.
    """
    if turns != len(gains.shaped):
        differ = f"has {len(gains.shaped):,} turns, of which {what} can tell {turns:,}"
        raise InputError(f"episode '{episode}'", differ, "export its messages")


def check_sum(paid: Sequence[float], claimed: float, episode: str) -> None:
    """Raise InputError unless the rewards that are written add up to what is claimed.

    A turn without a place in a format, such as one without tokens, would lose its reward.

    Args:
        paid: the rewards as written.
        claimed: their sum as the tables have it.
        episode: name of the episode in the error.

    Raises:
        InputError: they add up to something else.
    """
    total = math.fsum(paid)
    if abs(total - claimed) > SLACK * max(1, len(paid)):
        what = f"its rewards add up to {total:g} as written, not to {claimed:g}"
        raise InputError(f"episode '{episode}'", what, "leave it out, or report this as a bug")
