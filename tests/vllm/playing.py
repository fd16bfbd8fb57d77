"""Episodes of airline-mini by the runner, and what transformers says of their tokens."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from stages.envs.airline_mini import airline_mini
from stages.policies.policy import Action, Policy, Sampling
from stages.rollout import Config, Pair, Played, Run, plan, rollout

CLOSE = 1e-3  # in nats; 1e-6 where both compute in float32 on a CPU


class Recorder:
    """A policy that remembers what another one did."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.actions: list[Action] = []

    async def act(self, *args: Any) -> Action:
        action = await self.policy.act(*args)
        self.actions.append(action)
        return action

    async def close(self) -> None:
        await self.policy.close()


def pairs(tasks: int = 4, group_size: int = 2) -> list[Pair]:
    return plan(airline_mini().tasks("dev")[:tasks], group_size)


async def play(
    policy: Policy, todo: Iterable[Pair], sampling: Sampling, concurrency: int = 8
) -> list[Played]:
    config = Config(group_size=2, max_turns=6, sampling=sampling)
    run = Run("test", airline_mini(), policy, config, "tiny")
    return [played async for played in rollout(run, todo, concurrency)]


def worst_difference(model: Any, actions: Iterable[Action], temperature: float) -> float:
    """The largest difference of a recorded logprob from transformers' own, in nats."""
    worst = 0.0
    for action in actions:
        assert action.prompt_ids and action.token_ids and action.logprobs
        logprobs = of_tokens(model, action.prompt_ids, action.token_ids, temperature)
        recorded = torch.tensor(action.logprobs)
        worst = max(worst, (logprobs - recorded).abs().max().item())
    return worst


def of_tokens(model: Any, prompt: list[int], ids: list[int], temperature: float) -> Any:
    """Logprobs of tokens after a prompt, [L]."""
    chosen = torch.tensor(ids)[:, None]
    return after(model, prompt, ids, temperature).gather(1, chosen)[:, 0]


def after(model: Any, prompt: list[int], ids: list[int], temperature: float) -> Any:
    """Logprobs of the whole vocabulary for each token after a prompt, [L, V]."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, -1)
