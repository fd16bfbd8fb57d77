"""`irc-cli export verifiers`: traces of verifiers, with rewards of turns as prime-rl reads them."""

from __future__ import annotations

from irc_cli import options
from irc_cli.exports.rewarded import RewardFiles, write_episodes
from irc_cli.traces import Paths, TraceOptions
from stages.exports.verifiers import traced


@options.expanded()
def command(
    *,
    traces: Paths,
    files: RewardFiles,
    out: options.Out = None,
    source: TraceOptions,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write traces of verifiers, with a score after each turn in 'info.turn_rewards'.

    Example: irc-cli export verifiers traces.json --turns turns.parquet -o scored.jsonl
    """
    write_episodes("export verifiers", traced, traces, files, out, source, printing, seed)
