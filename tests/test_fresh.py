"""Fresh train tasks of airline-mini: without end, made again from an id, and never held out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.env import AirlineMini
from stages.envs.airline_mini.expert import Expert
from stages.envs.airline_mini.families import FAMILIES
from stages.envs.airline_mini.tools import call_tool
from stages.envs.airline_mini.vocabulary import vocabulary
from tests.airline_mini_policy import Case
from tests.conftest import Cli
from tests.playing import pass_rate, play
from tests.test_airline_mini import WRITES, texts
from tests.tiny import cut

WORLD = airline_mini()
HELD_OUT = [task for split in ("dev", "test") for task in WORLD.tasks(split)]
SEEDS = st.integers(0, 2**40)
ROLLOUT = ("rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.3")
FRESH = (*ROLLOUT, "--fresh", "--sample-tasks", "6", "--group-size", "2", "--seed", "7")


def named(value: Any) -> Iterator[str]:
    """All texts in nested lists and dictionaries, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from (text for pair in value.items() for part in pair for text in named(part))
    elif isinstance(value, list | tuple):
        yield from (text for part in value for text in named(part))


def of_others() -> set[str]:
    """The users and reservations of the held-out tasks' customers, all that they have."""
    users = {
        request["facts"]["user_id"]
        for task in HELD_OUT
        for request in task.scenario["requests"]
        if "user_id" in request["facts"]
    }
    owned = (WORLD.tables["users"][user]["reservations"] for user in users)
    return users.union(*owned)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SEEDS)
def test_an_id_is_enough_to_make_a_task_and_its_database_again(seed: int) -> None:
    tasks = WORLD.fresh_tasks(seed, 3)
    assert [task.task_id.split("-")[1] for task in tasks] == [str(seed)] * 3
    another = AirlineMini(WORLD.tables, HELD_OUT)  # has made nothing before
    for task in tasks:
        assert another.fresh_task(task.task_id) == task
        ours, theirs = WORLD.reset(task, 0), another.reset(task, 0)
        assert ours.messages == theirs.messages
        assert ours.database.tables == theirs.database.tables


@settings(max_examples=10, deadline=None, derandomize=True)
@given(SEEDS)
def test_nothing_that_is_held_out_occurs(seed: int) -> None:
    others = of_others()
    assert len(others) > 800
    tasks = WORLD.fresh_tasks(seed, 20)
    tables = WORLD.reset(tasks[0], 0).database.tables
    assert not others & set(named([tables["users"], tables["reservations"]]))
    assert not others & set(named([[task.gold_actions, task.scenario] for task in tasks]))
    assert not {task.task_id for task in tasks} & {task.task_id for task in HELD_OUT}


def test_other_seeds_give_other_tasks_and_more_of_a_seed_the_same_ones() -> None:
    first, second = WORLD.fresh_tasks(3000, 40), WORLD.fresh_tasks(3001, 40)
    assert not {task.task_id for task in first} & {task.task_id for task in second}
    assert [task.scenario for task in first] != [task.scenario for task in second]
    assert WORLD.fresh_tasks(3000, 60)[:40] == first


def test_they_are_of_the_same_kind_as_the_others() -> None:
    tasks = WORLD.fresh_tasks(5, 200)
    assert Counter(task.family for task in tasks) == {
        family: 2 * percent for family, percent in FAMILIES.items()
    }
    assert {task.split for task in tasks} == {"train"}
    assert len({task.task_id for task in tasks}) == 200
    assert pass_rate(WORLD, tasks, Expert()) == 1


def test_an_independent_reading_of_the_policy_confirms_them() -> None:
    for task in WORLD.fresh_tasks(6, 200):
        db, deeds = WORLD.reset(task, 0).database, []
        for request in task.scenario["requests"]:
            case = Case(db, request["want"], request["facts"])
            case.decide()
            for name, arguments in case.deeds:
                assert not call_tool(db, name, arguments).startswith("Error"), task.task_id
            deeds += case.deeds
        gold = [(action["name"], action["arguments"]) for action in task.gold_actions]
        assert [action for action in gold if action[0] in WRITES] == deeds, task.task_id


def test_they_are_made_of_whole_pieces() -> None:
    characters = set(vocabulary()["character"]) - set(" .?,")
    for task in WORLD.fresh_tasks(8, 40):
        for text in texts(play(WORLD, task, Expert()).messages):
            assert not set(cut(text)) & characters, task.task_id


@pytest.mark.parametrize("task_id", ["fresh-7-pet-0", "fresh-07-book-0", "fresh-7", "train-book-0"])
def test_an_id_that_no_airline_gives_is_no_fresh_task(task_id: str) -> None:
    assert WORLD.fresh_task(task_id) is None


def test_rollouts_of_fresh_tasks_go_on_and_are_replayed(run: Cli) -> None:
    assert run(*FRESH, "-o", "r.jsonl").code == 0
    whole = Path("r.jsonl").read_bytes()
    rows = [orjson.loads(line) for line in whole.splitlines()]
    assert [row["task_id"] for row in rows[::2]] == [t.task_id for t in WORLD.fresh_tasks(7, 6)]
    assert run(*FRESH, "-o", "r.jsonl", "--resume").code == 0
    assert Path("r.jsonl").read_bytes() == whole
    result = run("eval", "r.jsonl", "--replay", "--env", "airline-mini", "--json")
    assert result.code == 0
    assert result.json()["replay"]["results_differ"] == 0
    assert result.json()["replay"]["outcomes_equal"] == 12


def test_a_fresh_task_is_played_by_its_id(run: Cli) -> None:
    task = WORLD.fresh_tasks(7, 5)[4]
    only = ("--tasks", task.task_id, "--group-size", "1", "-o", "r.jsonl", "--quiet")
    assert run(*ROLLOUT, *only).code == 0
    row = orjson.loads(Path("r.jsonl").read_bytes())
    assert (row["task_id"], row["gold_actions"]) == (task.task_id, list(task.gold_actions))


@pytest.mark.parametrize(
    ("args", "error"),
    [
        ((), "--fresh: needs the number of tasks; give '--sample-tasks N'"),
        (
            ("--sample-tasks", "3", "--split", "test"),
            "--fresh: makes train tasks, not tasks of split 'test'; "
            "leave it out, or give '--split train'",
        ),
        (
            ("--sample-tasks", "3", "--tasks", "train-book-0"),
            "--fresh: '--tasks' names the tasks already; leave out one of them",
        ),
    ],
)
def test_what_fresh_tasks_can_not_be(run: Cli, args: tuple[str, ...], error: str) -> None:
    result = run(*ROLLOUT, "--fresh", *args, "-o", "r.jsonl")
    assert (result.code, result.err) == (2, f"error: {error}\n")
    assert not list(Path().iterdir())
