"""Logs of single model calls: of calls that go on from one another, the last holds them all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.histories import signature
from stages.traces.spread import Spread

Record = dict[str, Any]
Translate = Callable[[Record, ReadOptions, Counter[str]], Iterator[Record]]


def latest(
    records: Iterable[Record], translate: Translate, holds_answer: Callable[[Record], bool]
) -> Iterator[Record]:
    """The records of a log that no later record goes on from.

    Each call of an agent sends the whole conversation again. A record goes on from another if its
    messages begin with all messages of that one, the answer included. Records wait on disk; memory
    holds one number for each conversation.

    Args:
        records: of one log, in order of time.
        translate: the format's own.
        holds_answer: whether a record has a response; one without is a whole conversation.
    """
    waiting, threads = Spread(), _Threads()
    for record in records:
        if holds_answer(record):
            waiting.add(threads.of(record, translate), "", record)
        else:
            yield record
    for _, several in waiting.groups():
        yield several[-1]


class _Threads:
    """Which conversation each record belongs to."""

    def __init__(self) -> None:
        self._ends: dict[int, list[str]] = {}  # by all messages so far: the conversations
        self._several = 0

    def of(self, record: Record, translate: Translate) -> str:
        """The conversation that a record goes on with, or a new one."""
        self._several += 1
        new = str(self._several)
        try:
            clean = list(translate(record, ReadOptions(), Counter()))
        except BadItemError:  # which its reader will say
            return new
        if len(clean) != 1:
            return new
        said = [message for message in clean[0]["messages"] if message["role"] != "system"]
        chain = [0]
        for message in said:
            chain.append(hash((chain[-1], signature(message))))
        earlier = (self._ends[link] for link in reversed(chain[1:-1]) if self._ends.get(link))
        thread = next((threads.pop(0) for threads in earlier), new)
        self._ends.setdefault(chain[-1], []).append(thread)
        return thread
