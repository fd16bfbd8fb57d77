"""Speed of the transformers policy with 32 live episodes, against `generate` on one at a time."""

from __future__ import annotations

import asyncio
from typing import Any

import torch

from stages.envs.airline_mini import airline_mini
from stages.messages.message import Message
from stages.policies.policy import Action, Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.training.tiny_model import Size, tiny_model, tiny_tokenizer
from tests.bench.timing import Row, row
from tests.tiny import PIECES

EPISODES, TURNS, TOKENS = 32, 3, 24


async def episode(policy: TransformersPolicy, messages: list[Message], seed: int) -> list[Action]:
    """Play against a user who repeats one request."""
    heard, actions = messages[-1], []
    for turn in range(TURNS):
        sampling = Sampling(max_tokens=TOKENS)
        actions.append(await policy.act(str(seed), messages, [], sampling, TURNS * seed + turn))
        messages = [*messages, actions[-1].message, heard]
    return actions


def bench() -> list[Row]:
    """Sample the same number of tokens from the same prompts, on one thread."""
    torch.set_num_threads(1)
    tokenizer, environment = tiny_tokenizer(PIECES), airline_mini()
    model = tiny_model(len(tokenizer), 0, Size())
    opened = [environment.reset(task, 0).messages for task in environment.tasks("train")[:EPISODES]]

    async def together() -> list[Action]:
        policy = TransformersPolicy(model, tokenizer, rows=EPISODES)
        played = [episode(policy, messages, seed) for seed, messages in enumerate(opened)]
        actions = [action for one in await asyncio.gather(*played) for action in one]
        await policy.close()
        return actions

    actions = asyncio.run(together())
    what = f"transformers policy, {EPISODES} live episodes"
    peer = "one-at-a-time generate"
    return [
        row(
            what,
            peer,
            lambda: asyncio.run(together()),
            lambda: one_at_a_time(model, actions),
            1 / 3,
            runs=3,
        )
    ]


def one_at_a_time(model: Any, actions: list[Action]) -> None:
    """Sample as many tokens from the prompt of each action."""
    for action in actions:
        assert action.prompt_ids and action.token_ids
        count = len(action.token_ids)
        prompt = torch.tensor([action.prompt_ids])
        model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=True)
