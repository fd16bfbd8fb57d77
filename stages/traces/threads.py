"""Logs of single model calls: of calls that go on from one another, the last holds them all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from stages.traces.exchange import Answer, Logged, Record
from stages.traces.fields import BadItemError
from stages.traces.histories import History
from stages.traces.spread import Spread

RECENT = 32  # histories of which the next record may be the next call
Read = Callable[[Record, Counter[str]], Logged]


def latest(
    records: Iterable[Record], read: Read, holds_answer: Callable[[Logged], bool]
) -> Iterator[Record]:
    """The records of a log that no later record goes on from.

    Each call of an agent sends the whole conversation again. A record goes on from another if its
    messages begin with all messages of that one, the answer included. Records wait on disk; memory
    holds one number for each conversation.

    Args:
        records: of one log, in order of time.
        read: what a record says.
        holds_answer: whether that holds a response; one without is a whole conversation.
    """
    threads, ignored = _Threads(), Counter[str]()
    with Spread() as waiting:
        for record in records:
            try:
                logged = read(record, ignored)
            except BadItemError:  # which its reader will say
                logged = None
            if logged is None or holds_answer(logged):
                waiting.put(threads.of(logged), record)
            else:
                yield record
        for _, (last,) in waiting.groups():
            yield last


class _Threads:
    """Which conversation each record belongs to."""

    def __init__(self) -> None:
        self._ends: dict[int, list[str]] = {}  # by all messages so far: the conversations
        self._recent = deque[History](maxlen=RECENT)
        self._several = 0

    def of(self, logged: Logged | None) -> str:
        """The conversation that a record goes on with, or a new one."""
        self._several += 1
        new = str(self._several)
        if logged is None or len(logged.answers) > 1:
            return new
        try:
            chain = self._chain([*logged.history], logged.answers)
        except (BadItemError, TypeError):  # of which its reader will say more
            return new
        earlier = (self._ends[link] for link in reversed(chain[1:-1]) if self._ends.get(link))
        thread = next((threads.pop(0) for threads in earlier), new)
        self._ends.setdefault(chain[-1], []).append(thread)
        return thread

    def _chain(self, heard: list[Any], answers: Sequence[Answer]) -> list[int]:
        """A number for each beginning of the messages of a call, but those of the system."""
        known = next((known for known in self._recent if known.begins(heard)), History())
        history = known.grown(heard)
        self._recent.appendleft(history)
        whole = history.then([*heard, *[said for answer in answers for said in answer.messages]])
        link, chain = 0, [0]
        for told in whole.signatures:
            if told[0] != "system":
                link = hash((link, told))
                chain.append(link)
        return chain
