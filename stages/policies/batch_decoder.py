"""Batched decoding of many episodes with a transformers model, one row of a KV cache per episode.

A row keeps an episode between turns, so a prompt costs only its new tokens. Rows have individual
lengths: a token's position in its row is its column in the cache, and a mask hides the rest.

Every pass has one of a few fixed shapes, filled up with padding. The shape of a token's pass
depends only on its own episode, and the number of visible columns does not change the result. So
results do not depend on the other episodes of the batch. They are equal bit for bit if matrix
products treat all rows of a shape alike and each live episode keeps its row. An episode that loses
its row between turns is read again, in other shapes.

The shared prefix that a request names as its opening, such as instructions and tools, is read once
and stored outside the rows. Attention is then computed over the opening and over the row, and the
two are merged. On a CPU this saves most of a step, which is dominated by reading keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from random import Random
from typing import Any, Literal, NamedTuple
from weakref import WeakValueDictionary

import torch

from stages.policies.kv_cache import Opening, RowCache, grouped
from stages.policies.nucleus import nucleus
from stages.policies.policy import Sampling

# Shapes of a prefill pass, as (tokens, rows); a prompt takes the longest one that it fills.
PROMPT_SHAPES = ((512, 1), (64, 4), (32, 8))
PATIENCE = 4  # steps for which a prefill pass waits to be full
BLOCK = 32  # rows decoded together; a pass over a block costs little more than over one row
COLUMN_STEP = 64  # the number of visible columns is a multiple of this
SPAN = 512  # columns that the CPU attention kernel processes at once
LEAST_OPENING = 64  # tokens; a shorter prefix is stored in the rows
PART = 256  # words in a part; sampling first selects a part, then a word in it


@dataclass(eq=False)
class MessageRequest:
    """A message to sample, and the tokens sampled so far."""

    episode_id: str
    prompt: list[int]
    sampling: Sampling
    seed: int
    opening: int = 0  # length of the prefix that many episodes share
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: Literal["stop", "length"] | None = None  # None: not finished

    def __post_init__(self) -> None:
        self.random = Random(self.seed)


@dataclass(eq=False)
class _Row:
    """A row of the cache, and its current request."""

    place: int
    episode_id: str | None = None
    opening: Opening | None = None  # prefix before the row's own columns
    cached: list[int] = field(default_factory=list)  # tokens of opening and columns
    todo: list[int] = field(default_factory=list)  # tokens to pass: prompt, or last sampled token
    request: MessageRequest | None = None
    used: int = 0  # time of its last request, by the decoder's clock

    @property
    def columns(self) -> int:
        """The number of filled columns, without the opening."""
        return len(self.cached) - (self.opening.length if self.opening else 0)


class BatchDecoder:
    """Sampler of any number of requests, `rows` at a time.

    Args:
        model: transformers causal language model with full attention in every layer.
        rows: number of requests decoded at once; beyond one block it is rounded up to whole blocks.
        context: most tokens of an episode.
        stops: ids that end a message.
    """

    def __init__(self, model: Any, rows: int, context: int, stops: Sequence[int]) -> None:
        self._model = model.eval()
        self._context = context
        self._stops = frozenset(stops)
        # All blocks have the same shape, so it does not matter which block an episode is in.
        rows = rows if rows < BLOCK else -(-rows // BLOCK) * BLOCK
        self._cache = RowCache(rows)
        # Weak references: an opening lives while a row uses it.
        self._openings: WeakValueDictionary[tuple[int, ...], Opening] = WeakValueDictionary()
        self._rows = [_Row(place) for place in range(rows)]
        self._waiting: list[MessageRequest] = []
        self._clock = 0
        self._held = 0  # steps for which prompts have waited so far

    @property
    def busy(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._waiting) or any(row.request for row in self._rows)

    def submit(self, request: MessageRequest) -> None:
        """Add a request; its prompt must be non-empty and shorter than the context."""
        self._waiting.append(request)

    def forget(self, episode_id: str) -> None:
        """Free the row of an episode that has ended, so that the next new episode gets it."""
        for row in self._rows:
            if row.episode_id == episode_id and row.request is None:
                row.episode_id, row.used = None, 0

    def step(self) -> list[MessageRequest]:
        """Prefill the prompts that are due, sample a token per row; return finished requests."""
        finished = []
        with torch.inference_mode():
            self._admit()
            while batch := self._due():
                finished += self._read(batch)
            return finished + self._write()

    def _admit(self) -> None:
        """Assign rows to requests: the episode's own row, or else the least recently used one."""
        left = []
        for request in self._waiting:
            idle = [row for row in self._rows if row.request is None]
            if not idle:
                left.append(request)
                continue
            row = min(idle, key=lambda row: (row.episode_id != request.episode_id, row.used))
            self._clock += 1
            if row.episode_id != request.episode_id or not _goes_on(row, request):
                # Reuse no prefix of another episode, because which row is free depends on timing.
                row.opening = self._opening(request)
                row.cached = request.prompt[: row.opening.length] if row.opening else []
            row.used, row.request, row.episode_id = self._clock, request, request.episode_id
            # The last token is never taken from the cache, because its logits are needed.
            pairs = zip(row.cached, request.prompt[:-1], strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            row.cached, row.todo = row.cached[:same], request.prompt[same:]
        self._waiting = left

    def _due(self) -> list[_Row]:
        """Return the rows of the next prefill pass, all of the same shape; empty to wait.

        A pass costs much the same full or not, so it waits to be full while other rows decode.
        """
        reading = [row for row in self._rows if row.request and not row.request.token_ids]
        if not reading:
            return []
        reading.sort(key=lambda row: row.used)  # the longest wait determines the shape
        shape = _shape(reading[0])
        batch = [row for row in reading if _shape(row) == shape][: shape.rows]
        others_write = any(map(_writes, self._rows))
        if others_write and len(batch) < shape.rows and self._held < PATIENCE:
            self._held += 1
            return []
        self._held = 0
        return batch

    def _read(self, batch: list[_Row]) -> list[MessageRequest]:
        """Prefill the next tokens of some rows; sample for rows whose prompt is complete."""
        shape = _shape(batch[0])
        padding = shape.rows - len(batch)
        places = [*(row.place for row in batch), *[0] * padding]
        columns = self._width(max(row.columns + min(len(row.todo), shape.tokens) for row in batch))
        logits = self._forward(
            self._cache, [*batch, *[None] * padding], places, shape.tokens, columns
        )
        done = [place for place, row in enumerate(batch) if not row.todo]
        return self._sample([batch[place] for place in done], logits[done]) if done else []

    def _write(self) -> list[MessageRequest]:
        """Decode a token for each row whose prompt is complete, block by block."""
        self._close_ranks()
        finished = []
        for first in range(0, len(self._rows), BLOCK):
            places = range(first, min(first + BLOCK, len(self._rows)))
            writing = [row if _writes(row) else None for row in self._rows[first : places.stop]]
            batch = [row for row in writing if row]
            if not batch:
                continue
            columns = self._width(max(row.columns for row in batch) + 1)
            # Idle rows take part, so that the block's cache is read in place.
            logits = self._forward(self._cache, writing, places, 1, columns)
            finished += self._sample(batch, logits[[row.place - first for row in batch]])
        return finished

    def _close_ranks(self) -> None:
        """Move the last episodes to free rows, so that the last blocks become empty."""
        held = [row for row in self._rows if row.episode_id is not None]
        end = -(-len(held) // BLOCK) * BLOCK
        free = [row for row in self._rows[:end] if row.episode_id is None]
        for row, empty in zip([row for row in held if row.place >= end], free, strict=False):
            self._cache.copy(row.place, empty.place, row.columns)
            row.place, empty.place = empty.place, row.place
            self._rows[row.place], self._rows[empty.place] = row, empty

    def _opening(self, request: MessageRequest) -> Opening | None:
        """Return a request's opening; prefill it if no row uses it."""
        ids = request.prompt[:-1][: request.opening]
        if len(ids) < LEAST_OPENING or self._model.device.type != "cpu":
            return None
        held = self._openings.get(tuple(ids))
        if held is None:
            row, cache, (piece, *_) = _Row(0, todo=list(ids)), RowCache(1), PROMPT_SHAPES[0]
            while row.todo:
                columns = self._width(len(row.cached) + min(piece, len(row.todo)))
                self._forward(cache, [row], [0], piece, columns)
            held = self._openings[tuple(ids)] = cache.opening(len(ids))
        return held

    def _width(self, columns: int) -> int:
        """Round the number of visible columns up to a width that does not change results.

        Surplus columns are masked. In float32 oneMKL sums half a span in one piece and a span in
        two pieces, but also 384 columns in one. A width between half a span and a span would let
        the other rows' lengths change a row's last bits, so it is rounded up to the span.
        """
        wide = -(-columns // COLUMN_STEP) * COLUMN_STEP
        between = wide % SPAN > SPAN // 2 and self._model.dtype == torch.float32
        return -(-wide // SPAN) * SPAN if between else wide

    def _forward(
        self,
        cache: RowCache,
        rows: Sequence[_Row | None],
        places: Sequence[int],
        length: int,
        width: int,
    ) -> torch.Tensor:
        """Pass up to `length` tokens of each row; return the logits after the last token, [B, V].

        Padding is on the left, so the last position is the last token of every row. A row that is
        None is all padding but has a place, too. Tokens see the first `width` columns of their row.
        """
        openings = _by_opening(rows)
        ids, columns, starts = [], [], []
        for row in rows:
            chunk = row.todo[:length] if row else []
            start = row.columns if row else 0
            padding = [-1] * (length - len(chunk))
            ids.append([0] * len(padding) + chunk)
            columns.append([*padding, *range(start, start + len(chunk))])
            starts.append(row.opening.length if row and row.opening else 0)
            if row:
                row.cached += chunk
                row.todo = row.todo[length:]
        device = self._model.device
        column = torch.tensor(columns, device=device)  # [B, L]
        cache.prepare(places, column, width)
        column = column.clamp(min=0)
        hidden = torch.arange(width, device=device) > column[:, None, :, None]  # [B, 1, L, W]
        mask = torch.zeros(hidden.shape, dtype=self._model.dtype, device=device)
        with grouped(self._model):
            output = self._model(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=mask.masked_fill_(hidden, -torch.inf),
                position_ids=column + torch.tensor(starts, device=device)[:, None],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                **({"openings": openings} if openings else {}),
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _sample(self, rows: list[_Row], logits: torch.Tensor) -> list[MessageRequest]:
        """Sample a token for each row, given logits [B, V]; return finished requests."""
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
    """Sample one token per row by inverting its cumulative distribution function.

    Args:
        logits: logits of any float dtype, [B, V].
        sampling: temperature and top_p of each row; temperature 0 selects the most likely token.
        draws: uniform random number in [0, 1) of each row, [B].

    Returns:
        Ids, and their log-probabilities in nats, at the row's temperature (1 if it is 0) and
        within its nucleus if top_p is below 1.
    """
    device = logits.device
    temperatures = [row.temperature or 1.0 for row in sampling]
    scaled = logits
    if any(temperature != 1 for temperature in temperatures):
        scaled = logits.float() / torch.tensor(temperatures, device=device)[:, None]
    if any(row.top_p < 1 for row in sampling):
        top_p = torch.tensor([row.top_p for row in sampling], device=device)
        shares = nucleus(torch.log_softmax(scaled, -1, dtype=torch.float32), top_p).exp()
    else:
        shares = torch.softmax(scaled, -1, dtype=torch.float32)
    token_ids = _drawn(shares, torch.tensor(draws, dtype=torch.float64, device=device))
    greedy = torch.tensor([row.temperature == 0 for row in sampling], device=device)
    if greedy.any():
        token_ids = torch.where(greedy, scaled.argmax(-1), token_ids)
    chosen = shares.gather(1, token_ids[:, None])[:, 0].log()
    return token_ids.tolist(), chosen.tolist()


def _drawn(shares: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Invert cumulative distribution functions: probabilities [B, V] and draws [B] give ids [B].

    A draw first selects a part of the words, then a word in it, so only one part of each row needs
    a cumulative sum over words.
    """
    padding = -shares.shape[1] % PART
    parts = torch.nn.functional.pad(shares, (0, padding)).unflatten(1, (-1, PART))  # [B, P, PART]
    part, rest = _place(parts.sum(-1), draws)
    words = parts[torch.arange(len(parts), device=parts.device), part]
    word, _ = _place(words, rest)
    return part * PART + word


def _place(weights: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the index in weights [B, N] that each draw falls on, and the fraction inside it, [B].

    Draws [B] are in [0, 1).
    """
    ends = weights.double().cumsum(-1)
    target = draws[:, None] * ends[:, -1:]
    place = torch.searchsorted(ends, target, right=True)
    # Rounding must not select an index after the last non-zero weight.
    last = torch.searchsorted(ends, ends[:, -1:].contiguous())
    place = torch.minimum(place, last)
    weight = weights.gather(1, place).double()
    into = (target - ends.gather(1, place) + weight) / weight
    return place[:, 0], into.clamp(0, 1)[:, 0]


def _goes_on(row: _Row, request: MessageRequest) -> bool:
    """Return whether a request's prompt still begins with the row's opening."""
    length = row.opening.length if row.opening else 0
    return row.cached[:length] == request.prompt[:-1][:length]


def _by_opening(rows: Sequence[_Row | None]) -> list[tuple[Opening, torch.Tensor]]:
    """Return the openings in a pass, each with a mask of the rows that begin with it, [B]."""
    held = [row.opening if row else None for row in rows]
    distinct = {id(opening): opening for opening in held if opening}.values()
    return [(each, torch.tensor([opening is each for opening in held])) for each in distinct]


def _writes(row: _Row) -> bool:
    """Return whether a row is decoding: its prompt is complete and its message is not."""
    return row.request is not None and bool(row.request.token_ids)


class _Shape(NamedTuple):
    tokens: int
    rows: int


def _shape(row: _Row) -> _Shape:
    """Return the shape of a row's next prefill pass, which depends only on this row."""
    fits = (shape for shape in PROMPT_SHAPES if len(row.todo) >= shape[0])
    return _Shape(*next(fits, PROMPT_SHAPES[-1]))
