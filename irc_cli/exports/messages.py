"""`irc-cli export messages`: traces of any format as our own JSON lines."""

from __future__ import annotations

from irc_cli import options
from irc_cli.exports import writing
from irc_cli.exports.conversions import Conversion
from irc_cli.traces import Paths, TraceOptions


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
    conversion = Conversion("export messages", traces, source, out, printing)
    rows = conversion.rows()
    with conversion.writing(seed) as made_by:
        writing.write_lines(rows, out, made_by, force=printing.force)
    turns = sum(len(episode.turns) for episode in conversion.episodes)
    document = {"episodes": len(rows), "turns": turns}
    conversion.report(document, f"{len(rows):,} episodes, {turns:,} turns")
