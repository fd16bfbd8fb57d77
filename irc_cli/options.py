"""Options that every command has, and `--config`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.errors import InputError
from stages.tables.files import reachable, refuse_existing
from stages.tables.yamlfile import Node, nearest, read_yaml

BELOW_ONE = math.nextafter(1, 0)


def use_config(ctx: typer.Context, path: str | None) -> str | None:
    """Take the defaults of this command's options from a YAML file."""
    if path is None or ctx.resilient_parsing:
        return path
    known = {
        flag.removeprefix("--"): parameter
        for parameter in ctx.command.params
        for flag in parameter.opts
        if flag.startswith("--") and parameter.name not in ("config", "help")
    }
    given = read_yaml(path).fields(known)
    settings = {
        str(known[key].name): _setting(node, several=known[key].multiple)
        for key, node in given.items()
    }
    ctx.default_map = dict(ctx.default_map or {}) | settings  # --method may have set some
    return path


def _setting(node: Node, *, several: bool) -> Any:
    """Return what a config file says of one option; a list only where it takes several values."""
    if several:
        return [item.plain() for item in node.items()]
    if isinstance(node.value, (list, dict)):
        raise node.error("expected a single value")
    return node.value


Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.yaml",
        callback=use_config,
        is_eager=True,
        help="Read options from this file: its keys are the long option names.",
    ),
]
Out = Annotated[
    str | None,
    typer.Option("--out", "-o", metavar="FILE", help="File to write; '-' for standard output."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no report and no notes.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Seed = Annotated[int, typer.Option(metavar="N", min=0, help="Seed of whatever is drawn at random.")]


def check_outputs(outs: list[str | None], *, as_json: bool, force: bool) -> None:
    """Raise InputError before any work if an output could not be written."""
    if as_json and "-" in outs:
        raise InputError("--json", "standard output is taken by '-o -'", "use one of them")
    for out in outs:
        if out and out != "-":
            refuse_existing(out, force=force)


def refuse_twice(paths: list[str]) -> None:
    """Raise InputError if a file is named twice, by whatever path."""
    seen: set[Path] = set()
    for path in paths:
        if Path(path).resolve() in seen:
            raise InputError(path, "given twice", "name each file once")
        seen.add(Path(path).resolve())


def name_or_file(option: str, value: str, names: tuple[str, ...]) -> str:
    """Return the value if it is one of the names or a file, or raise InputError."""
    with reachable(value):
        if value not in names and not Path(value).exists():
            what = f"unknown name '{value}', and no such file"
            raise InputError(f"--{option}", what, nearest(value, names))
    return value


def one_of(option: str, value: str, allowed: tuple[str, ...]) -> str:
    """Return the value, or raise InputError naming what is allowed."""
    if value not in allowed:
        todo = nearest(value, allowed)
        if not todo.startswith("did you mean"):
            todo = f"use {' | '.join(allowed)}"
        raise InputError(f"--{option}", f"unknown value '{value}'", todo)
    return value


def within(option: str, value: float, low: float, high: float) -> float:
    """Return the value, or raise InputError saying its bounds."""
    if not low <= value <= high:
        top = "below 1" if high == BELOW_ONE else f"{high:g}"
        bounds = f"from {low:g} to {top}" if high < 1e300 else f"of at least {low:g}"
        raise InputError(f"--{option}", f"{value:g} is out of range", f"use a number {bounds}")
    return value
