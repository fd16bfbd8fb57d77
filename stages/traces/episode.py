"""The one shape of an episode that every trace format is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stages.core.statuses import LEFT_OUT

SUCCESS = 1 - 1e-6  # an outcome from here on is a success


@dataclass(slots=True)
class Call:
    """One tool call of a turn, with its result."""

    name: str
    arguments: Any  # as recorded: a string (JSON, Python repr or broken) or an object
    result: str | None = None  # text of the tool's answer; None: no answer was recorded
    flagged: bool | None = None  # by the result's own flag; None: it has none


@dataclass(slots=True)
class Turn:
    """One assistant message with its tool calls and their results."""

    calls: list[Call] = field(default_factory=list)
    n_tokens: int | None = None  # tokens the policy wrote; None: not recorded
    text: Any = field(default=None, compare=False)  # the message's content, as recorded
    user_calls: int = field(default=0, compare=False)  # how many the user had made before it


@dataclass(frozen=True, slots=True)
class GoldAction:
    """One tool call that the task expects."""

    name: str
    arguments: Any
    compare_args: tuple[str, ...] | None = None  # tau2-bench: the only arguments it compares
    requestor: str = "assistant"  # "user": the simulated user is to make this call


@dataclass(slots=True)
class Episode:
    """One conversation of a policy with a task."""

    source: str  # name of the trace it was read from
    episode_id: str  # unique within one run
    task_id: str  # as the trace has it; `task` tells it from the same id of another domain
    trial: int
    group_id: str | None  # of the episodes sampled together, where the trace states it
    turns: list[Turn]
    gold: tuple[GoldAction, ...] | None  # None: the trace does not say; (): none expected
    outcome: float | None  # in [0, 1]; None: the trace does not say
    status: str = "ok"  # one of STATUSES
    policy: str = ""  # what acted: as the trace states it, else the source
    domain: str | None = None  # name, where the trace states it or its tools show it
    within: str | None = None  # what the task id is an id in: a domain, a source, or both
    namesake: int = 1  # which of the tasks of that id in its trace, where some differ
    task_numbered: bool = False  # the trace has no task id: `task_id` is the record's number
    opening: Any = field(default=None, compare=False)  # the user's first message, as recorded
    messages: list[Any] = field(default_factory=list, compare=False)  # as recorded or translated
    rewards: dict[str, float] | None = None  # components of the outcome, where the trace has them
    stop: str | None = None  # why it ended, in the trace's own words
    tools: list[dict[str, Any]] | None = None  # OpenAI tool definitions, where the trace has them
    user_calls: list[Call] = field(default_factory=list)  # tau2-bench telecom: the user's own calls
    required_info: tuple[str, ...] | None = None  # what the agent had to tell; None: not recorded
    family: str | None = None  # of its task, where the trace says
    env: str | None = None  # name of the environment that was played, where the trace says
    # tau2-bench: the factors of the outcome by name (DB, COMMUNICATE, NL_ASSERTION, ...)
    factors: dict[str, float] | None = None
    tool_types: dict[str, str] | None = None  # tau2-bench: read, write or generic, by tool
    # tau2-bench: its recorded verdict for each gold action, as (action, matched)
    checks: list[tuple[GoldAction, bool]] | None = None

    @property
    def counts(self) -> bool:
        """Whether statistics count it."""
        return self.status not in LEFT_OUT

    @property
    def task(self) -> str:
        """The task's id in tables, such as "airline/5"."""
        name = numbered(self.task_id, self.namesake)
        return name if self.within is None else f"{self.within}/{name}"

    @property
    def group(self) -> str:
        """The id in tables of the episodes of this task under this policy."""
        return f"{self.policy}:{self.task}" if self.group_id is None else self.group_id


def numbered(task_id: str, namesake: int) -> str:
    """The name of one of the tasks that have an id in a trace: "5", "5#2", and so on."""
    return task_id if namesake == 1 else f"{task_id}#{namesake}"
