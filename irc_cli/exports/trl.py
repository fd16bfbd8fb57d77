"""`irc-cli export trl`: prompts of tasks, with what `irc_cli.trl_reward` needs."""

from __future__ import annotations

from collections import Counter

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from irc_cli.traces import RecordOptions
from stages.errors import InputError, few
from stages.exports.conversations import conversations, opening
from stages.exports.trl import trl
from stages.traces.given import named
from stages.traces.notes import GIVE_GOLD, left_out


@options.expanded()
def command(
    *,
    files: writing.Conversations,
    source: RecordOptions,
    out: options.Out = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write task prompts as JSON lines of 'prompt', 'messages', 'tools' and 'gold_actions'.

    Example: irc-cli export trl rollouts.jsonl -o trl.jsonl
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    options.refuse_twice(files)
    notes = Counter[str]()
    talks = list(conversations(files, notes, named(**source.named)))
    silent = sum(opening(talk.messages) == len(talk.messages) for talk in talks)
    notes += left_out({"no answer of the assistant": silent})
    rows = trl(talks)
    if not rows:
        what = f"none of {len(talks):,} conversations has an answer of the assistant to a user"
        raise InputError(few(files), what, "give other files")
    if all(row["gold_actions"] is None for row in rows):
        raise InputError(few(files), "no gold actions anywhere", GIVE_GOLD)
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by(
        "export trl", source.settings, seed, writing.digests([*files, source.gold])
    )
    writing.write_lines(rows, out, made_by, force=printing.force)
    tasks = len({(row["domain"], row["task_id"], repr(row["gold_actions"])) for row in rows})
    document = {"rows": len(rows), "conversations": len(talks), "tasks": tasks}
    line = f"{len(rows):,} openings of {tasks:,} tasks, from {len(talks):,} conversations"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
