"""Log-probabilities of given tokens, without ever holding all logits.

The matrix [tokens, vocabulary] is the largest thing in training: 16,000 tokens by 150,000 words
take 9.6 GB in float32. It is made a few rows at a time, and made again on the way back.

Where tokens were sampled with top_p below 1, the policy that played is not the softmax p over all
words but p within the nucleus N, the fewest likeliest tokens that hold top_p of the mass:

    log q(t) = log p(t) - log sum of p(v) over v in N

Ratios and gradients must be q's: p's are lower by up to log(1 / top_p) for each token, which the
clip would take for a change of policy. N is found once, from the logits of the policy that played,
and then stays as it is. That is exact where training starts, because N only changes in jumps, so
that the gradient of log q has no term for it. Later, q of the new weights within the old N and q of
the old weights are distributions over the same tokens, as an importance ratio needs. The token that
was sampled is always counted as in N: engines round otherwise, and may see the edge elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.policies.nucleus import in_nucleus
from stages.training.packing import PACKED

CHUNK = 1 << 26  # logits at a time: 256 MB in float32
OUTSIDE = -1e30  # logit of a word outside the nucleus


class Nuclei(NamedTuple):
    """Which words each of M tokens was drawn from."""

    words: torch.Tensor  # of all nuclei, one after the other, [K]
    counts: torch.Tensor  # how many are of each token; 0: it was drawn from all words, [M]

    @classmethod
    def of(cls, inside: torch.Tensor, top_p: torch.Tensor) -> Nuclei:
        """Return nuclei from booleans.

        Args:
            inside: whether each token could have been each word, [M, V].
            top_p: that each token was sampled with, in (0, 1], [M]; from 1 on all words count.

        Returns:
            The nuclei of M tokens.
        """
        kept = inside & (top_p < 1)[:, None]
        return cls(kept.nonzero()[:, 1].int(), kept.sum(-1))

    @classmethod
    def cat(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Lay nuclei one after the other.

        Args:
            parts: nuclei of M1, M2, ... tokens.

        Returns:
            The nuclei of M1 + M2 + ... tokens.
        """
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def split(self, sizes: Sequence[int]) -> list[Nuclei]:
        """Return the nuclei of tokens in groups of these sizes.

        Args:
            sizes: of the groups, which add up to M.

        Returns:
            Nuclei for each group.
        """
        counts = self.counts.split(list(sizes))
        words = self.words.split([int(part.sum()) for part in counts])
        return [Nuclei(*part) for part in zip(words, counts, strict=True)]

    def to(self, device: torch.device) -> Nuclei:
        """Return the nuclei on a device.

        Args:
            device: of torch.

        Returns:
            The same nuclei.
        """
        return Nuclei(self.words.to(device), self.counts.to(device))

    def inside(self, vocabulary: int) -> torch.Tensor:
        """Return whether each token could have been each word.

        Args:
            vocabulary: number of words, V.

        Returns:
            Booleans [M, V]; a token that was drawn from all words could have been any.
        """
        tokens = len(self.counts)
        allowed = self.counts.new_zeros((tokens, vocabulary), dtype=torch.bool)
        rows = torch.arange(tokens, device=self.counts.device).repeat_interleave(self.counts)
        allowed[rows, self.words.long()] = True
        return allowed | (self.counts == 0)[:, None]


class TokenValues(NamedTuple):
    """Of M tokens that the policy wrote, each [M]."""

    logprobs: torch.Tensor  # nats
    entropy: torch.Tensor  # of the distribution that the token was drawn from, nats
    nuclei: Nuclei | None = None  # that were found for them


Limit: TypeAlias = Nuclei | torch.Tensor | None


