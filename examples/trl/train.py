"""Train the seed policy with TRL and advantages per turn, and measure it before and after.

    python -m examples.trl.train --iterations 8 -o out

It runs on one CPU thread. Each iteration plays 16 tasks 8 times and takes four optimizer steps.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig

from irc_cli.trl import TurnGRPOTrainer, environment, task_rows
from stages.policy_registry import SEED_POLICY

ENV, MAX_TURNS = "airline-mini", 20


def main() -> None:
    """Measure, train, measure again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calibration", default="online", help="online, or a calibration.yaml")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = train(given.iterations, given.seed, given.calibration, given.out)
    for name, model in (("before", SEED_POLICY), ("after", trained)):
        print(f"{name}: {pass_rate(model)}")  # noqa: T201


def train(iterations: int, seed: int, calibration: str, out: Path) -> str:
    """Train, and return the folder of the policy."""
    tokenizer = AutoTokenizer.from_pretrained(SEED_POLICY)
    trainer = TurnGRPOTrainer(
        SEED_POLICY,
        args=settings(iterations, seed, out),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(task_rows(ENV)).shuffle(seed),
        environment_factory=environment(ENV, seed=seed),
        calibration=calibration,
    )
    trainer.train()
    trainer.save_model(str(out / "policy"))
    print(f"values: {trainer.turns.values}")  # noqa: T201
    return str(out / "policy")


def settings(iterations: int, seed: int, out: Path) -> GRPOConfig:
    """Return TRL's settings: those of `make demo` where TRL has them, with another schedule."""
    return GRPOConfig(
        output_dir=str(out),
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        # Each iteration: 128 episodes, used for two epochs of two steps of 64.
        max_steps=4 * iterations,
        num_generations=8,
        per_device_train_batch_size=64,
        steps_per_generation=2,
        gradient_accumulation_steps=1,
        num_iterations=2,
        max_completion_length=300,
        max_tool_calling_iterations=MAX_TURNS - 1,
        generation_kwargs={"max_new_tokens": 60},  # per message
        top_k=0,
        learning_rate=3e-4,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        loss_type="dapo",
        epsilon_high=0.28,
        beta=0.0,
        report_to="none",
        save_strategy="no",
        logging_steps=4,
    )


def pass_rate(model: str) -> str:
    """Return the pass rate on the test tasks, two episodes of each, and its 95 % interval."""
    play = ["--env", ENV, "--policy", "transformers", "--model", model]
    play += ["--split", "test", "--group-size", "2"]
    play += ["--max-turns", str(MAX_TURNS), "--max-tokens", "60", "--concurrency", "128"]
    command = [sys.executable, "-m", "irc_cli", "eval", *play, "--json"]
    ended = subprocess.run(command, capture_output=True, check=True)
    result: dict[str, Any] = orjson.loads(ended.stdout)
    low, high = result["ci_low"], result["ci_high"]
    return f"{result['pass_rate']:.1%} [{low:.1%}, {high:.1%}] of {result['episodes']} episodes"


if __name__ == "__main__":
    main()
