"""Write data/airline-mini: users, reservations, flights, and the tasks of three splits.

Run as `python -m stages.envs.airline_mini.generate`; every run writes the same bytes. Another
seed gives another airline of the same kind. A user belongs to one split, with all reservations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import orjson

from stages.envs.airline_mini.database import Tables
from stages.envs.airline_mini.env import TABLES, AirlineMini
from stages.envs.airline_mini.families import new_task, order_of_families
from stages.envs.airline_mini.tables import new_tables, with_routes
from stages.envs.env import Task

SEED = 1
FOLDER = Path(__file__).parents[3] / "data" / "airline-mini"
# Number of users and of tasks per split; tasks come in hundreds.
SPLITS = {"train": (280, 2000), "dev": (80, 200), "test": (120, 400)}


def generate(seed: int = SEED) -> AirlineMini:
    """Draw an airline: its tables and its tasks."""
    tables = new_tables(Random(f"tables {seed}"))
    rng = Random(f"tasks {seed}")
    return AirlineMini(tables, [*_tasks(with_routes(tables), rng)])


def rows(environment: AirlineMini) -> dict[str, bytes]:
    """Return the files of a domain by name."""
    tables = {
        f"{table}.jsonl": _lines(
            {"id": key} | row for key, row in environment.tables[table].items()
        )
        for table in TABLES
    }
    return tables | {
        f"tasks-{split}.jsonl": _lines(_row(task) for task in environment.tasks(split))
        for split in SPLITS
    }


def _row(task: Task) -> dict[str, Any]:
    row = asdict(task)
    del row["split"]
    return row


def _lines(records: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def _tasks(tables: Tables, rng: Random) -> Iterator[Task]:
    users = iter(tables["users"])
    for split, (n_users, n_tasks) in SPLITS.items():
        own = [next(users) for _ in range(n_users)]
        families = order_of_families(rng) * (n_tasks // 100)
        seen: set[bytes] = set()  # scenarios: short questions would repeat otherwise
        for number, family in enumerate(families):
            yield new_task(f"{split}-{family}-{number}", family, split, own, tables, seen, rng)


if __name__ == "__main__":
    for name, content in rows(generate()).items():
        (FOLDER / name).write_bytes(content)
