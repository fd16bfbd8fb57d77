"""The options that choose an estimator of advantages: `calibrate` judges by it, `train` uses it."""

from __future__ import annotations

import sys
from typing import Annotated, cast, get_args

import typer

from irc_cli import options
from stages.core.advantages import AdvantageConfig, Estimator, Normalise

DEFAULT = AdvantageConfig
PANEL = "Advantage"
_ESTIMATORS, _NORMALISE = get_args(Estimator), get_args(Normalise)

Advantage = Annotated[
    str,
    typer.Option(
        rich_help_panel=PANEL, metavar="|".join(_ESTIMATORS), help="Estimator of the advantages."
    ),
]
Gamma = Annotated[float, typer.Option(rich_help_panel=PANEL, help="Discount per turn.")]
OutcomeWeight = Annotated[
    float,
    typer.Option("--lambda", rich_help_panel=PANEL, help="Weight of the outcome in the hybrid."),
]
Against = Annotated[
    str,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="|".join(_NORMALISE),
        help="Set that a return is normalised over.",
    ),
]
LastTurnReward = Annotated[
    bool,
    typer.Option(
        "--last-turn-reward/--no-last-turn-reward",
        rich_help_panel=PANEL,
        help="Whether an episode's last turn carries its own reward.",
    ),
]


def chosen(
    advantage: str, gamma: float, outcome_weight: float, normalise: str, last_turn_reward: bool
) -> AdvantageConfig:
    """Return the estimator, or raise InputError at the first value that is none of its own."""
    return AdvantageConfig(
        cast(Estimator, options.one_of("advantage", advantage, _ESTIMATORS)),
        options.within("gamma", gamma, 0, 1),
        options.within("lambda", outcome_weight, 0, sys.float_info.max),
        cast(Normalise, options.one_of("normalise", normalise, _NORMALISE)),
        last_turn_reward,
    )
