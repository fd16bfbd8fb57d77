"""Our environments for TRL's `environment_factory`: tools, and a user who answers.

TRL ends an episode at the first message without a call. `TurnGRPOTrainer` passes such a message to
an environment that is a `Dialogue`, and continues with the user's answer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any, ClassVar, Protocol, runtime_checkable

from stages.core.seeds import derived_seed
from stages.envs.env import Env, Session, Task, UserError
from stages.envs.registry import open_env
from stages.errors import InputError
from stages.messages.message import Message
from stages.rollout import seen_tools


@runtime_checkable
class Dialogue(Protocol):
    """A TRL environment that takes whole messages. Its names begin with _, as no tool's name does.

    Attributes:
        _tools: OpenAI definitions of the tools, as the model sees them.
    """

    _tools: list[dict[str, Any]]

    def _take(self, message: Message) -> tuple[list[Message], bool]:
        """Take an assistant message; return the answers, and whether the episode continues.

        The answers are the results of its calls, or the user's message.
        """


class TaskEnvironment:
    """One of our environments as TRL plays it, one episode after another."""

    _env: ClassVar[Env]
    _tools: ClassVar[list[dict[str, Any]]]
    _seed: ClassVar[int]
    _numbers: ClassVar[count[int]]
    _tasks: ClassVar[dict[str, Task]]

    def __init__(self) -> None:
        self._session: Session | None = None
        self._failed = False

    def reset(self, task_id: str, split: str, **_: Any) -> str:
        """Begin an episode; return the user's first message, which TRL appends to the prompt.

        Args:
            task_id: task of the row.
            split: split of the row.

        Raises:
            InputError: there is no such task.
        """
        if task_id not in self._tasks:
            self._tasks.update({task.task_id: task for task in self._env.tasks(split)})
        if task_id not in self._tasks:
            raise InputError("task_id", f"no task '{task_id}' in '{split}'", "use task_rows")
        seed = derived_seed(self._seed, task_id, next(self._numbers))
        self._session = self._env.reset(self._tasks[task_id], seed)
        self._failed = False
        return str(self._session.messages[-1]["content"])

    def get_reward(self) -> float | None:
        """Return the outcome in [0, 1]; None if the user failed."""
        if self._session is None or self._failed:
            return None
        return self._session.outcome().outcome

    def _take(self, message: Message) -> tuple[list[Message], bool]:
        assert self._session is not None
        try:
            answers = self._session.step(message)
        except UserError:
            self._failed = True
            return [], False
        return answers, not self._session.done


def environment(name: str = "airline-mini", *, seed: int = 0) -> type[TaskEnvironment]:
    """Return a class for `environment_factory`: an environment with its scripted user.

    Args:
        name: name of the environment.
        seed: seed of the users, who differ from episode to episode.

    Raises:
        InputError: there is no such environment, or a package that it needs is missing.
    """
    env = open_env(name)
    tools = seen_tools(env)
    shared = {"_env": env, "_tools": tools, "_seed": seed, "_numbers": count(), "_tasks": {}}
    methods = {tool["function"]["name"]: _method(tool) for tool in tools}
    return type("TaskEnvironment", (TaskEnvironment,), shared | methods)


def task_rows(
    name: str = "airline-mini", split: str = "train", count: int | None = None
) -> list[dict[str, Any]]:
    """Return dataset rows for `environment`: a prompt without the user's message, and the task.

    Args:
        name: name of the environment.
        split: split of its tasks.
        count: number of tasks, from the first on; None: all.

    Raises:
        InputError: there is no such environment or split.
    """
    env = open_env(name)
    return [
        {
            "prompt": [
                {"role": "system", "content": env.policy},
                {"role": "user", "content": ""},  # TRL appends what `reset` returns
            ],
            "task_id": task.task_id,
            "split": split,
            "domain": name.removeprefix("tau2-"),
            "gold_actions": list(task.gold_actions),
        }
        for task in env.tasks(split)[:count]
    ]


def _method(tool: dict[str, Any]) -> Callable[..., str]:
    """Return a method that only declares a tool; `_take` answers its calls."""

    def call(self: TaskEnvironment, **arguments: Any) -> str:
        raise NotImplementedError("irc_cli.trl.TurnGRPOTrainer plays this environment")

    call.__name__ = tool["function"]["name"]
    call.__doc__ = tool["function"].get("description", "")
    return call
