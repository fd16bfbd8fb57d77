"""An RL step of a real model on a GPU: its speed against TRL's and the device's, and its memory.

Run as `python -m tests.bench gpu`; it needs a GPU and TRL. `BENCH_MODEL` names the model. MFU is
the share of the device's own speed, measured here as that of a large matrix product in bf16, at 6
operations per parameter and token (Chowdhery et al. 2022, arXiv 2204.02311, appendix B, without
attention's).
"""

from __future__ import annotations

import os
from copy import deepcopy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stages.training.config import TrainConfig
from tests.bench.timing import Row, medians
from tests.bench.training import LR, SEQUENCES, Step, examples, our_step, tokens, trl_step

MODEL = os.environ.get("BENCH_MODEL", "Qwen/Qwen3-0.6B")
SIDE = 8192  # of the matrix product
PER_TOKEN = 6  # operations per parameter, forward and backward
RUNS = 5


def bench() -> list[Row]:
    """Measure our step and TRL's on the same sequences of random tokens."""
    if not torch.cuda.is_available():
        raise SystemExit("torch sees no GPU; run `make bench` on a CPU")
    tokenizer = AutoTokenizer.from_pretrained(MODEL, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, trust_remote_code=False, dtype=torch.float32, device_map="cuda"
    ).train()
    batch = examples(len(tokenizer))
    config = TrainConfig(lr=LR, batch_size=SEQUENCES)
    ours = synchronised(our_step(deepcopy(model), batch, config, bf16=True))
    ours_gb = peak_gb(ours)
    theirs = synchronised(trl_step(model, tokenizer, batch, config, bf16=True))
    theirs_gb = peak_gb(theirs)  # both models lie on the device now, as they did not before
    ours_s, theirs_s = medians(ours, theirs, runs=RUNS)
    operations = PER_TOKEN * model.num_parameters() * tokens(batch)
    floor_s = operations / operations_per_second()
    what = f"{MODEL}, RL step on {tokens(batch):,} tokens"
    share = f"{tokens(batch) / ours_s:,.0f} tokens/s, MFU {floor_s / ours_s:.0%}"
    return [
        Row(f"{what}, {share}", "the same operations in one product", ours_s, floor_s, 2.5),
        Row(what, "TRL's GRPO loss", ours_s, theirs_s, 1 / 1.5),
        Row(f"{what}, peak above the start", "TRL's GRPO loss", ours_gb, theirs_gb, 1, unit="GB"),
    ]


def synchronised(step: Step) -> Step:
    """Return a step that ends when the device is done."""

    def waited() -> float:
        norm = step()
        torch.cuda.synchronize()
        return norm

    return waited


def peak_gb(step: Step) -> float:
    """Return the gigabytes that a first step takes above the start, including AdamW's moments."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return float(torch.cuda.max_memory_allocated() - before) / 1e9


def operations_per_second() -> float:
    """Return the speed of the device, measured on a product of two matrices in bf16."""
    factors: list[Any] = [torch.randn(SIDE, SIDE, device="cuda").bfloat16() for _ in range(2)]

    def product() -> None:
        torch.mm(*factors)
        torch.cuda.synchronize()

    product()  # warms up
    [seconds] = medians(product, runs=4 * RUNS)
    return float(2 * SIDE**3 / seconds)
