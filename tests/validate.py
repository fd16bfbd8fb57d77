"""`make validate`: how often calibration errs, by simulation; minutes on one core.

Each row is a design in which it is known what a tier tells (tests/designs.py), the rate that is
required, and the rate in so many independent runs with its standard error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import polars as pl
from rich.console import Console

from irc_cli import console
from stages.calibrate import calibrate
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.sums import lay_out, sum_turns
from tests.conftest import exit_code
from tests.designs import (
    Design,
    Rng,
    calibrated,
    differing,
    drifting,
    joined,
    placebo,
    planted,
    policies,
    runs,
    valued,
)

RUNS = 400
RELABELLINGS = 100
DEMO = (  # iteration 0 of `make demo`
    "--env airline-mini --fresh --sample-tasks 48 --seed 0 --group-size 8 --concurrency 128 "
    "--max-turns 20 --max-tokens 60"
)
WIDTH = 120  # columns


class Row(NamedTuple):
    """A rate, and the bounds that it must keep."""

    what: str
    low: float
    high: float
    rate: float
    runs: int

    @property
    def error(self) -> float:
        """Standard error of the rate."""
        return float(np.sqrt(self.rate * (1 - self.rate) / max(self.runs, 1)))


def valued_share(what: str, most: float, draw: Callable[[Rng], Design], tiers: range) -> Row:
    """Share of the runs in which one of these tiers, which tell nothing, has a value."""
    hits = [valued(calibrated(draw(rng), rng), tiers) > 0 for rng in runs(RUNS, 10)]
    return Row(what, 0.0, most, float(np.mean(hits)), RUNS)


def demo_turns(folder: str, policy: str) -> pl.DataFrame:
    """Turns (TURNS) that a policy plays as in iteration 0 of `make demo`."""
    rollouts, turns = f"{folder}/rollouts.jsonl", f"{folder}/turns.parquet"
    play = f"rollout {DEMO} {policy} -o {rollouts}"
    for command in (play, f"score {rollouts} -o {turns}"):
        if code := exit_code(f"{command} --quiet --force".split()):
            raise RuntimeError(f"{command} exits with {code}")
    return pl.read_parquet(turns)


def relabelled_share(what: str, turns: pl.DataFrame, share: float) -> Row:
    """Share of the runs in which a tier put on this share of the turns at random has a value."""
    hits = []
    for rng in runs(RELABELLINGS, 15):
        chosen = pl.Series(rng.random(turns.height) < share)
        tier = pl.when(chosen).then(pl.lit("placebo")).otherwise(pl.col("tier"))
        summed = sum_turns(turns.with_columns(tier=tier).lazy(), "presence", "turns")
        result = calibrate(lay_out(summed.sums, "presence"), 0, CalibrateConfig(), rng)
        hits += [tier.value != 0 for tier in result.tiers if tier.tier == "placebo"]
    what = f"{what}: {share:.0%} of the turns relabelled, valued"
    return Row(what, 0.0, 0.05, float(np.mean(hits)), len(hits))


def relabelled_rows() -> Iterator[Row]:
    """Placebos on turns of the noisy expert, and, where torch is installed, of the seed policy."""
    players = {"noisy expert": "--policy expert --noise 0.2"}
    if find_spec("torch"):
        players["seed policy"] = "--policy transformers"
    for name, policy in players.items():
        with TemporaryDirectory() as folder:
            turns = demo_turns(folder, policy)
        for share in (0.05, 0.3):
            yield relabelled_share(name, turns, share)


def own_interval_share() -> Row:
    """Share of the values whose own interval holds 0."""
    against = []
    for rng in runs(RUNS, 11):
        for tier in calibrated(planted(rng, 0.3, 16), rng).tiers:
            if tier.value and tier.ci_low is not None and tier.ci_high is not None:
                against.append(tier.ci_low <= 0 <= tier.ci_high)
    return Row("values whose interval holds 0", 0.0, 0.0, float(np.mean(against)), len(against))


def coverage(tasks: int, trials: int) -> Row:
    """Share of the intervals that cover the excess among very many such tasks."""
    config = CalibrateConfig(resamples=500)
    rng = np.random.default_rng(12)
    truth = [tier.excess or 0.0 for tier in calibrated(planted(rng, 0.3, 20_000), rng, FEW).tiers]
    covered = []
    for rng in runs(RUNS, 13):
        for tier, true in zip(
            calibrated(planted(rng, 0.3, tasks, trials), rng, config).tiers, truth, strict=True
        ):
            if tier.ci_low is not None and tier.ci_high is not None:
                covered.append(tier.ci_low <= true <= tier.ci_high)
    what = f"95 % intervals that cover, {tasks} tasks x {trials}"
    return Row(what, 0.93, 0.97, float(np.mean(covered)), len(covered))


FEW = CalibrateConfig(resamples=100, fdr=0.0)


def planned(tasks: int, trials: int) -> Row:
    """Share of undecided tiers of r = 0.2 that are decided by as many episodes more as asked."""
    decided = []
    for rng in runs(RUNS, 14):
        pilot = planted(rng, 0.2, tasks, trials)
        tier = calibrated(pilot, rng).tiers[0]
        if tier.status == "undecided" and tier.more_episodes is not None:
            more = planted(rng, 0.2, -(-tier.more_episodes // trials), trials)
            status = calibrated(joined(pilot, more), rng).tiers[0].status
            decided.append(status in ("discriminative", "neutral"))
    what = f"'N more episodes' decide, r = 0.2, {tasks} tasks x {trials}"
    return Row(what, 0.75, 0.85, float(np.mean(decided)), len(decided))


def rows() -> Iterator[Row]:
    """All rows, one after another."""
    yield from relabelled_rows()
    for share in (0.05, 0.3):
        what = f"placebo on {share:.0%} of the turns, valued"
        yield valued_share(what, 0.05, partial(placebo, share=share), range(1))
    for trials in (8, 16):
        what = f"+-0.4 by task, mean 0, 24 tasks x {trials}, any of 6 tiers valued"
        yield valued_share(what, 0.07, partial(differing, trials=trials), range(6))
    yield valued_share("8 drifting iterations of 12 tasks, valued", 0.05, drifting, range(1))
    for count in (2, 3, 6):
        what = f"{count} policies of other pass rates and habits, any of 3 tiers valued"
        yield valued_share(what, 0.07, partial(policies, count=count), range(3))
    what = "2 policies, an episode a task, any of 3 tiers valued"
    yield valued_share(what, 0.07, partial(policies, count=2, tasks=200, trials=1), range(3))
    what = "6 policies, effects of sd 0.2 by policy, mean 0, valued"
    yield valued_share(what, 0.07, partial(policies, count=6, spread=0.2), range(1))
    yield own_interval_share()
    for tasks, trials in ((24, 8), (48, 8)):
        yield coverage(tasks, trials)
    for tasks, trials in ((24, 8), (50, 4)):
        yield planned(tasks, trials)


def main() -> None:
    """Run the simulations and print what is required and what was measured."""
    table = console.table("what", "required", "measured", "error", "runs", "", left=(0, 5))
    for row in rows():
        wanted = f"<= {row.high:.0%}" if not row.low else f"{row.low:.0%} to {row.high:.0%}"
        reached = "[green]reached" if row.low <= row.rate <= row.high else "[red]missed"
        table.add_row(
            row.what, wanted, f"{row.rate:.1%}", f"{row.error:.1%}", f"{row.runs:,}", reached
        )
    Console(width=WIDTH).print(table)


if __name__ == "__main__":
    main()
