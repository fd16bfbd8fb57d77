"""`irc-cli export trl`: prompts of tasks, with what `irc_cli.trl_reward` needs."""

from __future__ import annotations

from collections import Counter

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from stages.errors import InputError, few
from stages.exports.conversations import conversations, opening
from stages.exports.trl import trl
from stages.traces.notes import left_out


@options.expanded()
def command(
    *,
    files: writing.Conversations,
    out: options.Out = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write the openings of tasks as JSON lines: 'prompt', 'messages', 'tools', 'gold_actions'.

    Example: irc-cli export trl rollouts.jsonl -o trl.jsonl
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    options.refuse_twice(files)
    notes = Counter[str]()
    found = list(conversations(files, notes))
    silent = sum(opening(one.messages) == len(one.messages) for one in found)
    notes += left_out({"no answer of the assistant": silent})
    rows = trl(found)
    if not rows:
        what = f"none of {len(found):,} conversations has an answer of the assistant to a user"
        raise InputError(few(files), what, "give other files")
    if all(row["gold_actions"] is None for row in rows):
        todo = "add 'gold_actions' to the conversations: the reward compares calls with them"
        raise InputError(few(files), "no gold actions anywhere", todo)
    check_notes(notes, strict=printing.strict)
    made_by = console.made_by("export trl", {}, seed, writing.digests(files))
    writing.write_lines(rows, out, made_by, force=printing.force)
    tasks = len({(row["domain"], row["task_id"], repr(row["gold_actions"])) for row in rows})
    document = {"rows": len(rows), "conversations": len(found), "tasks": tasks}
    line = f"{len(rows):,} openings of {tasks:,} tasks, from {len(found):,} conversations"
    writing.report(document, notes, line, out, as_json=printing.as_json, quiet=printing.quiet)
