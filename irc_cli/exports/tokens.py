"""`irc-cli export tokens`: the advantage of every token, for any trainer's loss."""

from __future__ import annotations

from collections import Counter

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from stages.core.advantages import AdvantageConfig
from stages.exports.tokens import token_advantages
from stages.tables.artifacts import SEQUENCES, TURNS
from stages.tables.paths import RunFiles
from stages.tables.table_file import read_table, write_table
from stages.training.examples import reinforced
from stages.training.inputs import (
    check_tokens,
    other_turns,
    played_advantages,
    read_rollouts,
    read_values,
)


@options.expanded()
def command(
    *,
    rollouts: writing.Rollouts,
    scored_files: writing.ScoredFiles,
    out: options.Out = None,
    advantage: AdvantageConfig,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write token ids, mask, logprobs and advantages, one row per sequence.

    Example: irc-cli export tokens rollouts.jsonl --turns turns.parquet -o tokens.parquet
    """
    options.check_outputs([out], as_json=printing.as_json, force=printing.force)
    turns, calibration = scored_files.turns, scored_files.calibration
    notes = Counter[str]()
    played = read_rollouts(rollouts, notes)
    check_tokens(played)
    values = read_values(calibration, turns, advantage)
    scored = read_table(TURNS, turns)
    table = played_advantages(played, scored, values, advantage, turns, scored_files.advantages)
    notes += other_turns(played, scored)
    lesson = reinforced(played.episodes, played.tokens, table, played.tools, None, rollouts)
    groups = {row["episode_id"]: row["group_id"] for row in played.episodes}
    frame = token_advantages(lesson.examples, groups)
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by(
        "export tokens",
        {"calibration": calibration, "advantage": scored_files.estimator(advantage)},
        seed,
        writing.digests([rollouts, *scored_files.paths, RunFiles(rollouts).sidecars[0]]),
    )
    if out:
        write_table(SEQUENCES, frame, out, made_by, force=printing.force)
    written = sum(len(example.at) for example in lesson.examples)
    document = {"rows": frame.height, "tokens": written, "dropped_groups": lesson.dropped_groups}
    line = f"{frame.height:,} sequences, {written:,} tokens with an advantage"
    if lesson.dropped_groups:
        line += f"; {lesson.dropped_groups:,} groups without any left out"
    if truncated := sum(example.top_p < 1 for example in lesson.examples):
        notes["sequences sampled with top_p below 1: logprobs within the nucleus"] = truncated
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
