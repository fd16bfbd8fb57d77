"""Train a real language model with the whole method: demonstrations, rollouts, calibration, RL.

Run as `python -m examples.real.make` (`make real`). Every step is an irc-cli command that writes to
--out. Finished steps are skipped, so that a run can be split into sessions (`--budget`).
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any, NamedTuple

import orjson
import yaml

from examples.real.report import STEPS, write_report
from examples.study.runs import TimeBudget, as_settings, call
from stages.loop import as_args

HERE = Path(__file__).parent
TRAINED = "trainer/train.json"  # what `irc-cli train` writes last
ENV = ("--env", "airline-mini")
Recipe = Mapping[str, Any]  # recipe.yaml


class RealStep(NamedTuple):
    """One command, and the file that exists once it is done."""

    name: str
    args: list[str]
    done: Path


def demonstrations(recipe: Recipe, out: Path) -> Iterator[RealStep]:
    """Yield the steps that play the expert and fine-tune on its episodes."""
    settings = recipe["demonstrations"]
    for name, count, noise, seed in (
        ("expert", settings["episodes"], settings["noise"], 0),
        ("held-out", settings["held_out"], 0.0, 1),
    ):
        path = out / f"{name}.jsonl"
        played = {"policy": "expert", "noise": noise, "split": "train", "fresh": True}
        played |= {"sample-tasks": count, "group-size": 1, "seed": seed, "out": path}
        yield RealStep(name, ["rollout", *ENV, *as_args(played)], path)
    files = {"model": out / "model", "sft": out / "expert.jsonl", "dev": out / "held-out.jsonl"}
    learnt = files | recipe["sft"] | {"save-every": 10, "out": out / "sft"}
    yield RealStep("sft", ["train", *as_args(learnt)], out / "sft" / TRAINED)


def training(recipe: Recipe, arm: str, seed: int, out: Path) -> RealStep:
    """Return the step that runs the loop from the fine-tuned policy."""
    settings, folder = recipe["arms"][arm], run_folder(arm, seed, out)
    stages = {"rollout": recipe["rollout"], "train": recipe["train"] | settings["train"]}
    given = {"model": out / "sft", "reward-mode": settings["reward-mode"], "seed": seed}
    args = [*as_args(recipe["loop"] | given | {"out": folder}), *as_settings(stages)]
    policy = policy_of(recipe, arm, seed, out)
    return RealStep(f"{arm}, seed {seed}", ["loop", *args], policy / TRAINED)


def evaluation(recipe: Recipe, name: str, policy: Path | None, out: Path) -> RealStep:
    """Return the step that plays the test split; without a policy, the agent always refuses."""
    path = out / f"eval-{name}.json"
    played = recipe["rollout"] | {"model": policy} if policy else {"policy": "refuse"}
    kept = {"keep-rollouts": path.with_suffix(".rollouts.jsonl"), "out": path}
    return RealStep(name, ["eval", *ENV, *as_args(played | recipe["eval"] | kept)], path)


def run_folder(arm: str, seed: int, out: Path) -> Path:
    """Return the folder of a run of the loop."""
    return out / f"{arm.replace(' ', '-').lower()}-{seed}"


def policy_of(recipe: Recipe, arm: str, seed: int, out: Path) -> Path:
    """Return the path of the policy of a run's last iteration."""
    return run_folder(arm, seed, out) / f"iter-{recipe['loop']['iterations'] - 1:02d}" / "policy"


def steps(recipe: Recipe, out: Path) -> Iterator[RealStep]:
    """Yield all steps in order."""
    yield evaluation(recipe, "refuse", None, out)
    yield from demonstrations(recipe, out)
    yield evaluation(recipe, "start", out / "model", out)
    yield evaluation(recipe, "sft", out / "sft", out)
    for seed in recipe["seeds"]:
        for arm in recipe["arms"]:
            yield training(recipe, arm, seed, out)
            name = run_folder(arm, seed, out).name
            yield evaluation(recipe, name, policy_of(recipe, arm, seed, out), out)


def resuming(step: RealStep) -> list[str]:
    """Return `--resume` if a step was interrupted and its command can resume."""
    partial = (
        Path(f"{step.done}.partial").exists() or (step.done.parents[1] / "checkpoints").exists()
    )
    return ["--resume"] if partial and step.args[0] in ("rollout", "train") else []


def run(recipe: Recipe, out: Path, budget: TimeBudget) -> None:
    """Run the unfinished steps until the budget ends."""
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "model").exists():
        from examples.real.model import unpack  # imports torch

        shutil.rmtree(out / "model.partial", ignore_errors=True)
        unpack(out / "model")
    for step in steps(recipe, out):
        if step.done.exists():
            continue
        began = time.monotonic()
        try:
            call([*step.args, "--quiet", *resuming(step)], budget)
        except CalledProcessError as error:  # the command has printed the reason
            raise SystemExit(error.returncode) from None
        took = time.monotonic() - began
        if not step.done.exists():
            sys.stderr.write(f"the budget ended within: {step.name}\n")
            return
        with (out / STEPS).open("ab") as file:
            line = {"name": step.name, "seconds": took, "done": str(step.done)}
            file.write(orjson.dumps(line) + b"\n")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipe.yaml")
    parser.add_argument("--out", type=Path, default=Path("out/real"))
    parser.add_argument("--docs", type=Path, default=Path("docs/study"))
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="default: no limit")
    given = parser.parse_args()
    recipe = yaml.safe_load(given.recipe.read_bytes())
    run(recipe, given.out, TimeBudget(given.budget))
    write_report(given.out, given.docs)


if __name__ == "__main__":
    main()
