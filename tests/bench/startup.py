"""Time from the start of a process to the help text, and to the turns of a small trace."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from examples.trace.generate import TRACE
from tests.bench.timing import Row, row

OURS = "from irc_cli.app import main; main()"  # the entry point as pip installs it
EMPTY_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"
# An app that parses its options, with the libraries that read traces and write tables.
IMPORTS = """
import msgspec, orjson, polars, rich.console, typer, yaml
app = typer.Typer()
@app.command()
def command(number: int = 1): pass
app()
"""
EPISODES = 2
RUNS = 15
# Installed packages have their bytecode, so ours may be written too.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}


def run(*arguments: str) -> None:
    """Run Python and wait."""
    command = [sys.executable, *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)


def bench() -> list[Row]:
    """Time whole processes."""
    with tempfile.TemporaryDirectory() as folder:
        trace, out = Path(folder) / "trace.jsonl", str(Path(folder) / "turns.parquet")
        trace.write_bytes(b"".join(TRACE.read_bytes().splitlines(keepends=True)[:EPISODES]))
        score = ("score", str(trace), "-o", out, "--force", "--quiet")
        return [
            row(
                "irc-cli --help",
                "empty typer app --help",
                lambda: run("-c", OURS, "--help"),
                lambda: run("-c", EMPTY_APP, "--help"),
                1.3,
                runs=RUNS,
            ),
            row(
                f"score, {EPISODES} episodes",
                "typer app with the same imports",
                lambda: run("-c", OURS, *score),
                lambda: run("-c", IMPORTS, "--number", "2"),
                1.5,
                runs=RUNS,
            ),
        ]
