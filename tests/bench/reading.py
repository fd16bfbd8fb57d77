"""Speed of the trace readers, against orjson on the same lines.

CPU time is measured, so that other work on the machine does not matter.
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
    """Read a trace completely: lines, hash, JSON, episodes; return the number of turns."""
    return sum(len(episode.turns) for episode in open_trace(str(path)))


def loaded(path: Path) -> None:
    """Parse the lines with orjson alone."""
    with path.open("rb") as file:
        for line in file:
            orjson.loads(line)


def bench() -> list[Row]:
    """Measure every format as JSON lines of a few MB."""
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
