"""Read logs, stored responses and streaming events of OpenAI's Responses API."""

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
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.threads import latest

NAME = "responses"
FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def accepts(record: Record) -> bool:
    """Return whether a record holds a response or an event of this API, or items as its input."""
    if is_foreign(record):
        return False
    if _is_part(record):
        return True
    exchange = _exchange(record)
    response, request = exchange.response, exchange.request
    if isinstance(response.get("output"), list):
        told = (response.get("object") == "response", _are_items(response["output"]))
        return any(told) and "messages" not in record
    return _are_items(request.get("input"))


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Yield the records of a log, without stream events and those that a later record continues."""
    records = (record for record in records if not _is_part(record))
    return latest(records, _logged, lambda logged: bool(logged.exchange.response))


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of a response with its input.

    Raises:
        BadItemError: the history is on OpenAI's servers, or a call or a result can't be read.
    """
    yield from clean_records(record, _logged(record, notes), notes)


def _logged(record: Record, notes: Counter[str]) -> Logged:
    exchange = _exchange(record)
    request, response = exchange.request, exchange.response
    history = _history(request, response)
    if not _heard(request) and response:
        if request.get("previous_response_id") or response.get("previous_response_id"):
            raise BadItemError(
                "continues 'previous_response_id', so it lacks the history",
                "log the whole input with each response",
            )
        notes["response without its request"] += 1
    answers = [Answer(response["output"], _stop(response))] if response.get("output") else []
    if response.get("status") in ("failed", "cancelled"):
        exchange = exchange._replace(failed=str(response.get("error") or response["status"]))
    tools = request.get("tools") or response.get("tools")
    return Logged(exchange, history, answers, tools)


def _is_part(record: Record) -> bool:
    """Return whether a record is a streaming event whose content the final response repeats."""
    kind = record.get("type")
    return isinstance(kind, str) and kind.startswith("response.") and kind not in FINAL_EVENTS


def _exchange(record: Record) -> Exchange:
    if record.get("type") in FINAL_EVENTS and isinstance(record.get("response"), dict):
        return Exchange({}, record["response"])
    exchange = exchange_of(record, ("input", "instructions"), ("output",))
    if exchange.request is record and not exchange.response and "output" in record:
        exchange = exchange._replace(response=_whole(record))
    if exchange.response.get("object") == "response" and exchange.request is record:
        exchange = exchange._replace(failed=None)
    return exchange


def _whole(record: Record) -> Record:
    """Return a record as a response; its `output` holds the items or the whole response."""
    output = record["output"]
    if isinstance(output, dict) and isinstance(output.get("output"), list):
        return dict(output)
    return record


def _history(request: Record, response: Record) -> list[Any]:
    instructions = request.get("instructions") or response.get("instructions")
    if isinstance(instructions, list):  # a stored prompt, as items
        return [*instructions, *_heard(request)]
    system = [{"role": "system", "content": instructions}] if instructions else []
    return [*system, *_heard(request)]


def _heard(request: Record) -> list[Any]:
    given = request.get("input")
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    return given if isinstance(given, list) else []


def _are_items(value: Any) -> bool:
    """Return whether a value is a list that has an item of a type that chat messages lack."""
    kinds = [item.get("type") for item in value if isinstance(item, dict)] if _is(value) else []
    return any(kind == "message" or _is_call(kind) for kind in kinds)


def _is_call(kind: Any) -> bool:
    """Return whether a type is a call or its output, e.g. function_call or web_search_call."""
    ends = isinstance(kind, str) and kind.removesuffix("_output").endswith("_call")
    return ends and not kind.startswith("tool_call")


def _is(value: Any) -> bool:
    return isinstance(value, list)


def _stop(response: Record) -> Any:
    details = response.get("incomplete_details")
    return details.get("reason") if isinstance(details, dict) else response.get("status")
