"""Memory of `score` on a trace of 1 GB: copies of our example's episodes under new ids.

Run as `python -m tests.bench memory`. It takes minutes and 1 GB of disk, and is not part of
`make bench`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import orjson

from examples.trace.generate import TRACE
from tests.bench.scale import cost
from tests.bench.timing import Row

BYTES = 1_000_000_000
PROMISED_GB = 0.3


def write_trace(path: Path) -> int:
    """Write the trace, with new groups for each copy; return the number of episodes."""
    episodes = [orjson.loads(line) for line in TRACE.read_bytes().splitlines()]
    copies = 0
    with path.open("wb") as file:
        while file.tell() < BYTES:
            for episode in episodes:
                new = {"episode_id": f"{episode['episode_id']}-{copies}"}
                new["group_id"] = f"{episode['task_id']}-{copies}"
                file.write(orjson.dumps(episode | new, option=orjson.OPT_APPEND_NEWLINE))
            copies += 1
    return copies * len(episodes)


def bench() -> list[Row]:
    """Measure the peak resident memory of the command in a separate process."""
    with tempfile.TemporaryDirectory() as folder:
        trace, out = Path(folder) / "trace.jsonl", str(Path(folder) / "turns.parquet")
        episodes = write_trace(trace)
        _, peak_gb = cost(["score", str(trace), "-o", out, "--quiet"])
    name = f"score, {BYTES / 1e9:g} GB, {episodes:,} episodes"
    return [Row(name, "what we promise", peak_gb, PROMISED_GB, 1, "GB")]
