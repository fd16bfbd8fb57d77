"""The common representation of an episode, which every trace format is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.core.statuses import LEFT_OUT

SUCCESS = 1 - 1e-6  # an outcome of at least this is a success


@dataclass(slots=True)
class Call:
    """A tool call and its result."""

    name: str
    arguments: Any  # as recorded: an object, or a string (JSON, Python repr or malformed)
    result: str | None = None  # the tool's output as text; None: not recorded
    flagged: bool | None = None  # True: the result's own flag marks a failure; None: no flag


@dataclass(slots=True)
class Turn:
    """One assistant message with its tool calls and their results."""

    calls: list[Call] = field(default_factory=list)
    n_tokens: int | None = None  # tokens the policy wrote; None: not recorded
    text: Any = field(default=None, compare=False)  # the message's content, as recorded
    user_calls: int = field(default=0, compare=False)  # number of user calls before this turn


@dataclass(frozen=True, slots=True)
class GoldAction:
    """A tool call that the task expects."""

    name: str
    arguments: Any
    compare_args: tuple[str, ...] | None = None  # tau2-bench: the only arguments compared
    requestor: str = "assistant"  # "user": the simulated user should make this call


@dataclass(slots=True)
class Episode:
    """One interaction of a policy with a task, from start to end."""

    source: str  # name of the trace that the episode was read from
    episode_id: str  # unique within one run
    task_id: str  # as recorded; `task` distinguishes equal ids of different domains
    trial: int
    group_id: str | None  # id of the group, if the trace states one
    turns: list[Turn]
    gold: tuple[GoldAction, ...] | None  # None: not recorded; (): no call is expected
    outcome: float | None  # in [0, 1]; None: not recorded
    status: str = "ok"  # one of STATUSES
    policy: str = ""  # name of the policy: as the trace states it, else the source
    domain: str | None = None  # domain name, if the trace states it or its tools reveal it
    within: str | None = None  # namespace of the task id: a domain, a source, or both
    namesake: int = 1  # number of the task among different tasks with the same id in the trace
    task_numbered: bool = False  # the trace has no task id: `task_id` is the record's number
    opening: Any = field(default=None, compare=False)  # the user's first message, as recorded
    messages: list[Any] = field(default_factory=list, compare=False)  # as recorded or translated
    rewards: dict[str, float] | None = None  # components of the outcome, if the trace has them
    stop: str | None = None  # why the episode ended, as the trace puts it
    tools: list[dict[str, Any]] | None = None  # OpenAI tool definitions, if the trace has them
    user_calls: list[Call] = field(default_factory=list)  # tau2-bench telecom: the user's own calls
    required_info: tuple[str, ...] | None = None  # facts the agent must state; None: not recorded
    family: str | None = None  # family of the task, if recorded
    env: str | None = None  # name of the environment, if recorded
    # tau2-bench: the factors of the outcome by name (DB, COMMUNICATE, NL_ASSERTION, ...)
    factors: dict[str, float] | None = None
    tool_types: dict[str, str] | None = None  # tau2-bench: read, write or generic, by tool name
    # tau2-bench: the recorded verdict on each gold action, as (action, matched)
    checks: list[tuple[GoldAction, bool]] | None = None

    @property
    def counts(self) -> bool:
        """Whether statistics include the episode."""
        return self.status not in LEFT_OUT

    @property
    def task(self) -> str:
        """Id of the task in tables, e.g. "airline/5"."""
        name = numbered(self.task_id, self.namesake)
        return name if self.within is None else f"{self.within}/{name}"

    @property
    def group(self) -> str:
        """Id of the group in tables; by default the policy and the task."""
        return f"{self.policy}:{self.task}" if self.group_id is None else self.group_id


def numbered(task_id: str, namesake: int) -> str:
    """Return the name of one of the tasks that share an id: "5", "5#2", and so on."""
    return task_id if namesake == 1 else f"{task_id}#{namesake}"
