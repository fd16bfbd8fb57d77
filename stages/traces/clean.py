"""Messages of any form as OpenAI's chat messages, which every other part reads and writes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from stages.traces.envelopes import bared, opened_message, text_of
from stages.traces.fields import BadItemError
from stages.traces.forms import Heard, Result, Spoken, read_message
from stages.traces.turns import RECORD
from stages.traces.vocabulary import ROLES

Message = dict[str, Any]
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
CUT_OFF = frozenset(
    ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded", "max_length"]
)


def clean_messages(messages: Sequence[Any], notes: Counter[str]) -> list[Message]:
    """OpenAI's chat messages that say what messages of any known form say.

    Args:
        messages: of one conversation, in any form that `forms` knows.
        notes: counts what was passed over without losing a call.

    Returns:
        Messages with `role`, `content` and, where they apply, `tool_calls` with arguments as
        JSON text, `tool_call_id`, `name`, `error` (the result's own flag), `reasoning_content`
        and `n_tokens`. Where the form gives calls no ids they get some.

    Raises:
        BadItemError: a call or a result can't be read.
    """
    heard, _ = clean_call(messages, (), notes)
    return heard


def clean_call(
    heard: Sequence[Any], said: Sequence[Any], notes: Counter[str]
) -> tuple[list[Message], list[Message]]:
    """The same of what a model heard and of what it said to it, each on its own."""
    writer = _Writer(notes)
    writer.read(heard)
    several = len(writer.messages)
    writer.read(said)
    return writer.messages[:several], writer.messages[several:]


def was_cut_off(reason: Any) -> bool:
    """Whether a model's stop reason says that a limit of tokens cut its answer off."""
    return isinstance(reason, str) and reason.lower() in CUT_OFF


class _Writer:
    """The clean messages so far."""

    def __init__(self, notes: Counter[str]) -> None:
        self.messages: list[Message] = []
        self._notes = notes
        self._open: list[tuple[str, str]] = []  # (id, name) of calls whose form has no ids
        self._given = 0  # ids that we gave
        self._last: str | None = None  # what the policy just said: a "message" or a "call" item
        self._thoughts = ""  # of a reasoning item, for the message after it

    def read(self, messages: Sequence[Any]) -> None:
        """Write down what messages say that belong together.

        Raises:
            BadItemError: a call or a result can't be read.
        """
        self._last = None
        for place, message in enumerate(messages, 1):
            lost: list[str] = []
            self.take(message, lost)
            if lost:
                raise BadItemError(f"message {place} has {lost[0]}", RECORD)

    def take(self, message: Any, lost: list[str]) -> None:
        """Write down what one message says; `lost` gets a line for what can't be read."""
        opened = opened_message(message)
        if opened is not None and (system := _system_text(opened)) is not None:
            self.messages.append({"role": "system", "content": system})
            return
        events = read_message(message, lost, self._notes)
        if opened is not None:
            self._thoughts += _thoughts(opened)
        for event in events:
            if isinstance(event, Spoken):
                self._speak(event)
            elif isinstance(event, Result):
                self._answer(event)
            else:
                self._hear(event)

    def _speak(self, event: Spoken) -> None:
        content = event.content
        if content is not None and not isinstance(content, str):
            content = text_of(content)
        calls = [self._call(name, given, id) for name, given, id in event.calls]
        if event.legacy:
            self._notes["legacy function_call"] += 1
        if not event.has_ids:
            self._open = [(call["id"], call["function"]["name"]) for call in calls]
        elif calls:
            self._open = []
        if self._shares_turn(event):
            message = self.messages[-1]
            message["content"] = message["content"] if content is None else content
        else:
            message = {"role": "assistant", "content": content}
            self.messages.append(message)
        if calls:
            message.setdefault("tool_calls", []).extend(calls)
        if event.n_tokens is not None:
            message["n_tokens"] = event.n_tokens
        if self._thoughts:
            message["reasoning_content"] = message.get("reasoning_content", "") + self._thoughts
        if event.stops_for_call and not message.get("tool_calls"):
            message["finish_reason"] = "tool_calls"  # the reader refuses it: a call is missing
        self._thoughts, self._last = "", event.item or "message"

    def _shares_turn(self, event: Spoken) -> bool:
        """Whether an item of the Responses API belongs to the response of the item before."""
        if event.item == "call":
            return self._last is not None
        return event.item == "message" and self._last == "call"

    def _call(self, name: str, arguments: Any, call_id: str | None) -> Message:
        if call_id is None:
            self._given += 1
            call_id = f"call_{self._given}"
        if arguments is not None and not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    def _answer(self, event: Result) -> None:
        call_id = event.id or self._awaited(event.name)
        message: Message = {"role": "tool", "content": event.text}
        if call_id is not None:
            message["tool_call_id"] = call_id
        if event.name is not None:
            message["name"] = event.name
        if event.flag is not None:
            message["error"] = event.flag
        if event.of_user:
            message["requestor"] = "user"
        self.messages.append(message)
        self._last = None

    def _awaited(self, name: str | None) -> str | None:
        """The id that we gave the call which a result without an id answers."""
        place = next((i for i, call in enumerate(self._open) if call[1] == name), 0)
        return self._open.pop(place)[0] if self._open else None

    def _hear(self, event: Heard) -> None:
        message: Message = {"role": "user", "content": text_of(event.content)}
        if event.calls:
            message["tool_calls"] = [self._call(*call) for call in event.calls]
        self.messages.append(message)
        self._last = None


def _system_text(message: Mapping[str, Any]) -> str | None:
    """What a system message says; None where it is another."""
    inner = bared(message)
    role = inner.get("role", inner.get("from", inner.get("type")))
    if not isinstance(role, str) or ROLES.get(role.lower()) != "system":
        return None
    keys = ("content", "value", "parts", "text")
    return text_of(next((inner[key] for key in keys if inner.get(key) is not None), None))


def _thoughts(message: Mapping[str, Any]) -> str:
    """What the model thought before it spoke, where a message holds it as text."""
    inner = bared(message)
    beside = (inner.get(key) for key in THOUGHTS[:2])
    if stated := next((text for text in beside if isinstance(text, str) and text), None):
        return stated
    blocks = [inner.get(key) for key in ("content", "parts", "summary")]
    parts = [part for block in blocks if isinstance(block, list) for part in block]
    is_item = inner.get("type") == "reasoning"
    return "".join(_thought(part, is_item) for part in parts if isinstance(part, Mapping))


def _thought(part: Mapping[str, Any], is_item: bool) -> str:
    if not is_item and part.get("type") not in ("thinking", "reasoning"):
        return ""
    texts = (part.get(key) for key in ("thinking", "text", "content", "value", "reasoning"))
    return next((text for text in texts if isinstance(text, str)), "")
