"""`irc-cli export preferences`: pairs of turns of which one is better."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from typing import Annotated, cast, get_args

import typer

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import Strict, check_notes
from stages.core.advantages import AdvantageConfig
from stages.errors import InputError
from stages.exports.preferences import Prefix, preferences
from stages.tables.artifacts import TURNS, read_table
from stages.training.inputs import other_turns, played_advantages, read_rollouts, read_values

_PREFIXES = get_args(Prefix)
_SAME = {"exact": "messages", "calls": "calls and results"}


@options.expanded()
def command(
    *,
    rollouts: writing.Rollouts,
    turns: writing.Turns,
    calibration: writing.Calibration = None,
    out: options.Out = None,
    prefix: Annotated[
        str,
        typer.Option(
            metavar="|".join(_PREFIXES),
            help="What is the same before both turns: all messages, or calls and their results.",
        ),
    ] = "exact",
    min_gap: Annotated[float, typer.Option(help="Least difference of the two advantages.")] = 0.0,
    advantage: AdvantageConfig,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write pairs of turns as JSON lines of 'prompt', 'chosen', 'rejected' and 'tools'.

    Example: irc-cli export preferences rollouts.jsonl --turns turns.parquet -o pairs.jsonl
    """
    writing.check_lines(out, as_json=as_json, force=force)
    same = cast(Prefix, options.one_of("prefix", prefix, _PREFIXES))
    gap = options.within("min-gap", min_gap, 0, sys.float_info.max)
    notes = Counter[str]()
    played = read_rollouts(rollouts, notes)
    values = read_values(calibration, turns)
    scored = read_table(TURNS, turns)
    table = played_advantages(played, scored, values, advantage, turns)
    notes += other_turns(played, scored)
    rows = list(preferences(played.episodes, table, played.tools, same, gap, played.prompt))
    if not rows:
        what = f"no two turns of a group, after the same {_SAME[same]}, of which one is better"
        todo = "play more episodes of a task" + (" or pass --prefix calls" * (same == "exact"))
        raise InputError(rollouts, what, todo)
    settings = {"prefix": same, "min_gap": gap, "calibration": calibration}
    check_notes(notes, strict=strict)
    made_by = console.made_by(
        "export preferences",
        settings | {"advantage": asdict(advantage)},
        seed,
        writing.digests([rollouts, turns, calibration]),
    )
    writing.write_lines(rows, out, made_by, force=force)
    document = {"rows": len(rows), "episodes": len(played.episodes)}
    line = f"{len(rows):,} pairs of turns, from {len(played.episodes):,} episodes"
    writing.report(document, notes, line, out, as_json=as_json, quiet=quiet)
