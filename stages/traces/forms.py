"""Read a chat message of any known form into events.

The known forms are OpenAI's chat messages and Responses items, Anthropic's content blocks, Gemini's
parts, the messages of Bedrock, the AI SDK, OpenTelemetry and ShareGPT, and LangChain's messages,
plain or serialised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stages.traces.calls import (
    RESULT_WRAPPERS,
    WRAPPERS,
    UnreadableCallError,
    Written,
    flag_of,
    looks_like_call,
    object_in,
    read_call,
    stated_id,
)
from stages.traces.envelopes import (
    bare_answer,
    bared,
    first_of,
    inner_messages,
    kind_of,
    mapping,
    opened_message,
    text_of,
)
from stages.traces.events import Event, Heard, Result, Spoken
from stages.traces.straight import WRAPPED, stops_for_call, straight, tokens_of
from stages.traces.vocabulary import (
    CALL_KEYS,
    CALL_TYPES,
    CODE_PARTS,
    ITEM_TYPES,
    KEYS,
    NO_CALLS,
    RESULT_KEYS,
    RESULT_TYPES,
    ROLES,
    SILENT_TYPES,
    TEXT_KEYS,
)

BESIDE = frozenset([*CALL_KEYS, "additional_kwargs", "invalid_tool_calls"])


def read_message(message: Any, lost: list[str], notes: Counter[str]) -> list[Event]:
    """Read one message into events, in order.

    Args:
        message: the message as recorded.
        lost: a line is appended for each call or result that can't be read.
        notes: counts what was skipped without losing a call.

    Returns:
        The events; none for a system message and for one that the policy was given as context.
    """
    events = straight(message)
    return read_closely(message, lost, notes) if events is None else events


def read_closely(message: Any, lost: list[str], notes: Counter[str]) -> list[Event]:
    """Read a message that `straight` does not know; see `read_message`."""
    opened = opened_message(message)
    if opened is None:
        if looks_like_call(message) or not _is_json(message):
            lost.append(f"{message!r:.40} where a message should be")
        else:
            notes["message without a role"] += 1
        return []
    if opened.get("sampled") is False:  # not by the policy: an example or copied context
        return []
    inner = inner_messages(opened)
    if inner is not None:
        return [event for part in inner for event in read_message(part, lost, notes)]
    return _Message(bared(opened), lost, notes).events()


def _is_json(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, list, tuple))


class _Message:
    """Reads one message."""

    def __init__(self, message: Mapping[str, Any], lost: list[str], notes: Counter[str]) -> None:
        self.message, self._lost, self._notes = message, lost, notes

    def events(self) -> list[Event]:
        """Return the events of the message, in order."""
        message = self.message
        kind = message.get("type")
        role = message.get("role", message.get("from"))
        if role is None and isinstance(kind, str):
            if kind in ITEM_TYPES or _is_hosted(kind):
                return self._item(kind)
            role = kind
        known = ROLES.get(role.lower().replace("-", "_")) if isinstance(role, str) else None
        if known == "system":
            return []
        if known is None:
            return self._unknown(role)
        self._check_keys()
        if known == "assistant":
            return self._spoken(item="message" if kind == "message" else None)
        if known == "call":
            content = object_in(first_of(message, ("content", "value", "parts")))
            calls = self._in_text(content) if isinstance(content, str) else self._calls(content)
            return [Spoken(None, calls, has_ids=False)]
        return self._results() if known == "tool" else self._heard()

    def _unknown(self, role: Any) -> list[Event]:
        """Skip a message of no known role; report it if it holds a call or a result."""
        name = "message without a role" if role is None else f"unknown role {role!r:.40}"
        if looks_like_call(self.message):
            self._lost.append(f"a call or a result in a {name.replace('unknown', 'message of')}")
        else:
            self._notes[name] += 1
        return []

    def _check_keys(self) -> None:
        for key, value in self.message.items():
            if key not in KEYS and looks_like_call(value):
                self._lost.append(f"a call or a result under the unknown key '{key:.40}'")

    def _spoken(self, item: str | None) -> list[Event]:
        message = self.message
        content, blocks = self._content()
        beside = self._structured()
        calls: list[Written] = [*beside]
        results: list[Result] = []
        for event in self._blocks(blocks):
            if isinstance(event, Result):
                results.append(event)
            elif not any(_same(event, call) for call in beside):  # LangChain records both
                calls.append(event)
        legacy = not calls and bool(message.get("function_call"))
        if legacy:
            calls = self._calls(message["function_call"])
        spoken = Spoken(
            content,
            calls,
            n_tokens=tokens_of(message),
            stops_for_call=self._stops_for_call(),
            item=item,
            has_ids=not legacy and "parts" not in message,  # Gemini's calls need no ids
            legacy=legacy,
        )
        return [spoken, *results]

    def _structured(self) -> list[Written]:
        """Read the calls that are recorded outside the content."""
        if BESIDE.isdisjoint(self.message):
            return []
        places = [self.message, mapping(self.message.get("additional_kwargs"))]
        given = (place[key] for place in places for key in CALL_KEYS if place.get(key))
        calls = self._calls(next(given, None))
        calls += self._calls(self.message.get("invalid_tool_calls"))  # LangChain: bad arguments
        if not calls and places[1].get("function_call"):
            calls = self._calls(places[1]["function_call"])
        return calls

    def _calls(self, entries: Any) -> list[Written]:
        """Read calls from a list, from an object, or from JSON text of either."""
        entries = object_in(entries)
        if not entries or (isinstance(entries, str) and entries.strip().lower() in NO_CALLS):
            return []
        if isinstance(entries, dict):
            whole = any(key in entries for key in (*WRAPPERS, "name", "tool_name", "toolName"))
            entries = [entries] if whole else list(entries.values())
        if not isinstance(entries, list):
            self._lost.append(f"calls that are no list ({entries!r:.40})")
            return []
        return [call for entry in entries for call in self._call(entry)]

    def _call(self, entry: Any) -> list[Written]:
        try:
            return [read_call(entry)]
        except UnreadableCallError as error:
            self._lost.append(str(error))
            return []

    def _in_text(self, text: str) -> list[Written]:
        """Read calls from text that is not JSON: thoughts precede the calls, or it is cut off."""
        from stages.messages.tool_parser import (
            recorded_calls,  # imported here: its many patterns are slow to compile
        )

        calls = [Written(name, given, None) for name, given, _ in recorded_calls(text)]
        if not calls:
            self._lost.append(f"a call that can't be read ({text!r:.40})")
        return calls

    def _stops_for_call(self) -> bool:
        metadata = mapping(self.message.get("response_metadata"))
        return stops_for_call(self.message) or stops_for_call(metadata)

    def _content(self) -> tuple[Any, list[Any]]:
        """Return the content, reduced to text if it has blocks, and the blocks."""
        content = first_of(self.message, ("content", "value", "parts", "text", "message"))
        blocks = [content] if isinstance(content, dict) else content
        parts = self.message.get("parts")
        if not isinstance(blocks, list):  # the AI SDK has the text in both content and parts
            return content, parts if isinstance(parts, list) else []
        if isinstance(parts, list) and parts is not blocks:
            blocks = [*blocks, *(part for part in parts if part not in blocks)]
        texts = [block for block in blocks if isinstance(block, str) or not _speaks_not(block)]
        return text_of(texts), [block for block in blocks if not isinstance(block, str)]

    def _heard(self) -> list[Event]:
        content, blocks = self._content()
        calls = self._structured()
        results: list[Event] = []
        for event in self._blocks(blocks):
            if isinstance(event, Result):
                results.append(event)
            else:
                self._lost.append(f"a call of '{event.name:.40}' in a message of the user")
        if results and not text_of(content).strip():
            return results
        return [*results, Heard(content, calls)]

    def _results(self) -> list[Event]:
        """Read a tool message: one result, or one per block that is a result."""
        content = first_of(self.message, RESULT_KEYS)
        if isinstance(content, list):
            results = [result for block in content if (result := self._result_block(block))]
            if results:
                return list(results)
        return [self._result(self.message, content)]

    def _blocks(self, blocks: list[Any]) -> Iterator[Written | Result]:
        for block in blocks:
            if not isinstance(block, dict):
                if looks_like_call(block):
                    self._lost.append("a call in content that can't be read")
                continue
            if (result := self._result_block(block)) is not None:
                yield result
            elif _is_call_block(block):
                held = kind_of(block) in ("tool_calls", "tool_call") and "value" in block
                yield from self._calls(block["value"]) if held else self._call(block)
            else:
                self._check_block(block)

    def _result_block(self, block: Any) -> Result | None:
        """Return the result in a block; None if it holds none."""
        if not isinstance(block, dict):
            return None
        kind = kind_of(block)
        if not WRAPPED.isdisjoint(block):
            wrapped = next((block[key] for key in RESULT_WRAPPERS if block.get(key)), None)
            if isinstance(wrapped, dict):
                return self._result(wrapped, first_of(wrapped, RESULT_KEYS))
        if kind in RESULT_TYPES or kind.endswith("_tool_result"):
            return self._result(block, first_of(block, RESULT_KEYS))
        return None

    def _result(
        self, result: Mapping[str, Any], content: Any, call_id: str | None = None
    ) -> Result:
        text = text_of(bare_answer(content))
        if not any(key in result for key in RESULT_KEYS) or (content and not text):
            self._notes["result without content"] += 1
        for key in result.keys() - KEYS:
            if any(part in key.lower() for part in ("err", "fail", "status")):
                self._notes[f"unknown flag '{key:.40}' of a result"] += 1
        names = (result.get(key) for key in ("name", "tool_name", "toolName"))
        return Result(
            text,
            call_id or stated_id(result),
            next((name for name in names if isinstance(name, str)), None),
            flag_of(result),
            result.get("requestor") == "user",
        )

    def _check_block(self, block: Mapping[str, Any]) -> None:
        kind = block.get("type")
        if isinstance(kind, str) and kind in SILENT_TYPES:
            return
        if any(block.get(key) for key in CODE_PARTS):
            self._lost.append("code that the model ran by itself")
        elif looks_like_call(block) or (isinstance(kind, str) and _is_hosted(kind)):
            self._lost.append(f"a content block of the unknown type {kind!r:.40}")
        elif kind is not None:
            self._notes[f"unknown content block {kind!r:.40}"] += 1

    def _item(self, kind: str) -> list[Event]:
        """Read an item of the Responses API."""
        if kind in RESULT_TYPES:
            return [self._result(self.message, first_of(self.message, RESULT_KEYS))]
        if kind in CALL_TYPES:
            calls = self._call(self.message)
            events: list[Event] = [Spoken(None, calls, item="call")]
            answered = any(self.message.get(key) is not None for key in ("output", "error"))
            if kind == "mcp_call" and calls and answered:
                events.append(self._result(self.message, self.message.get("output"), calls[0].id))
            return events
        if _is_hosted(kind):
            self._lost.append(f"a call of the kind '{kind:.40}'")
        return []


def _is_hosted(kind: str) -> bool:
    """Return whether a type is a hosted call, which names no tool, e.g. web_search_call."""
    return kind.endswith(("_call", "-call", "_call_output")) and kind not in CALL_TYPES


def _same(call: Written, other: Written) -> bool:
    if call.id and other.id:
        return call.id == other.id
    return call.name == other.name and call.arguments == other.arguments


def _speaks_not(block: Any) -> bool:
    """Return whether a block is anything other than visible text."""
    if not isinstance(block, dict):
        return True
    is_text = kind_of(block) in ("", "text", "output_text", "input_text")
    return not is_text or not any(key in block for key in TEXT_KEYS)


def _is_call_block(block: Mapping[str, Any]) -> bool:
    kind = kind_of(block)
    if kind == "tool_calls":
        return "value" in block
    return kind in CALL_TYPES or (not kind and any(block.get(key) for key in WRAPPERS))
