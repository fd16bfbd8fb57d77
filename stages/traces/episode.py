"""The one shape of an episode that every trace format is read into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Call:
    """One tool call of a turn, with its result."""

    name: str
    arguments: Any  # as recorded: a string (JSON, Python repr or broken) or an object
    result: str | None = None  # text of the tool's answer; None: no answer was recorded
    failed: bool = False  # the result is flagged as an error, or its text starts with "Error"
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
    task_id: str
    trial: int
    group_id: str  # the episodes sampled for one task under one policy
    turns: list[Turn]
    gold: tuple[GoldAction, ...] | None  # None: the trace does not say; (): none expected
    outcome: float | None  # in [0, 1]; None: the trace does not say
    status: str = "ok"  # ok | truncated (cut by a limit of its own, counts) | error (left out)
    domain: str | None = None  # name, where the trace states it
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
