"""Log-probabilities of given tokens without materialising all logits.

The matrix [tokens, vocabulary] would be the largest tensor of training: 16,000 tokens by 150,000
words take 9.6 GB in float32. It is computed in chunks of rows and recomputed in the backward pass.

If tokens were sampled with top_p below 1, the sampling policy is not the softmax p over all words
but p within the nucleus N, the smallest set of most likely words that holds top_p of the mass:

    log q(t) = log p(t) - log sum of p(v) over v in N

Ratios and gradients must be those of q. log p is lower by up to log(1 / top_p) per token, which the
clip would mistake for a change of policy. N is determined once, from the logits of the sampling
policy, and then held fixed. This is exact at the start of training: N changes only in jumps, so it
adds no term to the gradient of log q. Later, the new q within the old N and the old q are
distributions over the same words, as an importance ratio requires. The sampled token always counts
as a member of N, because engines round differently and may put the edge elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.policies.nucleus import in_nucleus
from stages.training.packing import PACKED

CHUNK = 1 << 26  # logits per chunk: 256 MB in float32
OUTSIDE = -1e30  # logit of a word outside the nucleus


class Nuclei(NamedTuple):
    """The sets of words from which M tokens were sampled."""

    words: torch.Tensor  # words of all nuclei, concatenated, [K]
    counts: torch.Tensor  # size of each token's nucleus, [M]; 0: sampled from all words

    @classmethod
    def of(cls, inside: torch.Tensor, top_p: torch.Tensor) -> Nuclei:
        """Return nuclei from a boolean matrix.

        Args:
            inside: whether each word is in each token's nucleus, [M, V].
            top_p: top_p of each token's sampling, [M]; from 1 on all words count.

        Returns:
            The nuclei of M tokens.
        """
        kept = inside & (top_p < 1)[:, None]
        return cls(kept.nonzero()[:, 1].int(), kept.sum(-1))

    @classmethod
    def cat(cls, parts: Sequence[Nuclei]) -> Nuclei:
        """Concatenate nuclei.

        Args:
            parts: nuclei of M1, M2, ... tokens.

        Returns:
            The nuclei of M1 + M2 + ... tokens.
        """
        return cls(*map(torch.cat, zip(*parts, strict=True)))

    def split(self, sizes: Sequence[int]) -> list[Nuclei]:
        """Split the nuclei into groups of tokens.

        Args:
            sizes: numbers of tokens of the groups, which add up to M.

        Returns:
            The nuclei of each group.
        """
        counts = self.counts.split(list(sizes))
        words = self.words.split([int(part.sum()) for part in counts])
        return [Nuclei(*part) for part in zip(words, counts, strict=True)]

    def to(self, device: torch.device) -> Nuclei:
        """Return the nuclei on a device.

        Args:
            device: torch device.

        Returns:
            The same nuclei.
        """
        return Nuclei(self.words.to(device), self.counts.to(device))

    def inside(self, vocabulary: int) -> torch.Tensor:
        """Return whether each word is in each token's nucleus.

        Args:
            vocabulary: number of words, V.

        Returns:
            Booleans [M, V]; all true for a token sampled from all words.
        """
        tokens = len(self.counts)
        allowed = self.counts.new_zeros((tokens, vocabulary), dtype=torch.bool)
        rows = torch.arange(tokens, device=self.counts.device).repeat_interleave(self.counts)
        allowed[rows, self.words.long()] = True
        return allowed | (self.counts == 0)[:, None]


class TokenValues(NamedTuple):
    """Log-probabilities and entropies of M tokens that the policy wrote, each [M]."""

    logprobs: torch.Tensor  # nats
    entropy: torch.Tensor  # of the distribution from which the token is sampled, nats
    nuclei: Nuclei | None = None  # their nuclei, if this pass determined them


Limit: TypeAlias = Nuclei | torch.Tensor | None


class TokenLogprobs(nn.Module):
    """A causal language model that returns log-probabilities instead of logits.

    Args:
        model: transformers model, possibly with peft adapters.
        chunk: most logits in memory at once.
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
        """Score some of the tokens of a pack.

        Args:
            token_ids: tokens of the pack, [T].
            positions: position of each token in its sequence, [T].
            lengths: lengths of the sequences, which add up to T.
            at: indices of the tokens to score, never the first of a sequence, [M].
            temperature: divisor of the logits of each scored token, [M].
            shared: whether the first sequence is a prefix of all others.
            entropy_gradient: whether gradients flow through the entropy.
            top_p: top_p of each scored token, [M]; their nuclei are determined and returned.
            nuclei: nuclei of the scored tokens from an earlier pass. Without `top_p` and `nuclei`
                all words count.

        Returns:
            Log-probabilities and entropies, [M], in nats, and the nuclei if determined here.

        Source: docs/method.md, "The nucleus".
        """
        # A single sequence needs none of these arguments, and not every model accepts them.
        apart: dict[str, Any] = {}
        if self.packed:
            apart = {"position_ids": positions[None], "lengths": lengths, "shared": shared}
        body, head = self.bare.get_decoder(), self.bare.get_output_embeddings()
        output = body(input_ids=token_ids[None], use_cache=False, **apart)
        hidden = output.last_hidden_state[0]  # [T, width]
        before, targets = hidden[at - 1], token_ids[at]  # the previous position predicts a token
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
        """Whether the model uses our packed attention."""
        return bool(self.bare.config._attn_implementation == PACKED)

    @property
    def bare(self) -> Any:
        """The model without peft's wrapper; its layers still hold the adapters."""
        return self.model.get_base_model() if hasattr(self.model, "peft_config") else self.model


def _chunk(
    head: nn.Module,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    temperature: torch.Tensor,
    limit: Limit,
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, Nuclei | None]:
    """Return log-probabilities and entropies of targets [C], given hidden states [C, width].

    `limit` has the nuclei of the targets, or their top_p [C], from which nuclei are determined.
    """
    logits = head(hidden).float() / temperature[:, None]  # [C, V]
    nuclei = limit if isinstance(limit, Nuclei) else None
    if limit is not None and nuclei is None:
        nuclei = _find_nuclei(logits.detach(), targets, limit)
    if nuclei is not None:
        # Finite, so that 0 times it is 0, and far below any logit of a model.
        logits = logits.masked_fill(~nuclei.inside(logits.shape[1]), OUTSIDE)
    logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        shares = torch.softmax(logits, -1)
        entropy = torch.logsumexp(logits, -1) - (shares * logits).sum(-1)
    return logprobs, entropy, nuclei


def _find_nuclei(logits: torch.Tensor, targets: torch.Tensor, top_p: torch.Tensor) -> Nuclei:
    """Return the nuclei of the distributions with logits [C, V]; targets [C] are always inside."""
    inside = in_nucleus(torch.log_softmax(logits, -1), top_p)
    return Nuclei.of(inside.scatter_(1, targets[:, None], value=True), top_p)
