"""How many threads torch should use."""

from __future__ import annotations

from typing import Any

import torch

# Below this many parameters one thread is the fastest: several wait for each other at every
# operation, and beside another job of the machine that was 26 times slower.
SMALL = 20_000_000


def limit_threads(model: Any) -> None:
    """Set torch to one thread if the model, which runs on the CPU, is small."""
    if sum(weights.numel() for weights in model.parameters()) < SMALL:
        torch.set_num_threads(1)
