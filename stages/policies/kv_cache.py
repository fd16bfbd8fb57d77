"""KV cache of many episodes for transformers models, and attention over it.

Each episode has a row of the cache. The row may continue a shared prefix (an opening), which is
stored once for all episodes that begin with it. Attention is computed over the prefix and over the
row, and the two results are merged by their log-sum-exp.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

GROUPED = "irc_grouped"  # name of our attention in transformers


@dataclass(eq=False)
class Opening:
    """A prefix shared by many episodes."""

    length: int  # tokens
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # keys and values, [1, heads, length, size]


def attend(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention on a CPU that also returns the log-sum-exp of its scores, for merging.

    Args:
        queries: [B, K, L, D].
        keys: [B, K, W, D].
        values: [B, K, W, D].
        mask: added to the scores, [B, 1, L, W].
        scaling: factor of the scores.

    Returns:
        The mixed values [B, K, L, D], and the log-sum-exp of the scores in float32, [B, K, L].
    """
    # scaled_dot_product_attention calls this kernel on a CPU, but does not return the log-sum-exp.
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    mixed, logsum = flash(queries, keys, values, attn_mask=mask, scale=scaling)
    return mixed, logsum


def grouped_attention(
    module: Any,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None = None,
    openings: Sequence[tuple[Opening, torch.Tensor]] = (),
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Grouped-query attention without copies of keys and values.

    The query heads of a group are treated as further positions of a single head. transformers
    copies keys and values for each query head instead, which takes half the time of a pass.

    Args:
        module: attention module of the layer.
        queries: [B, H, L, D].
        keys: [B, K, W, D].
        values: [B, K, W, D].
        mask: added to the scores, [B, 1, L, W].
        scaling: factor of the scores.
        openings: shared prefixes, each with the rows that begin with it, booleans [B]; a row
            begins with one at most. On a CPU only.

    Returns:
        The mixed values [B, L, H, D], and None for the attention weights, as transformers expects.
    """
    groups = queries.shape[1] // keys.shape[1]
    together = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
    mask = mask.repeat(1, 1, groups, 1)
    if queries.device.type == "cpu":
        mixed, logsum = attend(together, keys, values, mask, scaling)
        for opening, chosen in openings:
            merged = _merged(together, opening.layers[module.layer_idx], mixed, logsum, scaling)
            mixed = torch.where(chosen[:, None, None, None], merged, mixed)
    else:
        mixed = scaled_dot_product_attention(together, keys, values, mask, scale=scaling)
    return mixed.reshape(queries.shape).transpose(1, 2).contiguous(), None


def _merged(
    queries: torch.Tensor,
    opening: tuple[torch.Tensor, torch.Tensor],
    mixed: torch.Tensor,
    logsum: torch.Tensor,
    scaling: float | None,
) -> torch.Tensor:
    """Merge attention over the rows' own columns with attention over an opening, [B, K, L, D].

    All rows take part, so the shape does not depend on how many of them begin with the opening.
    """
    flat_queries = queries.transpose(0, 1).flatten(1, 2)[None]  # [1, K, B * L, D]
    first, first_logsum = attend(flat_queries, *opening, None, scaling)
    rows, heads, length, size = queries.shape
    first = first.view(heads, rows, length, size).transpose(0, 1)
    first_logsum = first_logsum.reshape(heads, rows, length).transpose(0, 1)
    share = torch.sigmoid(first_logsum - logsum)[..., None]  # of the opening
    return torch.lerp(mixed.float(), first.float(), share).to(mixed.dtype)


@contextmanager
def grouped(model: Any) -> Iterator[None]:
    """Switch a model to our attention for a pass, and restore its own afterwards.

    The model may be in training, where it uses another attention.

    Args:
        model: transformers model.

    Yields:
        None.
    """
    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(GROUPED, grouped_attention)
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


class RowCache:
    """KV cache with one row per episode, with the interface of a transformers cache.

    Args:
        rows: number of rows.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._capacity = 0
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # [rows, heads, columns, size]

    def prepare(self, places: Sequence[int], columns: torch.Tensor, width: int) -> None:
        """Set the rows and columns of the next pass.

        Args:
            places: index of each row, [B].
            columns: column of each token, -1 for padding, [B, L].
            width: number of columns that attention sees.
        """
        if width > self._capacity:
            self._grow(max(width, 2 * self._capacity))
        # A slice of adjacent rows needs no gather.
        self._slice = slice(places.start, places.stop) if isinstance(places, range) else None
        self._places = torch.tensor(places, device=columns.device)
        self._columns, self._width = columns, width  # -1 is a spare column that no pass sees

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's keys and values, [B, heads, L, size]; return all that the pass sees."""
        if layer == len(self._layers):
            self._layers.append((self._empty(keys), self._empty(values)))
        held_keys, held_values = self._layers[layer]
        return self._put(held_keys, keys), self._put(held_values, values)

    def get_seq_length(self, *_: Any) -> int:
        """Return 0; transformers calls this, but positions and masks are given explicitly."""
        return 0

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copy the first columns of a row to another row."""
        for held in (tensor for layer in self._layers for tensor in layer):
            held[target, :, :columns] = held[source, :, :columns]

    def opening(self, length: int) -> Opening:
        """Return the first `length` columns of the first row as an opening."""
        layers = [
            (keys[:1, :, :length].contiguous(), values[:1, :, :length].contiguous())
            for keys, values in self._layers
        ]
        return Opening(length, layers)

    def _put(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        held[self._places[:, None], :, self._columns] = new.transpose(1, 2)
        seen = held[:, :, : self._width]
        return seen[self._places] if self._slice is None else seen[self._slice]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = like.shape
        # Zeros, because masked columns get the weight 0, and 0 times NaN is NaN.
        return like.new_zeros(self._rows, heads, self._capacity + 1, size)

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        for layer, held in enumerate(self._layers):
            keys, values = (self._empty(tensor) for tensor in held)
            for wider, tensor in zip((keys, values), held, strict=True):
                wider[:, :, : tensor.shape[2] - 1] = tensor[:, :, :-1]
            self._layers[layer] = keys, values
