"""Memory of one training step of a checkpoint, in a separate process.

Run as `python -m tests.bench.real_step CHECKPOINT`, with `--longest` for a step on the longest
conversation alone. It prints gigabytes. The step is one of `irc-cli train --sft --bf16` with its
defaults, on conversations of the expert that show policy and tools in full.
"""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.expert import Expert
from stages.messages.renderer import Renderer
from stages.policy_registry import RulePolicy
from stages.rollout import Config, Run, plan, rollout
from stages.train import TierCodes, train
from stages.training.config import TrainConfig
from stages.training.examples import Demonstration, supervised
from stages.training.model import learner, load_model
from stages.training.pass_size import tokens_here
from stages.training.plan import Setup
from stages.training.trainer import Trainer

CONVERSATIONS = 24


async def demonstrations() -> list[Demonstration]:
    """Return conversations of the expert."""
    environment = airline_mini()
    run = Run("bench", environment, RulePolicy(Expert(0.0)), Config(group_size=1), "expert")
    pairs = plan(environment.tasks("train")[:CONVERSATIONS], 1)
    return [
        Demonstration(played.row["episode_id"], played.row["messages"], run.tools)
        async for played in rollout(run, pairs, 1)
    ]


def peak_gb() -> float:
    """Return the peak memory of this process; getrusage would begin with its parent's."""
    held = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert held
    return int(held[1]) * 1024 / 1e9


def step_gb(checkpoint: str, *, longest: bool) -> float:
    """Take the step; return the memory that it needs above the process's own, with weights."""
    conversations = asyncio.run(demonstrations())
    before = peak_gb()
    model, tokenizer = load_model(checkpoint)
    batch = supervised(conversations, Renderer(tokenizer))
    if longest:
        batch = [max(batch, key=lambda example: len(example.sequence))]
    config = TrainConfig(batch_size=len(batch))
    trainer = Trainer.of(learner(model), config, packable=True, bf16=True)
    most = max(len(example.sequence) for example in batch)
    tokens = tokens_here(model.config, Setup(0, bf16=True), most)
    config = replace(config, pack_tokens=tokens)
    for _ in train(trainer, batch, None, TierCodes(["all"], {}), config):
        pass
    return peak_gb() - before


if __name__ == "__main__":
    sys.stdout.write(str(step_gb(sys.argv[1], longest="--longest" in sys.argv)))
