"""The size of a page of 10,000 episodes, and the time that a browser takes to open it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from tests.bench.timing import Row
from tests.conftest import exit_code
from tests.report_pages import MISSING, browser, many_episodes, opened, write_rows

TASKS, TRIALS = 1250, 8
OPEN_S, LARGEST_GB = 3.0, 0.05  # what we promise


def page_of(folder: Path) -> Path:
    """Write the page of 10,000 episodes of random words, which compress worse than real ones."""
    traces, turns, path = (folder / name for name in ("t.jsonl", "turns.parquet", "report.html"))
    write_rows(traces, many_episodes(TASKS, TRIALS))
    for args in (
        ["score", str(traces), "-o", str(turns), "-q"],
        ["report", str(turns), "--traces", str(traces), "-o", str(path), "-q"],
    ):
        if code := exit_code(args):
            raise SystemExit(code)
    return path


def bench() -> list[Row]:
    """Return both rows; that of the browser only if there is one."""
    name = f"report, {TASKS * TRIALS:,} episodes"
    with tempfile.TemporaryDirectory() as folder:
        path = page_of(Path(folder))
        size = Row(
            f"{name}, size", "what we promise", path.stat().st_size / 1e9, LARGEST_GB, 1, "GB"
        )
        if MISSING:
            return [size]
        with browser() as chromium:
            begin = time.perf_counter()
            opened(chromium, path)
            seconds = time.perf_counter() - begin
        return [size, Row(f"{name}, open", "what we promise", seconds, OPEN_S, 1)]
