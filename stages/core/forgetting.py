"""Correlations that track a policy during training: sums with exponential forgetting, and gates.

An episode followed by n others has the weight w = 2^(-n / half_life). A test that treated weighted
counts as counts would be wrong. The bootstrap over tasks needs no counts, only each task's share of
the weighted sums; the effective number of episodes follows from the sums of w^2.

Source: docs/method.md, "Online".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from stages.core.correlation import Floats
from stages.settings import Setting

PANEL = "Online"  # of the options in --help


@dataclass(frozen=True)
class GateConfig:
    """The p-values at which a tier's gate opens and closes.

    A single test of an uninformative tier opens its gate with probability `open_p`. A run makes
    hundreds of such tests, each highly correlated with the last. In 100 simulated runs of 20
    half-lives the gate was open in less than 0.5 % of the iterations (`watch` in
    tests/test_forgetting.py). `close_p` is laxer, so that a gate near the threshold does not
    flutter. For the same reason half of `delta` and of the support keep a gate open.
    """

    open_p: Annotated[
        float, Setting("P-value below which the gate of a tier opens.", PANEL, low=0, high=1)
    ] = 1e-3
    close_p: Annotated[
        float, Setting("P-value above which the gate of a tier closes; at least --open-p.", PANEL)
    ] = 0.05


def kept_weight(episodes: float, half_life: float) -> float:
    """Weight that earlier episodes keep after further ones: 2^(-episodes / half_life).

    Args:
        episodes: number of episodes that follow.
        half_life: in episodes, above 0.

    Returns:
        A weight in (0, 1].

    Source: docs/method.md, "Online".
    """
    return float(2.0 ** (-episodes / half_life))


def effective_size(weights: Floats, squares: Floats) -> Floats:
    """Effective number of episodes, (sum w)^2 / sum w^2; 0 without episodes.

    In the long run it approaches 2 / ln 2 = 2.9 half-lives and never exceeds that by much.

    Args:
        weights: sum of the weights, any shape.
        squares: sum of their squares, of the same shape.

    Returns:
        Numbers of episodes, of the same shape; at most the number of episodes added.

    Source: Kish (1965), Survey Sampling, section 11.7.
    """
    size = np.zeros_like(weights)
    np.divide(weights * weights, squares, where=squares > 0, out=size)
    return size


def gates(
    signs: Floats,
    r: Floats,
    p: Floats,
    support: Floats,
    delta: float,
    min_support: float,
    config: GateConfig,
) -> Floats:
    """Open and close gates with hysteresis.

    A gate opens if |r| > delta, p < open_p and the support is at least min_support. It stays open
    while r keeps its sign, |r| > delta / 2, p < close_p and half of min_support is left. If r
    changes its sign, the gate must open anew.

    Args:
        signs: previous state of each gate: the sign of r at which it is open, or 0 if closed;
            shape [C].
        r: weighted correlation, shape [C]; NaN closes the gate.
        p: p-value of r, shape [C].
        support: effective number of episodes with the tier or without it, whichever is smaller,
            shape [C].
        delta: |r| up to which a correlation counts as none.
        min_support: support required to open.
        config: thresholds for p.

    Returns:
        The new state of each gate, shape [C].
    """
    with np.errstate(invalid="ignore"):
        opens = (np.abs(r) > delta) & (p < config.open_p) & (support >= min_support)
        stays = (np.abs(r) > delta / 2) & (p < config.close_p) & (support >= min_support / 2)
        stays &= np.sign(r) == signs
    return np.where(opens | stays, np.sign(r), 0.0)
