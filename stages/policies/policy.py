"""What every policy offers: the next assistant message of an episode, as it was sampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from stages.messages.message import Message, Told
from stages.settings import Setting

SAMPLING = "Sampling"  # panel of the help


class PolicyError(Exception):
    """The engine failed: the episode's status is `error`, never an outcome of 0."""


class LostError(Exception):
    """What played an episode is gone: it may begin again, from its first turn, elsewhere."""


class ContextOverflowError(Exception):
    """The conversation no longer fits the context: the episode ends as `truncated`."""


@dataclass(frozen=True)
class Sampling:
    """How a policy samples."""

    temperature: Annotated[
        float, Setting("Sampling temperature.", SAMPLING, low=0, high=math.inf, metavar="T")
    ] = 1.0
    top_p: Annotated[
        float,
        Setting("Nucleus sampling: probability mass to sample from.", SAMPLING, low=0.001, high=1),
    ] = 1.0
    max_tokens: Annotated[
        int, Setting("Maximum tokens per message of the policy.", SAMPLING, low=1)
    ] = 512


@dataclass(frozen=True)
class Action:
    """One assistant message, with the tokens that were sampled where the engine tells them."""

    message: Message  # role assistant; content, tool_calls
    prompt_ids: list[int] | None = None  # what the model saw; None: unknown
    token_ids: list[int] | None = None  # what it wrote, as sampled, its end token included
    logprobs: list[float] | None = None  # of token_ids, under the policy at its temperature
    finish: Literal["stop", "length"] = "stop"
    n_tokens: int | None = None  # of the message, where the engine counts but gives no ids


@runtime_checkable
class Remembers(Protocol):
    """A policy that keeps something of an episode from turn to turn."""

    def forget(self, episode_id: str) -> None:
        """Let go of an episode that has ended."""


@runtime_checkable
class Prompts(Protocol):
    """A policy whose model reads a prompt."""

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the model is told of these tools.

        Raises:
            InputError: the model's chat template can't tell it.
        """


class Policy(Protocol):
    """Plays many episodes at once; a runner awaits `act` from one task per episode."""

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; the seed is a function of run, task, trial and turn.

        Raises:
            ContextOverflowError: the conversation is too long.
            PolicyError: the engine failed for good, after its own retries.
            LostError: it failed so, and another one can play the episode from its start.
        """

    async def close(self) -> None:
        """Let go of engines and connections."""
