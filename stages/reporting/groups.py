"""The group panel: groups without variance, rewards by length, advantages by turn, mass by tier."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from stages.core.correlation import Floats
from stages.core.direction import DEAD
from stages.tables.turn_arrays import TurnArrays
from stages.traces.episode import SUCCESS

LENGTH_BINS = 8
TURNS_SHOWN = 30  # turn indices; the later turns are one row


def group_panel(
    turns: TurnArrays, rewards: dict[str, Floats], advantages: dict[str, Floats]
) -> dict[str, Any]:
    """Return rewards and advantages by group, by length and by turn index.

    Args:
        turns: counted turns.
        rewards: reward of each turn by reward set, [N].
        advantages: advantage of each turn by reward set, [N].
    """
    return {
        "groups": _groups(turns, advantages),
        "by_length": _by_length(turns, rewards),
        "by_turn": _by_turn(turns, advantages),
    }


def _groups(turns: TurnArrays, advantages: dict[str, Floats]) -> dict[str, Any]:
    """Count the groups by their outcomes, and those without an advantage."""
    group = turns.layout.group
    size = np.bincount(group)
    won = np.bincount(group, turns.outcome >= SUCCESS)
    present = size > 0
    of_turn = group[turns.layout.episode]
    dead = {
        name: int((np.bincount(of_turn, np.abs(a) > DEAD, minlength=size.size)[present] == 0).sum())
        for name, a in advantages.items()
    }
    return {
        "groups": int(present.sum()),
        "single": int((size == 1).sum()),
        "all_pass": int((present & (size > 1) & (won == size)).sum()),
        "all_fail": int((present & (size > 1) & (won == 0)).sum()),
        "mixed": int(((won > 0) & (won < size)).sum()),
        "without_advantage": dead,
    }


def _by_length(turns: TurnArrays, rewards: dict[str, Floats]) -> list[dict[str, Any]]:
    """Return pass rate and mean reward sum of episodes of similar length."""
    episode, episodes = turns.layout.episode, turns.outcome.size
    length = np.bincount(episode, minlength=episodes)
    edges = np.unique(np.quantile(length, np.linspace(0, 1, LENGTH_BINS + 1), method="lower"))
    bins = np.clip(np.searchsorted(edges, length, side="right") - 1, 0, max(edges.size - 2, 0))
    earned = {name: np.bincount(episode, r, minlength=episodes) for name, r in rewards.items()}
    rows = []
    for number in np.unique(bins):
        chosen = bins == number
        row: dict[str, Any] = {
            "from": int(length[chosen].min()),
            "to": int(length[chosen].max()),
            "episodes": int(chosen.sum()),
            "pass_rate": float((turns.outcome[chosen] >= SUCCESS).mean()),
        }
        rows.append(row | {name: float(total[chosen].mean()) for name, total in earned.items()})
    return rows


def _by_turn(turns: TurnArrays, advantages: dict[str, Floats]) -> list[dict[str, Any]]:
    """Return the mean advantage of the turns at each index."""
    index = turns.frame["turn"].to_numpy()
    frame = pl.DataFrame({"turn": np.minimum(index, TURNS_SHOWN)} | advantages)
    means = [pl.col(name).mean() for name in advantages]
    rows = (
        frame.group_by("turn", maintain_order=True)
        .agg(pl.len().alias("turns"), *means)
        .sort("turn")
        .to_dicts()
    )
    for row in rows:
        row["and_later"] = row["turn"] == TURNS_SHOWN and bool((index > TURNS_SHOWN).any())
    return rows
