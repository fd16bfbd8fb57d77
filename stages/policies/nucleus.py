"""Nucleus sampling (top_p), shared by `rollout` and `train`.

Source: Holtzman et al. (2020), arXiv 1904.09751.
"""

from __future__ import annotations

import torch


def in_nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Return the nucleus: the smallest set of most likely tokens that holds `top_p` of the mass.

    Args:
        logprobs: complete distributions, in nats, [B, V].
        top_p: share of the mass, in (0, 1], [B].

    Returns:
        Booleans [B, V]; the most likely token is always in the nucleus, and with top_p 1 all are.
    """
    ordered, places = logprobs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    # Rounding may bring the cumulative sum to 1 before the last token.
    inside = (mass.cumsum(-1) - mass < top_p[:, None]) | (top_p[:, None] >= 1)
    return torch.empty_like(inside).scatter_(1, places, inside)


def nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Restrict each distribution to its nucleus and renormalise it.

    Args:
        logprobs: complete distributions, in nats, [B, V].
        top_p: share of the mass, in (0, 1], [B].

    Returns:
        Log-probabilities, -inf outside the nucleus, [B, V].
    """
    outside = ~in_nucleus(logprobs, top_p)
    return torch.log_softmax(logprobs.masked_fill(outside, -torch.inf), -1)
