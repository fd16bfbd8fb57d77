"""`--method`: the settings of a published method in one word."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from irc_cli import options
from stages.calibration.estimate import PAYMENT
from stages.errors import InputError

# The keys are parameter names of `calibrate`. The paper (arXiv 2604.02869) values a tier by the
# point-biserial correlation of its presence over all episodes, without a significance test or a
# minimum number of episodes; every turn except an episode's last earns its value.
METHODS: dict[str, dict[str, Any]] = {
    "paper": {
        "measure": "presence",
        "correlation": "pooled",
        "adjust": "none",
        "fdr": 1.0,
        "min_support": 0,
        "pay": "turn",
        "estimator": "hybrid",
        "gamma": 0.9,
        "outcome_weight": 0.3,
        "normalise": "turn",
        "last_turn_reward": False,
    }
}
PAPER_TIERS = "paper"  # the tiers of the method of this name


def use_method(ctx: typer.Context, name: str | None) -> str | None:
    """Set the defaults of this command's options to those of a method."""
    if name is None or ctx.resilient_parsing:
        return name
    settings = METHODS[options.one_of("method", name, tuple(METHODS))]
    ctx.default_map = settings | dict(ctx.default_map or {})
    return name


Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar="|".join(METHODS),
        callback=use_method,
        is_eager=True,
        help="Use the settings of a published method; paper: arXiv 2604.02869.",
        rich_help_panel=PAYMENT,
    ),
]


def check_method(ctx: typer.Context, name: str | None) -> None:
    """Raise InputError if an option contradicts the method."""
    if name is None:
        return
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    for parameter, value in METHODS[name].items():
        if ctx.params[parameter] != value:
            todo = "drop one of them"
            raise InputError(str(flags[parameter]), f"contradicts --method {name}", todo)
