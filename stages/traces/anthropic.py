"""Read requests, logs and batch results of Anthropic's Messages API."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

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

NAME = "anthropic"


def accepts(record: Record) -> bool:
    """Return whether a record holds a response of this API, or a request that only it accepts."""
    if is_foreign(record):
        return False
    exchange = _exchange(record)
    return bool(exchange.response) or _is_request(exchange.request)


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of a log, without those that a later record continues."""
    return latest(records, _logged, lambda logged: bool(logged.exchange.response))


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of a request with its response.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    yield from clean_records(record, _logged(record, notes), notes)


def _logged(record: Record, notes: Counter[str]) -> Logged:
    exchange = _exchange(record)
    request, response = exchange.request, exchange.response
    system = request.get("system")
    history = [{"role": "system", "content": system}] if system else []
    history += request["messages"] if isinstance(request.get("messages"), list) else []
    answers = [Answer([response], response.get("stop_reason"))] if response else []
    if response and not request:
        notes["response without its request"] += 1
    return Logged(exchange, history, answers, request.get("tools"))


def _exchange(record: Record) -> Exchange:
    exchange = exchange_of(record, ("messages",), ("content", "message"))
    response = exchange.response
    if isinstance(response.get("message"), dict):  # batch result: {type: succeeded, message}
        response = dict(response["message"])
    return exchange._replace(response=response if _is_response(response) else {})


def _is_response(response: Record) -> bool:
    is_message = response.get("type") == "message" and response.get("role") == "assistant"
    return isinstance(response.get("content"), list) and (is_message or "stop_reason" in response)


def _is_request(request: Record) -> bool:
    """Return whether only this API accepts a request, by its system prompt or a tool's schema."""
    tools = request.get("tools")
    if isinstance(tools, list) and any(_has_schema(tool) for tool in tools):
        return True
    return isinstance(request.get("system"), list) and isinstance(request.get("messages"), list)


def _has_schema(tool: Any) -> bool:
    return isinstance(tool, dict) and "input_schema" in tool
