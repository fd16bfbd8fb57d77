"""A fast path for messages in the common shapes of their forms.

It covers most messages of most logs: Gemini's and OpenTelemetry's parts, Anthropic's blocks, items
of the Responses API and ShareGPT's pairs. It reads the same events as `forms`, several times
faster. Messages with any other key or type are left to `forms`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.traces.calls import RESULT_WRAPPERS, Written, flag_of, object_in
from stages.traces.envelopes import bare_answer, first_of, mapping, text_of
from stages.traces.events import Event, Heard, Result, Spoken
from stages.traces.vocabulary import ROLES, STOP_KEYS, STOPS_FOR_CALLS

# Keys of assistant messages with blocks. None adds anything to the calls in the blocks.
PLAIN = frozenset(["role", "content", "parts", "type", "id", "model", "n_tokens", "usage"])
PLAIN |= {"stop_sequence", *STOP_KEYS}
TEXTS = frozenset(["text", "output_text", "input_text"])
WRAPPED = frozenset(RESULT_WRAPPERS)
ITEM = frozenset(["type", "call_id", "id", "status"])
CALL_ITEM, RESULT_ITEM = ITEM | {"name", "arguments"}, ITEM | {"output"}
GEMINI_CALL = frozenset(["name", "args", "id"])
GEMINI_RESULT = frozenset(["name", "response", "id"])
ANTHROPIC_RESULT = frozenset(["type", "tool_use_id", "content", "is_error"])


def straight(message: Any) -> list[Event] | None:
    """Read a message into events, in order; return None if only `forms` can read it.

    System messages return None too.
    """
    if type(message) is not dict:
        return None
    if "role" in message:
        return _of_blocks(message)
    return _of_pair(message) if "from" in message else _of_item(message)


def _of_blocks(message: dict[str, Any]) -> list[Event] | None:
    """Read {role, parts}, or {role, content} with a list of blocks."""
    role, has_parts = message["role"], "parts" in message
    blocks = message["parts"] if has_parts else message.get("content")
    if type(blocks) is not list or (has_parts and "content" in message):
        return None
    texts: list[str] = []  # `list[str]()` would be ten times slower
    calls: list[Written] = []
    results: list[Result] = []
    for block in blocks:
        said = _of_block(block) if type(block) is dict else None
        if type(said) is str:
            texts.append(said)
        elif type(said) is Written:
            calls.append(said)
        elif type(said) is Result:
            results.append(said)
        else:
            return None
    text = "".join(texts)
    if role == "assistant" or role == "model":
        if len(message) == 2:
            return [Spoken(text, calls, has_ids=not has_parts), *results]
        item = message.get("type")
        if not PLAIN.issuperset(message) or (item != "message" and "type" in message):
            return None
        tokens, stops = tokens_of(message), stops_for_call(message)
        return [Spoken(text, calls, tokens, stops, item, not has_parts), *results]
    if len(message) > 2 or calls:
        return None
    if role == "tool":
        return [*results] if results and not texts else None
    if role != "user":
        return None
    return [*results] if results and not text.strip() else [*results, Heard(text, [])]


def _of_block(block: dict[str, Any]) -> str | Written | Result | None:
    """Read a block: a text, a call or a result."""
    kind = block.get("type")
    if kind is None:
        return _of_part(block) if len(block) == 1 else None
    if type(kind) is not str:
        return None
    if kind in TEXTS:
        text = block["text"] if "text" in block else len(block) == 2 and block.get("content")
        return text if type(text) is str and WRAPPED.isdisjoint(block) else None
    several = len(block)
    if kind == "tool_use":  # Anthropic's
        return _call(block, "input", block.get("id")) if several == 4 and "id" in block else None
    if kind == "tool_call":  # OpenTelemetry's
        has_id = several == 4 and "id" in block
        return _call(block, "arguments", block["id"]) if has_id else None
    if kind == "tool_result" and "content" in block and ANTHROPIC_RESULT.issuperset(block):
        return _result(block, "content", block.get("tool_use_id"), flag_of(block))
    if kind == "tool_call_response" and several == 3 and "id" in block and "response" in block:
        return _result(block, "response", block["id"])
    return None


def _of_part(part: dict[str, Any]) -> str | Written | Result | None:
    """Read one of Gemini's parts, which has one key."""
    [(key, value)] = part.items()
    if key == "text":
        return value if type(value) is str else None
    if type(value) is not dict:
        return None
    if key in ("functionCall", "function_call") and GEMINI_CALL.issuperset(value):
        return _call(value, "args", value.get("id"))
    if key in WRAPPED and "response" in value and GEMINI_RESULT.issuperset(value):
        return _result(value, "response", value.get("id"))
    return None


def _of_pair(message: dict[str, Any]) -> list[Event] | None:
    """Read ShareGPT's {from, value}."""
    speaker, value = message["from"], message.get("value")
    if len(message) != 2 or type(speaker) is not str or type(value) is not str:
        return None
    role = ROLES.get(speaker)
    if role == "assistant":
        return [Spoken(value, [])]
    if role == "user":
        return [Heard(value, [])]
    if role == "tool":
        return [Result(value)]
    entries = object_in(value) if role == "call" else None
    entries = [entries] if type(entries) is dict else entries
    if type(entries) is not list:
        return None
    calls = [_call(e, "arguments", None) for e in entries if type(e) is dict and len(e) == 2]
    read = [call for call in calls if call]
    return [Spoken(None, read, has_ids=False)] if len(read) == len(entries) else None


def _of_item(message: dict[str, Any]) -> list[Event] | None:
    """Read an item of the Responses API that is not a message."""
    kind, call_id = message.get("type"), message.get("call_id")
    if type(call_id) is not str or not call_id:
        return None
    if kind == "function_call" and CALL_ITEM.issuperset(message):
        call = _call(message, "arguments", call_id)
        return [Spoken(None, [call], item="call")] if call else None
    if kind == "function_call_output" and "output" in message and RESULT_ITEM.issuperset(message):
        result = _result(message, "output", call_id, flag_of(message))
        return [result] if result else None
    return None


def tokens_of(message: Mapping[str, Any]) -> Any:
    """Return the number of tokens that the policy wrote, as recorded in a message."""
    if "n_tokens" in message:
        return message["n_tokens"]
    return first_of(mapping(message.get("usage")), ("completion_tokens", "output_tokens"))


def stops_for_call(place: Mapping[str, Any]) -> bool:
    """Return whether the recorded stop reason is a tool call."""
    return any(str(place[key]).lower() in STOPS_FOR_CALLS for key in STOP_KEYS if key in place)


def _call(call: Mapping[str, Any], key: str, call_id: Any) -> Written | None:
    """Read a call whose arguments are under a key; return None if it has another shape."""
    name = call.get("name")
    if type(name) is not str or key not in call:
        return None
    return Written(name, call[key], call_id if type(call_id) is str and call_id else None)


def _result(
    result: Mapping[str, Any], key: str, call_id: Any, flag: bool | None = None
) -> Result | None:
    """Read a result whose answer is under a key; return None if its text is not found."""
    answer, name = result[key], result.get("name")
    text = answer if type(answer) is str else text_of(bare_answer(answer))
    if answer and not text:  # blocks without any text
        return None
    return Result(
        text,
        call_id if type(call_id) is str and call_id else None,
        name if type(name) is str else None,
        flag,
    )
