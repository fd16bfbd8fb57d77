"""`irc-cli export sft`: successful conversations, with `messages` and `tools`."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import Strict, check_notes
from irc_cli.traces import GoldOption, MapOption, ScoreOption
from stages.errors import InputError, few
from stages.exports.conversations import conversations
from stages.exports.sft import sft
from stages.traces.given import named
from stages.traces.notes import NO_OUTCOME, left_out


def command(
    files: writing.Conversations,
    out: options.Out = None,
    min_outcome: Annotated[float, typer.Option(help="Least outcome of a conversation.")] = 1.0,
    fields: MapOption = None,
    gold: GoldOption = None,
    score: ScoreOption = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write successful conversations as JSON lines of 'messages' and 'tools'.

    Example: irc-cli export sft rollouts.jsonl -o sft.jsonl
    """
    writing.check_lines(out, as_json=as_json, force=force)
    least = options.within("min-outcome", min_outcome, 0, 1)
    options.refuse_twice(files)
    notes = Counter[str]()
    talks = list(conversations(files, notes, named(fields, gold, score)))
    notes += left_out({NO_OUTCOME: sum(talk.outcome is None for talk in talks)})
    rows = list(sft(talks, least))
    if not rows:
        what = f"none of {len(talks):,} conversations has an outcome of {least:g} or more"
        todo = "lower --min-outcome or give other files"
        if all(talk.outcome is None for talk in talks):
            todo = "name the field of the outcome by --map outcome=PATH"
        raise InputError(few(files), what, todo)
    check_notes(notes, strict=strict)
    settings = {"min_outcome": least, "map": fields, "gold": gold, "score": score}
    made_by = console.made_by("export sft", settings, seed, writing.digests([*files, gold]))
    writing.write_lines(rows, out, made_by, force=force)
    document = {"rows": len(rows), "conversations": len(talks)}
    line = f"{len(rows):,} of {len(talks):,} conversations have an outcome of {least:g} or more"
    writing.report(document, notes, line, out, as_json=as_json, quiet=quiet)
