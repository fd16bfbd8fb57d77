"""Convert messages of any form to OpenAI's chat messages, the common form of clean records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Any

from stages.traces.calls import Written, as_text, plain_call
from stages.traces.envelopes import bared, opened_message, text_of
from stages.traces.events import Heard, Result, Spoken, shares_turn
from stages.traces.fields import BadItemError
from stages.traces.forms import read_closely
from stages.traces.straight import straight
from stages.traces.turns import RECORD
from stages.traces.vocabulary import ROLES

Message = dict[str, Any]
# Keys of OpenAI's messages. The last three do not affect turns.
PLAIN = frozenset(
    [
        "role",
        "content",
        "tool_calls",
        "tool_call_id",
        "name",
        "n_tokens",
        "refusal",
        "annotations",
        "audio",
    ]
)
THOUGHTS = ("reasoning_content", "reasoning")
CUT_OFF = frozenset(
    ["length", "max_tokens", "max_output_tokens", "model_context_window_exceeded", "max_length"]
)


def clean_messages(messages: Sequence[Any], notes: Counter[str]) -> list[Message]:
    """Convert the messages of a conversation to OpenAI's chat messages.

    Args:
        messages: the messages of one conversation, in any form that `forms` reads.
        notes: counts what was skipped without losing a call.

    Returns:
        Messages with `role`, `content` and, if they apply, `tool_calls` with arguments as JSON
        text, `tool_call_id`, `name`, `error` (the result's own flag), `reasoning_content` and
        `n_tokens`. Calls without an id are given one.

    Raises:
        BadItemError: a call or a result can't be read.
    """
    writer = Writer(notes)
    writer.read(messages)
    return writer.messages


def was_cut_off(reason: Any) -> bool:
    """Return whether a stop reason means that a token limit cut the model's answer off."""
    return isinstance(reason, str) and reason.lower() in CUT_OFF


class Writer:
    """Writes clean messages and notes what it skips."""

    def __init__(self, notes: Counter[str] | None = None) -> None:
        self.messages: list[Message] = []
        self.notes = Counter() if notes is None else notes
        self._open: list[tuple[str, str]] = []  # (id, name) of open calls in a form without ids
        self._given = 0  # number of ids assigned here
        self._last: str | None = None  # the policy's previous item, "message" or "call"
        self._thoughts = ""  # text of a reasoning item, for the next message

    def copy(self) -> Writer:
        """Return a writer that continues from here; it shares the messages written so far."""
        writer = Writer(self.notes.copy() if self.notes else Counter())  # mostly there are none
        writer.messages, writer._open = self.messages.copy(), self._open.copy()
        writer._given, writer._last, writer._thoughts = self._given, self._last, self._thoughts
        return writer

    @property
    def is_at_rest(self) -> bool:
        """Whether the next message can't extend the last one."""
        return self._last is None and not self._thoughts

    def read(self, messages: Sequence[Any], first: int = 1) -> None:
        """Append messages that belong together.

        Args:
            messages: messages in any known form.
            first: number of the first message in errors.

        Raises:
            BadItemError: a call or a result can't be read.
        """
        self._last = None
        for place, message in enumerate(messages, first):
            if type(message) is dict and self._copy_plain(message):
                continue
            lost: list[str] = []
            self.take(message, lost)
            if lost:
                raise BadItemError(f"message {place} has {lost[0]}", RECORD)

    def _copy_plain(self, message: Message) -> bool:
        """Append a message in OpenAI's form, which most messages of most logs have.

        Returns:
            Whether the message was appended. If False, the slower `take` must read it.
        """
        if not PLAIN.issuperset(message):
            return False
        role, content, entries = message.get("role"), message.get("content"), None
        if len(message) > 2 or content is None:  # keys beyond these two
            entries = message.get("tool_calls")
        if content is not None and type(content) is not str:
            return False
        if role == "assistant" and (not entries or type(entries) is list):
            calls = [plain_call(entry) for entry in entries or ()]
            if None in calls:
                return False
            written = [Written(*call) for call in calls if call]
            self._speak(Spoken(content, written, message.get("n_tokens")))
        elif content is None:
            return False
        elif role == "tool":
            call_id, name = message.get("tool_call_id"), message.get("name")
            if type(call_id) is not str or not call_id or type(name) not in (str, NoneType):
                return False
            self._answer(Result(content, call_id, name))
        elif role == "user" and not entries:
            self._hear(Heard(content))
        elif role == "system":
            self.messages.append({"role": "system", "content": content})
        else:
            return False
        return True

    def take(self, message: Any, lost: list[str]) -> None:
        """Append one message; add a line to `lost` for each call or result that can't be read."""
        events = straight(message)
        if events is None:
            opened = opened_message(message)
            if opened is not None:
                inner = bared(opened)
                if (system := _system_text(inner)) is not None:
                    self.messages.append({"role": "system", "content": system})
                    return
                self._thoughts += _thoughts(inner)
            events = read_closely(message, lost, self.notes)
        for event in events:
            if isinstance(event, Spoken):
                self._speak(event)
            elif isinstance(event, Result):
                self._answer(event)
            else:
                self._hear(event)

    def _speak(self, event: Spoken) -> None:
        content, made, n_tokens, stops_for_call, item, has_ids, legacy = event
        if content is not None and type(content) is not str:
            content = text_of(content)
        calls = [self._call(name, given, id) for name, given, id in made]
        if legacy:
            self.notes["legacy function_call"] += 1
        if not has_ids:
            self._open = [(call["id"], call["function"]["name"]) for call in calls]
        elif calls:
            self._open = []
        if shares_turn(item, self._last):
            message = self.messages[-1]
            message["content"] = message["content"] if content is None else content
        else:
            message = {"role": "assistant", "content": content}
            self.messages.append(message)
        if calls:
            message.setdefault("tool_calls", []).extend(calls)
        if n_tokens is not None:
            message["n_tokens"] = n_tokens
        if self._thoughts:
            message["reasoning_content"] = message.get("reasoning_content", "") + self._thoughts
        if stops_for_call and not message.get("tool_calls"):
            message["finish_reason"] = "tool_calls"  # makes `read_turns` reject it: no call
        self._thoughts, self._last = "", item or "message"

    def _call(self, name: str, arguments: Any, call_id: str | None) -> Message:
        if call_id is None:
            self._given += 1
            call_id = f"call_{self._given}"
        function = {"name": name, "arguments": as_text(arguments)}
        return {"id": call_id, "type": "function", "function": function}

    def _answer(self, event: Result) -> None:
        text, call_id, name, flag, of_user = event
        call_id = call_id or self._awaited(name)
        message: Message = {"role": "tool", "content": text}
        if call_id is not None:
            message["tool_call_id"] = call_id
        if name is not None:
            message["name"] = name
        if flag is not None:
            message["error"] = flag
        if of_user:
            message["requestor"] = "user"
        self.messages.append(message)
        self._last = None

    def _awaited(self, name: str | None) -> str | None:
        """Return the id assigned to the open call that a result without an id answers."""
        if not self._open:
            return None
        place = next((i for i, call in enumerate(self._open) if call[1] == name), 0)
        return self._open.pop(place)[0]

    def _hear(self, event: Heard) -> None:
        message: Message = {"role": "user", "content": text_of(event.content)}
        if event.calls:
            message["tool_calls"] = [self._call(*call) for call in event.calls]
        self.messages.append(message)
        self._last = None


def _system_text(inner: Mapping[str, Any]) -> str | None:
    """Return the text of a system message; None if the message has another role."""
    role = inner.get("role", inner.get("from", inner.get("type")))
    if not isinstance(role, str) or ROLES.get(role.lower()) != "system":
        return None
    keys = ("content", "value", "parts", "text")
    return text_of(next((inner[key] for key in keys if inner.get(key) is not None), None))


def _thoughts(inner: Mapping[str, Any]) -> str:
    """Return the reasoning text in a message; empty if there is none."""
    for key in THOUGHTS:
        if isinstance(text := inner.get(key), str) and text:
            return text
    blocks = [inner[key] for key in ("content", "parts", "summary") if key in inner]
    parts = [part for block in blocks if isinstance(block, list) for part in block]
    is_item = inner.get("type") == "reasoning"
    thoughts = [
        _thought(part)
        for part in parts
        if isinstance(part, dict) and (is_item or part.get("type") in ("thinking", "reasoning"))
    ]
    return "".join(thoughts)


def _thought(part: Mapping[str, Any]) -> str:
    texts = (part.get(key) for key in ("thinking", "text", "content", "value", "reasoning"))
    return next((text for text in texts if isinstance(text, str)), "")
