"""tau2-bench's domains as environments.

An episode differs from one in tau2-bench's own runner in that the user speaks first: the agent's
fixed greeting is left out.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from stages.core.arguments import equal
from stages.envs.env import OUT_OF_SCOPE, STOP, TRANSFER, Outcome, Task, User
from stages.envs.tau2.database import State
from stages.envs.tau2.environment import Environment
from stages.envs.tau2.package import NAMES, PREFIX, Package, load_package
from stages.errors import InputError
from stages.messages.message import Message
from stages.tables.yamlfile import nearest
from stages.traces.turns import text_of

GoldState = dict[str, State]

WORLDS = tuple(PREFIX + name for name in NAMES)


@runtime_checkable
class EquippedUser(User, Protocol):
    """A user with its own tools, as in telecom."""

    def equip(self, tools: list[dict[str, Any]], call: Callable[[str, Any], str], /) -> None:
        """Take the tools' OpenAI definitions, and the function that calls one by name."""


class Tau2Env:
    """One of tau2-bench's domains.

    Attributes:
        splits: names of the splits; "base" holds all tasks that tau2-bench reports on.
        user_tools: OpenAI definitions of the user's tools; [] except in telecom.
    """

    def __init__(self, name: str) -> None:
        """Load the domain.

        Args:
            name: one of WORLDS.

        Raises:
            InputError: there is no such domain, or the package inspect-evals is missing.
        """
        if name not in WORLDS:
            raise InputError("--env", f"no domain '{name}'", nearest(name, WORLDS))
        self._package = load_package(name.removeprefix(PREFIX))
        self.name = name
        self.tools = self._package.agent.tools
        self.user_tools = self._package.user.tools if self._package.user else []
        self.policy = self._package.policy
        self.splits = tuple(self._package.splits)

    def tasks(self, split: str) -> list[Task]:
        """Return the tasks of a split, in the package's order.

        Raises:
            InputError: there is no such split.
        """
        if split not in self.splits:
            raise InputError(self.name, f"no split '{split}'", nearest(split, self.splits))
        members = set(self._package.splits[split])
        return [self.task(key, split) for key in self._package.records if key in members]

    def task(self, task_id: str, split: str = "") -> Task:
        """Return one task by its id, whatever split it is in.

        Raises:
            InputError: there is no such task.
        """
        record = self._package.records.get(task_id)
        if record is None:
            raise InputError(self.name, f"no task '{task_id}'", "give the traces of this domain")
        criteria = record.get("evaluation_criteria") or {}
        return Task(
            task_id=task_id,
            family=task_id[1:].partition("]")[0] if task_id.startswith("[") else "",
            split=split,
            gold_actions=tuple(
                {"name": action["name"], "arguments": action["arguments"]}
                for action in criteria.get("actions") or []
                if action.get("requestor") != "user"
            ),
            required_info=tuple(criteria.get("communicate_info") or ()),
            scenario=record["user_scenario"],
        )

    def reset(self, task: Task, seed: int, user: User | None = None) -> Tau2Session:
        """Start an episode.

        Args:
            task: one of `tasks`.
            seed: unused; these domains are deterministic.
            user: required, because these domains have no scripted user.

        Raises:
            InputError: no user is given.
            UserError: the user failed.
        """
        if user is None:
            raise InputError(self.name, "has no scripted user", "choose the user 'llm'")
        return Tau2Session(self._package, task, user)


