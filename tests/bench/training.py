"""An RL step against TRL's GRPO step; the memory of log-probabilities against that of all logits.

Run as `.venv-extras/bin/python -m tests.bench training`; it needs TRL. Both train the same weights
on the same sequences of ragged lengths, forward, backward and AdamW, on one thread. TRL's part is
`GRPOTrainer.compute_loss` on micro-batches of its default size, padded to their own longest
sequence, without the trainer's work around it: sampling, rewards, data loading.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch

from stages.train import Known, TierCodes, train
from stages.training.config import TrainConfig
from stages.training.logprobs import TokenLogprobs
from stages.training.model import learner
from stages.training.sequences import Example, TokenSequence
from stages.training.tiny_model import Size, tiny_model, tiny_tokenizer
from stages.training.trainer import Trainer
from tests.bench.timing import Row, row
from tests.tiny import PIECES

SEQUENCES, SHORTEST, LONGEST = 32, 100, 1200  # tokens
TURN, ANSWER = 60, 35  # tokens per turn, and those of the policy among them
MICRO_BATCH = 8
Step = Callable[[], float]  # an optimizer step; returns the norm of its gradient
LR = 1e-5
TOKENS, VOCABULARY, WIDTH = 16_000, 150_000, 64


def examples(vocabulary: int) -> list[Example]:
    """Return sequences of turns; each turn ends with tokens of the policy."""
    rng = np.random.default_rng(0)
    found = []
    for number, length in enumerate(rng.integers(SHORTEST, LONGEST, SEQUENCES)):
        turn = np.where(np.arange(length) % TURN < TURN - ANSWER, -1, np.arange(length) // TURN)
        logprobs = np.full(length, np.nan, np.float32)
        ids = rng.integers(4, vocabulary, length)
        written = int((turn >= 0).sum())
        found.append(
            Example(
                TokenSequence(str(number), ids, turn.astype(np.int32), logprobs),
                np.full(written, rng.normal(), np.float32),
                np.zeros(written, np.int32),
                np.ones(written, np.float32),
            )
        )
    return found


def micro_batches(batch: list[Example], padding: int) -> list[dict[str, Any]]:
    """Return the sequences in the form of TRL's trainer: a prompt, then all that follows."""

    def padded(parts: list[np.ndarray[Any, Any]], value: int, side: str = "right") -> torch.Tensor:
        return torch.nn.utils.rnn.pad_sequence(
            [torch.from_numpy(part) for part in parts], True, value, side
        )

    total = torch.tensor(float(sum(len(one.at) for one in batch)))
    found = []
    for start in range(0, len(batch), MICRO_BATCH):
        chosen = batch[start : start + MICRO_BATCH]
        cut = [(one.sequence.token_ids, int(one.at[0])) for one in chosen]
        prompts, answers = [ids[:at] for ids, at in cut], [ids[at:] for ids, at in cut]
        wrote = [one.sequence.written[one.at[0] :].astype(np.int64) for one in chosen]
        found.append(
            {
                "prompt_ids": padded(prompts, padding, "left"),
                "prompt_mask": padded([np.ones_like(ids) for ids in prompts], 0, "left"),
                "completion_ids": padded(answers, padding),
                "completion_mask": padded([np.ones_like(ids) for ids in answers], 0),
                "tool_mask": padded(wrote, 0),
                "advantages": torch.tensor([one.advantage[0] for one in chosen]),
                "num_items_in_batch": total,
            }
        )
    return found


def trl_trainer(model: Any, tokenizer: Any, folder: str, *, bf16: bool) -> Any:
    """Return TRL's trainer for one step of several micro-batches, on the model's device."""
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    def reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [0.0] * len(completions)

    config = GRPOConfig(
        output_dir=folder,
        use_cpu=model.device.type == "cpu",
        bf16=bf16,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=SEQUENCES // MICRO_BATCH,
        gradient_checkpointing=False,
        num_generations=MICRO_BATCH,
        epsilon_high=0.28,
        loss_type="dapo",  # the mean over tokens
        report_to=[],
    )
    return GRPOTrainer(
        model,
        reward,
        config,
        Dataset.from_dict({"prompt": ["hello"] * SEQUENCES}),
        processing_class=tokenizer,
    )


def our_step(model: Any, batch: list[Example], config: TrainConfig, *, bf16: bool) -> Step:
    """Return an optimizer step of ours, which trains the model."""
    trainer = Trainer.of(learner(model), config, packable=True, bf16=bf16)
    known = Known([None] * len(batch), None)

    def step() -> float:
        [taken] = train(trainer, batch, known, TierCodes(["all"], {}), config)
        return float(taken.log["grad_norm"])

    return step


def trl_step(
    model: Any, tokenizer: Any, batch: list[Example], config: TrainConfig, *, bf16: bool
) -> Step:
    """Return an optimizer step of TRL's, which trains the model."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl_trainer(model, tokenizer, folder, bf16=bf16)
    trainer.current_gradient_accumulation_steps = SEQUENCES // MICRO_BATCH
    padded = [
        {name: tensor.to(model.device) for name, tensor in inputs.items()}
        for inputs in micro_batches(batch, tokenizer.pad_token_id)
    ]

    def step() -> float:
        for inputs in padded:
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(trainer.model, inputs)
            loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return float(norm)

    return step


def speed() -> Row:
    """Time one optimizer step; the gradients must agree."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer(PIECES)
    model = tiny_model(len(tokenizer), 0, Size()).train()
    batch = examples(len(tokenizer))
    config = TrainConfig(lr=LR, batch_size=SEQUENCES)
    ours = our_step(deepcopy(model), batch, config, bf16=False)
    theirs = trl_step(model, tokenizer, batch, config, bf16=False)
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-3)
    name = f"RL step on {tokens(batch):,} tokens of {SEQUENCES} sequences"
    return row(name, "TRL's GRPO loss", ours, theirs, 1 / 1.5, runs=3)


def tokens(batch: list[Example]) -> int:
    """Count the tokens of all sequences."""
    return sum(len(example.sequence) for example in batch)


def memory() -> Row:
    """Measure the peak memory of log-probabilities, forward and backward, above the start."""
    command = [sys.executable, "-m", "tests.bench.training"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    ours = json.loads(done.stdout)
    full = TOKENS * VOCABULARY * 4 / 1e9
    name = f"log-probabilities of {TOKENS:,} tokens, {VOCABULARY:,} words"
    return Row(name, "all logits in float32", ours, full, 1 / 4, unit="GB")


def chunked() -> float:
    """Return the gigabytes of log-probabilities and their gradients, including weights."""
    before = peak_gb()
    model = tiny_model(VOCABULARY, 0, Size(1, WIDTH, WIDTH, 2, 1, TOKENS + 1))
    learner(model)
    ids = torch.arange(TOKENS + 1)
    values = TokenLogprobs(model)(ids, ids, [TOKENS + 1], ids[1:], torch.ones(TOKENS))
    values.logprobs.sum().backward()
    return peak_gb() - before


def peak_gb() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def bench() -> list[Row]:
    """Measure memory first, because a process starts at its parent's peak."""
    return [memory(), speed()]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(chunked()))
