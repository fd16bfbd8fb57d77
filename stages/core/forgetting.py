"""Correlations that follow a policy while it trains: sums with exponential forgetting, and gates.

An episode that is followed by n others weighs w = 2^(-n / half_life). Weighted counts are no
counts: a test that took them for such would be wrong. The bootstrap of tasks needs no counts, only
each task's share of the weighted sums; how many episodes they are worth follows from sums of w^2.

Source: docs/method.md, "Online".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from stages.core.correlation import Floats
from stages.settings import Setting

PANEL = "Online"  # of the help


@dataclass(frozen=True)
class GateConfig:
    """When a tier's gate opens, and when it closes again.

    One look at a tier that tells nothing opens its gate with probability `open_p`, and hundreds
    follow each other, each much like the last. In 100 simulated runs of 20 half-lives such a gate
    was open in less than 0.5 % of the iterations (`watch` in tests/test_forgetting.py). `close_p`
    is laxer, so that a gate at the border does not flutter; half of `delta` and of the support are
    enough for the same reason.
    """

    open_p: Annotated[
        float, Setting("P-value below which the gate of a tier opens.", PANEL, low=0, high=1)
    ] = 1e-3
    close_p: Annotated[
        float, Setting("P-value above which the gate of a tier closes; at least --open-p.", PANEL)
    ] = 0.05


def kept_weight(episodes: float, half_life: float) -> float:
    """Weight that earlier episodes keep when others follow: 2^(-episodes / half_life).

    Args:
        episodes: number of episodes that follow.
        half_life: in episodes, above 0.

    Returns:
        A weight in (0, 1].

    Source: docs/method.md, "Online".
    """
    return float(2.0 ** (-episodes / half_life))


def effective_size(weights: Floats, squares: Floats) -> Floats:
    """How many episodes of weight 1 tell as much: (sum w)^2 / sum w^2; 0 where there are none.

    In the long run 2 / ln 2 = 2.9 half-lives, and never much more.

    Args:
        weights: sum of the weights, any shape.
        squares: sum of their squares, of the same shape.

    Returns:
        Numbers of episodes, of the same shape; at most the number that were added.

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

    A gate opens where |r| > delta, p < open_p and the support is enough. It stays open while r
    keeps its sign, |r| > delta / 2, p < close_p, and half of the support is left; where r has
    changed its sign it must open anew.

    Args:
        signs: of each gate before: the sign of r with which it is open, or 0: closed; shape [C].
        r: weighted correlation, shape [C]; NaN closes.
        p: of r, shape [C].
        support: effective number of episodes with the tier, or without, shape [C].
        delta: |r| that is worth nothing.
        min_support: that opens.
        config: the bars for p.

    Returns:
        The signs after, shape [C].
    """
    with np.errstate(invalid="ignore"):
        opens = (np.abs(r) > delta) & (p < config.open_p) & (support >= min_support)
        stays = (np.abs(r) > delta / 2) & (p < config.close_p) & (support >= min_support / 2)
        stays &= np.sign(r) == signs
    return np.where(opens | stays, np.sign(r), 0.0)
