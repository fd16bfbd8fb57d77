"""The inputs of a training run: which files are given, whether they fit together, their content."""

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

INPUT = "Input"  # panel of the options in --help


@dataclass(frozen=True)
class TrainFiles:
    """Paths of a run's models and data."""

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
        """The given files, without models."""
        paths = (self.rollouts, self.turns, self.calibration, self.advantages, self.sft, self.dev)
        return [path for path in paths if path]


@dataclass(frozen=True)
class Uses:
    """Which episodes and turns are accepted for training, and from which optimizer state."""

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
    """All inputs that a run reads before a model is loaded."""

    played: Rollouts | None
    scored: pl.DataFrame | None  # TURNS of the rollouts
    weighed: pl.DataFrame | None  # ADVANTAGES of these turns, if a file has them
    values: Values | None
    talks: list[dict[str, Any]]  # conversations for supervised fine-tuning
    held_out: list[dict[str, Any]]  # conversations of the dev set
    notes: Counter[str]


def check_files(files: TrainFiles, uses: Uses) -> None:
    """Raise InputError unless the files define exactly one kind of training, completely.

    Args:
        files: the given files.
        uses: how they are used.

    Raises:
        InputError: there is nothing to learn from, too much, or a file is missing.
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
        files: files that passed `check_files`.
        uses: which episodes are accepted.
        config: settings of training; they determine whether the engine's logprobs are used.
        estimator: the advantage estimator; must be the default if a file has the advantages.

    Returns:
        The content of the files, with notes on what was left out.

    Raises:
        InputError: a file is missing or broken, another policy sampled the rollouts, the advantages
            are of other turns, or the calibration lacks the estimator's critic.
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
