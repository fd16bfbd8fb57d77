"""What a training run is made from: which files, which of them go together, and all they hold."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import polars as pl

from stages.core.advantages import AdvantageConfig
from stages.core.payment import Values
from stages.errors import InputError
from stages.settings import Setting
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.training.config import ADVANTAGE, OPTIMISATION, TrainConfig
from stages.training.inputs import (
    Rollouts,
    check_lineage,
    check_precision,
    other_turns,
    played_advantages,
    read_conversations,
    read_rollouts,
    read_values,
)

INPUT = "Input"  # panel of the help


@dataclass(frozen=True)
class TrainFiles:
    """Where a run's models and data lie."""

    model: Annotated[str, Setting("Policy to start from.", INPUT, metavar="DIR|NAME")]
    rollouts: Annotated[
        str | None, Setting("Rollouts of the policy, from irc-cli rollout.", INPUT, metavar="FILE")
    ] = None
    turns: Annotated[
        str | None, Setting("Turns of --rollouts, from irc-cli score.", INPUT, metavar="FILE")
    ] = None
    calibration: Annotated[
        str | None,
        Setting(
            "Calibration with the value of each tier; default: the rewards in the turns.",
            INPUT,
            metavar="FILE",
        ),
    ] = None
    advantages: Annotated[
        str | None,
        Setting(
            "Advantages of --turns, from irc-cli calibrate; default: compute them.",
            INPUT,
            metavar="FILE",
        ),
    ] = None
    sft: Annotated[
        str | None,
        Setting(
            "Conversations for supervised fine-tuning, instead of --rollouts.",
            INPUT,
            metavar="FILE",
        ),
    ] = None
    dev: Annotated[
        str | None,
        Setting(
            "Held-out conversations for --sft; the checkpoint with the lowest loss is kept.",
            INPUT,
            metavar="FILE",
        ),
    ] = None
    reference: Annotated[
        str | None,
        Setting(
            "Reference model of the KL divergence; default: the policy to start from.",
            INPUT,
            metavar="DIR|NAME",
        ),
    ] = None

    @property
    def data(self) -> list[str]:
        """The files that are given, but for models."""
        paths = (self.rollouts, self.turns, self.calibration, self.advantages, self.sft, self.dev)
        return [path for path in paths if path]


@dataclass(frozen=True)
class Uses:
    """Which episodes and turns are learnt from, and from which optimizer."""

    only_valued: Annotated[
        bool, Setting("Train only on turns whose tier has a value in --calibration.", ADVANTAGE)
    ] = False
    off_policy: Annotated[bool, Setting("Accept rollouts sampled from other weights.", INPUT)] = (
        False
    )
    allow_retokenised: Annotated[
        bool, Setting("Tokenise messages whose sampled tokens were not recorded.", INPUT)
    ] = False
    keep_optimizer: Annotated[
        bool, Setting("Continue with the optimizer state of --model.", OPTIMISATION)
    ] = False


class Material(NamedTuple):
    """All that a run reads before a model is loaded."""

    played: Rollouts | None
    scored: pl.DataFrame | None  # TURNS of the rollouts
    weighed: pl.DataFrame | None  # ADVANTAGES of these turns, where a file has them
    values: Values | None
    talks: list[dict[str, Any]]
    held_out: list[dict[str, Any]]
    notes: Counter[str]


def check_files(files: TrainFiles, uses: Uses) -> None:
    """Check that there is one thing to learn from, and all that goes with it.

    Args:
        files: that are given.
        uses: what is learnt from them.

    Raises:
        InputError: there is nothing, too much, or something is missing.
    """
    if (files.sft is None) == (files.rollouts is None):
        raise InputError("irc-cli train", "nothing to train on", "give --rollouts or --sft")
    if files.rollouts and files.turns is None:
        raise InputError("--turns", "missing", "give the turns.parquet of these rollouts")
    if uses.only_valued and not files.calibration:
        raise InputError("--only-valued", "needs --calibration", "give it, or leave this out")
    if files.calibration and not files.rollouts:
        raise InputError("--calibration", "needs --rollouts", "leave it out")
    if files.advantages and not files.rollouts:
        raise InputError("--advantages", "needs --rollouts", "leave it out")
    if files.dev and not files.sft:
        raise InputError("--dev", "needs --sft", "leave it out")


def read_material(
    files: TrainFiles, uses: Uses, config: TrainConfig, estimator: AdvantageConfig
) -> Material:
    """Read the files, and check them against each other and the policy.

    Args:
        files: that `check_files` has passed.
        uses: which episodes are accepted.
        config: whose loss says whether the engine's logprobs matter.
        estimator: of the advantages, which a file of them has used already.

    Returns:
        All that was read, with notes on what was left out.

    Raises:
        InputError: a file is missing or broken, another policy played the rollouts, the advantages
            are of other turns, or the calibration has no critic for the estimator.
    """
    notes = Counter[str]()
    played = read_rollouts(files.rollouts, notes) if files.rollouts else None
    if played and not uses.off_policy:
        check_lineage(played, files.model)
    if played:
        weighted = config.old_logprobs == "engine" or config.loss.tis_cap is not None
        check_precision(played, weighted=weighted)
    values = read_values(files.calibration, files.turns, estimator) if files.turns else None
    scored = read_table(TURNS, files.turns) if files.turns else None
    weighed = None
    if played and scored is not None and files.turns and files.advantages:
        weighed = played_advantages(
            played, scored, values, estimator, files.turns, files.advantages
        )
    talks = read_conversations(files.sft, notes) if files.sft else []
    held_out = read_conversations(files.dev, notes) if files.dev else []
    if played and scored is not None:
        notes += other_turns(played, scored)
    return Material(played, scored, weighed, values, talks, held_out, notes)
