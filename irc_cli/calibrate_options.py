"""The options of `irc-cli calibrate`, by the panels of its help."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Annotated, Any, cast

import typer

from irc_cli import estimator, method, options
from irc_cli.calibrate_request import OF_SUMS, Request, named_files
from stages.calibration.estimate import (
    ADJUSTMENTS,
    CORRELATIONS,
    PAYMENTS,
    STRATA,
    CalibrateConfig,
    Payment,
)
from stages.calibration.online import HALF_LIFE
from stages.calibration.sums import UNITS
from stages.core.advantages import AdvantageConfig
from stages.core.forgetting import GateConfig

MEASURES = tuple(UNITS)


def _option(panel: str, text: str, *names: str, metavar: str | None = None, **more: Any) -> Any:
    return typer.Option(*names, rich_help_panel=panel, help=text, metavar=metavar, **more)


def _choice(panel: str, text: str, allowed: tuple[str, ...]) -> Any:
    return _option(panel, text, metavar="|".join(allowed))


Turns = Annotated[
    list[str],
    typer.Argument(
        metavar="TURNS...",
        help="Turns of irc-cli score, or with --merge the sums of shards: files, folders, "
        "patterns, s3:// or gs:// addresses; '-' for standard input.",
        rich_help_panel="Input",
    ),
]
Config = Annotated[
    str | None,
    _option(
        "Input",
        "Read options from this file: its keys are the long option names.",
        metavar="FILE.yaml",
        callback=options.use_config,
        is_eager=True,
    ),
]

Measure = Annotated[str, _choice("Statistics", "How a tier is measured in an episode.", MEASURES)]
Correlation = Annotated[
    str,
    _choice(
        "Statistics",
        "Correlation that sets the values; auto: within groups, if two tasks have both outcomes.",
        CORRELATIONS,
    ),
]
Adjust = Annotated[
    str,
    _choice(
        "Statistics", "Subtract what the length of episodes explains; none: nothing.", ADJUSTMENTS
    ),
]
Delta = Annotated[
    float, _option("Statistics", "Absolute correlation up to which a tier is worth nothing.")
]
Fdr = Annotated[
    float, _option("Statistics", "False discovery rate over the tiers; 1 switches the test off.")
]
MinSupport = Annotated[
    int,
    _option("Statistics", "Fewest episodes with a tier, and without it, for a value.", min=0),
]
Effect = Annotated[float, _option("Statistics", "Smallest absolute correlation that matters.")]
Resamples = Annotated[
    int, _option("Statistics", "Fewest bootstrap resamples of the tasks.", min=100)
]
Landmark = Annotated[
    int | None,
    _option(
        "Statistics",
        "Turns that the landmark correlation is of; default: the median length.",
        "--landmark",
        metavar="K",
        min=1,
    ),
]
Seed = Annotated[int, _option("Statistics", "Seed of the resamples.", metavar="N", min=0)]

Method = Annotated[
    str | None,
    _option(
        "Payment",
        "Calibrate, pay and check as a published method does; paper: arXiv 2604.02869.",
        "--method",
        metavar="|".join(method.METHODS),
        callback=method.use_method,
        is_eager=True,
    ),
]
Pay = Annotated[
    str,
    _choice(
        "Payment",
        "Turns that earn a tier's value: every turn, or the first one of an episode; auto: once "
        "if presence is measured.",
        PAYMENTS,
    ),
]
Alpha = Annotated[
    float | None,
    _option("Payment", "Value of a correlation of 1; default: the largest value is 1."),
]
Zero = Annotated[
    list[str] | None,
    _option("Payment", "Tier that is worth nothing in any case; may be repeated.", metavar="TIER"),
]

Check = Annotated[
    bool,
    _option("Check", "Exit with 1 if misaligned, not converged or farmable.", "--check"),
]
Eta = Annotated[
    float,
    _option("Check", "Bar for the correlation of mean reward and outcome, for its whole interval."),
]
MinTasks = Annotated[int, _option("Check", "Fewest tasks that pass --check.")]
Advantages = Annotated[
    str | None,
    _option("Check", "Check these (episode_id, turn, advantage) instead of ours.", metavar="FILE"),
]
KeepRewards = Annotated[
    bool, _option("Check", "Check the rewards that the turns have.", "--keep-rewards")
]
Previous = Annotated[
    str | None,
    _option("Check", "Earlier calibration to compare with.", metavar="FILE.yaml"),
]
Strict = Annotated[
    bool,
    _option("Check", "Fail, and write nothing, if anything was left out or guessed.", "--strict"),
]

Strata = Annotated[
    str,
    _choice(
        "Several policies",
        "Ask for values that hold over the policies or domains; none: pool all episodes.",
        STRATA,
    ),
]
Test = Annotated[
    list[str] | None,
    _option(
        "Several policies", "Other turns to test the values on; may be repeated.", metavar="TURNS"
    ),
]

Partial = Annotated[
    bool, _option("Shards", "Write only the sums of these turns to --out.", "--partial")
]
Merge = Annotated[
    bool, _option("Shards", "Take the inputs as sums that --partial wrote.", "--merge")
]
Stream = Annotated[
    bool,
    _option("Shards", "Sum turns as they are read, in little memory; no advantages.", "--stream"),
]

State = Annotated[
    str | None,
    _option(
        "Online",
        "Add these turns to this file, which forgets older ones: calibration while a policy "
        "trains.",
        metavar="STATE",
    ),
]
HalfLife = Annotated[
    float | None,
    _option(
        "Online",
        f"Episodes after which an episode weighs half. [default: {HALF_LIFE:g}]",
        metavar="N",
    ),
]
OpenP = Annotated[float, _option("Online", "p below which a tier gets its value.")]
CloseP = Annotated[float, _option("Online", "p above which a tier loses its value.")]

Out = Annotated[
    str | None,
    _option(
        "Output",
        "Calibration to write (YAML), with advantages.parquet beside it.",
        "--out",
        "-o",
        metavar="FILE",
    ),
]
Plots = Annotated[
    str | None, _option("Output", "Folder for figures, as PNG and SVG.", metavar="DIR")
]
Report = Annotated[
    str | None,
    _option(
        "Output",
        "Write an HTML page with the conversations that say why: see irc-cli report.",
        "--report",
        metavar="FILE.html",
    ),
]
Markdown = Annotated[
    str | None,
    _option(
        "Output",
        "Write verdict, tiers and changes as Markdown, for a job's summary or a comment.",
        "--markdown",
        metavar="FILE.md",
    ),
]
AsJson = Annotated[bool, _option("Output", "Print one JSON document, nothing else.", "--json")]
Quiet = Annotated[bool, _option("Output", "Print no report and no notes.", "--quiet", "-q")]
Force = Annotated[bool, _option("Output", "Replace outputs that exist.", "--force")]


def requested(given: dict[str, Any]) -> Request:
    """Return what a call asks for.

    Args:
        given: values by the names of the command's parameters.

    Raises:
        InputError: a value that its option does not take.
    """
    config, estimator_config = _calibrate_config(given), _advantage_config(given)
    gate = _gate_config(given["open_p"], given["close_p"])
    files, tests = named_files(given["inputs"], given["test"] or [])
    same = {item.name for item in fields(Request)} & given.keys() - {"inputs", "config"}
    return Request(
        inputs=files,
        config=config,
        estimator=estimator_config,
        gate=gate,
        ways=tuple(way for way in OF_SUMS if given[way]),
        method=given["method_name"],
        tests=tests,
        **{name: given[name] for name in same},
    )


def _advantage_config(given: dict[str, Any]) -> AdvantageConfig:
    names = ("advantage", "gamma", "outcome_weight", "normalise", "last_turn_reward")
    return estimator.chosen(*(given[name] for name in names))


def _calibrate_config(given: dict[str, Any]) -> CalibrateConfig:
    alpha = given["alpha"]
    return CalibrateConfig(
        options.one_of("measure", given["measure"], MEASURES),
        options.one_of("correlation", given["correlation"], CORRELATIONS),
        options.one_of("adjust", given["adjust"], ADJUSTMENTS),
        options.within("delta", given["delta"], 0, 1),
        options.within("fdr", given["fdr"], 0, 1),
        given["min_support"],
        options.within("effect", given["effect"], 0, options.BELOW_ONE),
        None if alpha is None else options.within("alpha", alpha, 0, sys.float_info.max),
        given["resamples"],
        options.within("eta", given["eta"], -1, 1),
        given["min_tasks"],
        tuple(given["zero"] or ()),
        cast(Payment, options.one_of("pay", given["pay"], PAYMENTS)),
        options.one_of("strata", given["strata"], STRATA),
    )


def _gate_config(open_p: float, close_p: float) -> GateConfig:
    options.within("open-p", open_p, 0, 1)
    return GateConfig(open_p, options.within("close-p", close_p, open_p, 1))
