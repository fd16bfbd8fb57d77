"""Turns as arrays of the numerical core, and their advantages as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.core.advantages import AdvantageConfig, Advantages, advantages
from stages.core.correlation import Bools, Floats, Ints
from stages.core.critic import Critic, Weights, fold_of
from stages.core.farmability import first_turns
from stages.core.layout import Layout, turn_layout
from stages.core.payment import Values, pay_of
from stages.core.potential import (
    RIDGE,
    CriticArrays,
    Forecasts,
    fit_critic,
    forecasts,
    shaping_rewards,
)
from stages.tables.artifacts import ADVANTAGES, COUNTS


class TurnArrays(NamedTuple):
    """The counted turns, as arrays of the numerical core."""

    frame: pl.DataFrame  # [N] turns, episode after episode
    layout: Layout
    outcome: Floats  # [E]
    tiers: list[str]  # [C]
    tier: Ints  # [N]
    task: Ints  # [N]
    n_tokens: Ints | None  # [N]; None unless all are known


def turn_arrays(turns: pl.DataFrame) -> TurnArrays:
    """Return the turns (TURNS) of the counted episodes as arrays."""
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
    """Return the reward of each turn by its tier, paid as in `stages.core.payment`; [N]."""
    by_tier = np.array([rewards.get(tier, 0.0) for tier in turns.tiers])
    reward = by_tier[turns.tier]
    if pay_of(rewards) == "once":
        reward[~first_of_tier(turns)] = 0.0
    return reward


def first_of_tier(turns: TurnArrays) -> Bools:
    """Return which turns are the first of their tier in their episode; [N]."""
    return first_turns(turns.tier, turns.layout.episode, len(turns.tiers))


def fitted_critic(turns: TurnArrays, ridge: float = RIDGE) -> Critic:
    """Return a critic fitted to the turns: without each fold of the tasks, and with all."""
    fold, n_tiers = _folds(turns), len(turns.tiers)
    made = fit_critic(turns.tier, turns.outcome, turns.layout, fold, n_tiers, ridge)
    rows = (
        Weights(
            float(turn),
            dict(zip(turns.tiers, first.tolist(), strict=True)),
            dict(zip(turns.tiers, again.tolist(), strict=True)),
        )
        for turn, first, again in zip(*made, strict=True)
    )
    *folds, every = rows
    return Critic(every, tuple(folds))


def potential_rewards(turns: TurnArrays, critic: Critic) -> Floats:
    """Return what each turn adds to the forecast of a critic that has not seen its task; [N]."""
    rows = [*critic.folds, critic.every]
    arrays = CriticArrays(
        np.array([row.turn for row in rows]),
        np.array([[row.first.get(tier, 0.0) for tier in turns.tiers] for row in rows]),
        np.array([[row.again.get(tier, 0.0) for tier in turns.tiers] for row in rows]),
    )
    return shaping_rewards(turns.tier, turns.layout, arrays, _folds(turns), len(turns.tiers))


def _folds(turns: TurnArrays) -> Ints:
    """Return the fold of each episode's task; [E]."""
    tasks = turns.frame.filter(pl.col("turn") == 0)["task_id"]
    names = tasks.unique()
    folds = pl.Series([fold_of(name) for name in names], dtype=pl.Int64)
    return tasks.replace_strict(names, folds).to_numpy().astype(np.int64)


def turn_rewards(turns: TurnArrays, values: Values | None, config: AdvantageConfig) -> Floats:
    """Return the reward of each turn under an estimator: by tier, or by a critic's forecast; [N].

    Without values, these are the rewards as scored.

    Raises:
        ValueError: the estimator needs a critic, and the values come without one.
    """
    if values is None:
        return turns.frame["reward"].to_numpy()
    if config.estimator != "potential":
        return tier_rewards(turns, values)
    if values.critic is None:
        raise ValueError("the values come without a critic")
    return potential_rewards(turns, values.critic)


def turn_advantages(turns: TurnArrays, reward: Floats, config: AdvantageConfig) -> Advantages:
    """Return the advantages of the turns under these rewards."""
    return advantages(reward, turns.outcome, turns.layout, config)


def turn_forecasts(turns: TurnArrays, reward: Floats, baseline: Floats) -> Forecasts:
    """Return the critic's forecasts around each turn, from the turns' `potential` rewards."""
    return forecasts(reward, baseline, turns.outcome, turns.layout)


def advantage_frame(
    turns: TurnArrays, reward: Floats, made: Advantages, config: AdvantageConfig
) -> pl.DataFrame:
    """Return the advantages as a table (ADVANTAGES)."""
    columns = made._asdict()
    if config.estimator == "potential":
        seen = turn_forecasts(turns, reward, made.group_mean)
    else:
        seen = Forecasts(*[np.full(reward.shape, np.nan)] * 3)
    columns |= {"forecast_before": seen.before, "forecast_after": seen.after}
    columns |= {"td_error": seen.error}
    parts = {name: pl.Series(values).fill_nan(None) for name, values in columns.items()}
    keys = turns.frame.select("episode_id", "group_id", "turn", "tier")
    frame = keys.with_columns(reward=reward, **parts)
    return frame.select(list(ADVANTAGES.columns))
