"""Read batches of OpenAI and Anthropic: results by `custom_id`, with their requests if given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from stages.traces import anthropic, chat, responses
from stages.traces.exchange import Logged, Record, clean_records, exchange_of
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.spread import Spread

NAME = "batch"
RESULTS = ("response", "result", "error")
VENDORS = (anthropic, responses, chat)
ASKS = ("messages", "input", "instructions")


def accepts(record: Record) -> bool:
    """Return whether a record is a line of a batch: a request, a result, or both joined."""
    parts = ("body", "params", *RESULTS)
    return isinstance(record.get("custom_id"), str) and any(key in record for key in parts)


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Join each result with the request of its `custom_id`; lines may be in any order."""
    with Spread() as lines:
        for record in records:
            lines.add(str(record.get("custom_id")), "", record)
        for _, parts in lines.groups():
            requests = [part for part in parts if not any(key in part for key in RESULTS)]
            results = [part for part in parts if any(key in part for key in RESULTS)]
            for result in results or requests[:1]:
                yield {**(requests[0] if requests else {}), **result}


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean records of one line, one per answer.

    Raises:
        BadItemError: the line is a request without its result, or holds no answer of a known API,
            or a call or a result can't be read.
    """
    if not any(key in record for key in RESULTS):
        raise BadItemError("is a request of a batch without its result", "give the batch's output")
    record = {key: value for key, value in record.items() if key != "custom_id"} | {
        "task_id": record.get("task_id", record["custom_id"])
    }
    vendor = next((vendor for vendor in VENDORS if vendor.accepts(record)), None)
    if vendor is not None:
        yield from vendor.translate(record, options, notes)
        return
    exchange = exchange_of(record, ASKS, ())
    if exchange.failed is None:
        raise BadItemError("holds no answer of a known API", "give the batch's output as it came")
    history = exchange.request.get("messages") or []
    logged = Logged(exchange, history, [], exchange.request.get("tools"))
    yield from clean_records(record, logged, notes)
