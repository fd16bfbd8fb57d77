"""Which tokens meet in which step and pass, and the tensors of a pass (Sequence -> Pack)."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.training.packing import packs, shared_tokens
from stages.training.sequences import Example

MOST_PACKED = 16_384  # tokens of a pass that nobody set


class Pack(NamedTuple):
    """Sequences of T tokens that share a pass; M of the tokens are the policy's."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T]
    lengths: list[int]  # of the sequences, or of what they share and of the rest of each
    at: torch.Tensor  # [M]
    temperature: torch.Tensor  # [M]
    shared: bool  # whether what stands first is what all sequences begin with

    @classmethod
    def of(cls, examples: List[Example], device: torch.device) -> Pack:
        """Lay sequences in a row.

        Args:
            examples: of the pass.
            device: that the tensors are made on.

        Returns:
            The pack; its M tokens are those of the policy, in the order of the examples.
        """
        first = shared_prefix(examples)
        ids = [example.sequence.token_ids[first:] for example in examples]
        lengths = [len(rest) for rest in ids]
        moved = np.cumsum([0, *lengths[:-1]])  # of each sequence's tokens, for those before it
        at = [example.at + start for example, start in zip(examples, moved, strict=True)]
        temperature = [
            np.full(len(example.at), example.temperature, np.float32) for example in examples
        ]
        positions = [np.arange(first, first + length) for length in lengths]
        if first:
            ids.insert(0, examples[0].sequence.token_ids[:first])
            positions.insert(0, np.arange(first))
            lengths.insert(0, first)
        return cls(
            _tensor(ids, device),
            _tensor(positions, device),
            lengths,
            _tensor(at, device),
            _tensor(temperature, device),
            bool(first),
        )


def shared_prefix(examples: List[Example]) -> int:
    """Return how many tokens a pack of these examples holds once for all of them.

    Args:
        examples: of a pack, or of all packs of a step.

    Returns:
        Fewer than stand before any token of the policy: each is predicted by a token of its own.
    """
    learnt = [int(example.at[0]) for example in examples if len(example.at)]
    most = min(learnt, default=1) - 1
    return shared_tokens([example.sequence.token_ids for example in examples], most)


def _tensor(parts: List[npt.NDArray[np.generic]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


def steps(examples: List[Example], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the examples of each optimizer step of a run, episodes whole and in random order.

    The episodes of an epoch are spread evenly, so that no step is much smaller than another.

    Args:
        examples: all of them.
        batch_size: about how many episodes a step has.
        epochs: how often each episode is learnt from.
        seed: of the order, another in each epoch.

    Returns:
        For each step the positions of its examples in `examples`.
    """
    parts: dict[str, list[int]] = {}
    for place, example in enumerate(examples):
        parts.setdefault(example.episode_id, []).append(place)
    episodes = list(parts.values())
    planned = []
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(episodes))
        for chosen in np.array_split(order, max(1, round(len(episodes) / batch_size))):
            planned.append([place for episode in chosen for place in episodes[episode]])
    return planned


def passes(
    lengths: List[int], budget: int, process: int = 0, processes: int = 1
) -> Iterator[tuple[list[int], bool]]:
    """Yield the packs that one of several processes is to pass through its model.

    Each process gets equally many, for they wait for each other.

    Args:
        lengths: of the sequences of a step.
        budget: tokens of a pack.
        process: this one.
        processes: all of them.

    Yields:
        Positions in `lengths`, and whether they count: False where it only keeps step.
    """
    packed = packs(lengths, budget)
    for first in range(0, len(packed), processes):
        mine = first + process
        yield (packed[mine], True) if mine < len(packed) else (packed[0], False)
