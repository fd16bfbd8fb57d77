"""`irc-cli export messages`: traces of any format as our own JSON lines."""

from __future__ import annotations

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from irc_cli.traces import Paths, TraceOptions
from stages.errors import InputError, few
from stages.exports.messages import message_rows, settle
from stages.tables.files import together


@options.expanded()
def command(
    *,
    traces: Paths,
    out: options.Out = None,
    source: TraceOptions,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Convert traces of any format to chat messages with ids, outcome, gold actions and tools.

    Example: irc-cli export messages log.eval -o episodes.jsonl
    """
    writing.check_lines(out, as_json=printing.as_json, force=printing.force)
    reader = source.reader(traces, quiet=printing.quiet)
    reader.check_sidecar(out, force=printing.force)
    episodes = [episode for episode, _ in reader]
    if not episodes:
        raise InputError(few(traces), "no episode", "give traces with episodes")
    rows = message_rows(episodes, reader.notes)
    settle(rows, [episode.source for episode in episodes], reader.renamed())
    check_notes(reader.notes, strict=printing.strict)
    settings = {"domain": source.domain, **source.settings}
    inputs = reader.digests | writing.digests([source.gold])
    made_by = console.made_by("export messages", settings, seed, inputs)
    with together():
        writing.write_lines(rows, out, made_by, force=printing.force)
        reader.write_bad(out, force=printing.force)
    turns = sum(len(episode.turns) for episode in episodes)
    line = f"{len(rows):,} episodes, {turns:,} turns"
    document = {"episodes": len(rows), "turns": turns}
    writing.report(
        document, reader.notes, line, out, as_json=printing.as_json, quiet=printing.quiet
    )
