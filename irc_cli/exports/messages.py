"""`irc-cli export messages`: traces of any format as our own JSON lines."""

from __future__ import annotations

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import Strict, check_notes
from irc_cli.traces import (
    DomainOption,
    GoldOption,
    MapOption,
    Paths,
    ScoreOption,
    SkipBad,
    TraceReader,
)
from stages.errors import InputError, few
from stages.exports.messages import message_rows, settle


def command(
    traces: Paths,
    out: options.Out = None,
    domain: DomainOption = None,
    fields: MapOption = None,
    gold: GoldOption = None,
    score: ScoreOption = None,
    skip_bad: SkipBad = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Convert traces of any format to chat messages with ids, outcome, gold actions and tools.

    Example: irc-cli export messages log.eval -o episodes.jsonl
    """
    writing.check_lines(out, as_json=as_json, force=force)
    reader = TraceReader(traces, domain, skip_bad, quiet, fields=fields, gold=gold, score=score)
    reader.check_sidecar(out, force=force)
    episodes = [episode for episode, _ in reader]
    if not episodes:
        raise InputError(few(traces), "no episode", "give traces with episodes")
    rows = message_rows(episodes, reader.notes)
    settle(rows, [episode.source for episode in episodes], reader.renamed())
    check_notes(reader.notes, strict=strict)
    settings = {"domain": domain, "map": fields, "gold": gold, "score": score}
    inputs = reader.digests | writing.digests([gold])
    made_by = console.made_by("export messages", settings, seed, inputs)
    writing.write_lines(rows, out, made_by, force=force)
    reader.write_bad(out, force=force)
    turns = sum(len(episode.turns) for episode in episodes)
    line = f"{len(rows):,} episodes, {turns:,} turns"
    document = {"episodes": len(rows), "turns": turns}
    writing.report(document, reader.notes, line, out, as_json=as_json, quiet=quiet)
