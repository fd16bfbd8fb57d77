"""How a policy is trained: settings alone, which need none of the libraries that training does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]
Scale: TypeAlias = Literal["none", "rms"]
Old: TypeAlias = Literal["trainer", "engine"]
Aggregation: TypeAlias = Literal["token-mean", "sequence-mean", "constant"]


@dataclass(frozen=True)
class LossConfig:
    """The choices that change the loss."""

    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float | None = None  # > 1; None: without
    kl: float = 0.0  # weight of k3
    entropy: float = 0.0  # weight of the entropy bonus
    tis_cap: float | None = 2.0  # None: no importance weights between engine and trainer
    aggregation: Aggregation = "token-mean"
    constant_length: int = 1024  # tokens that `constant` divides every episode by

    def __post_init__(self) -> None:
        if self.aggregation not in get_args(Aggregation):
            raise ValueError(f"unknown aggregation '{self.aggregation}'")
        if self.dual_clip is not None and self.dual_clip <= 1:
            raise ValueError(f"dual_clip {self.dual_clip} is not above 1")


@dataclass(frozen=True)
class TrainConfig:
    """How a policy is trained. Equal settings make equal weights, on one CPU bit for bit."""

    lr: float = 1e-6
    schedule: Schedule = "constant"
    warmup: int = 0  # steps in which the learning rate rises
    weight_decay: float = 0.01
    beta2: float = 0.999  # of AdamW: how long it remembers the size of gradients
    max_grad_norm: float = 1.0
    epochs: int = 1
    batch_size: int = 32  # episodes of an optimizer step
    pack_tokens: int = 16_384  # of a pass; a longer episode has one for itself
    advantage_scale: Scale = "none"  # rms: each step's advantages get a root mean square of 1
    old_logprobs: Old = "trainer"  # engine: what was sampled with, instead of one more pass
    spike: float = 100.0  # a gradient norm so many times the usual ends the run
    seed: int = 0
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        kinds = {"schedule": Schedule, "advantage_scale": Scale, "old_logprobs": Old}
        for name, kind in kinds.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"unknown {name} '{getattr(self, name)}'")
