"""The model in training, its optimizer and its devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from collections.abc import Sequence as List
from dataclasses import dataclass
from typing import Any

import torch

from stages.errors import InputError
from stages.training.batches import MOST_PACKED, passes, shared_prefix
from stages.training.config import TrainConfig
from stages.training.logprobs import TokenLogprobs
from stages.training.sequences import Example


@dataclass(frozen=True)
class Trainer:
    """The model in training with its optimizer and devices."""

    model: Any  # TokenLogprobs, wrapped by accelerate
    optimizer: Any
    accelerator: Any
    packable: bool  # whether sequences can share a pass
    bf16: bool

    @classmethod
    def of(
        cls, learner: TokenLogprobs, config: TrainConfig, *, packable: bool, bf16: bool
    ) -> Trainer:
        """Prepare a model for the devices and processes that accelerate finds.

        Args:
            learner: the model.
            config: settings of the optimizer.
            packable: whether sequences can share a pass.
            bf16: whether passes run in bf16, under autocast.

        Returns:
            The trainer.

        Raises:
            InputError: a launcher started several processes that would each train alone.
        """
        from accelerate import Accelerator

        accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started != accelerator.num_processes:  # accelerate does this with FSDP on a CPU
            what = f"{started} processes were started, which accelerate does not connect"
            raise InputError("accelerate launch", what, "on a CPU leave FSDP out, and give --cpu")
        weights = [tensor for tensor in learner.parameters() if tensor.requires_grad]
        optimizer = torch.optim.AdamW(
            weights,
            lr=config.lr,
            betas=(0.9, config.beta2),
            weight_decay=config.weight_decay,
            fused=True,
        )
        model, optimizer = accelerator.prepare(learner, optimizer)
        return cls(model, optimizer, accelerator, packable, bf16)

    @property
    def bare(self) -> Any:
        """The transformers model, possibly wrapped by peft."""
        return self.accelerator.unwrap_model(self.model).model

    @property
    def shards(self) -> int:
        """The number of devices that share one copy of the weights."""
        sharded = str(self.accelerator.distributed_type).endswith("FSDP")
        return int(self.accelerator.num_processes) if sharded else 1

    def passes(
        self, examples: List[Example], config: TrainConfig
    ) -> Iterator[tuple[list[int], bool]]:
        """Yield this process's passes over some examples; see `stages.training.batches`.

        Args:
            examples: the examples of a step, or all examples to evaluate.
            config: sets the tokens per pass.

        Yields:
            Positions in `examples`, and whether they count. A pass that does not count only keeps
            this process in step with the others.
        """
        first = shared_prefix(examples) if self.packable else 0
        lengths = [len(example.sequence) - first for example in examples]
        budget = (config.pack_tokens or MOST_PACKED) - first if self.packable else 0
        devices = self.accelerator
        return passes(lengths, budget, devices.process_index, devices.num_processes)

    def total(self, numbers: List[float]) -> list[float]:
        """Sum numbers over all processes.

        Args:
            numbers: this process's numbers.

        Returns:
            The sum of each number.
        """
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        return list(self.accelerator.reduce(mine, "sum").tolist())
