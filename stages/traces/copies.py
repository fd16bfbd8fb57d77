"""Whether episodes are copies of others: the same evidence must not count twice."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

from stages.errors import InputError
from stages.traces.episode import Episode

TELLING = 2  # different episodes that are all in another trace: a policy may do one task alike
_TODO = "count each episode once"


class Copies:
    """Remembers what the episodes of each trace hold, whatever their ids."""

    def __init__(self) -> None:
        self._traces: dict[str, Counter[bytes]] = {}
        self._holders: dict[bytes, list[str]] = {}  # traces by what they hold
        self._again = Counter[str]()  # episodes of a trace with the id and content of another

    def add(self, path: str, episode: Episode) -> None:
        """Remember an episode of a trace."""
        if not episode.turns:
            return
        content, held = content_of(episode), self._traces.setdefault(path, Counter())
        if content not in held:
            self._holders.setdefault(content, []).append(path)
        elif "#" in episode.episode_id:  # how readers tell two episodes of one id apart
            self._again[path] += 1
        held[content] += 1

    def check(self) -> None:
        """Raise InputError where a trace has each episode twice, or those of another trace."""
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
    """Return a digest of what was done and said in an episode, without its ids.

    Args:
        episode: as it was read.

    Returns:
        16 bytes, which two different episodes share with a probability below 1e-30.
    """
    turns = [
        (turn.text, [(call.name, call.arguments, call.result) for call in turn.calls])
        for turn in episode.turns
    ]
    held = (episode.task_id, episode.opening, episode.outcome, episode.status, turns)
    return blake2b(repr(held).encode(errors="surrogatepass"), digest_size=16).digest()
