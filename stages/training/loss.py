"""The policy loss: PPO's clipped objective on given advantages, with the usual extensions.

For a token with advantage A, ratio r = exp(logp - old) and weight w (see `token_weights`):

    loss = sum of w * [ c * max(-r A, -clip(r, 1 - low, 1 + high) A)  +  kl * k3  -  entropy * H ]

    dual clip   where A < 0, the first term is at most -dual_clip A
    c           truncated importance weight between engine and trainer, min(exp(old - engine), cap)
    k3          exp(ref - logp) - (ref - logp) - 1, an estimate of KL(policy || reference)

Sources: PPO arXiv 1707.06347; separate bounds and token mean arXiv 2503.14476 (DAPO); dual clip
arXiv 1912.09729; constant length arXiv 2503.20783 (Dr. GRPO); k3 Schulman (2020),
http://joschu.net/blog/kl-approx.html; truncated importance sampling Yao et al. (2025),
https://fengyao.notion.site/off-policy-rl.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stages.training.config import LossConfig


@dataclass(frozen=True)
class TokenBatch:
    """The constants of the loss for M tokens, each [M]."""

    advantage: torch.Tensor
    weight: torch.Tensor
    old: torch.Tensor  # logprobs before this update, by the trainer
    engine: torch.Tensor  # logprobs at sampling time, by the engine; NaN: unknown
    reference: torch.Tensor | None  # logprobs of the reference model; None: no KL term


# Quantities that are summed over tokens and logged as means.
METRICS = (
    "clip_low_share",
    "clip_high_share",
    "ratio",
    "policy_kl",
    "reference_kl",
    "tis",
    "entropy",
)


def token_weights(n_tokens: npt.NDArray[np.float64], config: LossConfig) -> npt.NDArray[np.float64]:
    """Return the weight of each episode's tokens, which makes the loss a plain sum.

    A plain sum does not depend on how tokens are packed, accumulated or spread over devices.

    Args:
        n_tokens: number of tokens that count in each episode of an optimizer step, [E].
        config: its aggregation. token-mean: each token counts the same; sequence-mean: each
            episode counts the same; constant: each episode's sum is divided by constant_length.

    Returns:
        The weight of each token of each episode, [E].

    Source: docs/method.md, "The loss".
    """
    episodes = max(len(n_tokens), 1)
    match config.aggregation:
        case "token-mean":
            return np.full(len(n_tokens), 1 / max(n_tokens.sum(), 1e-9))
        case "sequence-mean":
            return 1 / (episodes * np.maximum(n_tokens, 1e-9))
        case "constant":
            return np.full(len(n_tokens), 1 / (episodes * config.constant_length))


def policy_loss(
    logprobs: torch.Tensor, entropy: torch.Tensor, batch: TokenBatch, config: LossConfig
) -> tuple[torch.Tensor, dict[str, float]]:
    """Return the loss of M tokens, and sums to log; see the module for formula and sources.

    Args:
        logprobs: logprobs of the tokens under the current policy, [M].
        entropy: entropy of the current policy at each token, [M].
        batch: the constants of the loss for these tokens.
        config: settings of the loss.

    Returns:
        The loss, a scalar, and the sum over the tokens of each of METRICS.

    Source: docs/method.md, "The loss" and "Metrics of a step".
    """
    advantage = batch.advantage
    ratio = torch.exp(logprobs - batch.old)
    clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    per_token = torch.maximum(-ratio * advantage, -clipped * advantage)
    if config.dual_clip is not None:
        most = -config.dual_clip * advantage
        per_token = torch.where(advantage < 0, torch.minimum(per_token, most), per_token)
    tis = torch.ones_like(per_token)
    if config.tis_cap is not None:
        # If the engine's logprob is unknown (NaN), the weight is 1.
        tis = torch.exp(batch.old - batch.engine).nan_to_num(1.0).clamp(max=config.tis_cap)
        per_token = tis * per_token
    if config.entropy:
        per_token = per_token - config.entropy * entropy
    k3 = torch.zeros_like(logprobs)
    if batch.reference is not None:
        k3 = _k3(batch.reference - logprobs)
        per_token = per_token + config.kl * k3
    with torch.no_grad():
        low = (advantage < 0) & (ratio < 1 - config.clip_low)
        high = (advantage > 0) & (ratio > 1 + config.clip_high)
        values = (low, high, ratio, _k3(logprobs - batch.old), k3, tis, entropy)
        sums = {name: float(x.double().sum()) for name, x in zip(METRICS, values, strict=True)}
    return (batch.weight * per_token).sum(), sums


def _k3(log_ratio: torch.Tensor) -> torch.Tensor:
    """Return exp(x) - x - 1 >= 0, unbiased for KL(p || q) under p, with x = log q - log p."""
    return torch.exp(log_ratio) - log_ratio - 1
