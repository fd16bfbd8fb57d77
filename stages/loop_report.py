"""The loop panel: pass rates, values and gates by iteration, from the files of a loop."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import orjson

from stages.errors import InputError
from stages.loop_files import SETTINGS
from stages.reporting.recorded import read_calibration
from stages.reporting.tasks import FAILED, PASSED, TRUNCATED, episode_rows, pass_rate_of
from stages.tables.artifacts import TURNS
from stages.tables.state import check_types, read_state
from stages.tables.table_file import read_table
from stages.tables.yamlfile import read_yaml

TURNS_FILE, ROLLOUTS, CALIBRATION = "turns.parquet", "rollouts.jsonl", "calibration.yaml"
LOG = "loop.jsonl"


class _Measured(TypedDict):
    """The fields of an evaluation that the panel shows."""

    episodes: int
    tasks: int
    pass_rate: float
    ci_low: float
    ci_high: float


class _Line(TypedDict):
    """The fields of a line of the loop's log that the panel shows."""

    iteration: int
    misaligned: NotRequired[list[str] | None]
    verdicts: NotRequired[dict[str, tuple[str, str]] | None]
    gates: NotRequired[list[dict[str, Any]] | None]
    restored: NotRequired[bool | None]


def is_loop(folder: Path) -> bool:
    """Return whether a folder is the output of a loop."""
    return (folder / SETTINGS).is_file()


def iterations(folder: Path) -> list[Path]:
    """Return the folders of the iterations that have turns, in order.

    Args:
        folder: folder of the loop.

    Returns:
        At least one folder.

    Raises:
        InputError: no iteration has turns.
    """
    folders = sorted(folder.glob("iter-*"), key=lambda path: (len(path.name), path.name))
    done = [path for path in folders if (path / TURNS_FILE).is_file()]
    if not done:
        raise InputError(str(folder), "no iteration has turns yet", "let the loop finish one")
    return done


def shown_iteration(folder: Path) -> Path:
    """Return the newest iteration that has both successes and failures, else the newest one.

    Args:
        folder: folder of the loop.

    Returns:
        The folder of the iteration.

    Raises:
        InputError: no iteration has turns.
    """
    done = iterations(folder)
    for path in reversed(done):
        states = set(episode_rows(read_table(TURNS, str(path / TURNS_FILE)))["state"])
        if PASSED in states and states & {FAILED, TRUNCATED}:
            return path
    return done[-1]


def newest_calibration(iteration: Path) -> Path | None:
    """Return the calibration of an iteration's last round; None if there is none."""
    rounds = sorted(iteration.glob(f"round-*/{CALIBRATION}"), key=lambda path: path.parent.name)
    paths = [path for path in (iteration / CALIBRATION, *rounds) if path.is_file()]
    return paths[-1] if paths else None


def loop_panel(folder: Path, shown: Path) -> dict[str, Any]:
    """Return a row per iteration: pass rates with their intervals, values, verdicts and gates.

    Args:
        folder: folder of the loop.
        shown: folder of the iteration whose turns the report shows.

    Returns:
        The panel as plain values.

    Raises:
        InputError: a file of the loop can't be read.
    """
    settings = {
        name: node.plain() for name, node in read_yaml(str(folder / SETTINGS)).fields().items()
    }
    rows = [_row(path) for path in iterations(folder)]
    log = _log(folder)
    for row in rows:
        row |= _logged(log.get(row["iteration"], {}))
    start = _evaluation(folder / "start")
    tiers = sorted({tier for row in rows for tier in row["values"]})
    wanted = ("env", "model", "tasks", "group_size", "rewards", "window", "seed")
    return {
        "settings": {name: settings.get(name) for name in wanted if name in settings},
        "start": start,
        "shown": shown.name,
        "tiers": tiers,
        "iterations": rows,
    }


def _row(iteration: Path) -> dict[str, Any]:
    """Return the row of one iteration from its files."""
    episodes = episode_rows(read_table(TURNS, str(iteration / TURNS_FILE)))
    values: dict[str, dict[str, Any]] = {}
    if path := newest_calibration(iteration):
        values = {
            tier.tier: tier._asdict() for tier in read_calibration(str(path)).calibration.tiers
        }
    names = ("value", "status", "ci_low", "ci_high", "q")
    return {
        "iteration": int(iteration.name.rpartition("-")[2]),
        "played": pass_rate_of(episodes),
        "values": {tier: {n: row.get(n) for n in names} for tier, row in values.items()},
        "evaluation": _evaluation(iteration),
    }


def _evaluation(folder: Path) -> dict[str, Any] | None:
    path = folder / "eval.json"
    if not path.is_file():
        return None
    try:
        measured = read_state(path, _Measured, "run the loop again")
    except InputError:
        raise InputError(str(path), "is no output of irc-cli eval", "run the loop again") from None
    return {name: measured[name] for name in _Measured.__annotations__}


def _log(folder: Path) -> dict[int, Mapping[str, Any]]:
    """Return the lines of the loop's log by iteration; an older loop may have no log."""
    path = folder / LOG
    if not path.is_file():
        return {}
    try:
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines() if line.strip()]
        for row in rows:
            check_types(row, _Line, str(path), "run the loop again")
        return {row["iteration"]: row for row in rows}
    except ValueError:  # an InputError is one, too
        raise InputError(str(path), "is no log of a loop", "run the loop again") from None


def _logged(line: Mapping[str, Any]) -> dict[str, Any]:
    names = ("misaligned", "verdicts", "gates", "restored")
    return {name: line.get(name) for name in names}
