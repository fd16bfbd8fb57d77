"""Sequences with rewards of tokens, in the form of SkyRL's `GeneratorOutput`.

SkyRL's trainer takes `rewards` as one number per token of the response. As in its own generator
(NovaSky-AI/SkyRL#226), a turn's reward is at its last token. Its metric `pass_at_n` looks at the
reward of the very last token.

Layout: `skyrl.train.generators.base.GeneratorOutput`, a column for each of these fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.exports.sequences import Paid


def skyrl(paid: Paid, group_id: str, place: int, *, truncated: bool) -> dict[str, Any]:
    """Return the row of one sequence; lists except the prompt run over its response, [R].

    Args:
        paid: the sequence.
        group_id: group of its episode.
        place: 0-based place of its episode in the group.
        truncated: whether a limit cut the episode off.

    Returns:
        The row; `rollout_logprobs` is null if some are unknown.
    """
    tokens, start = paid.tokens, int(paid.tokens.written.argmax())
    size = len(tokens) - start
    logprobs = paid.logprobs
    return {
        "prompt_token_ids": tokens.token_ids[:start].tolist(),
        "response_ids": tokens.token_ids[start:].tolist(),
        "rewards": _at_ends(paid, paid.shaped, start, size),
        "loss_masks": tokens.written[start:].astype(int).tolist(),
        "stop_reasons": "length" if truncated else "stop",
        "rollout_logprobs": None if logprobs is None else logprobs[start:],
        "trajectory_ids": {"instance_id": group_id, "repetition_id": place},
        "is_last_step": paid.last,
        "raw_rewards": _at_ends(paid, paid.raw, start, size),
    }


def _at_ends(paid: Paid, rewards: Sequence[float], start: int, size: int) -> list[float]:
    """Return the rewards at the last tokens of their turns, 0 elsewhere, [R]."""
    paid_at = [0.0] * size
    for end, reward in zip(paid.ends, rewards, strict=True):
        paid_at[end - start] = reward
    return paid_at
