"""The domain as the rest of the package sees it: tools, policy, tasks, sessions."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib.resources import files
from random import Random
from typing import Any

import orjson

from stages.envs.airline_mini.database import Record, Tables
from stages.envs.airline_mini.fresh import FreshAirlines
from stages.envs.airline_mini.names import FACTS
from stages.envs.airline_mini.session import AirlineSession
from stages.envs.airline_mini.tables import with_routes
from stages.envs.airline_mini.tools import TOOLS
from stages.envs.env import Task, User
from stages.envs.users import PhraseBook, ScriptedUser
from stages.errors import InputError
from stages.tables.yamlfile import nearest, parse_yaml

NAME = "airline-mini"
SPLITS = ("train", "dev", "test")
HELD_OUT = ("dev", "test")
TABLES = ("users", "reservations", "flights")


class AirlineMini:
    """airline-mini over given tables and tasks; `airline_mini()` returns the shipped one."""

    name = NAME

    def __init__(self, tables: Tables, tasks: Iterable[Task]) -> None:
        self.tables = with_routes(tables)
        self.tools: list[dict[str, Any]] = [tool.definition(name) for name, tool in TOOLS.items()]
        self.policy = _file("policy.md").decode()
        self._tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        for task in tasks:
            self._tasks[task.split].append(task)
        self._fresh = FreshAirlines(self._held_out)

    def tasks(self, split: str) -> list[Task]:
        """Return the tasks of a split; see `Env`."""
        if split not in self._tasks:
            raise InputError(NAME, f"no split '{split}'", nearest(split, SPLITS))
        return list(self._tasks[split])

    def fresh_tasks(self, seed: int, count: int) -> list[Task]:
        """Return newly generated train tasks; see `Endless`."""
        return self._fresh.tasks(seed, count)

    def fresh_task(self, task_id: str) -> Task | None:
        """Return a generated task by its id; see `Endless`."""
        return self._fresh.task(task_id)

    def reset(self, task: Task, seed: int, user: User | None = None) -> AirlineSession:
        """Start an episode; see `Env`."""
        if user is None:
            rng = Random(f"{NAME} {task.task_id} {seed}")
            user = ScriptedUser(task.scenario, phrase_book(), rng)
        tables = self._fresh.tables_of(task.task_id) or self.tables
        return AirlineSession(tables, task, self.policy, user)

    def _held_out(self) -> frozenset[str]:
        """Return the users of dev and test, and their reservations."""
        users = {
            request["facts"]["user_id"]
            for split in HELD_OUT
            for task in self._tasks[split]
            for request in task.scenario["requests"]
            if "user_id" in request["facts"]
        }
        owned = (self.tables["users"][user_id]["reservations"] for user_id in users)
        return frozenset(users.union(*owned))


@functools.cache
def airline_mini() -> AirlineMini:
    """Return the domain that ships with the package."""
    tables = {table: {row.pop("id"): row for row in _rows(f"{table}.jsonl")} for table in TABLES}
    return AirlineMini(tables, [task for split in SPLITS for task in _shipped_tasks(split)])


@functools.cache
def phrase_book() -> PhraseBook:
    """Return the phrases of this domain."""
    text = _file("phrases.yaml").decode()
    return PhraseBook(parse_yaml(text, f"data/{NAME}/phrases.yaml").plain(), FACTS)


def _shipped_tasks(split: str) -> Iterable[Task]:
    for row in _rows(f"tasks-{split}.jsonl"):
        gold, info = tuple(row["gold_actions"]), tuple(row["required_info"])
        yield Task(row["task_id"], row["family"], split, gold, info, row["scenario"])


def _rows(name: str) -> list[Record]:
    return [orjson.loads(line) for line in _file(name).splitlines()]


def _file(name: str) -> bytes:
    return (files("data") / NAME / name).read_bytes()
