"""`irc-cli export nemo-gym`: rollouts of NeMo Gym, with rewards of turns."""

from __future__ import annotations

from irc_cli import options
from irc_cli.exports.rewarded import RewardFiles, write_episodes
from irc_cli.traces import Paths, TraceOptions
from stages.exports.nemo_gym import rollout


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
    """Write rollouts of NeMo Gym, with a reward for each turn in 'step_rewards'.

    Example: irc-cli export nemo-gym traces.json --turns turns.parquet -o rollouts.jsonl
    """
    write_episodes("export nemo-gym", rollout, traces, files, out, source, printing, seed)
