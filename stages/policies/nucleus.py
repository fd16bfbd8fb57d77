"""Which tokens nucleus sampling (top_p) leaves, as `rollout` samples and `train` reckons.

Source: Holtzman et al. (2020), arXiv 1904.09751.
"""

from __future__ import annotations

import torch


def in_nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Return whether each token is among the fewest likeliest that hold `top_p` of the mass.

    Args:
        logprobs: of whole distributions, in nats, [B, V].
        top_p: in (0, 1], [B].

    Returns:
        Booleans [B, V]; the likeliest token is always in it, and with top_p 1 every token.
    """
    ordered, places = logprobs.sort(dim=-1, descending=True, stable=True)
    mass = ordered.exp()
    # Rounding may bring the sum to 1 before the last token.
    inside = (mass.cumsum(-1) - mass < top_p[:, None]) | (top_p[:, None] >= 1)
    return torch.empty_like(inside).scatter_(1, places, inside)


def nucleus(logprobs: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Cut each distribution to its nucleus.

    Args:
        logprobs: [B, V].
        top_p: in (0, 1], [B].

    Returns:
        Log-probabilities that add up to 1 again, -inf outside the nucleus.
    """
    outside = ~in_nucleus(logprobs, top_p)
    return torch.log_softmax(logprobs.masked_fill(outside, -torch.inf), -1)
