"""`make bench`: every bench, or those named, as one table."""

from __future__ import annotations

import sys
from importlib import import_module

from rich.console import Console

from irc_cli import console
from tests.bench.timing import Row

WIDTH = 160  # columns
BENCHES = (
    "arguments",
    "reading",
    "scoring",
    "sums",
    "advantages",
    "startup",
    "bootstrap",
    "report",
)


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    if row.at_most < 1:
        better = "smaller" if row.unit == "GB" else "faster"
        ratio, want = f"{1 / row.ratio:,.1f}x {better}", f">= {1 / row.at_most:,.3g}x {better}"
    else:
        ratio, want = f"{row.ratio:.2f}x", f"<= {row.at_most:.3g}x"
    reached = "[green]reached" if row.ratio <= row.at_most else "[red]missed"
    both = (row.ours_s, row.peer_s)
    figures = (f"{x:,.2f} GB" if row.unit == "GB" else f"{x * 1e3:,.3f} ms" for x in both)
    return row.name, row.peer, *figures, ratio, want, reached


def main(names: list[str]) -> None:
    """Run the benches, and print medians, ratios and targets."""
    table = console.table("what", "peer", "ours", "peer's", "ratio", "want", "", left=(0, 1, 6))
    for name in names or BENCHES:
        for row in import_module(f"tests.bench.{name}").bench():
            table.add_row(*cells(row))
    Console(width=WIDTH).print(table)


main(sys.argv[1:])
