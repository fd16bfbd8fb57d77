"""Merge model calls, each of which repeats the history before it, into one conversation.

Observability tools record a conversation as a series of model calls. The input of each call is the
whole conversation so far. Separate tool runs show which calls failed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from stages.core.arguments import parse_arguments
from stages.traces.clean import Message, Writer
from stages.traces.envelopes import text_of
from stages.traces.stream import written

SEVERAL_HISTORIES = "several histories in one trace: read one after another"


class ModelCall(NamedTuple):
    """One call of a model."""

    heard: Sequence[Any]  # input: the history, as messages in any form
    said: Sequence[Any]  # output: the model's answer, as messages in any form


class ToolRun(NamedTuple):
    """One run of a tool, which the trace records separately from the messages."""

    id: str | None
    name: str | None
    arguments: Any
    result: Any  # None: not recorded
    failed: bool


def conversation(
    calls: Iterable[ModelCall], runs: Iterable[ToolRun], notes: Counter[str]
) -> list[Message]:
    """Merge the model calls of one trace into its messages, each of them once.

    Args:
        calls: model calls in order of time. Only the part of an input that is not yet in the
            conversation is added. A call with the same input and answer as an earlier one is
            skipped, because two layers recorded it.
        runs: tool runs. They supply results that no later input holds and mark failed calls.
        notes: counts inputs that do not continue the conversation, and tool runs without a call.

    Raises:
        BadItemError: a call or a result can't be read.
    """
    merged = _Merged()
    for call in calls:
        merged.add(call)
    told: set[str] = set()
    for run in runs:
        _tell(run, merged.messages, told, notes)
    notes.update(merged.notes)
    return merged.messages


def signature(message: Message) -> tuple[Hashable, ...]:
    """Return a key of a clean message that is equal for two recordings of the same message."""
    role, content = message["role"], (message.get("content") or "").strip()
    if role == "tool":
        return role, content, message.get("tool_call_id")
    calls = [
        (call["function"]["name"], _canonical(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return role, content, tuple(calls)


class History:
    """The input of a model call as clean messages; empty before the first call.

    Attributes:
        signatures: the signature of each message.
    """

    def __init__(
        self,
        heard: Sequence[Any] = (),
        writer: Writer | None = None,
        signatures: Sequence[tuple[Hashable, ...]] = (),
    ) -> None:
        self._heard, self._writer, self.signatures = list(heard), writer or Writer(), signatures

    @property
    def messages(self) -> list[Message]:
        """The clean messages."""
        return self._writer.messages

    def begins(self, heard: list[Any]) -> bool:
        """Return whether recorded messages continue this history."""
        return self._writer.is_at_rest and heard[: len(self._heard)] == self._heard

    def then(self, heard: list[Any]) -> History:
        """Return the history of the next call; messages that this history holds are reused.

        Raises:
            BadItemError: a call or a result can't be read.
        """
        return (self if self.begins(heard) else History()).grown(heard)

    def grown(self, heard: list[Any]) -> History:
        """Return the history of a call whose input begins with this history."""
        writer, several = self._writer.copy(), len(self._heard)
        writer.read(heard[several:], several + 1)
        new = writer.messages[len(self.messages) :]
        return History(heard, writer, [*self.signatures, *map(signature, new)])

    def answered(self, said: Sequence[Any]) -> tuple[list[Message], Counter[str]]:
        """Return the clean messages of the model's answer, and the notes on history and answer."""
        writer = self._writer.copy()
        writer.read(said)
        return writer.messages[len(self.messages) :], writer.notes


class _Merged:
    """A conversation merged from model calls, call by call."""

    def __init__(self) -> None:
        self._history = History()
        self.messages: list[Message] = []
        self.notes = Counter[str]()
        self._known = Counter[tuple[Hashable, ...]]()
        self._calls: set[Hashable] = set()

    def add(self, call: ModelCall) -> None:
        """Add the new messages of a call's input and answer."""
        history = self._history = self._history.then(list(call.heard))
        said, notes = history.answered(call.said)
        if notes:
            self.notes |= notes  # maximum, because each history repeats the notes of the last one
        names = [*map(signature, said)]
        whole = (tuple(history.signatures), tuple(names))
        if whole in self._calls:
            return
        self._calls.add(whole)
        left, new = dict(self._known), list[tuple[Message, tuple[Hashable, ...]]]()
        for message, name in zip(history.messages, history.signatures, strict=True):
            if left.get(name):
                left[name] -= 1
            else:
                new.append((message, name))
        if self.messages and any(message["role"] == "assistant" for message, _ in new):
            self.notes[SEVERAL_HISTORIES] += 1
        for message, name in [*new, *zip(said, names, strict=True)]:
            self._known[name] += 1
            self.messages.append(message)


def _tell(run: ToolRun, messages: list[Message], told: set[str], notes: Counter[str]) -> None:
    """Add a tool run's result and failure to the conversation."""
    place = next(_places(run, messages, told), None)
    if place is None:
        notes["tool run without its call"] += 1
        return
    index, call_id = place
    told.add(call_id)
    answers = (m for m in messages[index + 1 :] if m.get("tool_call_id") == call_id)
    answer = next(answers, None)
    if answer is None:
        if run.result is None and not run.failed:
            return
        answer = {"role": "tool", "content": text_of(run.result), "tool_call_id": call_id}
        end = index + 1
        while end < len(messages) and messages[end]["role"] == "tool":
            end += 1
        messages.insert(end, answer)
    if run.failed:
        answer["error"] = True


def _places(run: ToolRun, messages: list[Message], told: set[str]) -> Iterator[tuple[int, str]]:
    """Yield (message index, call id) of the calls that match a run, by id before by content."""
    calls = [(i, call) for i, said in enumerate(messages) for call in said.get("tool_calls") or ()]
    for index, call in calls:
        if call["id"] == run.id:
            yield index, call["id"]
    for index, call in calls:
        function = call["function"]
        if call["id"] not in told and function["name"] == run.name:
            unknown = run.arguments is None  # content is opt-in; the order then decides
            if unknown or _canonical(function["arguments"]) == _canonical(run.arguments):
                yield index, call["id"]


def _canonical(arguments: Any) -> bytes:
    value = parse_arguments(arguments).value if isinstance(arguments, str) else arguments
    return written(value, orjson.OPT_SORT_KEYS)
