"""Reduce logs of single model calls to the last call of each conversation, which holds it all."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from stages.traces.exchange import Answer, Logged, Record
from stages.traces.fields import BadItemError
from stages.traces.histories import History
from stages.traces.spread import Spread

RECENT = 32  # recent histories that the next record may continue
Read = Callable[[Record, Counter[str]], Logged]


def latest(
    records: Iterable[Record], read: Read, holds_answer: Callable[[Logged], bool]
) -> Iterator[Record]:
    """Yield the records of a log that no later record continues.

    Each call of an agent sends the whole conversation again. A record continues another one if its
    messages begin with all messages of that one, including the answer. Records wait on disk; memory
    holds one number per conversation.

    Args:
        records: the records of one log, in order of time.
        read: returns the content of a record.
        holds_answer: returns whether it holds a response; without one it is a whole conversation.
    """
    threads, ignored = _Threads(), Counter[str]()
    with Spread() as waiting:
        for record in records:
            try:
                logged = read(record, ignored)
            except BadItemError:  # raised again when the record is translated
                logged = None
            if logged is None or holds_answer(logged):
                waiting.put(threads.of(logged), record)
            else:
                yield record
        for _, (last,) in waiting.groups():
            yield last


class _Threads:
    """Assigns each record to a conversation."""

    def __init__(self) -> None:
        self._ends: dict[int, list[str]] = {}  # hash of all messages so far -> conversations
        self._recent = deque[History](maxlen=RECENT)
        self._several = 0

    def of(self, logged: Logged | None) -> str:
        """Return the conversation that a record continues, or a new one."""
        self._several += 1
        new = str(self._several)
        if logged is None or len(logged.answers) > 1:
            return new
        try:
            chain = self._chain([*logged.history], logged.answers)
        except (BadItemError, TypeError):  # reported when the record is translated
            return new
        earlier = (self._ends[link] for link in reversed(chain[1:-1]) if self._ends.get(link))
        thread = next((threads.pop(0) for threads in earlier), new)
        self._ends.setdefault(chain[-1], []).append(thread)
        return thread

    def _chain(self, heard: list[Any], answers: Sequence[Answer]) -> list[int]:
        """Return a hash of each prefix of a call's messages, without the system's."""
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