class TokenLogprobs(nn.Module):
    """A causal language model that answers with log-probabilities in the place of logits.

    Args:
        model: of transformers, perhaps with adapters of peft.
        chunk: most logits held at once.
    """

    def __init__(self, model: Any, chunk: int = CHUNK) -> None:
        super().__init__()
        self.model = model
        self.chunk = chunk

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        lengths: Sequence[int],
        at: torch.Tensor,
        temperature: torch.Tensor,
        shared: bool = False,
        entropy_gradient: bool = False,
        top_p: torch.Tensor | None = None,
        nuclei: Nuclei | None = None,
    ) -> TokenValues:
        """Return what the model gives to some of the tokens of a pack.

        Args:
            token_ids: of a pack, [T].
            positions: of each token in its sequence, [T].
            lengths: of its sequences; they add up to T.
            at: which tokens, none the first of its sequence, [M].
            temperature: that divides the logits of each of them, [M].
            shared: whether the first sequence is what all others begin with.
            entropy_gradient: whether the entropy is to be learnt from, too.
            top_p: of each of them, [M]: their nuclei are found, and returned.
            nuclei: of each of them, from an earlier pass; with neither, all words count.

        Returns:
            Log-probabilities and entropies, [M], in nats, and the nuclei if asked for.

        Source: docs/method.md, "The nucleus".
        """
        # A sequence alone needs neither, and not every model takes them.
        apart: dict[str, Any] = {}
        if self.packed:
            apart = {"position_ids": positions[None], "lengths": lengths, "shared": shared}
        body, head = self.bare.get_decoder(), self.bare.get_output_embeddings()
        output = body(input_ids=token_ids[None], use_cache=False, **apart)
        hidden = output.last_hidden_state[0]  # [T, width]
        before, targets = hidden[at - 1], token_ids[at]  # a token is predicted by the one before
        rows = max(1, self.chunk // head.weight.shape[0])
        chunks = [part.split(rows) for part in (before, targets, temperature)]
        sizes = [len(chunk) for chunk in chunks[0]]
        limits: Sequence[Limit] = [None] * len(sizes)
        if nuclei is not None:
            limits = nuclei.split(sizes)
        elif top_p is not None:
            limits = top_p.split(rows)
        parts = [
            checkpoint(_chunk, head, *part, entropy_gradient, use_reentrant=False)
            for part in zip(*chunks, limits, strict=True)
        ]
        logprobs, entropy, nuclei_of_parts = zip(*parts, strict=True)
        whole = Nuclei.cat(nuclei_of_parts) if top_p is not None and nuclei is None else None
        return TokenValues(torch.cat(logprobs), torch.cat(entropy), whole)

    @property
    def packed(self) -> bool:
        """Whether the model has our attention, which keeps sequences apart."""
        return bool(self.bare.config._attn_implementation == PACKED)

    @property
    def bare(self) -> Any:
        """The model under peft's wrapping; its adapters are in the layers themselves."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model


def _chunk(
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    limit: Limit,
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, Nuclei | None]:
    """Log-probabilities and entropies of targets [C], given hidden states [C, width].

    The limit is nuclei, or the top_p of each target, [C], whose nuclei are returned, too.
    """
    logits = head(hidden).float() / temperature[:, None]  # [C, V]
    nuclei = limit if isinstance(limit, Nuclei) else None
    if limit is not None and nuclei is None:
        nuclei = _find_nuclei(logits.detach(), targets, limit)
    if nuclei is not None:
        # Finite, so that 0 times it is 0; no float32 logit of a model comes near.
        logits = logits.masked_fill(~nuclei.inside(logits.shape[1]), OUTSIDE)
    logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        shares = torch.softmax(logits, -1)
        entropy = torch.logsumexp(logits, -1) - (shares * logits).sum(-1)
    return logprobs, entropy, nuclei


def _find_nuclei(logits: torch.Tensor, targets: torch.Tensor, top_p: torch.Tensor) -> Nuclei:
    """Return the nuclei of distributions, given logits [C, V]; targets [C] are always inside."""
    inside = in_nucleus(torch.log_softmax(logits, -1), top_p)
    return Nuclei.of(inside.scatter_(1, targets[:, None], value=True), top_p)
