"""Write the results of `make real` as tables for docs/real-model.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

STEPS = "steps.jsonl"  # name and seconds of each step, in the folder of the run


def write_report(out: Path, docs: Path) -> None:
    """Write tables of the results so far.

    Args:
        out: folder of the run.
        docs: folder to write `real-model.md` to.
    """
    docs.mkdir(parents=True, exist_ok=True)
    lines = [*pass_rates(out), "", *costs(out)]
    (docs / "real-model.md").write_text("\n".join(lines) + "\n")


def pass_rates(out: Path) -> Iterator[str]:
    """Yield the pass rate of each policy on the test split."""
    yield "| policy | pass rate | 95 % | episodes |"
    yield "| --- | --- | --- | --- |"
    for path in sorted(out.glob("eval-*.json"), key=lambda path: path.stat().st_mtime):
        measured = orjson.loads(path.read_bytes())
        rate, low, high = (
            f"{100 * measured[key]:.1f} %" for key in ("pass_rate", "ci_low", "ci_high")
        )
        name = path.stem.removeprefix("eval-")
        yield f"| {name} | {rate} | {low} to {high} | {measured['episodes']:,} |"


def costs(out: Path) -> Iterator[str]:
    """Yield the time of each step, with the speed and memory of training steps."""
    yield "| step | minutes | training, tokens/s | peak memory, GB |"
    yield "| --- | --- | --- | --- |"
    path = out / STEPS
    for line in path.read_bytes().splitlines() if path.exists() else ():
        step = orjson.loads(line)
        speed, memory = trained(Path(step["done"]).parents[1])
        yield f"| {step['name']} | {step['seconds'] / 60:.1f} | {speed} | {memory} |"


def trained(policy: Path) -> tuple[str, str]:
    """Return a training run's median speed and peak memory; empty if it wrote no metrics."""
    metrics = policy / "metrics.jsonl"
    if not metrics.exists():
        return "", ""
    rows: list[Mapping[str, Any]] = [
        orjson.loads(line) for line in metrics.read_bytes().splitlines()
    ]
    speeds = sorted(row["tokens_per_s"] for row in rows)
    return f"{speeds[len(speeds) // 2]:,.0f}", f"{max(row['memory_gb'] for row in rows):.1f}"
