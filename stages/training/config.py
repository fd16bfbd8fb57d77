"""Settings of training, importable without the libraries that training needs."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from stages.settings import Setting, check_settings

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
Scale: TypeAlias = Literal["none", "rms"]
Old: TypeAlias = Literal["trainer", "engine"]
Aggregation: TypeAlias = Literal["token-mean", "sequence-mean", "constant"]

# Panels of the options in --help.
ADVANTAGE, OPTIMISATION, LOSS = "Advantage", "Optimisation", "Loss"
MEMORY, CHECKPOINTS = "Memory", "Checkpoints"


@dataclass(frozen=True)
class LossConfig:
    """Settings of the loss."""

    clip_low: Annotated[
        float,
        Setting("Lower clip bound of the ratio, as 1 minus this.", LOSS, low=0, high=1),
    ] = 0.2
    clip_high: Annotated[
        float, Setting("Upper clip bound of the ratio, as 1 plus this.", LOSS, low=0)
    ] = 0.28
    dual_clip: Annotated[
        float | None,
        Setting(
            "Dual clip: bound above 1 on ratios of negative advantages; default: off.",
            LOSS,
            above=1,
            high=math.inf,
        ),
    ] = None  # None: no dual clip
    kl: Annotated[
        float, Setting("Weight of the KL divergence (k3) from the reference.", LOSS, low=0)
    ] = 0.0
    entropy: Annotated[float, Setting("Weight of the entropy bonus.", LOSS, low=0)] = 0.0
    tis_cap: Annotated[
        float | None,
        Setting(
            "Cap of the importance weights between engine and trainer; 0: no weights.",
            LOSS,
            low=0,
            high=math.inf,
            none=0,
        ),
    ] = 2.0  # None: no importance weights between engine and trainer
    aggregation: Annotated[
        Aggregation,
        Setting(
            "Average of the loss: over tokens, over episodes, or over episodes times "
            "--constant-length.",
            LOSS,
        ),
    ] = "token-mean"
    constant_length: Annotated[
        int, Setting("Number of tokens that --aggregation constant divides by.", LOSS, low=1)
    ] = 1024

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training. On one CPU, equal settings give the same weights bit for bit."""

    lr: Annotated[float, Setting("Learning rate of AdamW.", OPTIMISATION, low=0)] = 1e-6
    schedule: Annotated[Schedule, Setting("Schedule of the learning rate.", OPTIMISATION)] = (
        "constant"
    )
    warmup: Annotated[int, Setting("Warm-up steps of the learning rate.", OPTIMISATION, low=0)] = 0
    weight_decay: Annotated[float, Setting("Weight decay of AdamW.", OPTIMISATION, low=0)] = 0.01
    beta2: Annotated[
        float, Setting("AdamW's second-moment decay.", OPTIMISATION, low=0, below=1)
    ] = 0.999
    max_grad_norm: Annotated[
        float,
        Setting(
            "Maximum gradient norm; larger gradients are scaled down.",
            OPTIMISATION,
            low=0,
            high=math.inf,
        ),
    ] = 1.0
    epochs: Annotated[int, Setting("Passes over the episodes.", OPTIMISATION, low=1)] = 1
    batch_size: Annotated[
        int, Setting("Approximate number of episodes per optimizer step.", OPTIMISATION, low=1)
    ] = 32
    pack_tokens: Annotated[
        int | None,
        Setting(
            "Tokens per pass; default: as many as fit in memory, at most 16,384.", MEMORY, low=1
        ),
    ] = None  # a longer sequence gets its own pass
    advantage_scale: Annotated[
        Scale,
        Setting("Scaling of each step's advantages; rms: to a root mean square of 1.", ADVANTAGE),
    ] = "none"
    old_logprobs: Annotated[
        Old,
        Setting("Source of the old logprobs in the ratios; engine saves a forward pass.", LOSS),
    ] = "trainer"
    spike: Annotated[
        float,
        Setting(
            "Stop the run at this multiple of the median gradient norm.",
            OPTIMISATION,
            low=1,
            high=math.inf,
        ),
    ] = 100.0
    seed: Annotated[int, Setting("Random seed.", OPTIMISATION, low=0, metavar="N")] = 0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        check_settings(self)


@dataclass(frozen=True)
class MemorySaving:
    """Options that save memory at the cost of time or precision."""

    lora_rank: Annotated[
        int | None, Setting("Train LoRA adapters of this rank, not all weights.", MEMORY, low=1)
    ] = None
    bf16: Annotated[bool, Setting("Compute in bfloat16; the weights stay in float32.", MEMORY)] = (
        False
    )
    gradient_checkpointing: Annotated[
        bool, Setting("Recompute activations: less memory, a third more time.", MEMORY)
    ] = False


@dataclass(frozen=True)
class Checkpoints:
    """When checkpoints are saved, kept and resumed from."""

    save_every: Annotated[
        int | None, Setting("Steps between checkpoints; default: none.", CHECKPOINTS, low=1)
    ] = None
    keep: Annotated[int, Setting("Checkpoints to keep.", CHECKPOINTS, low=1)] = 2
    resume: Annotated[bool, Setting("Continue from the last checkpoint in --out.", CHECKPOINTS)] = (
        False
    )
