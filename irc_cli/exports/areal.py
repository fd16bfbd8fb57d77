"""`irc-cli export areal`: token sequences with the rewards of their turns."""

from __future__ import annotations

from typing import Any

from irc_cli import options
from irc_cli.exports import writing
from irc_cli.exports.rewarded import Group, RewardFiles, write_sequences
from stages.exports.areal import areal
from stages.exports.sequences import Paid


@options.expanded()
def command(
    *,
    rollouts: writing.Rollouts,
    files: RewardFiles,
    out: options.Out = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write token sequences with 'turn_rewards' and 'turn_ids', for AReaL.

    Example: irc-cli export areal rollouts.jsonl --turns turns.parquet -o areal.jsonl
    """
    write_sequences("export areal", _row, rollouts, files, out, printing, seed)


def _row(paid: Paid, group: Group) -> dict[str, Any]:
    return areal(paid, group.group_id)
