"""The loss on numbers that were worked out by hand or in another way."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs irc-cli[train]")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.training.config import LossConfig
from stages.training.loss import TokenBatch, policy_loss, token_weights

OFF = LossConfig(tis_cap=None)


def loss_of(
    ratios: list[float],
    advantages: list[float],
    config: LossConfig = OFF,
    engine: list[float] | None = None,
    reference: list[float] | None = None,
    entropy: float = 0.0,
) -> tuple[float, dict[str, float]]:
    """Sum over tokens, given ratios to the old policy (of log-probability -3 everywhere)."""
    old = torch.full((len(ratios),), -3.0)
    batch = TokenBatch(
        advantage=torch.tensor(advantages),
        weight=torch.ones(len(ratios)),
        old=old,
        engine=torch.tensor(engine or [-3.0] * len(ratios)),
        reference=None if reference is None else torch.tensor(reference),
    )
    logprobs = old + torch.tensor(ratios).log()
    total, sums = policy_loss(logprobs, torch.full_like(old, entropy), batch, config)
    return total.item(), sums


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.0, 2.0, -2.0),
        (1.2, 2.0, -2.4),
        (1.5, 2.0, -2.56),  # 1 + clip_high
        (0.5, 2.0, -1.0),  # clipping is no help where the ratio must rise
        (0.9, -2.0, 1.8),
        (0.5, -2.0, 1.6),  # 1 - clip_low
        (3.0, -2.0, 6.0),
    ],
)
def test_clip(ratio: float, advantage: float, expected: float) -> None:
    assert loss_of([ratio], [advantage])[0] == pytest.approx(expected, rel=1e-5)


def test_dual_clip_bounds_negative_advantages_only() -> None:
    config = LossConfig(dual_clip=2.0, tis_cap=None)
    assert loss_of([3.0], [-2.0], config)[0] == pytest.approx(4.0, rel=1e-5)
    assert loss_of([1.5], [-2.0], config)[0] == pytest.approx(3.0, rel=1e-5)
    assert loss_of([3.0], [2.0], config)[0] == pytest.approx(-2.56, rel=1e-5)


def test_clipped_tokens_are_counted_on_their_side() -> None:
    _, sums = loss_of([1.5, 1.5, 0.5, 0.5, 1.0], [1.0, -1.0, 1.0, -1.0, 1.0])
    assert (sums["clip_high_share"], sums["clip_low_share"]) == (1, 1)
    assert sums["ratio"] == pytest.approx(5.0, rel=1e-5)


def test_k3_is_an_exact_number() -> None:
    """At a log ratio of ln 2: 2 - ln 2 - 1; of -ln 2: 1/2 + ln 2 - 1."""
    more, _ = loss_of([1.0], [0.0], LossConfig(kl=1.0), reference=[-3 + math.log(2)])
    less, _ = loss_of([1.0], [0.0], LossConfig(kl=1.0), reference=[-3 - math.log(2)])
    assert (more, less) == pytest.approx((1 - math.log(2), math.log(2) - 0.5), abs=1e-6)


def test_k3_is_unbiased() -> None:
    """Its mean over the policy's own tokens is the KL divergence, to the letter."""
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    batch = TokenBatch(torch.zeros(3), p, p.log(), p.log(), q.log())
    found, sums = policy_loss(p.log(), torch.zeros(3), batch, LossConfig(kl=1.0))
    assert found.item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-6)
    assert sums["reference_kl"] > 0 == sums["policy_kl"]


def test_importance_weights_are_capped_and_have_no_say_in_kl() -> None:
    engine = [-3 - math.log(1.5), -3 - math.log(8.0), -3 + math.log(2.0), math.nan]
    config = LossConfig(tis_cap=2.0)
    found, sums = loss_of([1.0] * 4, [1.0] * 4, config, engine)
    assert found == pytest.approx(-(1.5 + 2.0 + 0.5 + 1.0), rel=1e-5)
    assert sums["tis"] == pytest.approx(5.0, rel=1e-5)
    assert loss_of([1.0] * 4, [1.0] * 4, OFF, engine)[0] == pytest.approx(-4.0)
    kl = LossConfig(tis_cap=2.0, kl=1.0)
    found, _ = loss_of([1.0], [0.0], kl, engine[:1], reference=[-3 + math.log(2)])
    assert found == pytest.approx(1 - math.log(2), abs=1e-6)


def test_entropy_is_paid_for() -> None:
    assert loss_of([1.0], [0.0], LossConfig(entropy=0.5), entropy=2.0)[0] == pytest.approx(-1.0)


counts = st.lists(st.integers(1, 500), min_size=1, max_size=20).map(np.array)


@given(counts)
@settings(deadline=None, derandomize=True)
def test_weights(n_tokens: np.ndarray[tuple[int], np.dtype[np.float64]]) -> None:
    episodes = len(n_tokens)
    token = token_weights(n_tokens, LossConfig())
    assert (token * n_tokens).sum() == pytest.approx(1)
    assert np.ptp(token) == 0
    sequence = token_weights(n_tokens, LossConfig(aggregation="sequence-mean"))
    assert sequence * n_tokens == pytest.approx(np.full(episodes, 1 / episodes))
    constant = token_weights(n_tokens, LossConfig(aggregation="constant", constant_length=7))
    assert constant == pytest.approx(np.full(episodes, 1 / episodes / 7))
