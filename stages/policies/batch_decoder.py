"""Decodes many episodes at once with a transformers model, each in a row of one KV cache.

A row holds an episode from turn to turn, so that a prompt costs only what it adds. Rows have their
own lengths: a token's place in its row is its column in the cache, and a mask hides the rest.

Every pass has one of a few fixed shapes, filled up with padding, and which of them a token goes
through depends on its own episode alone. So the results are the same whoever shares the batch, to
the last bit where a matrix product treats all rows of a shape alike, and as long as each live
episode has a row. One that loses its row between turns is read anew, in other shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random
from typing import Any, Literal, NamedTuple

import torch
from transformers import AttentionInterface

from stages.policies.nucleus import nucleus
from stages.policies.policy import Sampling

# Shapes of a pass over prompts, as (tokens, rows); a prompt takes the longest that it fills.
PROMPT_SHAPES = ((512, 1), (64, 4), (16, 8))
PATIENCE = 4  # steps that a pass over prompts waits to be full
BLOCK = 32  # rows that are written together; a pass of so many costs little more than of one
GROUPED = "irc_grouped"  # name of our attention in transformers
COLUMN_STEP = 64  # a pass sees a multiple of this


@dataclass(eq=False)
class MessageRequest:
    """One message to be sampled, and what has been sampled of it."""

    episode_id: str
    prompt: list[int]
    sampling: Sampling
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None  # None: not finished

    def __post_init__(self) -> None:
        self.random = Random(self.seed)


@dataclass(eq=False)
class _Row:
    """One row of the cache, and the request that it works on."""

    place: int
    episode_id: str | None = None
    cached: list[int] = field(default_factory=list)  # tokens whose keys and values it holds
    todo: list[int] = field(default_factory=list)  # of the prompt, or the last one sampled
    request: MessageRequest | None = None
    used: int = 0  # when it last got a request


class BatchDecoder:
    """Samples for any number of requests, `rows` at a time.

    Args:
        model: a causal language model of transformers with full attention in every layer.
        rows: how many requests are decoded at once; beyond one block, rounded up to whole blocks.
        context: most tokens of an episode.
        stops: ids that end a message.
    """

    def __init__(self, model: Any, rows: int, context: int, stops: Sequence[int]) -> None:
        self._model = model.eval()
        self._context = context
        self._stops = frozenset(stops)
        # Blocks of one shape, so that it does not matter in which of them an episode stands.
        rows = rows if rows < BLOCK else -(-rows // BLOCK) * BLOCK
        self._cache = _Cache(rows)
        self._rows = [_Row(place) for place in range(rows)]
        self._waiting: list[MessageRequest] = []
        self._clock = 0
        self._held = 0  # steps for which prompts have waited

    @property
    def busy(self) -> bool:
        """Whether some request is not finished."""
        return bool(self._waiting) or any(row.request for row in self._rows)

    def submit(self, request: MessageRequest) -> None:
        """Add a request; its prompt is not empty and shorter than the context."""
        self._waiting.append(request)

    def forget(self, episode_id: str) -> None:
        """Give the row of an episode that has ended to the next new one."""
        for row in self._rows:
            if row.episode_id == episode_id and row.request is None:
                row.episode_id, row.used = None, 0

    def step(self) -> list[MessageRequest]:
        """Read the prompts that are due and sample a token for each row; return what finished."""
        self._admit()
        finished = []
        with torch.inference_mode():
            while batch := self._due():
                finished += self._read(batch)
            return finished + self._write()

    def _admit(self) -> None:
        """Give rows to requests: the episode's own if it still has one, else the longest unused."""
        left = []
        for request in self._waiting:
            idle = [row for row in self._rows if row.request is None]
            if not idle:
                left.append(request)
                continue
            row = min(idle, key=lambda row: (row.episode_id != request.episode_id, row.used))
            self._clock += 1
            if row.episode_id != request.episode_id:
                # Keep nothing of another episode's: which row is free depends on the clock.
                row.cached = []
            row.used, row.request, row.episode_id = self._clock, request, request.episode_id
            # The last token is read again, if need be, for what it predicts.
            pairs = zip(row.cached, request.prompt[:-1], strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            row.cached, row.todo = row.cached[:same], request.prompt[same:]
        self._waiting = left

    def _due(self) -> list[_Row]:
        """Return rows whose prompts are to be read now, all in a pass of the same shape.

        A pass costs much the same full or not, so that it waits to be full while others write.
        """
        reading = [row for row in self._rows if row.request and not row.request.token_ids]
        if not reading:
            return []
        reading.sort(key=lambda row: row.used)  # who waits longest decides on the shape
        shape = _shape(reading[0])
        batch = [row for row in reading if _shape(row) == shape][: shape.rows]
        others_write = any(map(_writes, self._rows))
        if others_write and len(batch) < shape.rows and self._held < PATIENCE:
            self._held += 1
            return []
        self._held = 0
        return batch

    def _read(self, batch: list[_Row]) -> list[MessageRequest]:
        """Pass on through the prompts of some rows; sample where one is read to its end."""
        shape = _shape(batch[0])
        padding = shape.rows - len(batch)
        places = [*(row.place for row in batch), *[0] * padding]
        logits = self._forward([*batch, *[None] * padding], places, shape.tokens, shape.columns)
        done = [place for place, row in enumerate(batch) if not row.todo]
        return self._sample([batch[place] for place in done], logits[done]) if done else []

    def _write(self) -> list[MessageRequest]:
        """Sample a token for each row whose prompt is read, block by block."""
        self._close_ranks()
        finished = []
        for first in range(0, len(self._rows), BLOCK):
            places = range(first, min(first + BLOCK, len(self._rows)))
            writing = [row if _writes(row) else None for row in self._rows[first : places.stop]]
            batch = [row for row in writing if row]
            if not batch:
                continue
            columns = max(len(row.cached) for row in batch) + 1
            columns = -(-columns // COLUMN_STEP) * COLUMN_STEP
            # The whole block, though some idle: so the cache is read in place.
            logits = self._forward(writing, places, 1, columns)
            finished += self._sample(batch, logits[[row.place - first for row in batch]])
        return finished

    def _close_ranks(self) -> None:
        """Move the last episodes to rows that others left, if that empties a block."""
        held = [row for row in self._rows if row.episode_id is not None]
        end = -(-len(held) // BLOCK) * BLOCK
        free = [row for row in self._rows[:end] if row.episode_id is None]
        for row, empty in zip([row for row in held if row.place >= end], free, strict=False):
            self._cache.copy(row.place, empty.place, len(row.cached))
            row.place, empty.place = empty.place, row.place
            self._rows[row.place], self._rows[empty.place] = row, empty

    def _forward(
        self, rows: Sequence[_Row | None], places: Sequence[int], length: int, width: int
    ) -> torch.Tensor:
        """Pass up to `length` tokens of each row; return the logits after the last, [B, V].

        Padding stands to the left, so that the last column is everyone's last token. A row that
        is None is all padding, but has a place, too. Tokens see the first `width` columns.
        """
        ids, positions = [], []
        for row in rows:
            chunk = row.todo[:length] if row else []
            start = len(row.cached) if row else 0
            padding = [-1] * (length - len(chunk))
            ids.append([0] * len(padding) + chunk)
            positions.append([*padding, *range(start, start + len(chunk))])
            if row:
                row.cached += chunk
                row.todo = row.todo[length:]
        device = self._model.device
        position = torch.tensor(positions, device=device)  # [B, L]
        self._cache.prepare(places, position, width)
        position = position.clamp(min=0)
        hidden = torch.arange(width, device=device) > position[:, None, :, None]  # [B, 1, L, W]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=device)
        with _grouped(self._model):
            output = self._model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=mask.masked_fill_(hidden, -torch.inf),
                position_ids=position,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> list[MessageRequest]:
        """Sample a token for each row, given logits [B, V]; return the requests it finishes."""
        requests = [row.request for row in rows if row.request]
        draws = [request.random.random() for request in requests]
        token_ids, logprobs = sample(logits, [request.sampling for request in requests], draws)
        finished = []
        for row, request, token, logprob in zip(rows, requests, token_ids, logprobs, strict=True):
            request.token_ids.append(token)
            request.logprobs.append(logprob)
            row.todo = [token]
            written = len(request.token_ids)
            if token in self._stops:
                request.finish = "stop"
            elif written in (request.sampling.max_tokens, self._context - len(request.prompt)):
                request.finish = "length"
            if request.finish:
                row.request, row.todo = None, []
                finished.append(request)
        return finished


def sample(
    logits: torch.Tensor, sampling: Sequence[Sampling], draws: Sequence[float]
) -> tuple[list[int], list[float]]:
    """Sample one token from each row by inverting its distribution function.

    Args:
        logits: of any float type, [B, V].
        sampling: temperature and top_p of each row; temperature 0 takes the likeliest token.
        draws: of each row, uniform in [0, 1).

    Returns:
        Ids, and their log-probabilities in nats: at the row's temperature (1 where it is 0) and
        within its nucleus, where top_p is below 1.
    """
    device = logits.device
    temperature = torch.tensor([row.temperature or 1.0 for row in sampling], device=device)
    logprobs = torch.log_softmax(logits.float() / temperature[:, None], -1)
    if any(row.top_p < 1 for row in sampling):
        top_p = torch.tensor([row.top_p for row in sampling], device=device)
        logprobs = nucleus(logprobs, top_p)
    below = logprobs.double().exp().cumsum(-1)
    draw = torch.tensor(draws, dtype=torch.float64, device=device)[:, None] * below[:, -1:]
    token_ids = torch.searchsorted(below, draw, right=True)[:, 0].clamp(max=logits.shape[1] - 1)
    greedy = torch.tensor([row.temperature == 0 for row in sampling], device=device)
    token_ids = torch.where(greedy, logits.argmax(-1), token_ids)
    chosen = logprobs.gather(1, token_ids[:, None])[:, 0]
    return token_ids.tolist(), chosen.tolist()


def grouped_attention(
    _module: Any,
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries [B, H, L, D] in groups that share the K heads of keys and values.

    The heads of a group stand as further positions of one head. transformers copies keys and
    values for each head instead, which takes half the time of a pass.

    Args:
        queries: [B, H, L, D].
        keys: [B, K, W, D].
        values: [B, K, W, D].
        mask: to be added to the scores, [B, 1, L, W].
        scaling: of the scores.

    Returns:
        What transformers wants: the mixed values [B, L, H, D], and no weights.
    """
    groups = queries.shape[1] // keys.shape[1]
    together = queries.reshape(queries.shape[0], keys.shape[1], -1, queries.shape[3])
    mixed = torch.nn.functional.scaled_dot_product_attention(
        together, keys, values, mask.repeat(1, 1, groups, 1), scale=scaling
    )
    return mixed.reshape(queries.shape).transpose(1, 2).contiguous(), None


@contextmanager
def _grouped(model: Any) -> Iterator[None]:
    """Let the model use our attention for a pass; it may be in training, with one of its own."""
    config = model.config.get_text_config()
    before = config._attn_implementation
    AttentionInterface.register(GROUPED, grouped_attention)
    config._attn_implementation = GROUPED
    try:
        yield
    finally:
        config._attn_implementation = before


class _Cache:
    """Keys and values of all rows, as models of transformers ask for them."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._capacity = 0
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []  # [rows, heads, columns, size]

    def prepare(self, places: Sequence[int], columns: torch.Tensor, width: int) -> None:
        """Say where the next pass goes.

        Args:
            places: of its rows, [B].
            columns: of its tokens, -1 for padding, [B, L].
            width: how many columns it sees.
        """
        if width > self._capacity:
            self._grow(max(width, 2 * self._capacity))
        # Neighbours need not be gathered.
        self._slice = slice(places.start, places.stop) if isinstance(places, range) else None
        self._places = torch.tensor(places, device=columns.device)
        self._columns, self._width = columns, width  # -1 is the last column, which none sees

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store what a layer made of the pass, [B, heads, L, size]; return all that it sees."""
        if layer == len(self._layers):
            self._layers.append((self._empty(keys), self._empty(values)))
        held_keys, held_values = self._layers[layer]
        return self._put(held_keys, keys), self._put(held_values, values)

    def get_seq_length(self, *_: Any) -> int:
        """Models ask, but positions and masks are given."""
        return 0

    def _put(self, held: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        held[self._places[:, None], :, self._columns] = new.transpose(1, 2)
        seen = held[:, :, : self._width]
        return seen[self._places] if self._slice is None else seen[self._slice]

    def copy(self, source: int, target: int, columns: int) -> None:
        """Copy what a row holds in its first columns to another row."""
        for held in (tensor for layer in self._layers for tensor in layer):
            held[target, :, :columns] = held[source, :, :columns]

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        _, heads, _, size = like.shape
        # Zeros, because hidden columns are multiplied by 0, which NaN would survive.
        return like.new_zeros(self._rows, heads, self._capacity + 1, size)

    def _grow(self, capacity: int) -> None:
        self._capacity = capacity
        for layer, held in enumerate(self._layers):
            keys, values = (self._empty(tensor) for tensor in held)
            for wider, tensor in zip((keys, values), held, strict=True):
                wider[:, :, : tensor.shape[2] - 1] = tensor[:, :, :-1]
            self._layers[layer] = keys, values


def _writes(row: _Row) -> bool:
    """Whether a row's prompt is read, so that each pass gives it a token."""
    return row.request is not None and bool(row.request.token_ids)


class _Shape(NamedTuple):
    tokens: int
    rows: int
    columns: int


def _shape(row: _Row) -> _Shape:
    """Return the shape of the next pass over a row's prompt, which only this row decides on."""
    fits = (shape for shape in PROMPT_SHAPES if len(row.todo) >= shape[0])
    tokens, rows = next(fits, PROMPT_SHAPES[-1])
    # Powers of two, since only rows with as many columns can go together.
    end = len(row.cached) + min(len(row.todo), tokens)
    return _Shape(tokens, rows, max(COLUMN_STEP, 1 << (end - 1).bit_length()))
