"""Constant policies, whose pass rates are airline-mini's baselines."""

from __future__ import annotations

from collections.abc import Sequence

from stages.envs.airline_mini.names import TOPICS
from stages.envs.airline_mini.plans import HAND_OFF, CallTool, Tell
from stages.envs.airline_mini.transcript import written
from stages.envs.users import Rng
from stages.messages.message import Message


def refuse(messages: Sequence[Message], rng: Rng) -> Message:
    """Return a refusal."""
    return written(Tell("refuse"), len(messages))


def hand_off(messages: Sequence[Message], rng: Rng) -> Message:
    """Return a hand-off to a human agent."""
    return written(CallTool(HAND_OFF, {"summary": TOPICS[0]}), len(messages))
