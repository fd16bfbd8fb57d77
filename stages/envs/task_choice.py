"""Which tasks of an environment are played."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Annotated

from stages.envs.env import Endless, Env, Task
from stages.errors import InputError
from stages.settings import Setting
from stages.tables.yamlfile import nearest

TASKS = "Tasks"  # panel of the help


@dataclass(frozen=True)
class TaskChoice:
    """The tasks of a split, or some of them."""

    split: Annotated[str, Setting("Split of tasks to play.", TASKS, metavar="NAME")] = "train"
    tasks: Annotated[
        tuple[str, ...], Setting("Play only this task; may be repeated.", TASKS, metavar="ID")
    ] = ()
    max_tasks: Annotated[int | None, Setting("Play only the first N tasks.", TASKS, low=1)] = None
    sample_tasks: Annotated[
        int | None, Setting("Play only N tasks, drawn with --seed.", TASKS, low=1)
    ] = None
    fresh: Annotated[
        bool, Setting("Generate new train tasks from --seed, instead of playing known ones.", TASKS)
    ] = False


def chosen_tasks(environment: Env, choice: TaskChoice, seed: int) -> list[Task]:
    """Return the tasks to play.

    Args:
        environment: environment of the tasks.
        choice: which tasks to play.
        seed: seed of drawing or generating tasks.

    Raises:
        InputError: there is no such task, no task at all, fewer tasks than to draw, or the
            environment can't generate tasks.
    """
    tasks = _fresh(environment, choice, seed) if choice.fresh else environment.tasks(choice.split)
    if choice.tasks:
        tasks = _named(environment, tasks, choice)
    if not tasks:
        raise InputError("--split", f"split '{choice.split}' has no tasks", "choose another one")
    tasks = tasks[: choice.max_tasks]
    return _sample(tasks, choice.sample_tasks, seed) if choice.sample_tasks else tasks


def _fresh(environment: Env, choice: TaskChoice, seed: int) -> list[Task]:
    """Generate the requested number of tasks of a seed."""
    count = choice.max_tasks or choice.sample_tasks
    if choice.split != "train":
        what = f"makes train tasks, not tasks of split '{choice.split}'"
        raise InputError("--fresh", what, "leave it out, or give '--split train'")
    if choice.tasks:
        raise InputError("--fresh", "'--tasks' names the tasks already", "leave out one of them")
    if not isinstance(environment, Endless):
        raise InputError("--fresh", f"{environment.name} can't make tasks", "leave it out")
    if count is None:
        raise InputError("--fresh", "needs the number of tasks", "give '--sample-tasks N'")
    return environment.fresh_tasks(seed, count)


def _named(environment: Env, tasks: Sequence[Task], choice: TaskChoice) -> list[Task]:
    known = {task.task_id: task for task in tasks}
    if isinstance(environment, Endless) and choice.split == "train":
        made = map(environment.fresh_task, choice.tasks)
        known |= {task.task_id: task for task in made if task}
    for name in choice.tasks:
        if name not in known:
            what = f"no task '{name}' in split '{choice.split}' of {environment.name}"
            raise InputError("--tasks", what, nearest(name, known))
    return [known[name] for name in dict.fromkeys(choice.tasks)]


def _sample(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """Draw some of the tasks, in the order of the split."""
    if count > len(tasks):
        what = f"there are only {len(tasks):,} tasks"
        raise InputError("--sample-tasks", what, "draw fewer, or take another split")
    places = sorted(Random(seed).sample(range(len(tasks)), count))
    return [tasks[place] for place in places]
