"""The training runs of the study: each is an `irc-cli loop` and an `irc-cli eval` of its policy."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from stages.loop import as_args
from stages.policy_registry import SEED_POLICY

Study = dict[str, Any]  # arms.yaml
LOOP = "loop"
CLI, PLACEBO = "irc_cli", "examples.study.placebo"  # programs


class TrainingRun(NamedTuple):
    """One training run."""

    arm: str
    lr: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Return the folder of its files."""
        arm = re.sub(r"[^a-z0-9]+", "-", self.arm.lower())
        return out / arm / f"lr-{self.lr:g}" / f"seed-{self.seed}"


class TimeBudget:
    """A time limit for the study. Runs that it interrupts resume next time."""

    def __init__(self, minutes: float | None) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def seconds(self) -> float | None:
        """The seconds left; None: no limit."""
        return None if self._ends is None else max(self._ends - time.monotonic(), 0)


def measure(
    study: Study, runs: Iterable[TrainingRun], split: str, out: Path, budget: TimeBudget, jobs: int
) -> None:
    """Train the missing runs and play a split with each policy, `jobs` runs in parallel."""

    def finish(run: TrainingRun) -> None:
        if trained(study, run, out) is None:
            placebo = study["arms"][run.arm]["rewards"] == "placebo"
            call(loop_command(study, run, out), budget, PLACEBO if placebo else CLI)
        policy, result = trained(study, run, out), result_of(study, run, split, out)
        if policy and not result.exists():
            call(eval_command(study, str(policy), split, result, run.seed), budget)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(finish, runs))


def loop_command(study: Study, run: TrainingRun, out: Path) -> list[str]:
    """Return the command line of a run's loop."""
    arm = study["arms"][run.arm]
    stages = {name: dict(options) for name, options in study["set"].items()}
    stages["train"] |= {"lr": run.lr, "advantage": arm["advantage"]} | arm.get("train", {})
    stages |= {stage: arm[stage] for stage in ("score", "calibrate") if stage in arm}
    options = study["loop"] | arm.get("loop", {}) | {"seed": run.seed}
    if arm["rewards"] != "placebo":
        options |= {"reward-mode": arm["rewards"]}
    args = [*as_args(options), *as_settings(stages)]
    return ["loop", *args, "--out", str(run.folder(out) / LOOP), "--quiet"]


def as_settings(stages: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the options of stages as `--set` arguments of `irc-cli loop`."""
    return [
        part
        for stage, given in stages.items()
        for name, value in given.items()
        for part in ("--set", f"{stage}.{name}={orjson.dumps(value).decode()}")
    ]


def eval_command(
    study: Study, model: str, split: str, result: Path, seed: int, policy: str = "transformers"
) -> list[str]:
    """Return the command line that plays a split; scripted policies ignore the model."""
    args = as_args(study["set"]["rollout"] | study["eval"])
    args += ["--env", "airline-mini", "--policy", policy, "--model", model]
    return ["eval", *args, "--split", split, "--seed", str(seed), "--out", str(result), "--quiet"]


def trained(study: Study, run: TrainingRun, out: Path) -> Path | None:
    """Return the policy of a run's last iteration; None if the run is not finished."""
    wanted = iterations(study, run.arm)
    if len(learning_curve(run, out)) < wanted:
        return None
    return run.folder(out) / LOOP / f"iter-{wanted - 1:02d}" / "policy"


def iterations(study: Study, arm: str) -> int:
    """Return the number of iterations of an arm's runs."""
    return int((study["loop"] | study["arms"][arm].get("loop", {}))["iterations"])


def learning_curve(run: TrainingRun, out: Path) -> list[float]:
    """Return each iteration's pass rate on its fresh tasks, measured before it trains on them."""
    done = _curve(run, out)
    lines = done.read_bytes().splitlines() if done.exists() else []
    return [float(orjson.loads(line)["played_pass_rate"]) for line in lines]


def _curve(run: TrainingRun, out: Path) -> Path:
    return run.folder(out) / LOOP / "loop.jsonl"


def result_of(study: Study, run: TrainingRun, split: str, out: Path) -> Path:
    """Return the path of a run's result on a split; its name holds iterations and group size."""
    episodes = study["eval"]["group-size"]
    return run.folder(out) / f"{split}-{iterations(study, run.arm)}x{episodes}.json"


def played(study: Study, run: TrainingRun, split: str, out: Path) -> dict[str, Any] | None:
    """Return a run's result on a split; None if it is not measured yet."""
    path = result_of(study, run, split, out)
    return dict(orjson.loads(path.read_bytes())) if path.exists() else None


def restore(study: Study, record: Path, out: Path) -> None:
    """Restore the results of earlier runs from their record.

    Args:
        study: arms.yaml; runs with other arms, seeds or numbers of iterations are ignored.
        record: `runs.jsonl` as the report writes it; may be missing.
        out: folder of the runs.
    """
    seeds = {"dev": study["rate_seeds"], "test": study["seeds"]}
    for line in record.read_bytes().splitlines() if record.exists() else []:
        told = orjson.loads(line)
        run = TrainingRun(*(told.pop(name) for name in TrainingRun._fields))
        split, curve = told.pop("split"), told.pop("learning_curve", [])
        wanted = run.arm in study["arms"] and run.seed in seeds[split]
        if not wanted or len(curve) != iterations(study, run.arm):
            continue
        result = result_of(study, run, split, out)
        rows = [orjson.dumps({"played_pass_rate": rate}) + b"\n" for rate in curve]
        for path, content in ((result, orjson.dumps(told)), (_curve(run, out), b"".join(rows))):
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)


def references(study: Study, out: Path, budget: TimeBudget) -> dict[str, dict[str, Any]]:
    """Return the test results of the seed policy and of two scripted policies."""
    results = {}
    for name, policy in (
        ("seed policy", "transformers"),
        ("refuse", "refuse"),
        ("hand-off", "hand-off"),
    ):
        result = out / f"{name.replace(' ', '-')}x{study['eval']['group-size']}.json"
        if not result.exists():
            call(eval_command(study, SEED_POLICY, "test", result, 0, policy), budget)
        if result.exists():
            results[name] = dict(orjson.loads(result.read_bytes()))
    return results


def call(args: list[str], budget: TimeBudget, program: str = CLI) -> bytes:
    """Run a command; when the budget stops it, it can resume later."""
    if budget.seconds == 0:
        return b""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", program, *args],
            stdout=subprocess.PIPE,
            timeout=budget.seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return b""
    return ended.stdout
