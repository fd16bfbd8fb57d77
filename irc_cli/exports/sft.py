"""`irc-cli export sft`: successful conversations, with `messages` and `tools`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from irc_cli.traces import RecordOptions
from stages.errors import InputError, few
from stages.exports.conversations import conversations
from stages.exports.sft import sft
from stages.settings import Setting
from stages.traces.given import named
from stages.traces.notes import NO_OUTCOME, left_out


@dataclass(frozen=True)
class Chosen:
    """Which conversations are written."""

    min_outcome: Annotated[
        float, Setting("Least outcome of a conversation.", options.OUTPUT, low=0, high=1)
    ] = 1.0


@options.expanded()
def command(
    *,
    files: writing.Conversations,
    source: RecordOptions,
    out: options.Out = None,
    chosen: Chosen,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write successful conversations as JSON lines of 'messages' and 'tools'.

    Example: irc-cli export sft rollouts.jsonl -o sft.jsonl
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    least = chosen.min_outcome
    options.refuse_twice(files)
    notes = Counter[str]()
    talks = list(conversations(files, notes, named(**source.named)))
    notes += left_out({NO_OUTCOME: sum(talk.outcome is None for talk in talks)})
    rows = list(sft(talks, least))
    if not rows:
        what = f"none of {len(talks):,} conversations has an outcome of {least:g} or more"
        todo = "lower --min-outcome or give other files"
        if all(talk.outcome is None for talk in talks):
            todo = "name the field of the outcome by --map outcome=PATH"
        raise InputError(few(files), what, todo)
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by(
        "export sft",
        {"min_outcome": least} | source.settings,
        seed,
        writing.digests([*files, source.gold]),
    )
    writing.write_lines(rows, out, made_by, force=printing.force)
    document = {"rows": len(rows), "conversations": len(talks)}
    line = f"{len(rows):,} of {len(talks):,} conversations have an outcome of {least:g} or more"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
