"""What commands print: results on standard output, everything else on standard error."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import orjson
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from irc_cli import __version__
from stages.core.arguments.depth import at_any_depth
from stages.core.printable import UNSEEN, printable

T = TypeVar("T")
_PIPE_WIDTH = 120  # columns of a report that no terminal limits
_UNSEEN = re.compile(f"[{UNSEEN}]")


class PlainConsole(Console):
    """A console on which all text is data: one line, no markup, no control codes."""

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the printable form of any printed text, including table cells."""
        return super().render_str(printable(text), **options)


def console(*, stderr: bool = False) -> Console:
    """Return a console for standard output or error; colours only on a terminal."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPE_WIDTH
    return PlainConsole(
        file=stream, width=width, highlight=False, soft_wrap=False, markup=False, emoji=False
    )


def styled(text: str, style: str) -> Text:
    """Return text from outside in a style."""
    return Text(printable(text), style)


def heading(text: str, *, stderr: bool = False) -> None:
    """Print one line in bold."""
    console(stderr=stderr).print(text, style="bold")


def table(*columns: str, left: tuple[int, ...] = (0,)) -> Table:
    """Return a plain table; columns hold numbers, aligned right, except those of `left`."""
    empty = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for i, column in enumerate(columns):
        empty.add_column(column, justify="left" if i in left else "right", no_wrap=True)
    return empty


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document on standard output; an undefined number is null."""
    # JSON may hold characters that act on a terminal; escaped, the document is the same.
    text = _UNSEEN.sub(_escaped, as_json(document, orjson.OPT_INDENT_2))
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.flush()


def _escaped(hit: re.Match[str]) -> str:
    return json.dumps(hit[0])[1:-1]


@at_any_depth
def as_json(value: object, option: int = 0) -> str:
    """Return the JSON text of any value that JSON can hold.

    Args:
        value: the value; numpy numbers are allowed, and NaN becomes null.
        option: orjson's option flags.
    """
    try:
        return orjson.dumps(value, option=option | orjson.OPT_SERIALIZE_NUMPY).decode()
    except orjson.JSONEncodeError:  # too deep, over 64 bits, a Decimal, a lone surrogate
        return json.dumps(value, indent=2 if option & orjson.OPT_INDENT_2 else None, default=str)


def note(text: str, *, quiet: bool = False) -> None:
    """Print a line on standard error."""
    if not quiet:
        sys.stderr.write(f"{printable(text)}\n")


def progress(items: Iterable[T], what: str, *, quiet: bool = False) -> Iterator[T]:
    """Yield the items; after a second, show their count on standard error if it is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield from items
        return
    text = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), text, BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, console=console(stderr=True), transient=True)
    task, started, shown = bar.add_task(printable(what), total=None), time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not shown and time.monotonic() - started > 1:
                bar.start()
                shown = True
    finally:
        if shown:
            bar.stop()


def made_by(
    command: str, settings: Mapping[str, Any], seed: int | None, inputs: Mapping[str, str | None]
) -> dict[str, Any]:
    """Return the lineage that an artifact records.

    Args:
        command: name of the command, such as "export messages".
        settings: settings of the command.
        seed: seed of the command; None: it has none.
        inputs: sha256 of each input by its path; None: the input is in an object store.
    """
    return {
        "irc_cli": __version__,
        "command": command,
        "settings": dict(settings),
        "seed": seed,
        "inputs": [{"path": path, "sha256": digest} for path, digest in inputs.items()],
    }
