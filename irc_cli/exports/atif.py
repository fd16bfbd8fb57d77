"""`irc-cli export atif`: traces of any format as a job folder of Harbor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from irc_cli import options
from irc_cli.exports.conversions import Conversion
from irc_cli.traces import Paths, TraceOptions
from stages.errors import InputError
from stages.exports.atif import result, trajectory, trial_names
from stages.exports.credits import check_credits, credits_of
from stages.tables.artifacts import TURNS
from stages.tables.files import half_written, reachable, whole_folder
from stages.tables.inputs import refuse_input
from stages.tables.inspected import inspected_advantages
from stages.tables.table_file import read_table
from stages.tables.turn_arrays import turn_arrays

MADE = "irc_cli.meta.json"  # lineage of the folder


@options.expanded()
def command(
    *,
    traces: Paths,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write the job to, with one folder per trial.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    turns: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Turns of the traces, from irc-cli score.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    advantages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Advantages of the turns, from irc-cli calibrate.",
            rich_help_panel=options.INPUT,
        ),
    ] = None,
    source: TraceOptions,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write ATIF trajectories and Harbor's results, with tier, rewards and advantage of each turn.

    Example: irc-cli export atif traces.json --turns turns.parquet -o job
    """
    if out:
        _check_folder(Path(out), force=printing.force)
    if advantages and not turns:
        raise InputError("--advantages", "has no tiers", "pass --turns FILE too")
    scored = read_table(TURNS, turns) if turns else None
    weighed = None
    if scored is not None and turns and advantages:
        weighed = inspected_advantages(advantages, turn_arrays(scored), turns)
    credits = {} if scored is None else credits_of(scored, weighed)
    conversion = Conversion("export atif", traces, source, out, printing)
    episodes = conversion.episodes
    if turns:
        counted = {e.episode_id: len(e.turns) for e in episodes if e.counts and e.turns}
        check_credits(credits, counted, turns)
    trials = [
        (row, trajectory(row, episode.turns, credits, conversion.notes))
        for row, episode in zip(conversion.rows(), episodes, strict=True)
    ]
    with conversion.writing(seed, [turns, advantages]) as made_by:
        if out:
            _write(trials, out, made_by)
    steps = sum(len(document["steps"]) for _, document in trials)
    document = {"trials": len(trials), "steps": steps, "turns_with_tier": len(credits)}
    conversion.report(document, f"{len(trials):,} trials, {steps:,} steps")


def _check_folder(folder: Path, *, force: bool) -> None:
    """Raise InputError unless the folder can be written; only our own are replaced."""
    with reachable(str(folder)):
        if not folder.absolute().parent.is_dir():
            raise InputError(str(folder), f"no directory '{folder.parent}'", "create it first")
        if not folder.exists():
            return
        refuse_input(str(folder), folder=True)
        if not (folder / MADE).is_file():
            raise InputError(str(folder), "exists already", "name a folder that does not exist")
        if not force and not half_written(str(folder)):
            raise InputError(str(folder), "exists already", "pass --force to replace it")


def _write(
    trials: list[tuple[dict[str, Any], dict[str, Any]]],
    folder: str,
    made_by: dict[str, Any],
) -> None:
    """Write all trials; the folder appears when it is complete."""
    with reachable(folder), whole_folder(folder) as temporary:
        names = trial_names(row["episode_id"] for row, _ in trials)
        for name, (row, document) in zip(names, trials, strict=True):
            (temporary / name / "agent").mkdir(parents=True)
            _dump(document, temporary / name / "agent" / "trajectory.json")
            _dump(result(row, name), temporary / name / "result.json")
        _dump(made_by, temporary / MADE)


def _dump(document: dict[str, Any], path: Path) -> None:
    path.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
