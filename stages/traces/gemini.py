"""Gemini's contents: requests, logs, batches, and sessions of the Agent Development Kit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.exchange import Answer, Exchange, Record, clean_records, exchange_of
from stages.traces.threads import latest

NAME = "gemini"
SYSTEM = ("systemInstruction", "system_instruction")


def accepts(record: Record) -> bool:
    """Whether a record holds contents, a response with candidates, or the events of a session."""
    exchange = _exchange(record)
    candidates = exchange.response.get("candidates")
    return bool(exchange.request) or isinstance(candidates, list) or bool(_events(record))


def gather(records: Iterable[Record], notes: Counter[str]) -> Iterator[Record]:
    """The records of a log without those that a later one repeats."""
    return latest(records, translate, lambda record: bool(_exchange(record).response), notes)


def translate(record: Record, notes: Counter[str]) -> Iterator[Record]:
    """The clean record of one conversation, or one for each candidate of its last response.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    if events := _events(record):
        contents = [_content(event) for event in events if not event.get("partial")]
        said = {"task_id": None, "episode_id": record.get("id"), **record}
        exchange = Exchange({"model": record.get("appName") or record.get("app_name")}, {})
        yield from clean_records(said, exchange, [c for c in contents if c], [], None, notes)
        return
    exchange = _exchange(record)
    request = exchange.request
    config = request.get("config") if isinstance(request.get("config"), dict) else {}
    places = [request, config or {}]
    system = next((place[key] for place in places for key in SYSTEM if place.get(key)), None)
    history = [{**_content_of(system), "role": "system"}] if system else []
    history += _contents(request.get("contents"))
    tools = next((place["tools"] for place in places if place.get("tools")), None)
    answers = [
        Answer([_content_of(candidate.get("content"))], _stop(candidate))
        for candidate in exchange.response.get("candidates") or []
        if isinstance(candidate, Mapping)
    ]
    if answers and not history:
        notes["response without its request"] += 1
    yield from clean_records(record, exchange, history, answers, tools, notes)


def _exchange(record: Record) -> Exchange:
    return exchange_of(record, ("contents",), ("candidates",))


def _stop(candidate: Mapping[str, Any]) -> Any:
    return candidate.get("finishReason") or candidate.get("finish_reason")


def _contents(contents: Any) -> list[Any]:
    """Contents as a list: the SDK takes a bare text or a single content, too."""
    if isinstance(contents, list):
        return [_content_of(content) for content in contents]
    return [_content_of(contents)] if contents else []


def _content_of(content: Any) -> dict[str, Any]:
    """One content as {role, parts}."""
    if isinstance(content, Mapping):
        role, parts = content.get("role") or "user", content.get("parts") or []
        parts = [parts] if isinstance(parts, (str, Mapping)) else parts
        return {"role": role, "parts": [_part(part) for part in parts]}
    return {"role": "user", "parts": [{"text": content}] if isinstance(content, str) else []}


def _part(part: Any) -> Any:
    """A part as the reader takes it: text that only was thought is none that was said."""
    if isinstance(part, str):
        return {"text": part}
    if isinstance(part, Mapping) and part.get("thought") is True:
        return {"type": "thinking", "thinking": part.get("text") or ""}
    return part


def _events(record: Record) -> list[Mapping[str, Any]]:
    """The events of a session of the Agent Development Kit; empty where it is none."""
    events = record.get("events")
    if not isinstance(events, list) or not all(isinstance(event, Mapping) for event in events):
        return []
    told = any("author" in event and isinstance(event.get("content"), Mapping) for event in events)
    return events if told else []


def _content(event: Mapping[str, Any]) -> dict[str, Any] | None:
    content = event.get("content")
    if not isinstance(content, Mapping) or not content.get("parts"):
        return None
    role = "user" if event.get("author") == "user" else content.get("role") or "model"
    return {**_content_of(content), "role": role}
