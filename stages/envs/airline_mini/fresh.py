"""Train tasks without end: each seed is another airline of the same kind, with its own tasks.

A task's id holds the airline's seed and the task's number, so that the task and its database can be
rebuilt from the id alone. Held-out users and reservations never occur.
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

USERS = 120  # per airline, as in the test split; the ids that are not held out suffice for it
KEPT = 16  # cached airlines: more than a loop's window reaches back
ID = re.compile(r"fresh-(\d+)-[a-z]+-(\d+)")


class FreshAirlines:
    """The airlines of all seeds.

    Args:
        held_out: returns the ids of users and reservations that no airline may have.
    """

    def __init__(self, held_out: Callable[[], AbstractSet[str]]) -> None:
        self._find_held_out = held_out
        self._tables = lru_cache(maxsize=KEPT)(self._new_tables)

    def tasks(self, seed: int, count: int) -> list[Task]:
        """Return the first tasks of the airline of a seed."""
        return [self._task(seed, number) for number in range(count)]

    def task(self, task_id: str) -> Task | None:
        """Rebuild a task from its id; None: no airline has such a task."""
        match = ID.fullmatch(task_id)
        task = self._task(*map(int, match.groups())) if match else None
        return task if task and task.task_id == task_id else None

    def tables_of(self, task_id: str) -> Tables | None:
        """Return the database of a task; None: the task is not of these airlines."""
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
