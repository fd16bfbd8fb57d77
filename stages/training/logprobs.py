"""Log-probabilities of given tokens, without ever holding all logits.

The matrix [tokens, vocabulary] is the largest thing in training: 16,000 tokens by 150,000 words
take 9.6 GB in float32. It is made a few rows at a time, and made again on the way back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stages.training.packing import PACKED

CHUNK = 1 << 26  # logits at a time: 256 MB in float32


class TokenValues(NamedTuple):
    """Of M tokens that the policy wrote, each [M]."""

    logprobs: torch.Tensor  # nats
    entropy: torch.Tensor  # of the distribution that the token was drawn from, nats


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
        entropy_gradient: bool = False,
    ) -> TokenValues:
        """Return what the model gives to some of the tokens of a pack.

        Args:
            token_ids: of a pack, [T].
            positions: of each token in its sequence, [T].
            lengths: of its sequences; they add up to T.
            at: which tokens, none the first of its sequence, [M].
            temperature: that divides the logits of each of them, [M].
            entropy_gradient: whether the entropy is to be learnt from, too.
        """
        # A sequence alone needs neither, and not every model takes them.
        apart = {"position_ids": positions[None], "lengths": lengths} if self.packed else {}
        body, head = self.bare.get_decoder(), self.bare.get_output_embeddings()
        output = body(input_ids=token_ids[None], use_cache=False, **apart)
        hidden = output.last_hidden_state[0]  # [T, width]
        before, targets = hidden[at - 1], token_ids[at]  # a token is predicted by the one before
        rows = max(1, self.chunk // head.weight.shape[0])
        parts = [
            checkpoint(_chunk, head, *part, entropy_gradient, use_reentrant=False)
            for part in zip(
                before.split(rows), targets.split(rows), temperature.split(rows), strict=True
            )
        ]
        return TokenValues(*map(torch.cat, zip(*parts, strict=True)))

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
    entropy_gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies of targets [C], given hidden states [C, width]."""
    logits = head(hidden).float() / temperature[:, None]  # [C, V]
    logprobs = -nn.functional.cross_entropy(logits, targets, reduction="none")
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        shares = torch.softmax(logits, -1)
        entropy = torch.logsumexp(logits, -1) - (shares * logits).sum(-1)
    return logprobs, entropy
