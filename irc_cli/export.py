"""`irc-cli export`: episodes, rewards and advantages in the formats of training libraries."""

from __future__ import annotations

from irc_cli.app import LazyGroup, group

# Format, module, one line of help; as in `irc_cli.app`.
FORMATS = {
    "trl": ("irc_cli.exports.trl", "Task prompts, for GRPO in TRL."),
    "sft": ("irc_cli.exports.sft", "Successful conversations, for supervised fine-tuning."),
    "preferences": ("irc_cli.exports.preferences", "Pairs of turns, for DPO."),
    "verl": ("irc_cli.exports.verl", "Tasks and a configuration, for training in verl."),
    "messages": ("irc_cli.exports.messages", "Traces of any format as chat messages."),
    "atif": ("irc_cli.exports.atif", "Trajectories with tiers, rewards and advantages."),
    "verifiers": ("irc_cli.exports.verifiers", "Traces with turn rewards, for prime-rl."),
    "nemo-gym": ("irc_cli.exports.nemo_gym", "Rollouts with turn rewards, for NeMo Gym."),
    "areal": ("irc_cli.exports.areal", "Token sequences with turn rewards, for AReaL."),
    "skyrl": ("irc_cli.exports.skyrl", "Token sequences with token rewards, for SkyRL."),
    "tokens": ("irc_cli.exports.tokens", "Token ids with per-token advantages."),
}


class Formats(LazyGroup):
    """The formats, one command each."""

    modules = FORMATS


app = group(Formats)


@app.callback()
def formats() -> None:
    """Write rollouts and rewards in the formats of other libraries.

    Example: irc-cli export sft traces.json -o sft.jsonl
    """
