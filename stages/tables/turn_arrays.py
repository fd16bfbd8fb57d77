"""Turns as arrays of the numerical core, and their advantages as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.advantages import AdvantageConfig, Advantages, Layout, advantages, turn_layout
from stages.core.correlation import Bools, Floats, Ints
from stages.core.farmability import first_turns
from stages.core.payment import pay_of
from stages.tables.artifacts import ADVANTAGES, COUNTS


class TurnArrays(NamedTuple):
    """The turns that count, as arrays of the numerical core."""

    frame: pl.DataFrame  # [N] turns, episode after episode
    layout: Layout
    outcome: Floats  # [E]
    tiers: list[str]  # [C]
    tier: Ints  # [N]
    task: Ints  # [N]
    n_tokens: Ints | None  # [N]; None unless all are known


def turn_arrays(turns: pl.DataFrame) -> TurnArrays:
    """Lay out the turns (TURNS) of the episodes that count."""
    counts = COUNTS & pl.col("outcome").is_not_null()
    frame = turns.filter(counts)
    episode = (frame["episode_id"].rle_id()).to_numpy().astype(np.int64)
    first = frame.filter(pl.col("turn") == 0)
    tiers = frame["tier"].unique().sort()
    tokens = frame["n_tokens"]
    return TurnArrays(
        frame=frame,
        layout=turn_layout(episode, frame["turn"].to_numpy(), _codes(first["group_id"])),
        outcome=first["outcome"].to_numpy(),
        tiers=tiers.to_list(),
        tier=_codes(frame["tier"]),
        task=_codes(frame["task_id"]),
        n_tokens=None if tokens.null_count() else tokens.to_numpy().astype(np.int64),
    )


def _codes(names: pl.Series) -> Ints:
    """Return the position of each name among the sorted names."""
    categories = names.unique().sort()
    return names.cast(pl.Enum(categories)).to_physical().to_numpy().astype(np.int64)


def tier_rewards(turns: TurnArrays, rewards: Mapping[str, float]) -> Floats:
    """Return what each turn earns by its tier, paid as `stages.core.payment` says; [N]."""
    by_tier = np.array([rewards.get(tier, 0.0) for tier in turns.tiers])
    reward = by_tier[turns.tier]
    if pay_of(rewards) == "once":
        reward[~_first_turns(turns)] = 0.0
    return reward


def _first_turns(turns: TurnArrays) -> Bools:
    return first_turns(turns.tier, turns.layout.episode, len(turns.tiers))


def turn_advantages(turns: TurnArrays, reward: Floats, config: AdvantageConfig) -> Advantages:
    """Return the advantages of the turns under these rewards."""
    return advantages(reward, turns.outcome, turns.layout, config)


def advantage_frame(turns: TurnArrays, reward: Floats, made: Advantages) -> pl.DataFrame:
    """Return the advantages as a table (ADVANTAGES)."""
    parts = {name: pl.Series(values).fill_nan(None) for name, values in made._asdict().items()}
    keys = turns.frame.select("episode_id", "group_id", "turn", "tier")
    frame = keys.with_columns(reward=reward, **parts)
    return frame.select(list(ADVANTAGES.columns))
