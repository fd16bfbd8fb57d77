"""The training runs of the study: each an `irc-cli loop`, and `irc-cli eval` of its policy."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml

from stages.policy_registry import SEED_POLICY
from stages.tiers.file import load_tiers

Study = dict[str, Any]  # arms.yaml
TIERS = Path(__file__).parents[2] / "data/tiers"
NAIVE = "extended"  # tiers whose own rewards are the naive ones: the default of `irc-cli score`
ALIGNED = "aligned.yaml"  # tiers: the naive rewards that calibration bears out
LOOP = "loop"


class TrainingRun(NamedTuple):
    """One training run."""

    arm: str
    lr: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its files lie."""
        arm = re.sub(r"[^a-z0-9]+", "-", self.arm.lower())
        return out / arm / f"lr-{self.lr:g}" / f"seed-{self.seed}"


class TimeBudget:
    """Minutes that a study may take; what runs at their end is cut off, and goes on next time."""

    def __init__(self, minutes: float | None) -> None:
        self._ends = None if minutes is None else time.monotonic() + 60 * minutes

    @property
    def seconds(self) -> float | None:
        """How long is left; None: as long as it takes."""
        return None if self._ends is None else max(self._ends - time.monotonic(), 0)


def measure(
    study: Study, runs: Iterable[TrainingRun], split: str, out: Path, budget: TimeBudget, jobs: int
) -> None:
    """Train what is not trained yet, and play a split with each policy; so many side by side."""

    def finish(run: TrainingRun) -> None:
        if trained(study, run, out) is None:
            call(loop_command(study, run, out), budget)
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
    stages["score"] = {"tiers": str(out / ALIGNED)} if arm.get("aligned") else arm.get("score", {})
    options = study["loop"] | {"reward-mode": arm["rewards"], "seed": run.seed}
    args = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    for stage, given in stages.items():
        for name, value in given.items():
            args += ["--set", f"{stage}.{name}={orjson.dumps(value).decode()}"]
    return ["loop", *args, "--out", str(run.folder(out) / LOOP), "--quiet"]


def eval_command(
    study: Study, model: str, split: str, result: Path, seed: int, policy: str = "transformers"
) -> list[str]:
    """Return the command line that plays a split; policies of rules pay no heed to the model."""
    options = study["set"]["rollout"] | study["eval"]
    args = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    args += ["--env", "airline-mini", "--policy", policy, "--model", model]
    return ["eval", *args, "--split", split, "--seed", str(seed), "--out", str(result), "--quiet"]


def trained(study: Study, run: TrainingRun, out: Path) -> Path | None:
    """Return the policy of a run's last iteration; None: it has not come so far."""
    folder, wanted = run.folder(out) / LOOP, study["loop"]["iterations"]
    done = folder / "loop.jsonl"
    if not done.exists() or len(done.read_bytes().splitlines()) < wanted:
        return None
    return folder / f"iter-{wanted - 1:02d}" / "policy"


def result_of(study: Study, run: TrainingRun, split: str, out: Path) -> Path:
    """Return where it stands how a run's last policy plays a split; there may be more of both."""
    iterations, episodes = study["loop"]["iterations"], study["eval"]["group-size"]
    return run.folder(out) / f"{split}-{iterations}x{episodes}.json"


def played(study: Study, run: TrainingRun, split: str, out: Path) -> dict[str, Any] | None:
    """Return what a split says of a run; None: it was not asked yet."""
    path = result_of(study, run, split, out)
    return dict(orjson.loads(path.read_bytes())) if path.exists() else None


def align(naive: TrainingRun, out: Path) -> list[str]:
    """Write the naive tiers without rewards that the start does not bear out; return their tiers.

    That is: a tier has a naive reward, but calibration gives it none, or one of another sign.

    Args:
        naive: a run under the naive rewards, whose first iteration the seed policy played.
        out: folder of the study.
    """
    turns = naive.folder(out) / LOOP / "iter-00" / "turns.parquet"
    if not turns.exists():  # the budget was spent before
        return []
    calibrated = orjson.loads(call(["calibrate", str(turns), "--json"], TimeBudget(None)))
    values = {row["tier"]: row["value"] for row in calibrated["tiers"]}
    tiers = yaml.safe_load((TIERS / f"{NAIVE}.yaml").read_bytes())
    naively = {tier: reward.base for tier, reward in load_tiers(NAIVE).rewards.items()}
    wrong = [
        tier for tier, reward in naively.items() if reward and reward * values.get(tier, 0.0) <= 0
    ]
    tiers["rewards"] |= dict.fromkeys(wrong, 0.0)
    (out / ALIGNED).write_text(yaml.safe_dump(tiers, sort_keys=False))
    return wrong


def references(study: Study, out: Path, budget: TimeBudget) -> dict[str, dict[str, Any]]:
    """Return what the test split says of the seed policy, and of whoever does not try."""
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


def call(args: list[str], budget: TimeBudget) -> bytes:
    """Run a command of irc-cli; one that the budget cuts off leaves what it can go on from."""
    if budget.seconds == 0:
        return b""
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "irc_cli", *args],
            stdout=subprocess.PIPE,
            timeout=budget.seconds,
            check=True,
        )
    except subprocess.TimeoutExpired:
        return b""
    return ended.stdout
