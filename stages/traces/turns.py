"""Read the turns of a list of chat messages, whatever form their calls and results have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.core.arguments import parse_arguments
from stages.core.limits import LARGEST
from stages.messages.tool_parsers.signs import has_signs, may_hold_calls
from stages.messages.tool_parsers.unread import unread_call
from stages.traces import react
from stages.traces.calls import (
    UnreadableCallError,
    Written,
    object_in,
    plain_call,
    read_call,
    says_failed,
)
from stages.traces.envelopes import text_of
from stages.traces.episode import Call, Turn
from stages.traces.events import Event, Result, Spoken, shares_turn
from stages.traces.fields import BadItemError
from stages.traces.forms import read_message

if TYPE_CHECKING:
    from stages.messages.tool_parsers.calls import TextCall

__all__ = ["read_turns", "text_of"]

# Hermes-style results inside plain text; the last one may be cut off.
TEXT_RESULT = re.compile(r"<tool_response>\n?(.*?)\n?(?:</tool_response>|\Z)", re.DOTALL)

# Keys of OpenAI's and tau2-bench's messages. Messages with other keys may hold calls elsewhere.
PLAIN = frozenset(
    [
        "role",
        "content",
        "tool_calls",
        "tool_call_id",
        "name",
        "id",
        "requestor",
        "error",
        "n_tokens",
        "prompt_ids",
        "appended",
        "token_ids",
        "logprobs",
        "logprobs_rounded",
        "finish",
        "usage",
        "turn_idx",
        "timestamp",
        "cost",
        "raw_data",
        "reasoning",
        "reasoning_content",
        "errors",
        "refusal",
        "annotations",
        "audio",
    ]
)
ENVELOPE = frozenset({"name", "content", "tool_call_id", "role"})  # keys of a result in tags
DOUBTFUL = "text that may be a call: read as a message"
RECORD = "record every call with its name, arguments and result, or pass --skip-bad"


def read_turns(
    messages: Sequence[Any],
    notes: Counter[str],
    tools: Sequence[Any] | None = None,
    *,
    played: bool = False,
) -> tuple[list[Turn], list[Call]]:
    """Read the policy's turns and the simulated user's own calls, in order.

    Each assistant message is one turn; items of one response of the Responses API share a turn. A
    result belongs to the open call with its id. If ids are missing, repeated or wrong, the result
    belongs to the first open call of the last message with calls; a call of the tool that the
    result names goes first.

    Args:
        messages: messages of one conversation as recorded, in any form that `forms` reads.
        notes: counts what was repaired or skipped; unchanged if this raises.
        tools: tool definitions, if known. They give the types of arguments in XML calls.
        played: the recorded calls are exactly those that an environment executed. Text is then
            never read as a call, even if a weak policy wrote text that looks like one.

    Returns:
        The policy's turns, and the calls that the simulated user made.

    Raises:
        BadItemError: a call or a result can't be read, or a result has no call.
    """
    conversation = _Conversation(tools or (), not played and react.is_react(messages), played)
    for place, message in enumerate(messages, 1):
        conversation.place = place
        if type(message) is not dict or not conversation.read(message):
            lost: list[str] = []
            for event in read_message(message, lost, conversation.notes):
                conversation.take(event)
            for what in lost:
                conversation.lose(what)
    conversation.close()
    if conversation.notes:
        notes.update(conversation.notes)
    return conversation.turns, conversation.user_calls


class _Conversation:
    """The part of a conversation that has been read so far."""

    def __init__(self, tools: Sequence[Any], is_react: bool, played: bool) -> None:
        self.turns: list[Turn] = []
        self.user_calls: list[Call] = []
        self.notes: Counter[str] = Counter()
        self.place = 0  # position of the message being read, from 1
        self._tools, self._is_react, self._played = tools, is_react, played
        self._lost: list[str] = []  # one line per call or result that can't be read
        self._by_id: dict[str, Call | None] = {}  # None: the id is ambiguous
        self._latest: list[Call] = []  # calls of the last assistant message with calls
        self._latest_of_user: list[Call] = []  # the same for the simulated user
        self._last: str | None = None  # the policy's previous item, "message" or "call"

    def lose(self, what: str) -> None:
        """Record a call or a result that can't be read."""
        self._lost.append(f"message {self.place} has {what}")

    def close(self) -> None:
        """Count the calls without a result; raise BadItemError if anything can't be read."""
        unknown = [name for name in self.notes if name.startswith("unknown role")]
        if unknown and not self.turns:
            self._lost.append(f"no message is of the assistant, but of an {unknown[0]}")
        if self._lost:
            more = f" ({len(self._lost)} such places)" if len(self._lost) > 1 else ""
            raise BadItemError(self._lost[0] + more, RECORD)
        missing = 0
        for turn in self.turns:
            for call in turn.calls:
                if call.result is None:
                    missing += 1
        if missing:
            self.notes["call without a result"] += missing

    def read(self, message: dict[str, Any]) -> bool:
        """Read a message with the keys of `PLAIN`.

        Most messages of most traces take this path, so it is one long, fast function.

        Returns:
            Whether the message was read. If False, the slower `read_message` must read it.
        """
        get = message.get
        content, role, entries, n_tokens = get("content"), get("role"), None, None
        if content is not None and type(content) is not str:
            return False
        if len(message) > 2 or content is None or role is None:  # keys beyond these two
            entries = get("tool_calls")
            if (entries and type(entries) is not list) or not PLAIN.issuperset(message):
                return False
        if role == "assistant":
            self._last = "message"
            if "n_tokens" in message:
                n_tokens = message["n_tokens"]
            elif "usage" in message and type(usage := message["usage"]) is dict:
                n_tokens = usage.get("completion_tokens")
            if not entries:
                self._speak(content, n_tokens)
                return True
            calls = self._structured(entries)
            if calls:
                self._latest = calls
            if content:
                self._check_text(content, calls)
            if n_tokens is not None:
                n_tokens = self._token_count(n_tokens)
            self.turns.append(Turn(calls, n_tokens, content, len(self.user_calls)))
            return True
        if role == "tool":
            if "content" not in message:
                return False
            # OpenAI has the id of the call in `tool_call_id`, tau2-bench in the result's `id`.
            call_id = get("tool_call_id") or get("id")
            flag = None if (error := get("error")) is None else says_failed(error)
            if content and content[0] in "< \n" and content.lstrip().startswith("<tool_response>"):
                return False
            call = self._by_id.get(call_id) if type(call_id) is str else None
            if call is not None and call.result is None:
                call.result, call.flagged = content or "", flag
            else:
                of_user = get("requestor") == "user"
                self._answer(call_id, content or "", flag, get("name"), of_user)
        elif role == "user":
            if entries:
                self._latest_of_user = self._structured(entries)
                self.user_calls += self._latest_of_user
            elif content and (self._is_react or "<tool_response>" in content):
                self._hear(content)
        elif role != "system":
            return False
        self._last = None
        return True

    def take(self, event: Event) -> None:
        """Add an event from a message in another form."""
        if isinstance(event, Spoken):
            self._take_spoken(event)
        elif isinstance(event, Result) and event.text.lstrip().startswith("<tool_response>"):
            self._answer_in_tags(event.text, event)
        elif isinstance(event, Result):
            self._answer(event.id, event.text, event.flag, event.name, event.of_user)
        elif event.calls:
            self._latest_of_user = self._made(event.calls)
            self.user_calls += self._latest_of_user
        else:
            self._hear(text_of(event.content))
        self._last = (event.item or "message") if isinstance(event, Spoken) else None

    def _take_spoken(self, event: Spoken) -> None:
        calls = self._made(event.calls, has_ids=event.has_ids)
        if event.legacy:
            self.notes["legacy function_call"] += 1
        if shares_turn(event.item, self._last):
            turn = self.turns[-1]
            turn.text = turn.text if event.content is None else event.content
            turn.calls += calls
            self._latest = turn.calls if calls else self._latest
        elif calls:
            if type(event.content) is str:
                self._check_text(event.content, calls)
            self._add_turn(calls, event.n_tokens, event.content)
        else:
            self._speak(event.content, event.n_tokens)
        if event.stops_for_call and not self.turns[-1].calls:
            self.lose("no call, although it stopped to make one")

    def _speak(self, content: Any, n_tokens: Any) -> None:
        """Add a turn without structured calls; its text may contain calls."""
        text = content if type(content) is str else text_of(content)
        calls: list[Call] = []
        if not text:
            self.notes["turn without text or calls"] += 1
        elif self._is_react:
            try:
                step = react.read_step(text)
            except UnreadableCallError as error:
                self.lose(str(error))
            else:
                if step.is_prose and unread_call(text):
                    self.notes[DOUBTFUL] += 1
                content = content if step.speech is None else step.speech
                calls = [Call(step.call.name, step.call.arguments)] if step.call else []
        elif not self._played and has_signs(text):
            calls = self._in_text(text)
        self._add_turn(calls, n_tokens, content)

    def _in_text(self, text: str) -> list[Call]:
        """Read the calls in a text, in order."""
        calls = []
        for written in self._written(text):
            self.notes["call read from text"] += 1
            if written.broken:
                self.notes["broken call in text"] += 1
            elif written.arguments == "":
                self.notes["no arguments in text: read as none"] += 1
            calls.append(Call(written.name, written.arguments))
        if not calls and (looks := unread_call(text)):
            if looks == "sure":
                self.lose("text that looks like a call, in a notation that is not known")
            else:
                self.notes[DOUBTFUL] += 1
        return calls

    def _written(self, text: str) -> list[TextCall]:
        if not may_hold_calls(text):
            return []
        # Imported here because its many patterns are slow to compile.
        from stages.messages.tool_parser import recorded_calls

        return recorded_calls(text, self._tools)

    def _check_text(self, text: str, calls: list[Call]) -> None:
        """Report calls in a text that are not among the structured calls."""
        written_calls = [] if self._played else self._written(text)
        if not written_calls:
            return
        recorded = [(call.name, parse_arguments(call.arguments).value) for call in calls]
        for written in written_calls:
            if (written.name, parse_arguments(written.arguments).value) not in recorded:
                self.lose("a call in its text that is not among those beside it")

    def _add_turn(self, calls: list[Call], n_tokens: Any, content: Any) -> None:
        if calls:
            self._latest = calls
        if n_tokens is not None:
            n_tokens = self._token_count(n_tokens)
        self.turns.append(Turn(calls, n_tokens, content, len(self.user_calls)))

    def _token_count(self, n_tokens: Any) -> int | None:
        if type(n_tokens) is not int:
            self.notes["token count not an integer"] += 1
            return None
        if not 0 <= n_tokens <= LARGEST:
            self.notes["token count out of range"] += 1
            return None
        return n_tokens

    def _structured(self, entries: list[Any]) -> list[Call]:
        """Read the entries of `tool_calls`."""
        calls = []
        for entry in entries:
            written = plain_call(entry)
            if written is None:
                try:
                    written = read_call(entry)
                except UnreadableCallError as error:
                    self.lose(str(error))
                    continue
            name, arguments, call_id = written
            call = Call(name, arguments)
            if call_id and call_id not in self._by_id and arguments is not None:
                self._by_id[call_id] = call
            else:
                self._register(call, call_id)
            calls.append(call)
        return calls

    def _made(self, written: Sequence[Written], *, has_ids: bool = True) -> list[Call]:
        calls = []
        for entry in written:
            call = Call(entry.name, entry.arguments)
            if entry.id or has_ids:
                self._register(call, entry.id)
            calls.append(call)
        return calls

    def _register(self, call: Call, call_id: str | None) -> None:
        """Index a call by its id."""
        if call.arguments is None:
            self.notes["null arguments read as none"] += 1
        if call_id is None:
            self.notes["call id missing"] += 1
        elif call_id in self._by_id:
            earlier = self._by_id[call_id]
            over = earlier is not None and earlier.result is not None
            self.notes["call id used again after its result" if over else "call id repeated"] += 1
            self._by_id[call_id] = call if over else None
        else:
            self._by_id[call_id] = call

    def _answer(self, call_id: Any, text: str, flag: bool | None, name: Any, of_user: bool) -> None:
        """Assign a result to its call."""
        call = self._by_id.get(call_id) if type(call_id) is str else None
        if call is None or call.result is not None:
            answered = call is not None
            still_open = _open(self._latest_of_user if of_user else self._latest)
            if not still_open:
                if answered:
                    self.notes["second result of a call"] += 1
                else:
                    self.lose("a result without its call")
                return
            named = [call for call in still_open if call.name == name]
            call = (named or still_open)[0]
            self._note_pairing(call_id, guessed=len(still_open) > 1 and not named)
        call.result, call.flagged = text, flag

    def _note_pairing(self, call_id: Any, *, guessed: bool) -> None:
        """Note that a result was paired by position although an id or a name should decide."""
        ambiguous = type(call_id) is str and self._by_id.get(call_id, self) is None
        if (self._by_id or guessed) and not ambiguous and not self.notes["call id missing"]:
            self.notes["result paired by position"] += 1

    def _hear(self, text: str) -> None:
        """Read the results in a user message; they are in the order of the open calls."""
        if self._is_react and (answer := react.ANSWER.match(text)):
            self._answer(None, text[answer.end() :], None, None, of_user=False)
        elif "<tool_response>" in text:
            self._answer_in_tags(text)

    def _answer_in_tags(self, text: str, result: Result | None = None) -> None:
        """Read the results in tags; they are in the order of the open calls.

        A result may be a Hermes object with the call's id, the tool's name and the content.
        """
        result = result or Result("")
        texts = TEXT_RESULT.findall(text)
        alone = result if len(texts) == 1 else Result("")
        for written in texts:
            value = object_in(written)
            if not isinstance(value, dict) or not ENVELOPE.issuperset(value):
                value = {}
            content = text_of(value["content"]) if "content" in value else written
            call_id, name = value.get("tool_call_id", alone.id), value.get("name", alone.name)
            flag = result.flag
            still_open = _open(self._latest)
            named = any(call.name == name for call in still_open)
            if still_open and not named and call_id not in self._by_id:
                still_open[0].result, still_open[0].flagged = content, flag
            else:
                self._answer(call_id, content, flag, name, of_user=False)


def _open(calls: list[Call]) -> list[Call]:
    """Return the calls that have no result yet."""
    return [call for call in calls if call.result is None]
