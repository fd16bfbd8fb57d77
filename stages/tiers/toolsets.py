"""The domain, and so the tools, of each episode of a trace.

A trace may mix episodes of several domains, and its records need not name them. An episode belongs
to the domain that it states, otherwise to the shipped domain that knows most of its tools and at
least half. If its own tools are not conclusive, the domain of its task or of the whole trace is
used.
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

LOOK_AHEAD = 256  # episodes that are read before the first one gets its domain
_KEPT = 256  # most cached domains; in some traces every record defines its own tools
_UNCLEAR = "domain unclear, in a trace of several"

Names = frozenset[str]
Gold = tuple[GoldAction, ...] | None


class Toolsets:
    """Finder of the domains of a trace's episodes, from the episodes so far and a look-ahead.

    Attributes:
        given: the domain that the user names, whose tools every episode then has.
        notes: counter of the episodes whose domain stays unclear.
    """

    def __init__(self, given: Domain | None = None) -> None:
        self.given = given
        self.notes = Counter[str]()
        self._named: dict[str, set[str]] = {}  # tool names by the domain that episodes state
        self._fitted: dict[str, set[str]] = {}  # tool names by the shipped domain that fits
        self._foreign: list[set[str]] = []  # tool names that fit none, in sets that share names
        self._verdicts: dict[str, bool] = {}  # cache of `_accepted`; cleared by new tool names
        self._tasks: dict[str, dict[str, Gold]] = {}  # gold actions by task id and domain
        self._types: dict[str | None, dict[str, str]] = {}  # tools' types by stated domain
        self._tools: list[dict[str, Any]] | None = None  # the first definitions of the trace
        self._domains: dict[tuple[Names, frozenset[tuple[str, str]], bytes], Domain] = {}

    def assign(self, episodes: Iterable[Episode]) -> Iterator[tuple[Episode, Domain]]:
        """Yield each episode and its tools; fill in the episode's `domain` if it is known."""
        waiting = deque[tuple[Episode, Names]]()
        for episode in episodes:
            episode.domain = _stated(episode)
            names = names_of(episode)
            self._learn(episode, names)
            waiting.append((episode, names))
            if len(waiting) > LOOK_AHEAD:
                yield self._resolved(*waiting.popleft())
        while waiting:
            yield self._resolved(*waiting.popleft())

    def _learn(self, episode: Episode, names: Names) -> None:
        """Record the tools and the task for the domain that an episode suggests."""
        if self._tools is None:
            self._tools = episode.tools
        if episode.tool_types:
            self._types.setdefault(episode.domain, {}).update(episode.tool_types)
        if domain := episode.domain:
            self._add(self._named, domain, names)
        elif domain := _fit(names):
            self._add(self._fitted, domain, names)
        elif not episode.tools:  # definitions, if there are any, belong to this episode alone
            self._join_foreign(names)
        if domain:
            self._tasks.setdefault(episode.task_id, {}).setdefault(domain, episode.gold)

    def _add(self, sets: dict[str, set[str]], domain: str, names: Names) -> None:
        known = sets.setdefault(domain, set())
        if not known or not names <= known:
            known |= names
            self._verdicts.clear()

    def _join_foreign(self, names: Names) -> None:
        """Merge the names that no shipped domain knows with the sets that share any of them."""
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

    def _resolved(self, episode: Episode, names: Names) -> tuple[Episode, Domain]:
        if episode.domain is None:
            episode.domain = self._inferred(episode, names)
        return episode, self.given or self._domain(episode, names)

    def _inferred(self, episode: Episode, names: Names) -> str | None:
        """Infer the domain from the tools of the episode, its task or the trace."""
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
        """Return whether an episode may belong to the task with its id in a domain."""
        if episode.gold is not None and gold is not None and episode.gold != gold:
            return False
        return bool(episode.gold and gold) or self._shares(names, domain)

    def _shares(self, names: Names, domain: str) -> bool:
        """Return whether an episode's tools are compatible with a domain."""
        known = self._named.get(domain, set()) | self._fitted.get(domain, set())
        if domain in SHIPPED:
            return names <= known | load_domain(domain).kinds.keys()
        return not names or not known.isdisjoint(names)

    def _accepted(self, domain: str) -> bool:
        """Return whether episodes state a domain, or it knows half of the tools seen with its own.

        A shipped domain that fits some episodes by chance is rejected by their other tools.
        """
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
        """Return the tools of an episode after its domain is resolved as far as possible."""
        name = episode.domain
        if name in SHIPPED:
            return load_domain(name)
        if name is not None:
            names |= self._named.get(name, set())
        elif _fit(names):  # the domain that fits was not accepted
            names = frozenset()
        tools = episode.tools or self._tools or []
        if not episode.tools and names.isdisjoint(definitions(tools)):
            tools = []  # another episode's definitions, which do not apply here
        types = self._types.get(name, {})
        key = names, frozenset(types.items()), _text(tools)
        if key not in self._domains:
            if len(self._domains) >= _KEPT:
                self._domains.clear()
            self._domains[key] = find_domain(None, names, tools, types)
        return self._domains[key]


def _stated(episode: Episode) -> str | None:
    """Return the domain that a record states: a shipped one's name, else its `domain` or `env`."""
    for name in filter(None, (episode.domain, episode.env)):
        plain = name.lower().removeprefix("tau2-")
        if plain in SHIPPED:
            return plain
    return episode.domain or episode.env


def names_of(episode: Episode) -> Names:
    """Return the tools that an episode defines, is expected to call, or calls without failing.

    A failed call does not count, because it may name a tool that the model invented.

    Args:
        episode: the episode.

    Returns:
        Names of tools.
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
    """Return the only shipped domain that fits; None if none or several do."""
    fit = fitting(names)
    return fit[0] if len(fit) == 1 else None


@functools.lru_cache(_KEPT)
def _unshipped(names: Names) -> Names:
    """Return the names that no shipped domain knows."""
    return names.difference(*(load_domain(domain).kinds for domain in SHIPPED))


def _text(tools: list[dict[str, Any]]) -> bytes:
    try:
        return orjson.dumps(tools)
    except orjson.JSONEncodeError:  # a number too large for orjson
        return repr(tools).encode()
