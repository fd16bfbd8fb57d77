"""The loop of Iterative Reward Calibration, as command lines of the other stages.

Each iteration runs episodes with the current policy, scores their turns, calibrates the tiers'
values on the turns of the last iterations, and trains. Every step is an ordinary command that can
be rerun by hand.

Source: arXiv 2604.02869, section 3; docs/method.md, "The loop".
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from stages.envs.registry import ENVS
from stages.policy_registry import SEED_POLICY
from stages.serving.address import without_secrets
from stages.settings import Setting, check_settings

Rewards: TypeAlias = Literal["calibrated", "online", "naive", "none"]
STAGES = ("rollout", "score", "calibrate", "train", "eval")
ONLINE = "online.parquet"
START = -1
LOOP, PLAY, CALIBRATION, EVALUATION = "Loop", "Episodes", "Calibration", "Evaluation"  # panels


@dataclass(frozen=True)
class LoopConfig:
    """Settings of a loop. On one machine, equal settings give equal files."""

    env: Annotated[str, Setting("Environment to play.", LOOP, metavar="|".join(ENVS))] = (
        "airline-mini"
    )
    model: Annotated[
        str,
        Setting("Policy to start from.", LOOP, metavar="DIR|NAME", shown="the seed policy"),
    ] = SEED_POLICY
    iterations: Annotated[int, Setting("Iterations to run.", LOOP, low=1)] = 10
    tasks: Annotated[
        int,
        Setting(
            "Train tasks per iteration, drawn anew each time.", PLAY, low=1, option="sample-tasks"
        ),
    ] = 16
    fresh: Annotated[
        bool,
        Setting("Generate new train tasks in each iteration, instead of drawing known ones.", PLAY),
    ] = False
    group_size: Annotated[int, Setting("Episodes per task.", PLAY, low=2, metavar="G")] = 8
    rewards: Annotated[
        Rewards,
        Setting(
            "What turns earn: tier values calibrated per iteration or online, the naive rewards of "
            "the tiers file, or none.",
            CALIBRATION,
            option="reward-mode",
        ),
    ] = "calibrated"
    window: Annotated[int, Setting("Latest iterations to calibrate on.", CALIBRATION, low=1)] = 8
    calibration_rounds: Annotated[
        int,
        Setting(
            "Maximum number of misaligned tiers to set to 0 per iteration.", CALIBRATION, low=0
        ),
    ] = 3
    eval_every: Annotated[
        int, Setting("Iterations between evaluations; 0: never evaluate.", EVALUATION, low=0)
    ] = 5
    eval_split: Annotated[str, Setting("Split to evaluate on.", EVALUATION, metavar="NAME")] = "dev"
    eval_tasks: Annotated[
        int | None,
        Setting(
            "Evaluate only on the first N tasks of the split; default: all.", EVALUATION, low=1
        ),
    ] = None
    eval_group_size: Annotated[
        int, Setting("Episodes per task in an evaluation.", EVALUATION, low=1, metavar="G")
    ] = 1
    patience: Annotated[
        int | None,
        Setting("Stop after N evaluations without improvement; default: never.", EVALUATION, low=1),
    ] = None
    seed: Annotated[int, Setting("Random seed.", LOOP, low=0)] = 0
    # Options of single stages by long name, for example {"train": {"lr": 3e-4}}
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def forecasts(self) -> bool:
        """Whether turns earn their gain in a critic's forecast instead of their tiers' values."""
        return self.options.get("train", {}).get("advantage") == "potential"


@dataclass(frozen=True)
class LoopStep:
    """One command of a loop.

    Attributes:
        name: name of the step in its iteration.
        args: arguments of `irc-cli`, the command first.
        inputs: files that the step reads; a folder stands for the weights in it.
        outputs: files that the step writes; a folder stands for the weights in it.
        renew: (source, target): before the step, copy source to target, or delete target if source
            is None.
    """

    name: str
    args: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    renew: tuple[str | None, str] | None = None

    @property
    def command(self) -> str:
        """The command line for a shell, without the secrets of servers."""
        line = shlex.join(("irc-cli", *without_secrets(self.args)))
        if not self.renew:
            return line
        source, target = self.renew
        if source is None:
            return f"{shlex.join(('rm', '-f', target))} && {line}"
        return f"{shlex.join(('cp', source, target))} && {line}"


@dataclass(frozen=True)
class Places:
    """The paths of one iteration's files; number START is before the first iteration."""

    out: Path
    number: int

    @property
    def folder(self) -> Path:
        """The folder of the iteration."""
        return self.out / ("start" if self.number == START else f"iter-{self.number:02d}")

    def __call__(self, name: str) -> str:
        """Return the path of a file or folder of the iteration."""
        return str(self.folder / name)


def play(config: LoopConfig, at: Places, policy: str) -> LoopStep:
    """Return the step that runs groups of episodes on tasks of the train split."""
    args = _policy_args(config, "train", policy, config.group_size, config.seed * 1000 + at.number)
    args += ["--sample-tasks", str(config.tasks), *(["--fresh"] if config.fresh else [])]
    args += ["--out", at("rollouts.jsonl")]
    outputs = (at("rollouts.jsonl"), at("rollouts.tokens.parquet"))
    return LoopStep("rollout", ("rollout", *args, *_options(config, "rollout")), (policy,), outputs)


