"""Pairs of turns of which one is better, for DPO (rollouts with advantages -> rows).

A pair is two turns of one group at the same place, k-th turn after the same messages, that differ
in what they are. Chosen is the turn whose own reward is higher and whose advantage is, too: what it
did is worth more, and what came of it was better. A turn that several episodes wrote counts once,
with its mean reward and advantage.

Users who are free to speak rarely say the same twice. So "the same messages" may be relaxed to the
same calls with the same results before the turn, whatever was said around them; the prompt is then
the chosen turn's own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any, Literal

import orjson
import polars as pl

from stages.exports.conversations import as_told, opening, portable
from stages.messages.message import Message
from stages.tables.artifacts import RolloutRow

Prefix = Literal["exact", "calls"]
Spot = tuple[str, int, bytes]  # group, turn, what stands before it
Worth = tuple[str, float, float]  # tier, reward and advantage of a turn


@dataclass
class Choice:
    """A turn that a policy wrote at some spot, once or more."""

    prompt: list[Message]
    message: Message
    tier: str
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """Mean over the episodes."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def advantage(self) -> float:
        """Mean over the episodes."""
        return sum(self.advantages) / len(self.advantages)


def preferences(
    episodes: Sequence[RolloutRow],
    advantages: pl.DataFrame,
    tools: list[dict[str, Any]],
    prefix: Prefix = "exact",
    min_gap: float = 0.0,
    told: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield every pair of turns of which one is better, with `prompt`, `chosen` and `rejected`.

    Args:
        episodes: those that count.
        advantages: of their turns (ADVANTAGES).
        tools: that the policy saw.
        prefix: what must be the same before two turns: all messages, or calls and results.
        min_gap: by how much the chosen one's advantage is greater, at least.
        told: how the policy was told of its tools (the record of Told); None: unknown.
    """
    columns = ("episode_id", "turn", "tier", "reward", "advantage")
    worth: dict[tuple[str, int], Worth] = {
        (row[0], row[1]): row[2:] for row in advantages.select(columns).iter_rows()
    }
    for (group, turn, _), choices in _spots(episodes, worth, prefix).items():
        for chosen, rejected in permutations(choices.values(), 2):
            gap = chosen.advantage - rejected.advantage
            if chosen.reward > rejected.reward and gap > 0 and gap >= min_gap:
                good, shown = as_told([*chosen.prompt, chosen.message], tools, told or {})
                bad, _ = as_told([*chosen.prompt, rejected.message], tools, told or {})
                yield {
                    "prompt": good[:-1],
                    "chosen": good[-1:],
                    "rejected": bad[-1:],
                    "tools": shown,
                    "group_id": group,
                    "turn": turn,
                    "chosen_tier": chosen.tier,
                    "rejected_tier": rejected.tier,
                    "chosen_advantage": chosen.advantage,
                    "rejected_advantage": rejected.advantage,
                }


def _spots(
    episodes: Sequence[RolloutRow], worth: Mapping[tuple[str, int], Worth], prefix: Prefix
) -> dict[Spot, dict[bytes, Choice]]:
    """Return the distinct turns at each spot, in the order of the episodes."""
    spots: dict[Spot, dict[bytes, Choice]] = {}
    for episode in episodes:
        messages = portable(episode["messages"])
        first, turn, before = opening(messages), 0, hashlib.sha256()
        for place, message in enumerate(messages):
            if message["role"] == "assistant":
                if place >= first:
                    tier, reward, advantage = worth[episode["episode_id"], turn]
                    spot = (episode["group_id"], turn, before.digest())
                    choice = spots.setdefault(spot, {}).setdefault(
                        _said(message, "exact"), Choice(messages[:place], message, tier)
                    )
                    choice.rewards.append(reward)
                    choice.advantages.append(advantage)
                turn += 1
            before.update(_said(message, prefix))
    return spots


def _said(message: Message, prefix: Prefix) -> bytes:
    """Return what a message says: without the ids of calls, which engines draw at random."""
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    text = message.get("content") if prefix == "exact" or message["role"] == "tool" else None
    return orjson.dumps([message["role"], text, calls], option=orjson.OPT_SORT_KEYS)
