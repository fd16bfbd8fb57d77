"""The rewards as scored and the calibrated ones, each with the advantages of an estimator."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from stages.core.advantages import AdvantageConfig, Advantages
from stages.core.correlation import Floats
from stages.core.payment import Values
from stages.tables.turn_arrays import TurnArrays, turn_advantages, turn_rewards


class Credit(NamedTuple):
    """A set of rewards, [N], with an estimator and its advantages."""

    reward: Floats
    estimator: AdvantageConfig
    advantages: Advantages


def both_credits(
    turns: TurnArrays, values: Values, estimator: AdvantageConfig
) -> tuple[Credit, Credit]:
    """Return the rewards as scored and the calibrated ones, with their advantages.

    Rewards as scored are not differences of forecasts. So if the estimator is `potential`, their
    advantages use `rloo`.

    Args:
        turns: turns to compute rewards for.
        values: the calibrated values.
        estimator: estimator of the advantages.

    Returns:
        The credits of the rewards as scored and of the calibrated ones.
    """
    forecasts = estimator.estimator == "potential"
    plain = replace(estimator, estimator="rloo") if forecasts else estimator
    scored, valued = (turn_rewards(turns, paid, estimator) for paid in (None, values))
    return (
        Credit(scored, plain, turn_advantages(turns, scored, plain)),
        Credit(valued, estimator, turn_advantages(turns, valued, estimator)),
    )


def paid_repeats(turns: TurnArrays, values: Values, estimator: AdvantageConfig) -> Floats:
    """Return what one more turn of each tier adds to an episode's reward sum, [C].

    With `potential` this is 0, because the last turn returns all gains of the forecast.

    Args:
        turns: turns with C tiers.
        values: the calibrated values.
        estimator: estimator of the advantages.

    Returns:
        Rewards, in the unit of the values.
    """
    paid = values if values.pay == "turn" and estimator.estimator != "potential" else {}
    return np.array([paid.get(tier, 0.0) for tier in turns.tiers])
