"""How many tokens share a pass, where nobody says: as many as the memory that is there holds.

A GPU gets as many as fit beside weights, gradients and moments. A CPU is no faster with more than
a few thousand, and its memory serves other programs: it gets a tenth of it for what a pass keeps.
The longest sequence always has its pass.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import torch

from stages.training.batches import MOST_PACKED
from stages.training.plan import Architecture, Setup, describe, fits, memory

CPU_SHARE = 0.1  # of the computer's memory: an allowance of ours
GB = 1e9


def here(setup: Setup) -> Setup:
    """Fill in the devices that torch finds: GPUs, else this computer and its memory.

    Args:
        setup: of a run; 0 devices, or of 0 GB, where torch is to look.

    Returns:
        The same run on so many devices, of so many GB.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        memory_gb = torch.cuda.get_device_properties(0).total_memory / GB
    else:
        memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    cpu = not (gpus or setup.devices or setup.device_gb)  # else another machine is planned for
    devices, device_gb = setup.devices or gpus or 1, setup.device_gb or memory_gb
    return replace(setup, devices=devices, device_gb=device_gb, cpu=cpu)


def fitting_tokens(model: Architecture, setup: Setup, longest: int) -> int:
    """Return how many tokens a pass can have.

    Args:
        model: what is trained.
        setup: how, and on which devices; its tokens do not count.
        longest: tokens of the longest sequence.

    Returns:
        At least `longest`, at most MOST_PACKED if that is less.

    Source: docs/method.md, "Memory of a training step".
    """

    def too_many(tokens: int) -> bool:
        there = memory(model, replace(setup, tokens=tokens))
        if setup.cpu:
            return there.activations + there.layer > CPU_SHARE * setup.device_gb * GB
        return not fits(there.peak, setup)

    choices = range(longest + 1, MOST_PACKED + 1)
    return longest + bisect_left(choices, True, key=too_many)


def tokens_here(config: Any, setup: Setup, longest: int) -> int:
    """Return how many tokens a pass can have on the devices that torch finds.

    Args:
        config: of a model, from transformers.
        setup: of the run.
        longest: tokens of the longest sequence.

    Returns:
        See `fitting_tokens`.
    """
    setup = replace(here(setup), cpu=not torch.cuda.is_available())
    return fitting_tokens(describe(config, setup), setup, longest)
