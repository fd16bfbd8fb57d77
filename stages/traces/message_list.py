"""Read one conversation as a bare list of messages: LangChain dumps, chat messages or items."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.envelopes import bared
from stages.traces.exchange import Answer, Exchange, Logged, Record, clean_records
from stages.traces.formats import ReadOptions
from stages.traces.vocabulary import ITEM_TYPES, ROLES

NAME = "message list"
GATHERED = "message_list"  # key of the messages that `gather` collected
WHOLE = ("messages", "conversations", "choices", "stop_reason", "object")  # not in a message
SAYING = ("content", "value", "parts", "tool_calls", "function_call")


def accepts(record: Record) -> bool:
    """Return whether a record is itself a message, or the messages that `gather` collected."""
    return isinstance(record.get(GATHERED), list) or _is_message(record)


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Collect all messages of a file into one record, because the file is one conversation."""
    messages = list(records)
    if messages:
        yield {GATHERED: messages}


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one conversation.

    Raises:
        BadItemError: a call or a result can't be read.
    """
    messages = record.get(GATHERED, [record])
    logged = Logged(Exchange({}, {}), messages, [Answer(())], None)
    yield from clean_records({}, logged, notes)


def _is_message(record: Record) -> bool:
    if any(key in record for key in WHOLE):
        return False
    inner: Mapping[str, Any] = bared(record)
    kind = inner.get("type")
    role = inner.get("role", inner.get("from", kind))
    if not isinstance(role, str) or not any(key in inner for key in SAYING):
        return isinstance(kind, str) and kind in ITEM_TYPES and "call_id" in record
    return role.lower() in ROLES
