"""Train tasks without end: each seed is another airline of the same kind, with tasks of its own.

A task's id says what made it, the airline's seed and the task's number, so that the task and the
database that it is played on can be made again from its id alone. Nothing that is held out occurs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from functools import cached_property, lru_cache
from random import Random

from stages.envs.airline_mini.database import Tables
from stages.envs.airline_mini.families import new_task, order_of_families
from stages.envs.airline_mini.tables import new_tables, with_routes
from stages.envs.env import Task

USERS = 120  # of an airline, as of the split test; the ids that are not held out last for so many
KEPT = 16  # airlines, as many as a loop's window reaches back, and more
ID = re.compile(r"fresh-(\d+)-[a-z]+-(\d+)")


class FreshAirlines:
    """The airlines of all seeds.

    Args:
        held_out: gives the ids of users and reservations that no airline may have.
    """

    def __init__(self, held_out: Callable[[], AbstractSet[str]]) -> None:
        self._find_held_out = held_out
        self._tables = lru_cache(maxsize=KEPT)(self._new_tables)

    def tasks(self, seed: int, count: int) -> list[Task]:
        """Return the first tasks of the airline of a seed."""
        return [self._task(seed, number) for number in range(count)]

    def task(self, task_id: str) -> Task | None:
        """Make a task again; None: no airline has one of this id."""
        match = ID.fullmatch(task_id)
        task = self._task(*map(int, match.groups())) if match else None
        return task if task and task.task_id == task_id else None

    def tables_of(self, task_id: str) -> Tables | None:
        """Return the database that a task is played on; None: it is no task of these airlines."""
        match = ID.fullmatch(task_id)
        return self._tables(int(match[1])) if match else None

    def _task(self, seed: int, number: int) -> Task:
        families = order_of_families(Random(f"fresh families {seed}"))
        family = families[number % len(families)]
        tables = self._tables(seed)
        rng = Random(f"fresh task {seed} {number}")
        task_id = f"fresh-{seed}-{family}-{number}"
        return new_task(task_id, family, "train", [*tables["users"]], tables, set(), rng)

    def _new_tables(self, seed: int) -> Tables:
        return with_routes(new_tables(Random(f"fresh tables {seed}"), USERS, self._held_out))

    @cached_property
    def _held_out(self) -> AbstractSet[str]:
        return self._find_held_out()
