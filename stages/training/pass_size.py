"""The default number of tokens per pass, chosen by the available memory.

A GPU takes as many tokens as fit beside weights, gradients and moments. A CPU is no faster with
more than a few thousand tokens and shares its memory with other programs, so a pass may use a tenth
of it. The longest sequence always fits in a pass.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from dataclasses import replace
from typing import Any

import torch

from stages.training.batches import MOST_PACKED
from stages.training.plan import Architecture, Setup, describe, fits, memory

CPU_SHARE = 0.1  # of the computer's memory; our choice
GB = 1e9


def here(setup: Setup) -> Setup:
    """Fill in the devices that torch finds: GPUs, otherwise this computer and its memory.

    Args:
        setup: setup of a run; 0 devices or 0 GB are filled in.

    Returns:
        The same setup with devices and their memory.
    """
    gpus = torch.cuda.device_count()
    if gpus:
        memory_gb = torch.cuda.get_device_properties(0).total_memory / GB
    else:
        memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    cpu = not (gpus or setup.devices or setup.device_gb)  # given devices are another machine's
    devices, device_gb = setup.devices or gpus or 1, setup.device_gb or memory_gb
    return replace(setup, devices=devices, device_gb=device_gb, cpu=cpu)


def fitting_tokens(model: Architecture, setup: Setup, longest: int) -> int:
    """Return how many tokens a pass can have.

    Args:
        model: architecture to train.
        setup: setup of the run; its `tokens` are ignored.
        longest: length of the longest sequence in tokens.

    Returns:
        The most tokens that fit, limited to MOST_PACKED, but at least `longest`.

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
        config: transformers config of the model.
        setup: setup of the run.
        longest: length of the longest sequence in tokens.

    Returns:
        A number of tokens; see `fitting_tokens`.
    """
    setup = replace(here(setup), cpu=not torch.cuda.is_available())
    return fitting_tokens(describe(config, setup), setup, longest)
