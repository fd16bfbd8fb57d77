"""Time from nothing to the help text, beside an empty typer app."""

from __future__ import annotations

import subprocess
import sys

from tests.bench.timing import Row, row

EMPTY_APP = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def run(*arguments: str) -> None:
    """Run Python and wait."""
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def bench() -> list[Row]:
    """Whole processes, the entry point as pip installs it."""
    ours = "from irc_cli.app import main; main()"
    return [
        row(
            "irc-cli --help",
            "empty typer app --help",
            lambda: run("-c", ours, "--help"),
            lambda: run("-c", EMPTY_APP, "--help"),
            1.3,
            runs=15,
        )
    ]
