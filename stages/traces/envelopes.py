"""Unwrap messages, their text and the answers of tools from the envelopes of their formats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from stages.traces.calls import object_in
from stages.traces.vocabulary import RESULT_TYPES, TEXT_KEYS


def text_of(content: Any) -> str:
    """Return the plain text of a message's content: text, null, a list of parts or other JSON."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if isinstance(content, list):
        parts = [_text_of_block(part) if isinstance(part, dict) else part for part in content]
        if all(part is None or isinstance(part, str) for part in parts):
            return "".join(part or "" for part in parts)
    return json.dumps(content, ensure_ascii=False, default=str)


def _text_of_block(block: Mapping[str, Any]) -> Any:
    if block.get("type") == "document" and "text" not in block:  # Cohere's results
        data = mapping(block.get("document")).get("data")
        return data if data is None or isinstance(data, str) else json.dumps(data)
    if block.get("type") in (None, "text", "input_text", "output_text"):
        return next((block[key] for key in TEXT_KEYS if key in block), None)
    return block.get("text")


def opened_message(message: Any) -> Mapping[str, Any] | None:
    """Return a message as a dict, from JSON text or an SDK's object too; None if it is neither."""
    if type(message) is dict:
        return message
    if hasattr(message, "model_dump"):
        message = message.model_dump()
    value = object_in(message)
    return dict(value) if isinstance(value, Mapping) else None


def inner_messages(message: Mapping[str, Any]) -> list[Any] | None:
    """Return the messages in an envelope; None if the object is not an envelope."""
    for key in ("tool_messages", "tool_responses"):  # tau2-bench, AutoGen
        if isinstance(several := message.get(key), list):
            return several
    if "role" in message or "from" in message:
        return None
    if isinstance(choices := message.get("choices"), list):  # a response of OpenAI's chat API
        return [{**choice, **mapping(choice.get("message"))} for choice in map(mapping, choices)]
    is_result = kind_of(message) in RESULT_TYPES
    if not is_result and isinstance(message.get("output"), list):
        return list(message["output"])  # a response of the Responses API
    if isinstance(message.get("message"), dict) and "content" not in message:
        return [message["message"]]
    return None


def bared(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Unwrap a LangChain message from its two serialised forms; return any other unchanged."""
    path = message.get("id")
    if "lc" in message and isinstance(path, list) and path:
        return {**mapping(message.get("kwargs")), "type": str(path[-1])}
    if isinstance(message.get("data"), dict) and isinstance(message.get("type"), str):
        return {**message["data"], "type": message["type"]}
    return message


def bare_answer(content: Any) -> Any:
    """Unwrap a tool's answer from the envelopes of Gemini, the AI SDK and Bedrock."""
    if isinstance(content, dict):
        if len(content) == 1 and ("result" in content or "output" in content):
            return next(iter(content.values()))
        if len(content) == 2 and "type" in content and "value" in content:
            return content["value"]
    elif isinstance(content, list) and len(content) == 1 and set(mapping(content[0])) == {"json"}:
        return content[0]["json"]  # Bedrock
    return content


def mapping(value: Any) -> Mapping[str, Any]:
    """Return a value if it is a dict, else an empty dict."""
    return value if isinstance(value, dict) else {}


def first_of(place: Mapping[str, Any], keys: Sequence[str]) -> Any:
    """Return the first value under the keys that is not null; None if there is none."""
    for key in keys:  # most messages have the first key
        if (value := place.get(key)) is not None:
            return value
    return None


def kind_of(block: Mapping[str, Any]) -> str:
    """Return the type of a block, spelt as in `vocabulary`; "" if it has none."""
    kind = block.get("type")
    return kind.replace("-", "_").lower() if isinstance(kind, str) else ""
