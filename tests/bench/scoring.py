"""Speed of `score` on tau-bench files, against orjson on the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import orjson

from examples.trace.generate import TRACE
from irc_cli.traces import TraceReader
from stages.score import Scorer
from stages.tables.artifacts import TURNS
from stages.tables.table_file import write_table
from stages.tiers.file import load_tiers
from stages.tiers.rules import Tiers
from tests.bench.timing import Row, row

SHARED = Path(__file__).resolve().parents[3] / "shared/data/tau-bench/gpt-4o-airline.json"
POLICY = "Confirm with the user before you write; refuse what the policy forbids. " * 85  # 6 kB


def tau_bench_file(folder: Path) -> Path:
    """Write our example trace as a tau-bench file, with a policy as long as tau-bench's."""
    items: list[dict[str, Any]] = []
    for line in TRACE.read_bytes().splitlines():
        episode = orjson.loads(line)
        if episode["status"] == "ok":
            actions = [
                {"name": a["name"], "kwargs": a["arguments"]} for a in episode["gold_actions"]
            ]
            items.append(
                {
                    "task_id": episode["task_id"],
                    "trial": episode["trial"],
                    "reward": float(episode["outcome"]),
                    "info": {"task": {"actions": actions}},
                    "traj": [{"role": "system", "content": POLICY}, *episode["messages"]],
                }
            )
    path = folder / "example.json"
    path.write_bytes(orjson.dumps(items))
    return path


def score(path: Path, tiers: Tiers, out: Path) -> None:
    """Do all that `irc-cli score` does after start-up: read, hash, compare, classify, write."""
    scorer = Scorer(tiers)
    reader = TraceReader([str(path)], quiet=True)
    for episode, domain in reader:
        scorer.add([episode], domain)
    write_table(TURNS, scorer.scored.frame(), str(out), {"inputs": reader.digests}, force=True)


def bench() -> list[Row]:
    """Measure our example as a tau-bench file, and a real file if it is there."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "turns.parquet"
        files = {"example as tau-bench": tau_bench_file(Path(folder)), "gpt-4o-airline": SHARED}
        return [
            _row(f"score, {tiers}, {name}", path, load_tiers(tiers), out)
            for name, path in files.items()
            for tiers in ("extended", "flat")
            if path.exists()
        ]


def _row(name: str, path: Path, tiers: Tiers, out: Path) -> Row:
    def read() -> object:
        return orjson.loads(path.read_bytes())

    return row(name, "orjson.loads", lambda: score(path, tiers, out), read, 2.5, runs=15)
