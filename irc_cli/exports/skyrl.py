"""`irc-cli export skyrl`: token sequences with a reward for each token of the response."""

from __future__ import annotations

from typing import Any

from irc_cli import options
from irc_cli.exports import writing
from irc_cli.exports.rewarded import Group, RewardFiles, write_sequences
from stages.exports.sequences import Paid
from stages.exports.skyrl import skyrl


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
    """Write token sequences with a reward at the last token of each turn, for SkyRL.

    Example: irc-cli export skyrl rollouts.jsonl --turns turns.parquet -o skyrl.jsonl
    """
    write_sequences("export skyrl", _row, rollouts, files, out, printing, seed)


def _row(paid: Paid, group: Group) -> dict[str, Any]:
    return skyrl(paid, group.group_id, group.place, truncated=group.truncated)
