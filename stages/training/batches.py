"""Batching: the examples of each step and pass, and the tensors of a pass (Example -> Pack)."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as List
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.training.packing import packs, shared_tokens
from stages.training.sequences import Example

MOST_PACKED = 16_384  # most tokens of a pass by default


class Pack(NamedTuple):
    """Sequences that share a pass, T tokens in all, M of which the policy wrote."""

    token_ids: torch.Tensor  # [T]
    positions: torch.Tensor  # [T] position of each token in its sequence
    lengths: list[int]  # of the sequences; or of the shared prefix and the rest of each sequence
    at: torch.Tensor  # [M] indices of the policy's tokens
    temperature: torch.Tensor  # [M]
    shared: bool  # whether the first part is a prefix of all sequences

    @classmethod
    def of(cls, examples: List[Example], device: torch.device) -> Pack:
        """Concatenate the sequences of a pass.

        Args:
            examples: examples of the pass.
            device: device of the tensors.

        Returns:
            The pack; its M tokens are in the order of the examples.
        """
        first = shared_prefix(examples)
        ids = [example.sequence.token_ids[first:] for example in examples]
        lengths = [len(rest) for rest in ids]
        moved = np.cumsum([0, *lengths[:-1]])  # offset of each sequence's tokens
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
    """Return the length of the prefix that a pack of these examples shares.

    Args:
        examples: examples of a pack, or of all packs of a step.

    Returns:
        A number of tokens. The prefix ends before the token that predicts the policy's first token
        in any sequence, so each sequence has its own predicting token.
    """
    firsts = [int(example.at[0]) for example in examples if len(example.at)]
    most = min(firsts, default=1) - 1
    return shared_tokens([example.sequence.token_ids for example in examples], most)


def _tensor(parts: List[npt.NDArray[np.generic]], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts)).to(device)


def steps(examples: List[Example], batch_size: int, epochs: int, seed: int) -> list[list[int]]:
    """Return the examples of each optimizer step of a run: whole episodes in random order.

    Episodes are spread evenly over the steps of an epoch, so no step is much smaller than others.

    Args:
        examples: all examples.
        batch_size: approximate number of episodes per step.
        epochs: passes over the episodes.
        seed: seed of the order, which differs by epoch.

    Returns:
        For each step, the positions of its examples in `examples`.
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
    """Yield the packs of one of several processes.

    Every process gets the same number of packs, because the processes synchronise at each pass.

    Args:
        lengths: lengths of the sequences of a step.
        budget: most tokens of a pack.
        process: number of this process.
        processes: number of processes.

    Yields:
        Positions in `lengths`, and whether they count. A pack that does not count only keeps this
        process in step with the others.
    """
    packed = packs(lengths, budget)
    for first in range(0, len(packed), processes):
        mine = first + process
        yield (packed[mine], True) if mine < len(packed) else (packed[0], False)
