"""Sums per (group, length, tier) over 10 million turns, against a scan of the columns and pandas.

Each run is a separate process, so that its peak memory is that of the work.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from tests.bench.timing import Row

TURNS, TIERS, TASKS = 10_000_000, 10, 5_000
MEMORY_MB = 500
RUNS = 5


def write(path: str) -> int:
    """Write episodes of 2 to 18 turns, in groups of 8 per task; return the number of turns."""
    rng = np.random.default_rng(0)
    length = rng.integers(2, 19, TURNS // 10)
    n, episodes = int(length.sum()), len(length)
    episode = np.repeat(np.arange(episodes), length)
    success = rng.random(episodes) < 0.5
    tiers = np.array([f"tier_{i}" for i in range(TIERS)])
    # The last tier is half of all turns, so that an episode has fewer different tiers.
    tier = rng.choice(TIERS, n, p=[0.5 / (TIERS - 1)] * (TIERS - 1) + [0.5])
    task = pl.Series(episode // 8 % TASKS).cast(pl.String)
    pl.DataFrame(
        {
            "episode_id": pl.Series(episode).cast(pl.String),
            "task_id": task,
            "group_id": task,
            "policy": pl.Series(["policy"]).new_from_index(0, n),
            "domain": pl.Series(["airline"]).new_from_index(0, n),
            "turn": (np.arange(n) - np.repeat(np.cumsum(length) - length, length)).astype(np.int32),
            "tier": tiers[tier],
            "reward": np.zeros(n),
            "outcome": success[episode].astype(np.float64),
            "success": success[episode],
            "status": pl.Series(["ok"]).new_from_index(0, n),
        }
    ).write_parquet(path)
    return n


def ours(path: str) -> int:
    """Compute the sums of `irc-cli calibrate --partial`; return the number of rows."""
    from stages.calibration.sums import sum_turns

    return sum_turns(pl.scan_parquet(path), "presence", path).sums.height


def scan(path: str) -> int:
    """Only read the same columns."""
    from stages.calibration.blocks import COLUMNS

    return pl.scan_parquet(path).select(COLUMNS).collect().height


def pandas(path: str) -> int:
    """Compute the same sums and r_pooled with pandas and scipy."""
    import pandas as pd
    from scipy.stats import pointbiserialr

    turns = pd.read_parquet(path)
    keys = ["task_id", "episode_id"]
    episodes = turns.groupby(keys, sort=False)["success"].first()
    present = turns.groupby([*keys, "tier"], sort=False).size().unstack(fill_value=0) > 0
    for tier in present:
        pointbiserialr(episodes.loc[present.index], present[tier])
    sums = (
        present.groupby("task_id").sum(),
        present[episodes.loc[present.index]].groupby("task_id").sum(),
    )
    return sum(frame.size for frame in sums)


WORK: dict[str, Callable[[str], int]] = {
    "write": write,
    "ours": ours,
    "scan": scan,
    "pandas": pandas,
}


def measured(work: str, path: Path) -> tuple[float, float]:
    """Return the seconds, without imports, and the peak megabytes of one process."""
    command = [sys.executable, "-m", "tests.bench.sums", work, str(path)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    seconds, megabytes = json.loads(done.stdout)
    return seconds, megabytes


def bench() -> list[Row]:
    """Measure 10 million turns of a million episodes and 5,000 tasks."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "turns.parquet"
        measured("write", path)  # not in this process: a child starts at its parent's peak memory
        runs = [(measured("ours", path), measured("scan", path)) for _ in range(RUNS)]
        pandas_s, _ = measured("pandas", path)
    ours_s = statistics.median(seconds for (seconds, _), _ in runs)
    scan_s = statistics.median(seconds for _, (seconds, _) in runs)
    megabytes = max(megabytes for (_, megabytes), _ in runs)
    name = f"sums of 10 M turns, peak {megabytes:,.0f} MB (want < {MEMORY_MB})"
    return [
        Row(name, "polars scan of the columns", ours_s, scan_s, 3),
        Row(name, "pandas and pointbiserialr (1 run)", ours_s, pandas_s, 1 / 20),
    ]


if __name__ == "__main__":
    begin = time.perf_counter()
    WORK[sys.argv[1]](sys.argv[2])
    elapsed = time.perf_counter() - begin
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    sys.stdout.write(json.dumps([elapsed, peak_mb]))
