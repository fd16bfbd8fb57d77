"""Speed of the readers of traces, beside orjson reading the same lines.

Time is of the CPU, so that a machine shared with other work measures the same.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import orjson

from stages.traces.opening import open_trace
from tests.bench.timing import Row, row
from tests.bench.written import FORMATS, lines

BYTES = 3_000_000
AT_MOST = 3


def read(path: Path) -> int:
    """All that reading is: lines, hash, JSON, episodes; return the number of turns."""
    return sum(len(episode.turns) for episode in open_trace(str(path)))


def loaded(path: Path) -> None:
    """What orjson does of it."""
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)


def bench() -> list[Row]:
    """Every format as JSON lines of a few MB."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.jsonl"
        for name in FORMATS:
            path.write_bytes(b"".join(lines(name, BYTES)))
            opened = open_trace(str(path))
            assert name.startswith(opened.format) and any(episode.turns for episode in opened)
            rows.append(
                row(
                    f"reading {name}",
                    "orjson.loads",
                    lambda: read(path),
                    lambda: loaded(path),
                    AT_MOST,
                    clock=time.process_time,
                )
            )
    return rows
