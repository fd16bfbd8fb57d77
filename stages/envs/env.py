"""The interface of every environment: tasks, and sessions that a policy plays turn by turn.

An env is immutable and shared; a session owns all that an episode changes. Nothing that a model
writes makes a session raise: an unknown tool, broken JSON or a wrong type become tool errors that
the model sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from stages.messages.message import Message

# A user ends the conversation with one of these; the agent never sees them.
STOP, TRANSFER, OUT_OF_SCOPE = "###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"


class UserError(Exception):
    """The simulated user failed: the episode's status is `error`, never an outcome of 0."""


@dataclass(frozen=True)
class Task:
    """One task: what the user wants, and what a perfect agent does and says."""

    task_id: str
    family: str  # cancel, book, refusal, ...; "" if the domain has no families
    split: str  # train | dev | test | base
    gold_actions: tuple[Mapping[str, Any], ...]  # {name, arguments}, of the agent, in order
    required_info: tuple[str, ...]  # what the agent must tell the user
    scenario: Any  # the domain's own: what the user simulator needs


@dataclass(frozen=True)
class Outcome:
    """How an episode ended."""

    outcome: float  # in [0, 1]: 1 when all parts hold
    parts: Mapping[str, bool | None] = field(default_factory=dict)  # None: not judged


class User(Protocol):
    """A simulated user of one episode."""

    def open(self) -> str:
        """Return the user's first message."""

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        """Return the answer to the agent's text; it contains STOP, or another end, to finish.

        Raises:
            UserError: the user failed.
        """


class Session(Protocol):
    """One episode in progress."""

    messages: list[Message]  # all so far: system, user, assistant, tool
    done: bool

    def step(self, message: Message) -> list[Message]:
        """Take the assistant's message; return tool results, or the next user message, or [].

        A message with tool calls gets one result per call, in order; one without goes to the user.

        Raises:
            UserError: the simulated user failed.
        """

    def outcome(self) -> Outcome:
        """Judge the episode so far, by comparing databases, never lists of calls."""


class Env(Protocol):
    """A domain."""

    name: str
    tools: list[dict[str, Any]]  # OpenAI definitions of the agent's tools, each with an `x-kind`
    policy: str  # the agent's system prompt

    def tasks(self, split: str) -> list[Task]:
        """Return the tasks of a split, in a fixed order.

        Raises:
            InputError: there is no such split.
        """

    def reset(self, task: Task, seed: int, user: User | None = None) -> Session:
        """Start an episode; without a user, the domain's own scripted one plays."""


@runtime_checkable
class Endless(Protocol):
    """An environment that generates new train tasks without end."""

    def fresh_tasks(self, seed: int, count: int) -> list[Task]:
        """Return the first `count` tasks of a seed; other seeds give other tasks."""

    def fresh_task(self, task_id: str) -> Task | None:
        """Rebuild a generated task from its id; None: it is not the id of one."""
