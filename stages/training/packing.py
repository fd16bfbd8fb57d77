"""Sequence packing: many sequences in one pass without padding, isolated from each other.

Positions restart with each sequence and attention runs per sequence, so a pass over a pack gives
the same results as one pass per sequence. A prefix shared by all sequences of a pack, such as an
agent's instructions and tools, is stored once, and every sequence continues from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED = "irc_packed"  # name of our attention in transformers
LEAST_SHARED = 64  # tokens; a shorter prefix costs more in copies of keys and values than it saves


def packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Pack sequences into few packs of at most `budget` tokens by first fit, longest first.

    Args:
        lengths: lengths of the sequences; a sequence longer than the budget gets its own pack.
        budget: most tokens of a pack.

    Returns:
        Packs of positions in `lengths`; each position is in one pack.
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


def shared_tokens(token_ids: Sequence[npt.NDArray[np.int64]], most: int) -> int:
    """Return the length of the prefix that all sequences of a pack should share.

    Args:
        token_ids: tokens of each sequence.
        most: most tokens that may be shared.

    Returns:
        The length in tokens; 0 if sharing is not worth the copies of keys and values.
    """
    if len(token_ids) < 2:
        return 0
    first, *others = token_ids
    for ids in others:
        most = min(most, len(first), len(ids))
        differ = np.flatnonzero(first[:most] != ids[:most])
        most = int(differ[0]) if len(differ) else most
    return most if most >= LEAST_SHARED else 0


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
    shared: bool = False,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence of a pack, with transformers' attention interface.

    Args:
        queries: [1, H, T, D].
        keys: [1, K, T, D], K heads shared by H / K queries each.
        values: [1, K, T, D].
        scaling: factor of the scores.
        dropout: dropout probability of the attention weights.
        lengths: lengths of the sequences, which add up to T.
        shared: whether the first sequence is a prefix of all others.

    Returns:
        The mixed values [1, T, H, D], and None for the attention weights.

    Source: scaled dot-product attention, arXiv 1706.03762, section 3.2.1.
    """
    # Cast as autocast would: rotary embeddings return float32, and torch's mask needs one dtype.
    queries, keys = queries.to(values.dtype), keys.to(values.dtype)
    groups = queries.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
    # The gradient of split is one concatenation; each slice would add a full-size gradient.
    parts = zip(*(x.split(list(lengths), 2) for x in (queries, keys, values)), strict=True)
    attend = partial(scaled_dot_product_attention, dropout_p=dropout, scale=scaling)
    q, k_first, v_first = next(parts)
    mixed = [attend(q, k_first, v_first, is_causal=True)]
    for q, k, v in parts:
        if shared:
            k, v = torch.cat((k_first, k), 2), torch.cat((v_first, v), 2)
            mixed.append(attend(q, k, v, attn_mask=causal_lower_right(q.shape[2], k.shape[2])))
        else:
            mixed.append(attend(q, k, v, is_causal=True))
    return torch.cat(mixed, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, packed_attention)
