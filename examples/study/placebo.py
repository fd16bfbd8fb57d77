"""A loop that rewards nothing but a tier assigned to turns at random.

Run as `python -m examples.study.placebo` with options of `irc-cli loop`. The tier's value is its
raw correlation with the outcome in the first iteration, which reflects only that long episodes have
more turns. The value stays the same in all iterations. An interrupted loop resumes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from irc_cli.loop import Runner
from stages import loop as stage
from stages.loop import LoopConfig, LoopStep, Places
from stages.tables.artifacts import TURNS
from stages.tables.files import whole_file
from stages.tables.table_file import read_table, write_table
from stages.tables.yamlfile import parse_yaml

TIER, SHARE = "placebo", 0.3  # of the turns
RAW = ("--adjust", "none", "--fdr", "1", "--delta", "0", "--min-support", "0")


def placebo_loop(config: LoopConfig, out: Path) -> None:
    """Run the iterations; write the pass rates after each, as `irc-cli loop` does."""
    out.mkdir(parents=True, exist_ok=True)
    run, policy, lines = Runner(lambda doing: None), config.model, b""
    for number in range(config.iterations):
        at = Places(out, number)
        at.folder.mkdir(exist_ok=True)
        played = run(stage.play(config, at, policy), at.folder)
        run(stage.score(config, at), at.folder)
        relabel(at, config.seed)
        if number == 0:
            run(value_step(at), at.folder)
        values = Places(out, 0)("value/calibration.yaml")
        run(_of_placebo(stage.train(config, at, policy, values, first=number == 0), at), at.folder)
        policy = at("policy")
        row = {"iteration": number, "policy": policy, "played_pass_rate": played["pass_rate"]}
        lines += orjson.dumps(row) + b"\n"
        with whole_file(str(out / "loop.jsonl"), force=True) as file:
            file.write(lines)


def relabel(at: Places, seed: int) -> None:
    """Assign the placebo tier to turns at random; other turns keep their tier."""
    turns = read_table(TURNS, at("turns.parquet"))
    chosen = np.random.default_rng([seed, at.number]).random(turns.height) < SHARE
    tier = pl.when(pl.Series(chosen)).then(pl.lit(TIER)).otherwise(pl.col("tier"))
    write_table(TURNS, turns.with_columns(tier=tier), at("placebo.parquet"), {}, force=True)


def value_step(at: Places) -> LoopStep:
    """Return the step that values the placebo tier and sets all other values to 0."""
    turns, out = at("placebo.parquet"), at("value/calibration.yaml")
    others = read_table(TURNS, turns)["tier"].unique().sort().to_list()
    zeroed = [part for tier in others if tier != TIER for part in ("--zero", tier)]
    advantages = str(Path(out).with_name("advantages.parquet"))
    args = ("calibrate", turns, "--out", out, *RAW, *zeroed)
    return LoopStep("value", args, (turns,), (out, advantages))


def _of_placebo(step: LoopStep, at: Places) -> LoopStep:
    """Return the step reading the relabelled turns instead of the original ones."""
    names = {at("turns.parquet"): at("placebo.parquet")}
    args, inputs = (tuple(names.get(part, part) for part in of) for of in (step.args, step.inputs))
    return replace(step, args=args, inputs=inputs)


def stage_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Parse STAGE.OPTION=VALUE."""
    options: dict[str, dict[str, Any]] = {}
    for text in given:
        name, _, value = text.partition("=")
        stage_name, _, option = name.partition(".")
        options.setdefault(stage_name, {})[option] = parse_yaml(value, text).plain()
    return options


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=["loop"])
    for name in ("iterations", "sample-tasks", "group-size", "eval-every", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--fresh", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    config = LoopConfig(
        iterations=given.iterations,
        tasks=given.sample_tasks,
        group_size=given.group_size,
        fresh=given.fresh,
        rewards="naive",
        eval_every=0,
        seed=given.seed,
        options=stage_options(given.set),
    )
    placebo_loop(config, given.out)


if __name__ == "__main__":
    main()
