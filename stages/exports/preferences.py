"""Pairs of a better and a worse turn, for DPO (rollouts with advantages -> rows).

A pair is two different turns of one group at the same position: the k-th turn, after the same
messages. The chosen turn has the higher reward and the higher advantage: its action is worth more,
and what followed was better. A turn that several episodes contain counts once, with its mean reward
and advantage.

A user who speaks freely rarely says the same twice. "The same messages" may therefore be relaxed to
the same calls with the same results before the turn, whatever the other text. The prompt is then
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
Spot = tuple[str, int, bytes]  # group, turn, digest of the messages before it
Worth = tuple[str, float, float]  # tier, reward and advantage of a turn


@dataclass
class Choice:
    """A distinct turn at a spot, in one or more episodes."""

    prompt: list[Message]
    message: Message
    tier: str
    rewards: list[float] = field(default_factory=list)
    advantages: list[float] = field(default_factory=list)

    @property
    def reward(self) -> float:
        """Mean reward over the episodes."""
        return sum(self.rewards) / len(self.rewards)

    @property
    def advantage(self) -> float:
        """Mean advantage over the episodes."""
        return sum(self.advantages) / len(self.advantages)


def preferences(
    episodes: Sequence[RolloutRow],
    advantages: pl.DataFrame,
    tools: list[dict[str, Any]],
    prefix: Prefix = "exact",
    min_gap: float = 0.0,
    told: Mapping[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield every pair of a better and a worse turn, with `prompt`, `chosen` and `rejected`.

    Args:
        episodes: counted episodes.
        advantages: advantages of their turns (ADVANTAGES).
        tools: tools that the policy saw.
        prefix: what must be the same before two turns: all messages, or calls and results.
        min_gap: least difference of the two advantages.
        told: how the policy's prompt presented the tools (the record of Told); None: unknown.
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
    """Return a message's content without the ids of calls, which engines draw at random."""
    calls = [
        (call["function"]["name"], call["function"]["arguments"])
        for call in message.get("tool_calls") or ()
    ]
    text = message.get("content") if prefix == "exact" or message["role"] == "tool" else None
    return orjson.dumps([message["role"], text, calls], option=orjson.OPT_SORT_KEYS)
