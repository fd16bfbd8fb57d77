"""Many sequences in one pass without padding: they stand in a row, and none sees another.

Positions begin anew with each sequence, and attention runs on each by itself, so that a pass over
a pack gives what passes over its sequences give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "irc_packed"  # name of our attention in transformers


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Put sequences into few packs of at most `budget` tokens: first fit, longest first.

    Args:
        lengths: of the sequences; a longer one than the budget stands alone.
        budget: tokens of a pack.

    Returns:
        Positions in `lengths`, each in one pack.
    """
    packed: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        length = lengths[place]
        fit = next((i for i, left in enumerate(room) if left >= length), None)
        if fit is None:
            packed.append([place])
            room.append(budget - length)
        else:
            packed[fit].append(place)
            room[fit] -= length
    return packed


def packed_attention(
    _module: Any,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    _mask: None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    lengths: Sequence[int],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a pack, in transformers' form.

    Args:
        queries: [1, H, T, D].
        keys: [1, K, T, D], K heads shared by H / K queries each.
        values: [1, K, T, D].
        scaling: of the scores.
        dropout: of the weights.
        lengths: of the sequences, which add up to T.

    Returns:
        The mixed values [1, T, H, D], and no weights.

    Source: scaled dot-product attention, arXiv 1706.03762, section 3.2.1.
    """
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    # split: its gradient is one concatenation; that of slices would be a full tensor each.
    alone = zip(*(x.split(list(lengths), 2) for x in (queries, keys, values)), strict=True)
    mixed = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling)
        for q, k, v in alone
    ]
    return torch.cat(mixed, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
