"""Which domain each episode of a trace is from, and so which tools its agent had.

A trace may mix episodes of several domains, and its records need not say which is whose. An episode
is of the domain that it states; else of the shipped domain that knows most of its tools, and at
least half; else, where its own tools do not tell, of that of its task or of the whole trace.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from stages.messages.message import definitions
from stages.tiers.domains import SHIPPED, Domain, find_domain, fitting, load_domain
from stages.tiers.failures import default_failures
from stages.traces.episode import Episode, GoldAction

LOOK_AHEAD = 256  # episodes that are met before one is told its domain
_KEPT = 256  # domains that are kept, of traces where each record defines tools of its own
_UNCLEAR = "domain unclear, in a trace of several"

Names = frozenset[str]
Gold = tuple[GoldAction, ...] | None


class Toolsets:
    """Finds the domains of one trace's episodes, from those met so far and a few to come.

    Attributes:
        given: the tools that the user names, for every episode.
        notes: counts the episodes whose domain stays unclear.
    """

    def __init__(self, given: Domain | None = None) -> None:
        self.given = given
        self.notes = Counter[str]()
        self._named: dict[str, set[str]] = {}  # tool names by the domain that episodes state
        self._fitted: dict[str, set[str]] = {}  # ... by the shipped domain that fits
        self._foreign: list[set[str]] = []  # ... of episodes that none fits, those that share one
        self._verdicts: dict[str, bool] = {}  # of `_accepted`, until there is more to judge by
        self._tasks: dict[str, dict[str, Gold]] = {}  # gold actions by task id and domain
        self._types: dict[str | None, dict[str, str]] = {}  # tools' types by stated domain
        self._tools: list[dict[str, Any]] | None = None  # the first definitions of the trace
        self._domains: dict[tuple[Names, frozenset[tuple[str, str]], bytes], Domain] = {}

    def assign(self, episodes: Iterable[Episode]) -> Iterator[tuple[Episode, Domain]]:
        """Yield each episode, its `domain` filled in where it is known, with its tools."""
        waiting = deque[tuple[Episode, Names]]()
        for episode in episodes:
            episode.domain = _stated(episode)
            names = names_of(episode)
            self._learn(episode, names)
            waiting.append((episode, names))
            if len(waiting) > LOOK_AHEAD:
                yield self._told(*waiting.popleft())
        while waiting:
            yield self._told(*waiting.popleft())

    def _learn(self, episode: Episode, names: Names) -> None:
        """Remember which tools, and which task, belong to the domain that an episode suggests."""
        if self._tools is None:
            self._tools = episode.tools
        if episode.tool_types:
            self._types.setdefault(episode.domain, {}).update(episode.tool_types)
        if domain := episode.domain:
            self._add(self._named, domain, names)
        elif domain := _fit(names):
            self._add(self._fitted, domain, names)
        elif not episode.tools:  # which tell all of the episode's own tools and no other's
            self._join_foreign(names)
        if domain:
            self._tasks.setdefault(episode.task_id, {}).setdefault(domain, episode.gold)

    def _add(self, sets: dict[str, set[str]], domain: str, names: Names) -> None:
        known = sets.setdefault(domain, set())
        if not known or not names <= known:
            known |= names
            self._verdicts.clear()

    def _join_foreign(self, names: Names) -> None:
        """Add names to the sets that share one with them that no shipped domain knows."""
        joined, apart = set(_unshipped(names)), []
        if not joined or any(joined <= group for group in self._foreign):
            return
        self._verdicts.clear()
        for group in self._foreign:
            if joined.isdisjoint(group):
                apart.append(group)
            else:
                joined |= group
        self._foreign = [*apart, joined] if joined else apart

    def _told(self, episode: Episode, names: Names) -> tuple[Episode, Domain]:
        if episode.domain is None:
            episode.domain = self._found(episode, names)
        return episode, self.given or self._domain(episode, names)

    def _found(self, episode: Episode, names: Names) -> str | None:
        """The domain that the tools show, of the episode or of others of its task and trace."""
        fit = _fit(names)
        if fit and self._accepted(fit):
            return fit
        if episode.tools:
            return None
        known = [name for name in (*self._named, *self._fitted) if self._accepted(name)]
        golds = self._tasks.get(episode.task_id, {})
        siblings = [
            name
            for name in known
            if name in golds and self._may_share(episode, names, name, golds[name])
        ]
        for choice in (siblings, known):
            if len(choice) == 1 and (siblings or self._shares(names, choice[0])):
                return choice[0]
        if len(known) > 1:
            self.notes[_UNCLEAR] += 1
        return None

    def _may_share(self, episode: Episode, names: Names, domain: str, gold: Gold) -> bool:
        """Whether an episode may be of the task of its id in a domain."""
        if episode.gold is not None and gold is not None and episode.gold != gold:
            return False
        return bool(episode.gold and gold) or self._shares(names, domain)

    def _shares(self, names: Names, domain: str) -> bool:
        """Whether nothing in an episode's tools speaks against a domain."""
        known = self._named.get(domain, set()) | self._fitted.get(domain, set())
        if domain in SHIPPED:
            return names <= known | load_domain(domain).kinds.keys()
        return not names or not known.isdisjoint(names)

    def _accepted(self, domain: str) -> bool:
        """Whether episodes state a domain, or it knows half of the tools that come with its own."""
        if domain in self._named:
            return True
        if domain not in self._verdicts:
            self._verdicts[domain] = self._knows_half(domain)
        return self._verdicts[domain]

    def _knows_half(self, domain: str) -> bool:
        names = set(self._fitted[domain])
        strange = _unshipped(frozenset(names))
        for group in self._foreign:
            if not strange.isdisjoint(group):
                names |= group
        return domain in fitting(frozenset(names))

    def _domain(self, episode: Episode, names: Names) -> Domain:
        """The tools of an episode whose domain is found as far as it can be."""
        name = episode.domain
        if name in SHIPPED:
            return load_domain(name)
        if name is not None:
            names |= self._named.get(name, set())
        elif _fit(names):  # which was not accepted
            names = frozenset()
        tools = episode.tools or self._tools or []
        if not episode.tools and names.isdisjoint(definitions(tools)):
            tools = []  # another episode's, which says nothing of these
        types = self._types.get(name, {})
        key = names, frozenset(types.items()), _text(tools)
        if key not in self._domains:
            if len(self._domains) >= _KEPT:
                self._domains.clear()
            self._domains[key] = find_domain(None, names, tools, types)
        return self._domains[key]


