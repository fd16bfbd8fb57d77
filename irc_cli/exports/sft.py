"""`irc-cli export sft`: successful conversations, with `messages` and `tools`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from stages.errors import InputError, few
from stages.exports.conversations import conversations
from stages.exports.sft import sft
from stages.settings import Setting
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
    found = list(conversations(files, notes))
    notes += left_out({NO_OUTCOME: sum(one.outcome is None for one in found)})
    rows = list(sft(found, least))
    if not rows:
        what = f"none of {len(found):,} conversations has an outcome of {least:g} or more"
        raise InputError(few(files), what, "lower --min-outcome or give other files")
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by("export sft", {"min_outcome": least}, seed, writing.digests(files))
    writing.write_lines(rows, out, made_by, force=printing.force)
    document = {"rows": len(rows), "conversations": len(found)}
    line = f"{len(rows):,} of {len(found):,} conversations have an outcome of {least:g} or more"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
