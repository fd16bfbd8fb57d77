"""Sequences with rewards of turns, for AReaL.

AReaL's PPO actor reads `rewards`, one number per sequence, and `turn_ids` if its time steps are
turns. The pull requests areal-project/AReaL#1667 and #1681 read and write `turn_rewards`; neither
is merged. `original_rewards` keeps the outcome, as AReaL does when it shapes rewards.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stages.exports.sequences import Paid


def areal(paid: Paid, group_id: str) -> dict[str, Any]:
    """Return the row of one sequence; lists are [L], except the rewards of its K turns, [K].

    Args:
        paid: the sequence.
        group_id: group of its episode.

    Returns:
        The row, without `logprobs` if some are unknown.
    """
    tokens = paid.tokens
    numbers = np.searchsorted(paid.turns, tokens.turn)  # a sequence may begin with a later turn
    row: dict[str, Any] = {
        "episode_id": tokens.episode_id,
        "group_id": group_id,
        "input_ids": tokens.token_ids.tolist(),
        "attention_mask": [True] * len(tokens),
        "loss_mask": tokens.written.astype(int).tolist(),
        "turn_ids": np.where(tokens.written, numbers, -1).tolist(),
        "rewards": math.fsum(paid.shaped),
        "turn_rewards": paid.shaped,
        "original_rewards": paid.outcome,
        "raw_turn_rewards": paid.raw,
    }
    return row if paid.logprobs is None else row | {"logprobs": paid.logprobs}