class Tau2Session:
    """One episode in progress.

    Attributes:
        messages: messages that the agent sees.
        record: all messages, including the user's own tool calls, their results (with the field
            `requestor`), and the message by which the user ended the conversation.
        done: whether the user has ended the conversation.
    """

    def __init__(self, package: Package, task: Task, user: User) -> None:
        self._package, self._user, self._task = package, user, task
        self._model = package.task(task.task_id)
        self._environment = Environment(package, self._model)
        self.messages: list[Message] = []
        self.record: list[Message] = []
        self.done = False
        self._add({"role": "system", "content": package.policy})
        if package.user and isinstance(user, EquippedUser):
            user.equip(package.user.tools, self.user_call)
        self._hear(user.open())

    def step(self, message: Message) -> list[Message]:
        """Take the assistant's message; return tool results, the next user message, or [].

        Raises:
            UserError: the simulated user failed.
        """
        if self.done:
            return []
        self._add(message)
        if calls := message.get("tool_calls"):
            return [self._result(call) for call in (calls if isinstance(calls, list) else [calls])]
        return self._hear(self._user.reply(text_of(message.get("content")), self.messages))

    def user_call(self, name: str, arguments: Any) -> str:
        """Call one of the user's own tools; the agent doesn't see it."""
        number = f"user_{len(self._environment.calls)}"
        called = self._environment.call(name, arguments, by_user=True)
        function = {"name": name, "arguments": arguments}
        call = {"id": number, "type": "function", "function": function}
        answer = {"role": "tool", "requestor": "user", "tool_call_id": number}
        self.record.append({"role": "user", "content": None, "tool_calls": [call]})
        self.record.append({**answer, "content": called.text})
        return called.text

    def outcome(self) -> Outcome:
        """Judge the episode by tau2-bench's rules, by the parts in the task's `reward_basis`.

        Parts: `database` (its state is that after the gold actions, on the user's side too), `told`
        (each required information is in one of the agent's messages), `assertions` (on the
        environment) and `actions` (each gold action is among the calls). `judged` stands for
        assertions in natural language: it is None, because they need a language model, and the
        outcome ignores it. A task without criteria is solved.

        Source: the evaluators of sierra-research/tau2-bench.
        """
        criteria = self._model.evaluation_criteria
        basis = [part.value for part in criteria.reward_basis] if criteria else []
        parts = dict(self._part(part, criteria) for part in basis)
        return Outcome(float(all(held is not False for held in parts.values())), parts)

    def _part(self, basis: str, criteria: Any) -> tuple[str, bool | None]:
        environment = self._environment
        if basis == "DB":
            return "database", environment.state() == self._gold_state()
        if basis == "COMMUNICATE":
            return "told", _told(self._task.required_info, self.messages)
        if basis == "ENV_ASSERTION":
            return "assertions", all(map(environment.holds, criteria.env_assertions or []))
        if basis == "ACTION":
            return "actions", all(_done(action, environment) for action in criteria.actions or [])
        return "judged", None

    def _gold_state(self) -> GoldState:
        gold = [(action["name"], action["arguments"], False) for action in self._task.gold_actions]
        if self._package.user:  # a Task does not hold the user's gold actions
            actions = self._model.evaluation_criteria.actions or []
            gold = [(a.name, a.arguments, a.requestor == "user") for a in actions]
        return _gold_state(self._package.name, self._task.task_id, json.dumps(gold))

    def _add(self, message: Message) -> Message:
        self.messages.append(message)
        self.record.append(message)
        return message

    def _hear(self, text: str) -> list[Message]:
        message = {"role": "user", "content": text}
        self.done = any(end in text for end in (STOP, TRANSFER, OUT_OF_SCOPE))
        if self.done:
            self.record.append(message)
            return []
        return [self._add(message)]

    def _result(self, call: Any) -> Message:
        entry = call if isinstance(call, dict) else {}
        function = entry.get("function")
        function = function if isinstance(function, dict) else {}
        name, call_id = function.get("name"), entry.get("id")
        called = self._environment.call(
            name if isinstance(name, str) else "", function.get("arguments")
        )
        return self._add(
            {
                "role": "tool",
                "tool_call_id": call_id if isinstance(call_id, str) else "",
                "name": called.name,
                "content": called.text,
            }
        )


@functools.lru_cache(maxsize=4096)
def _gold_state(name: str, task_id: str, gold: str) -> GoldState:
    """Return the databases after the gold actions; one that fails, as some do, changes nothing."""
    package = load_package(name)
    environment = Environment(package, package.task(task_id))
    for tool, arguments, by_user in json.loads(gold):
        environment.call(tool, arguments, by_user=by_user)
    return environment.state()


def _told(info: Iterable[str], messages: Iterable[Message]) -> bool:
    said = [text_of(m.get("content")) for m in messages if m["role"] == "assistant"]
    texts = [text.lower().replace(",", "") for text in said]
    return all(any(item.lower() in text for text in texts) for item in info)


def _done(action: Any, environment: Environment) -> bool:
    """Return whether a call of either side equals a gold action."""
    return any(
        call.name == action.name
        and isinstance(call.arguments, dict)
        and equal(action.arguments, call.arguments, "tau2", compare_args=action.compare_args)
        for call in environment.calls
    )
