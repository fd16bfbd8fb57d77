"""Recorded conversations as chat templates and other libraries take them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from stages.artifacts import OF_ROLLOUT
from stages.errors import InputError
from stages.notes import CRASHED, left_out
from stages.policies.chat import shown
from stages.traces.fields import BadItemError
from stages.traces.messages import stated_outcome
from stages.training.inputs import read_conversations, recorded_tools
from stages.worlds.world import Message


class Conversation(NamedTuple):
    """A conversation that counts, and what is known of its task."""

    task_id: str | None
    domain: str | None
    messages: list[Message]  # arguments of calls are objects, where they are JSON
    tools: list[dict[str, Any]]  # as the policy saw them; empty: unknown
    gold_actions: list[dict[str, Any]] | None
    outcome: float | None


def conversations(paths: Iterable[str], notes: Counter[str]) -> Iterator[Conversation]:
    """Read rollouts, or other JSON lines with `messages`; episodes that crashed are left out.

    Args:
        paths: of the files.
        notes: gets what is left out or guessed.

    Raises:
        InputError: a file is missing or broken.
    """
    for path in paths:
        tools = recorded_tools(path)  # without kinds, which no policy saw
        for number, record in enumerate(read_conversations(path, notes), 1):
            if record.get("status") == "error":
                notes += left_out({CRASHED: 1})
                continue
            try:
                outcome = stated_outcome(record)
            except BadItemError as bad:
                raise InputError(f"{path}:{number}", bad.what, bad.todo) from None
            yield Conversation(
                record.get("task_id"),
                record.get("domain"),
                portable(record["messages"]),
                tools or record.get("tools") or [],
                record.get("gold_actions"),
                outcome,
            )


def portable(messages: Iterable[Message]) -> list[Message]:
    """Return messages without our own keys, the arguments of calls as objects.

    Most chat templates write arguments as JSON; those that are a text already would be quoted.
    """
    return [
        shown({key: value for key, value in message.items() if key not in OF_ROLLOUT})
        for message in messages
    ]


def opening(messages: list[Message]) -> int:
    """Return how many messages stand before the assistant's first answer to somebody.

    A greeting that opens the conversation answers nobody. Without an answer: all of them.
    """
    asked = False
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and asked:
            return place
        asked |= message["role"] == "user"
    return len(messages)
