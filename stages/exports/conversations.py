"""Recorded conversations in the form that chat templates and other libraries accept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from stages.core.statuses import LEFT_OUT
from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.template import Form, formed, shown
from stages.tables.artifacts import OF_ROLLOUT
from stages.traces.fields import BadItemError
from stages.traces.given import Given
from stages.traces.messages import stated_outcome
from stages.traces.notes import left_out, why_left_out
from stages.training.inputs import read_conversations, recorded_prompt, recorded_tools


class Conversation(NamedTuple):
    """A conversation that counts, and its task."""

    task_id: str | None
    domain: str | None
    messages: list[Message]  # arguments of calls are objects if they are JSON
    tools: list[dict[str, Any]]  # as the policy saw them; empty: unknown
    gold_actions: list[dict[str, Any]] | None
    outcome: float | None
    prompt: Mapping[str, str]  # how the policy's prompt presented the tools; empty: unknown


def conversations(
    paths: Iterable[str], notes: Counter[str], given: Given
) -> Iterator[Conversation]:
    """Read rollouts, or other JSON lines with `messages`; episodes that crashed are left out.

    Args:
        paths: paths of the files.
        notes: counts what is left out or guessed.
        given: fields and gold actions that the user names.

    Raises:
        InputError: a file is missing or broken, or no record has the fields that the user names.
    """
    paths = list(paths)
    for path in paths:
        tools = recorded_tools(path)  # without kinds, which no policy saw
        prompt = recorded_prompt(path)
        for number, record in enumerate(read_conversations(path, notes, given), 1):
            if (status := record.get("status")) in LEFT_OUT:
                notes += left_out({why_left_out(status): 1})
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
                _plain(record.get("gold_actions")),
                outcome,
                prompt,
            )
    given.check(paths)


def _plain(gold: Any) -> Any:
    """Return gold actions in the form of records; those of --gold have another."""
    if not isinstance(gold, tuple):
        return gold
    return [{key: value for key, value in asdict(action).items() if value} for action in gold]


def portable(messages: Iterable[Message]) -> list[Message]:
    """Return messages without our own keys, with the arguments of calls as objects.

    Most chat templates write arguments as JSON, and would quote arguments that are text.
    """
    return [
        shown({key: value for key, value in message.items() if key not in OF_ROLLOUT})
        for message in messages
    ]


def as_told(
    messages: list[Message], tools: list[dict[str, Any]], prompt: Mapping[str, str]
) -> tuple[list[Message], list[dict[str, Any]]]:
    """Return messages and tools as the policy's prompt presented them.

    If the policy's chat template renders no tools, its prompt listed them as text in the messages.
    The returned messages then list them too, and the returned tools are empty.

    Args:
        messages: messages in OpenAI's form.
        tools: tools that the policy saw.
        prompt: how its prompt presented the tools (the record of Told); empty: unknown.
    """
    native = prompt.get("tools") != "messages"
    form = Form(native=native, folded=prompt.get("system") == "user")
    return formed(form, messages, tools), tools if native else []


def opening(messages: list[Message]) -> int:
    """Return the number of messages before the assistant's first answer to a user.

    A greeting that opens the conversation is not an answer. Without an answer, all messages count.
    """
    asked = False
    for place, message in enumerate(messages):
        if message["role"] == "assistant" and asked:
            return place
        asked |= message["role"] == "user"
    return len(messages)
