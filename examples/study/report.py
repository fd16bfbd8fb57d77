"""What the study found: a table, the raw figures of each run, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import orjson

from examples.study.runs import Study, TrainingRun, played
from stages.plots import arms_figure, write_figure

SHOWN = ("turns_per_episode", "write_accuracy")


def write_report(
    study: Study,
    chosen: Sequence[TrainingRun],
    references: Mapping[str, Mapping[str, Any]],
    wrong: Sequence[str],
    out: Path,
    docs: Path,
) -> None:
    """Write `table.md`, `runs.jsonl` and the figure `arms` from what is known.

    Args:
        study: arms.yaml.
        chosen: the run of the first seed of each arm, at the arm's learning rate.
        references: what the test split says of policies that were not trained here.
        wrong: the tiers whose naive rewards calibration does not bear out.
        out: folder of the runs.
        docs: folder to write to.
    """
    docs.mkdir(parents=True, exist_ok=True)
    start = references.get("seed policy", {}).get("pass_rate")
    head = [
        "| arm | rate | test pass rate | gain | by seed | turns | gold writes | forbidden |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines = [*head, *(_line(name, "", [known], None) for name, known in references.items())]
    tries = [run for run in chosen if not study["arms"][run.arm].get("control")]
    lines += _lines(study, tries, out, start)
    lines += ["", "All arms at the middle learning rate:", "", *head]
    lines += _lines(study, [run._replace(lr=middle(study)) for run in chosen], out, start)
    lines += ["", "The first seed on dev, by learning rate:", "", *_rates(study, tries, out)]
    if wrong:
        names = ", ".join(wrong)
        lines += ["", f"Naive rewards that calibration does not bear out at first: {names}."]
    (docs / "table.md").write_text("\n".join(lines) + "\n")
    raw = (
        orjson.dumps(run._asdict() | {"split": split} | _figures(told)) + b"\n"
        for arm in study["arms"]
        for lr in study["learning_rates"]
        for seed in study["seeds"]
        for split in ("dev", "test")
        if (told := played(study, run := TrainingRun(arm, lr, seed), split, out))
    )
    (docs / "runs.jsonl").write_bytes(b"".join(raw))
    by_arm = {run.arm: [told["pass_rate"] for told in _tested(study, run, out)] for run in chosen}
    if by_arm := {arm: rates for arm, rates in by_arm.items() if rates}:
        write_figure(arms_figure(by_arm, start), str(docs / "arms"), force=True)


def middle(study: Study) -> float:
    """Return the learning rate at which all arms run."""
    rates = sorted(study["learning_rates"])
    return float(rates[len(rates) // 2])


def _tested(study: Study, run: TrainingRun, out: Path) -> list[dict[str, Any]]:
    """Return what test says of all seeds of a run."""
    seeds = (run._replace(seed=seed) for seed in study["seeds"])
    return [told for seeded in seeds if (told := played(study, seeded, "test", out))]


def _lines(study: Study, runs: Sequence[TrainingRun], out: Path, start: float | None) -> list[str]:
    return [
        _line(run.arm, f"{run.lr:g}", results, start)
        for run in runs
        if (results := _tested(study, run, out))
    ]


def _rates(study: Study, runs: Sequence[TrainingRun], out: Path) -> list[str]:
    rates = sorted(study["learning_rates"])
    lines = [
        f"| arm | {' | '.join(f'{lr:g}' for lr in rates)} |",
        "| --- " * (len(rates) + 1) + "|",
    ]
    for run in runs:
        told = [played(study, run._replace(lr=lr), "dev", out) for lr in rates]
        cells = [f"{result['pass_rate']:.1%}" if result else "-" for result in told]
        lines.append(f"| {run.arm} | {' | '.join(cells)} |")
    return lines


def _figures(told: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out where files lay on the machine that measured."""
    return {key: value for key, value in told.items() if key != "made_by"}


def _line(name: str, lr: str, known: Sequence[Mapping[str, Any]], start: float | None) -> str:
    rates = [result["pass_rate"] for result in known]
    rate = f"{mean(rates):.1%} +- {100 * standard_error(known):.1f}"
    gain = "" if start is None else f"{100 * (mean(rates) - start):+.1f}"
    seeds = ", ".join(f"{100 * rate:.1f}" for rate in rates) if len(rates) > 1 else ""
    turns, writes = (mean(result[key] for result in known) for key in SHOWN)
    forbidden = mean(result["pressure"]["forbidden_share"] for result in known)
    shown = f"{turns:.1f} | {writes:.0%} | {forbidden:.0%}"
    return f"| {name} | {lr} | {rate} | {gain} | {seeds} | {shown} |"


def standard_error(known: Sequence[Mapping[str, Any]]) -> float:
    """Return the standard error of the mean pass rate: over seeds, or of one run's sampling."""
    rates = [result["pass_rate"] for result in known]
    if len(rates) > 1:
        return float(stdev(rates) / sqrt(len(rates)))
    return float(sqrt(rates[0] * (1 - rates[0]) / known[0]["episodes"]))
