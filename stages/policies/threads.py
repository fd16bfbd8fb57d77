"""The number of threads that torch uses."""

from __future__ import annotations

from typing import Any

import torch

# Below this many parameters one thread is fastest. Several threads synchronise at every operation,
# which was 26 times slower while another job ran on the machine.
SMALL = 20_000_000


def limit_threads(model: Any) -> None:
    """Set torch to one thread if a model on the CPU is small.

    Args:
        model: torch model.
    """
    if sum(weights.numel() for weights in model.parameters()) < SMALL:
        torch.set_num_threads(1)
