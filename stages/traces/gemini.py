"""Read Gemini's contents from requests, logs, tuning sets and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.calls import ARGUMENTS
from stages.traces.exchange import (
    Answer,
    Exchange,
    Logged,
    Record,
    clean_records,
    exchange_of,
    is_foreign,
)
from stages.traces.formats import ReadOptions
from stages.traces.threads import latest

NAME = "gemini"
CALLS = ("functionCall", "function_call")
UNLIKE = frozenset(["thought", *CALLS])  # keys of parts that may need conversion
GIVEN = frozenset(ARGUMENTS)
SYSTEM = ("systemInstruction", "system_instruction")


def accepts(record: Record) -> bool:
    """Return whether a record holds contents, or a response with candidates."""
    if is_foreign(record):
        return False
    exchange = _exchange(record)
    candidates = exchange.response.get("candidates")
    return bool(exchange.request) or isinstance(candidates, list)


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of a log, without those that a later record continues."""
    return latest(records, _logged, lambda logged: bool(logged.exchange.response))


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of a conversation, one for each candidate of its last response.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    yield from clean_records(record, _logged(record, notes), notes)


def _logged(record: Record, notes: Counter[str]) -> Logged:
    exchange = _exchange(record)
    request = exchange.request
    config = request.get("config") if isinstance(request.get("config"), dict) else {}
    places = [request, config or {}]
    system = next((place[key] for place in places for key in SYSTEM if place.get(key)), None)
    history = [{**content_of(system), "role": "system"}] if system else []
    history += _contents(request.get("contents"))
    tools = next((place["tools"] for place in places if place.get("tools")), None)
    candidates = exchange.response.get("candidates")
    answers = [
        Answer([_said(candidate)], _stop(candidate))
        for candidate in (candidates if isinstance(candidates, list) else [])
        if isinstance(candidate, dict)
    ]
    if answers and not history:
        notes["response without its request"] += 1
    return Logged(exchange, history, answers, tools)


def _exchange(record: Record) -> Exchange:
    return exchange_of(record, ("contents",), ("candidates",))


def _stop(candidate: Mapping[str, Any]) -> Any:
    return candidate.get("finishReason") or candidate.get("finish_reason")


def _said(candidate: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a candidate; it may lack a role, or be missing if it was cut off."""
    content = candidate.get("content")
    return content_of({"role": "model", **(content if isinstance(content, dict) else {})})


def _contents(contents: Any) -> list[Any]:
    """Return contents as a list; the SDK also accepts plain text or a single content."""
    if isinstance(contents, list):
        return [content_of(content) for content in contents]
    return [content_of(contents)] if contents else []


def content_of(content: Any) -> dict[str, Any]:
    """Return a content as {role, parts}."""
    if isinstance(content, dict):
        role, parts = content.get("role") or "user", content.get("parts") or []
        parts = parts if isinstance(parts, list) else [parts]
        return {"role": role, "parts": [_part(part) for part in parts]}
    return {"role": "user", "parts": [{"text": content}] if isinstance(content, str) else []}


def _part(part: Any) -> Any:
    """Convert a part to a form that `forms` reads; thoughts become a thinking block, not text."""
    if not isinstance(part, dict):
        return {"text": part} if isinstance(part, str) else part
    if UNLIKE.isdisjoint(part):
        return part
    if part.get("thought") is True:
        return {"type": "thinking", "thinking": part.get("text") or ""}
    for key in CALLS:
        if isinstance(call := part.get(key), dict):
            # Gemini may omit `args` in a call without arguments.
            return {**part, key: {**call, "args": {}}} if GIVEN.isdisjoint(call) else part
    return part