def score(config: LoopConfig, at: Places) -> LoopStep:
    """Return the step that assigns the turns their tiers."""
    args = (at("rollouts.jsonl"), "--out", at("turns.parquet"), *_options(config, "score"))
    return LoopStep("score", ("score", *args), (at("rollouts.jsonl"),), (at("turns.parquet"),))


def calibrate(config: LoopConfig, at: Places, zeroed: tuple[str, ...] = ()) -> LoopStep:
    """Return the step that sets the tiers' values, with the tiers in `zeroed` set to 0.

    Each round after the first has its own folder. Online, the previous iteration's state is copied
    and this iteration's turns are added to it.
    """
    folder = f"round-{len(zeroed)}/" if zeroed else ""
    out, state = at(f"{folder}calibration.yaml"), at(f"{folder}{ONLINE}")
    online = config.rewards == "online"
    numbers = [at.number] if online else range(max(0, at.number + 1 - config.window), at.number + 1)
    turns = [Places(at.out, number)("turns.parquet") for number in numbers]
    args = [*turns, "--out", out, "--seed", str(config.seed)]
    if len(turns) > 1:  # the policies of a window are successive states of one policy
        args += ["--strata", "none"]
    args += [part for tier in zeroed for part in ("--zero", tier)]
    args += [*_advantage_options(config), *_options(config, "calibrate")]
    outputs = (out, str(Path(out).with_name("advantages.parquet")))
    name = f"calibrate-{len(zeroed)}" if zeroed else "calibrate"
    if not online:
        return LoopStep(name, ("calibrate", *args), tuple(turns), outputs)
    args += ["--online", state]
    before = Places(at.out, at.number - 1)(ONLINE) if at.number else None
    inputs = (*turns, *([before] if before else []))
    return LoopStep(name, ("calibrate", *args), inputs, (*outputs, state), (before, state))


def train(
    config: LoopConfig, at: Places, policy: str, calibration: str | None, *, first: bool
) -> LoopStep:
    """Return the step that trains the iteration's policy.

    Args:
        config: settings of the loop.
        at: the iteration.
        policy: policy to start from.
        calibration: calibration with the tiers' values; None: use the rewards in the turns.
        first: whether this is the first training, which has no optimizer state to keep.

    Returns:
        The step.
    """
    args = ["--model", policy, "--rollouts", at("rollouts.jsonl"), "--turns", at("turns.parquet")]
    inputs = [policy, at("rollouts.jsonl"), at("rollouts.tokens.parquet"), at("turns.parquet")]
    if calibration:
        args += ["--calibration", calibration]
        inputs.append(calibration)
    if not first:
        args.append("--keep-optimizer")
    args += ["--out", at("policy"), "--seed", str(config.seed)]
    args += [*_advantage_options(config), *_options(config, "train", ADVANTAGE_OPTIONS)]
    return LoopStep("train", ("train", *args), tuple(inputs), (at("policy"),))


def evaluate(config: LoopConfig, at: Places, policy: str) -> tuple[LoopStep, LoopStep]:
    """Return the steps that run held-out tasks with a policy and evaluate it."""
    name = config.eval_split
    args = _policy_args(config, name, policy, config.eval_group_size, config.seed)
    args += ["--max-tasks", str(config.eval_tasks)] if config.eval_tasks else []
    args += ["--out", at(f"{name}.jsonl")]
    playing = ("rollout", *args, *_options(config, "rollout"))
    measuring = ("eval", at(f"{name}.jsonl"), "--out", at("eval.json"), *_options(config, "eval"))
    return (
        LoopStep(f"rollout-{name}", playing, (policy,), (at(f"{name}.jsonl"),)),
        LoopStep("eval", measuring, (at(f"{name}.jsonl"),), (at("eval.json"),)),
    )


ADVANTAGE_OPTIONS = (
    "advantage",
    "gamma",
    "lambda",
    "gae-lambda",
    "normalise",
    "last-turn-reward",
)


def _policy_args(
    config: LoopConfig, split: str, policy: str, group_size: int, seed: int
) -> list[str]:
    args = ["--env", config.env, "--model", policy, "--split", split]
    return [*args, "--group-size", str(group_size), "--seed", str(seed)]


def _advantage_options(config: LoopConfig) -> list[str]:
    """Return the estimator's options, which `calibrate` and `train` share."""
    given = config.options.get("train", {})
    return as_args({name: given[name] for name in ADVANTAGE_OPTIONS if name in given})


def _options(config: LoopConfig, stage: str, without: tuple[str, ...] = ()) -> list[str]:
    given = config.options.get(stage, {})
    return as_args({name: given[name] for name in given if name not in without})


def as_args(options: Mapping[str, Any]) -> list[str]:
    """Return options as command-line arguments: booleans as flags, lists as repeated options.

    Args:
        options: values by long name.

    Returns:
        Arguments.
    """
    args: list[str] = []
    for name, value in options.items():
        if isinstance(value, bool):
            args.append(f"--{name}" if value else f"--no-{name}")
        else:
            for part in value if isinstance(value, list) else [value]:
                args += [f"--{name}", str(part)]
    return args
