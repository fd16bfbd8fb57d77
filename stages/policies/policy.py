"""The interface of policies: the next assistant message of an episode, with its sampled tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

from stages.messages.message import Message, Told
from stages.settings import Setting

SAMPLING = "Sampling"  # panel of the options in --help


class PolicyError(Exception):
    """The engine failed; the episode gets the status `error`, never an outcome of 0."""


class LostError(Exception):
    """The episode's server is gone; the episode may restart from its first turn elsewhere."""


class ContextOverflowError(Exception):
    """The conversation no longer fits the context; the episode gets the status `truncated`."""


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters of a policy."""

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
    """An assistant message, with its sampled tokens if the engine reports them."""

    message: Message  # role assistant; content, tool_calls
    prompt_ids: list[int] | None = None  # tokens of the prompt; None: unknown
    token_ids: list[int] | None = None  # sampled tokens, including the end token; None: unknown
    logprobs: list[float] | None = None  # of token_ids, under the policy at its temperature
    finish: Literal["stop", "length"] = "stop"
    n_tokens: int | None = None  # length of the message if the engine reports it without ids


@runtime_checkable
class Remembers(Protocol):
    """A policy that keeps state of an episode between turns."""

    def forget(self, episode_id: str) -> None:
        """Release the state of an episode that has ended."""


@runtime_checkable
class Prompts(Protocol):
    """A policy with a language model that reads a prompt."""

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the prompt describes these tools to the model.

        Raises:
            InputError: the model's chat template can't describe them.
        """


class Policy(Protocol):
    """A policy for many concurrent episodes; the runner awaits `act` from one task per episode."""

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message.

        Args:
            episode_id: id of the episode.
            messages: the messages so far.
            tools: tools of the agent, in OpenAI's format.
            sampling: sampling parameters.
            seed: seed of the message, derived from run, task, trial and turn.

        Returns:
            The message, with its tokens if known.

        Raises:
            ContextOverflowError: the conversation is too long.
            PolicyError: the engine failed for good, after its own retries.
            LostError: the engine failed for good, but the episode can restart on another one.
        """

    async def close(self) -> None:
        """Release engines and connections."""
