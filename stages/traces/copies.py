"""Detect episodes that are copies of others, because evidence must not count twice."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

from stages.errors import InputError
from stages.traces.episode import Episode

TELLING = 2  # fewest copies that are evidence: a policy may repeat a single episode exactly
_TODO = "count each episode once"


class Copies:
    """Records the content of each trace's episodes, independently of their ids."""

    def __init__(self) -> None:
        self._traces: dict[str, Counter[bytes]] = {}
        self._holders: dict[bytes, list[str]] = {}  # content -> paths of the traces with it
        self._again = Counter[str]()  # path -> episodes with the id and content of an earlier one

    def add(self, path: str, episode: Episode) -> None:
        """Record an episode of a trace."""
        if not episode.turns:
            return
        content, held = content_of(episode), self._traces.setdefault(path, Counter())
        if content not in held:
            self._holders.setdefault(content, []).append(path)
        elif "#" in episode.episode_id:  # the readers' suffix for a repeated id
            self._again[path] += 1
        held[content] += 1

    def check(self) -> None:
        """Raise InputError if a trace repeats its own episodes or is contained in another trace."""
        for path, again in self._again.items():
            if again >= TELLING and 2 * again >= self._traces[path].total():
                what = f"{again:,} of its episodes are there twice, by id and content"
                raise InputError(path, what, _TODO)
        for path, held in self._traces.items():
            for other in self._holders[next(iter(held))]:
                if other != path and len(held) >= TELLING and held <= self._traces[other]:
                    what = f"all of its {held.total():,} episodes with turns are in '{other}' too"
                    raise InputError(path, what, _TODO)


def content_of(episode: Episode) -> bytes:
    """Return a digest of the content of an episode: task, outcome and turns, but not its own id.

    Args:
        episode: the episode as read.

    Returns:
        16 bytes; two different episodes have the same digest with a probability below 1e-30.
    """
    turns = [
        (turn.text, [(call.name, call.arguments, call.result) for call in turn.calls])
        for turn in episode.turns
    ]
    held = (episode.task_id, episode.opening, episode.outcome, episode.status, turns)
    return blake2b(repr(held).encode(errors="surrogatepass"), digest_size=16).digest()
