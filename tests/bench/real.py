"""SmolLM2-135M-Instruct: the transformers policy against vLLM's engine, and a step's memory.

Run in the environment of `make real`: `.venv-real/bin/python -m tests.bench real`. Both engines
have the same weights, in bfloat16, on two threads. They begin with an empty prefix cache and keep
it. The policy plays episodes of airline-mini, whose prompts show policy and tools in full. vLLM's
engine then gets the same new messages at the same concurrency, and samples as many tokens. Its
episodes continue from its own tokens.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count as counter
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "0-1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.real.model import unpack
from stages.envs.airline_mini import airline_mini
from stages.policies.policy import Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.policies.vllm_policy import VLLMPolicy
from stages.rollout import Config, Played, Run, plan, rollout
from tests.bench.generation import exactly
from tests.bench.real_step import CONVERSATIONS
from tests.bench.timing import Row

THREADS, CONTEXT, TURNS, TOKENS, RUNS = 2, 4096, 3, 32, 3
LIVE = {32: 1 / 0.8, 8: 1 / 0.5}  # concurrent episodes, and how much longer ours may take

Asked = list[tuple[list[int], int]]  # an episode: ids that each prompt adds, number of new tokens


async def episodes(policy: TransformersPolicy, live: int) -> list[Played]:
    """Play with the scripted user."""
    environment = airline_mini()
    config = Config(group_size=1, max_turns=TURNS, sampling=Sampling(max_tokens=TOKENS))
    run = Run("bench", environment, policy, config, "SmolLM2")
    pairs = plan(environment.tasks("train")[:live], 1)
    return [played async for played in rollout(run, pairs, live)]


def asked(played: Played) -> Asked:
    """Return the requests to the model in an episode."""
    assert all(row["appended"] for row in played.tokens[1:])
    return [(row["prompt_ids"], len(row["token_ids"])) for row in played.tokens]


async def alone(engine: Any, episodes: list[Asked], numbers: Iterator[int]) -> None:
    """Send the requests to the engine itself, those of an episode one after another."""

    async def play(asked: Asked) -> None:
        seen = list[int]()
        for added, tokens in asked:
            number = next(numbers)
            settings = exactly(tokens, number)
            seen = seen + added
            request = {"prompt_token_ids": seen}
            async for answer in engine.generate(request, settings, f"alone {number}"):
                seen = seen + list(answer.outputs[0].token_ids)  # once, since it is FINAL_ONLY

    await asyncio.gather(*map(play, episodes))


async def decoding(checkpoint: Path) -> list[Row]:
    """Return the medians of alternating runs."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    peer = VLLMPolicy.load(checkpoint, rows=max(LIVE), context=CONTEXT, dtype="bfloat16")
    torch.set_num_threads(THREADS)
    numbers, rows = counter(), []
    for live, at_most in LIVE.items():
        ours, theirs, tokens = list[float](), list[float](), 0
        for _ in range(RUNS):
            begin = time.perf_counter()
            policy = TransformersPolicy(model, tokenizer, live, CONTEXT)
            played = await episodes(policy, live)
            await policy.close()
            ours.append(time.perf_counter() - begin)
            requests = [asked(episode) for episode in played]
            tokens = sum(count for episode in requests for _, count in episode)
            await peer._engine.reset_prefix_cache()
            begin = time.perf_counter()
            await alone(peer._engine, requests, numbers)
            theirs.append(time.perf_counter() - begin)
        ours_s, theirs_s = statistics.median(ours), statistics.median(theirs)
        name = f"SmolLM2, {live} live episodes, {tokens / ours_s:,.0f} tokens/s"
        peers = f"vLLM, {tokens / theirs_s:,.0f} tokens/s"
        rows.append(Row(name, peers, ours_s, theirs_s, at_most))
    await peer.close()
    return rows


def memory(checkpoint: Path) -> Row:
    """Compare the memory of two training steps, each in its own process."""

    def step_gb(*options: str) -> float:
        command = [sys.executable, "-m", "tests.bench.real_step", str(checkpoint), *options]
        return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)

    name = f"SmolLM2, a step on {CONVERSATIONS} conversations"
    return Row(name, "the longest alone", step_gb(), step_gb("--longest"), 1.2, unit="GB")


def bench() -> list[Row]:
    """Unpack the weights and compare: memory first, while nothing else holds any."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        unpack(checkpoint)
        return [memory(checkpoint), *asyncio.run(decoding(checkpoint))]
