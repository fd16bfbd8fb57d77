"""`irc-cli export preferences`: pairs of a better and a worse turn."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from stages.core.advantages import AdvantageConfig
from stages.errors import InputError
from stages.exports.preferences import Prefix, preferences
from stages.settings import Setting
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.training.inputs import other_turns, played_advantages, read_rollouts, read_values

PAIRS = "Pairs"  # panel of the help
_SAME = {"exact": "messages", "calls": "calls and results"}


@dataclass(frozen=True)
class Pairs:
    """Which turns are paired."""

    prefix: Annotated[
        Prefix,
        Setting(
            "What both turns of a pair share before them: all messages, or calls and results.",
            PAIRS,
        ),
    ] = "exact"
    min_gap: Annotated[
        float, Setting("Least difference between the two advantages.", PAIRS, low=0)
    ] = 0.0


@options.expanded()
def command(
    *,
    rollouts: writing.Rollouts,
    scored_files: writing.ScoredFiles,
    out: options.Out = None,
    pairs: Pairs,
    advantage: AdvantageConfig,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write pairs of turns as JSON lines of 'prompt', 'chosen', 'rejected' and 'tools'.

    Example: irc-cli export preferences rollouts.jsonl --turns turns.parquet -o pairs.jsonl
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    same, gap = pairs.prefix, pairs.min_gap
    turns, calibration = scored_files.turns, scored_files.calibration
    notes = Counter[str]()
    played = read_rollouts(rollouts, notes)
    values = read_values(calibration, turns, advantage)
    scored = read_table(TURNS, turns)
    table = played_advantages(played, scored, values, advantage, turns, scored_files.advantages)
    notes += other_turns(played, scored)
    rows = list(preferences(played.episodes, table, played.tools, same, gap, played.prompt))
    if not rows:
        what = f"no group has two turns after the same {_SAME[same]} with one better than the other"
        todo = "play more episodes of a task" + (" or pass --prefix calls" * (same == "exact"))
        raise InputError(rollouts, what, todo)
    settings = {"prefix": same, "min_gap": gap, "calibration": calibration}
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by(
        "export preferences",
        settings | {"advantage": scored_files.estimator(advantage)},
        seed,
        writing.digests([rollouts, *scored_files.paths]),
    )
    writing.write_lines(rows, out, made_by, force=printing.force)
    document = {"rows": len(rows), "episodes": len(played.episodes)}
    line = f"{len(rows):,} pairs of turns, from {len(played.episodes):,} episodes"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