def _stated(episode: Episode) -> str | None:
    """The domain that a record states, by our name where it is a shipped one; else its `env`."""
    for name in filter(None, (episode.domain, episode.env)):
        plain = name.lower().removeprefix("tau2-")
        if plain in SHIPPED:
            return plain
    return episode.domain or episode.env


def names_of(episode: Episode) -> Names:
    """The tools that an episode defines, is expected to call, or calls without failing.

    A call that fails may name a tool that the model made up.
    """
    failed = default_failures().rule
    names = {action.name for action in episode.gold or () if action.requestor != "user"}
    for turn in episode.turns:
        for call in turn.calls:
            if call.name not in names and not failed(call.flagged, call.result):
                names.add(call.name)
    if episode.tools:
        names.update(definitions(episode.tools))
    names.discard("")
    return frozenset(names)


@functools.lru_cache(_KEPT)
def _fit(names: Names) -> str | None:
    """The one shipped domain that fits; None where none does, or several."""
    fit = fitting(names)
    return fit[0] if len(fit) == 1 else None


@functools.lru_cache(_KEPT)
def _unshipped(names: Names) -> Names:
    """The names that no shipped domain knows."""
    return names.difference(*(load_domain(domain).kinds for domain in SHIPPED))


def _text(tools: list[dict[str, Any]]) -> bytes:
    try:
        return orjson.dumps(tools)
    except orjson.JSONEncodeError:  # a number too large for it
        return repr(tools).encode()
