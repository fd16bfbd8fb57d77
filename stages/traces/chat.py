"""Read logs of OpenAI's chat completions: one request with its response per record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
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

NAME = "chat completions"


def accepts(record: Record) -> bool:
    """Return whether a record holds a response of the chat API, alone or with its request."""
    return not is_foreign(record) and bool(_choices(_exchange(record).response))


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of a log, without those that a later record continues."""
    return latest(records, _logged, lambda _: True)


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield a clean record for each choice of the response.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    yield from clean_records(record, _logged(record, notes), notes)


def _logged(record: Record, notes: Counter[str]) -> Logged:
    exchange = _exchange(record)
    request = exchange.request
    answers = [
        Answer([choice.get("message") or {}], choice.get("finish_reason"))
        for choice in _choices(exchange.response)
    ]
    history = request.get("messages") or []
    if not history:
        notes["response without its request"] += 1
    tools = request.get("tools") or request.get("functions")
    return Logged(exchange, history, answers, tools)


def _exchange(record: Record) -> Exchange:
    exchange = exchange_of(record, ("messages",), ("choices",))
    alone = record.get("response")  # a log may hold only the message
    if exchange.response or not isinstance(alone, dict) or alone.get("role") != "assistant":
        return exchange
    if "stop_reason" in alone or alone.get("type") == "message":  # Anthropic's
        return exchange
    return exchange._replace(response={"choices": [{"message": alone}]}, failed=None)


def _choices(response: Record) -> list[Mapping[str, Any]]:
    choices = response.get("choices")
    if not isinstance(choices, list):
        return []
    return [c for c in choices if isinstance(c, dict) and isinstance(c.get("message"), dict)]
