"""Decide which episodes of several traces belong to the same task and the same group.

A task is identified by its domain and its id. If the domain is unknown, episodes with the same id
may still belong to different tasks. Different gold actions show this. If the gold actions do not
decide, tasks of different traces differ if they have no user message in common.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import polars as pl

from stages.core.arguments import canonical, parse_arguments
from stages.errors import InputError
from stages.traces.episode import Episode, GoldAction, numbered
from stages.traces.turns import text_of

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)
Renamed = dict[tuple[str, str], str]  # (source, old name) of a task -> new name
Place = tuple[str, int]  # one task of an id: path of the trace, and the task's number there from 1

SPLIT_TASKS = "task id of another task: kept apart"
SPLIT_GROUPS = "group id of several policies or tasks: split"


@dataclass
class _Seen:
    """The evidence in one trace about one of the tasks with an id."""

    gold: tuple[Any, ...] = ()  # normalised gold actions; empty: unknown, or none expected
    recorded: tuple[GoldAction, ...] = ()  # the same gold actions as recorded last
    openings: set[str] = field(default_factory=set)  # first user messages


class Identities:
    """Qualifies the task ids and group ids of one trace after another."""

    def __init__(self) -> None:
        self._labels: dict[str, str] = {}  # path -> label in ids
        # Tasks of unknown domain: (namespace of the id, id) -> place -> evidence.
        self._seen: dict[tuple[str | None, str], dict[Place, _Seen]] = {}
        self._groups: dict[str, list[tuple[str, str]]] = {}  # (policy, task) by stated group id

    def place(self, path: str, episode: Episode, given: str | None = None) -> None:
        """Set the namespace of an episode's task id; split groups of several policies or tasks.

        Args:
            path: path of its trace.
            episode: the episode; its `domain` is set if the trace states or reveals it.
            given: the domain that the user names, for episodes of unknown domain.
        """
        unknown = episode.domain is None
        episode.domain = episode.domain or given
        if episode.task_numbered:
            within = filter(None, (episode.domain, self._label(path, episode.source)))
            episode.within = "/".join(within)
        else:
            episode.within = episode.domain
            if unknown:
                self._look(path, episode)
        if episode.group_id is not None:
            self._part(episode, episode.group_id)

    def _label(self, path: str, source: str) -> str:
        """Return the source of a path, or the whole path if another path has that source."""
        if path not in self._labels:
            self._labels[path] = path if source in self._labels.values() else source
        return self._labels[path]

    def _look(self, path: str, episode: Episode) -> None:
        self._label(path, episode.source)
        places = self._seen.setdefault((episode.within, episode.task_id), {})
        seen, number = places.setdefault((path, 1), _Seen()), 1
        if episode.gold and episode.gold != seen.recorded:  # most trials repeat them verbatim
            gold = _meaning(episode.gold)
            while seen.gold not in ((), gold):
                number += 1
                seen = places.setdefault((path, number), _Seen())
            seen.gold, seen.recorded = gold, episode.gold
        episode.namesake = number
        if opening := " ".join(text_of(episode.opening).split()):
            seen.openings.add(opening)

    def _part(self, episode: Episode, group_id: str) -> None:
        policies = self._groups.setdefault(group_id, [])
        these = episode.policy, episode.task
        if these not in policies:
            policies.append(these)
        if these != policies[0]:
            episode.group_id = f"{episode.policy}:{episode.task}:{group_id}"

    def split_groups(self) -> int:
        """Return the number of groups that were split off from another group with the same id."""
        return sum(len(of) - 1 for of in self._groups.values())

    def renamed(self, sources: dict[str, str]) -> Renamed:
        """Return new names of tasks whose id also belongs to another task, after all traces.

        Of the tasks with an id, the one that was read first keeps its name. The others get the
        label of the trace that has them first as a prefix, e.g. "fileB/5".

        Args:
            sources: path of each source.
        """
        names: Renamed = {}
        of_path = {path: source for source, path in sources.items()}
        for (within, task_id), seen in self._seen.items():
            prefix = f"{within}/" if within else ""
            order = list(seen)
            tasks = [sorted(places, key=order.index) for places in _tasks(seen)]
            tasks.sort(key=lambda places: order.index(places[0]))
            for places in tasks:
                path, number = places[0]
                label = "" if places is tasks[0] else f"{self._labels[path]}/"
                name = f"{prefix}{label}{numbered(task_id, number)}"
                for path, number in places:
                    had = prefix + numbered(task_id, number)
                    if path in of_path and name != had:
                        names[of_path[path], had] = name
        return names


def settled(frame: Frame, renamed: Renamed | None) -> Frame:
    """Return rows of episodes with the final names of their tasks, from `Identities.renamed`."""
    if not renamed:
        return frame
    names = {f"{source}\0{task}": name for (source, task), name in renamed.items()}
    key = pl.concat_str("source", "task_id", separator="\0")
    moved = key.is_in(list(names))
    columns = {"task_id": key.replace_strict(names, default=pl.col("task_id"))}
    if "group_id" in frame.collect_schema():
        apart = pl.concat_str("source", "group_id", separator="/")
        columns["group_id"] = pl.when(moved).then(apart).otherwise("group_id")
    return frame.with_columns(**columns)


def _tasks(seen: dict[Place, _Seen]) -> list[list[Place]]:
    """Cluster the places with an id by the task they mean; their order has no influence."""
    if len(seen) == 1:
        return [list(seen)]
    by_gold: dict[tuple[Any, ...], list[Place]] = {}
    for place, of in seen.items():
        by_gold.setdefault(of.gold, []).append(place)
    silent = _clusters(by_gold.pop((), []), seen)
    known = list(by_gold.values())
    tasks = [list(places) for places in known]
    for places in silent:
        # If several gold actions fit, or none, the task can't be determined.
        fits = [i for i, other in enumerate(known) if _alike(places, other, seen)]
        if len(fits) == 1:
            tasks[fits[0]] += places
        else:
            tasks.append(places)
    return tasks


def _clusters(places: list[Place], seen: dict[Place, _Seen]) -> list[list[Place]]:
    """Cluster places that share user messages; those without user messages form one cluster."""
    mute = [place for place in places if not seen[place].openings]
    clusters: list[list[Place]] = []
    for place in places:
        if place in mute:
            continue
        joined, apart = [place], []
        for cluster in clusters:
            if _alike([place], cluster, seen):
                joined = cluster + joined
            else:
                apart.append(cluster)
        clusters = [*apart, joined]
    if len(clusters) == 1:
        return [clusters[0] + mute]
    return [*clusters, mute] if mute else clusters


def _alike(some: list[Place], others: list[Place], seen: dict[Place, _Seen]) -> bool:
    """Return whether two sets of places share a user message, or one set has none."""
    ones = set().union(*(seen[place].openings for place in some))
    twos = set().union(*(seen[place].openings for place in others))
    return not ones or not twos or not ones.isdisjoint(twos)


def _meaning(gold: tuple[GoldAction, ...] | None) -> tuple[Any, ...]:
    """Normalise gold actions for comparison: sorted, with parsed arguments."""
    return tuple(sorted((a.requestor, a.name, _text(a.arguments)) for a in gold or ()))


def _text(arguments: Any) -> str:
    parsed = parse_arguments(arguments)
    try:
        return canonical(parsed.value) if parsed.readable else str(arguments)
    except InputError:  # nested too deep
        return str(arguments)
