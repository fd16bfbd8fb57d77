"""Model calls that each repeat the history before them, merged into one conversation.

A trace of an observability tool holds a conversation as the model calls that made it: the input of
each is the whole conversation so far. Tool runs beside them tell which calls failed.
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

    heard: Sequence[Any]  # messages in any form: the history
    said: Sequence[Any]  # what the model answered


class ToolRun(NamedTuple):
    """One run of a tool, as the trace records it beside the messages."""

    id: str | None
    name: str | None
    arguments: Any
    result: Any  # None: not recorded
    failed: bool


def conversation(
    calls: Iterable[ModelCall], runs: Iterable[ToolRun], notes: Counter[str]
) -> list[Message]:
    """The messages of one trace, each of them once.

    Args:
        calls: in order of time. Of an input counts what is not in the conversation yet; the same
            input with the same answer is one call that two layers recorded.
        runs: give calls the results that no later input holds, and mark those that failed.
        notes: counts inputs that did not go on from the conversation.

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
    """What a clean message says, without what two recordings of it may differ in."""
    role, content = message["role"], (message.get("content") or "").strip()
    if role == "tool":
        return role, content, message.get("tool_call_id")
    calls = [
        (call["function"]["name"], _canonical(call["function"]["arguments"]))
        for call in message.get("tool_calls") or ()
    ]
    return role, content, tuple(calls)


class History:
    """The clean messages of what a model had heard at a call; at the first, nothing.

    Attributes:
        signatures: of each message.
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
        """All of them."""
        return self._writer.messages

    def begins(self, heard: list[Any]) -> bool:
        """Whether messages as recorded go on from this history."""
        return self._writer.is_at_rest and heard[: len(self._heard)] == self._heard

    def then(self, heard: list[Any]) -> History:
        """The history of another call; what this one holds of it is not cleaned again.

        Raises:
            BadItemError: a call or a result can't be read.
        """
        return (self if self.begins(heard) else History()).grown(heard)

    def grown(self, heard: list[Any]) -> History:
        """The history of a call whose messages begin with this one's."""
        writer, several = self._writer.copy(), len(self._heard)
        writer.read(heard[several:], several + 1)
        new = writer.messages[len(self.messages) :]
        return History(heard, writer, [*self.signatures, *map(signature, new)])

    def answered(self, said: Sequence[Any]) -> tuple[list[Message], Counter[str]]:
        """What a model answered to this, and the notes on both."""
        writer = self._writer.copy()
        writer.read(said)
        return writer.messages[len(self.messages) :], writer.notes


class _Merged:
    """A conversation that grows call by call."""

    def __init__(self) -> None:
        self._history = History()
        self.messages: list[Message] = []
        self.notes = Counter[str]()
        self._known = Counter[tuple[Hashable, ...]]()
        self._calls: set[Hashable] = set()

    def add(self, call: ModelCall) -> None:
        """Add what a call heard and said, as far as it is new."""
        history = self._history = self._history.then(list(call.heard))
        said, notes = history.answered(call.said)
        if notes:
            self.notes |= notes  # each history repeats what was noted of the one before it
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
    """Write into the conversation what a run of a tool tells of its call."""
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
    """(place of the message, id) of the calls that a run may be of: by id, else as it was made."""
    calls = [(i, call) for i, said in enumerate(messages) for call in said.get("tool_calls") or ()]
    for index, call in calls:
        if call["id"] == run.id:
            yield index, call["id"]
    for index, call in calls:
        function = call["function"]
        if call["id"] not in told and function["name"] == run.name:
            unknown = run.arguments is None  # content is opt-in, and the order tells
            if unknown or _canonical(function["arguments"]) == _canonical(run.arguments):
                yield index, call["id"]


def _canonical(arguments: Any) -> bytes:
    value = parse_arguments(arguments).value if isinstance(arguments, str) else arguments
    return written(value, orjson.OPT_SORT_KEYS)
