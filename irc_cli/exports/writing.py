"""Shared by the formats: inputs, JSON lines with lineage, and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from irc_cli import console, options
from irc_cli.notes import show_notes
from stages.core.advantages import AdvantageConfig
from stages.settings import Setting
from stages.tables.files import digest, refuse_existing
from stages.tables.table_file import made_by_path, write_rows

Conversations = Annotated[
    list[str],
    typer.Argument(metavar="FILES...", help="rollouts.jsonl, or other JSON lines with 'messages'."),
]
Rollouts = Annotated[str, typer.Argument(metavar="ROLLOUTS", help="Rollouts of irc-cli rollout.")]


@dataclass(frozen=True)
class ScoredFiles:
    """Files with the rewards and advantages of rollouts."""

    turns: Annotated[
        str, Setting("Turns of the rollouts, from irc-cli score.", options.INPUT, metavar="FILE")
    ]
    calibration: Annotated[
        str | None,
        Setting(
            "Calibration with the value of each tier; default: the rewards in the turns.",
            options.INPUT,
            metavar="FILE",
        ),
    ] = None
    advantages: Annotated[
        str | None,
        Setting(
            "Advantages of these turns, from irc-cli calibrate; default: compute them.",
            options.INPUT,
            metavar="FILE",
        ),
    ] = None

    @property
    def paths(self) -> list[str]:
        """The given files."""
        return [path for path in (self.turns, self.calibration, self.advantages) if path]

    def estimator(self, config: AdvantageConfig) -> dict[str, Any] | None:
        """Return the estimator's settings to record; None: the advantages were read."""
        return None if self.advantages else asdict(config)


def check_lines(out: str | None, *, as_json: bool, force: bool) -> None:
    """Raise InputError before any work if JSON lines or their lineage can't be written."""
    options.check_outputs([out], as_json=as_json, force=force)
    if out and out != "-":
        refuse_existing(made_by_path(out), force=force)


def digests(paths: Sequence[str | None]) -> dict[str, str]:
    """Return the sha256 of each input that was given."""
    return {path: digest(path) for path in paths if path}


def write_lines(
    rows: Sequence[dict[str, Any]], out: str | None, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write rows as JSON lines, if there is an output."""
    if out:
        write_rows(rows, out, made_by, force=force)


def report(
    document: dict[str, Any],
    notes: Mapping[str, int],
    line: str,
    out: str | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    """Print the counts of an export and the notes, as a document or as lines."""
    if as_json:
        console.print_json(document | {"notes": dict(notes)})
    elif not quiet:
        console.heading(line, stderr=out == "-")
        show_notes(notes)
