"""`irc-cli calibrate` on 10, 30 and 100 million turns: the time, memory and shards of `--partial`,
and the memory of `--stream`, which also checks the direction on whole groups.

It writes 0.3 GB to the folder for temporary files and deletes them. The sums of ten separate shards
are added up, and must equal the sums of one run in every bit. CPU time is measured, so that other
work on the machine does not matter. `SHARD=1000000` makes all sizes a tenth.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

from stages.calibration.shards import add_up, read_sums
from stages.tables.artifacts import TURNS
from tests.bench.timing import Row

SHARD, SHARDS = int(os.environ.get("SHARD", 10_000_000)), 10  # turns per file, and files
TIERS, TASKS = 10, 5_000
MEMORY_GB = 1.0


def shard(number: int, turns: int = SHARD) -> pl.DataFrame:
    """Return turns (TURNS): episodes of 2 to 18, in groups of 8 per task, new in each shard."""
    rng = np.random.default_rng(number)
    length = rng.integers(2, 19, turns // 10)
    n, episodes = int(length.sum()), len(length)
    episode = np.repeat(np.arange(episodes), length)
    outcome = rng.integers(0, 2, episodes)[episode]
    task = pl.Series(episode // 8 % TASKS).cast(pl.String)
    # The last tier is half of all turns.
    tier = rng.choice(TIERS, n, p=[0.5 / (TIERS - 1)] * (TIERS - 1) + [0.5])
    columns = {
        "episode_id": pl.Series(episode + number * episodes).cast(pl.String),
        "task_id": task,
        "group_id": task,
        "policy": pl.Series(["policy"]).new_from_index(0, n),
        "domain": pl.Series(["airline"]).new_from_index(0, n),
        "turn": np.arange(n) - np.repeat(np.cumsum(length) - length, length),
        "tier": np.array([f"tier_{i}" for i in range(TIERS)])[tier],
        "reward": np.zeros(n),
        "outcome": outcome,
        "success": outcome == 1,
        "status": pl.Series(["ok"]).new_from_index(0, n),
    }
    unknown = {name: pl.lit(None) for name in TURNS.columns if name not in columns}
    return (
        pl.DataFrame(columns)
        .select(pl.col(columns), **unknown)
        .select(pl.col(name).cast(to) for name, to in TURNS.columns.items())
    )


def write(path: Path, *parts: str | Path) -> Path:
    """Write the shard of this number, or these files as one, in a separate process.

    A child's peak memory starts at its parent's, so that this process has to stay small.
    """
    command = [sys.executable, "-m", "tests.bench.scale", str(path), *map(str, parts)]
    subprocess.run(command, check=True)
    return path


def calibrate(turns: Path, out: Path, way: str = "--partial") -> tuple[float, float]:
    """Return the CPU seconds and the peak gigabytes of the command, including its start."""
    return cost(["calibrate", str(turns), way, "--quiet", "--force", "-o", str(out)])


def cost(arguments: list[str]) -> tuple[float, float]:
    """Return the CPU seconds and the peak gigabytes of an irc-cli command in its own process."""
    process = subprocess.Popen([sys.executable, "-m", "irc_cli", *arguments])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{arguments} failed")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def measured(shards: list[Path], folder: Path) -> list[Row]:
    """Measure files of 10, 30 and 100 million turns, and the same turns as ten shards."""
    base = f"{SHARD // 10**6} M"
    runs = [calibrate(path, folder / f"{path.stem}.sums") for path in shards]
    base_s = statistics.median(seconds for seconds, _ in runs)
    rows, streamed_gb, one = [], list[float](), folder / "one"
    sizes = {count: f"{count * SHARD // 10**6} M turns" for count in (3, len(shards))}
    for count, turns in sizes.items():
        path = write(folder / "turns.parquet", *shards[:count])
        seconds, peak_gb = calibrate(path, one)
        streamed_gb.append(calibrate(path, folder / "calibration.yaml", "--stream")[1])
        rows += [
            Row(f"CPU time of {turns}", f"{count} x that of {base}", seconds, count * base_s, 1.1),
            Row(f"memory of {turns}", "1 GB", peak_gb, MEMORY_GB, 1, "GB"),
        ]
    name, peer = f"memory of --stream, {sizes[len(shards)]}", f"that of {sizes[3]}"
    rows.append(Row(name, peer, streamed_gb[1], streamed_gb[0], 1.2, "GB"))
    apart = add_up(read_sums(str(folder / f"{path.stem}.sums"), "presence") for path in shards)
    if not apart.sums.equals(read_sums(str(one), "presence").sums):
        raise RuntimeError("shards do not add up to one run")
    return rows


def bench() -> list[Row]:
    """Write the shards, and measure."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = [write(folder / f"{k}.parquet", str(k)) for k in range(SHARDS)]
        return measured(shards, folder)


if __name__ == "__main__":
    out, *parts = sys.argv[1:]
    if len(parts) == 1:
        shard(int(parts[0])).write_parquet(out)
    else:
        pl.scan_parquet(parts).sink_parquet(out)
