"""irc-cli's environments for verifiers: `vf-eval irc-env --env.taskset.env airline-mini`."""

from irc_env.harness import IrcHarness
from irc_env.taskset import IrcTaskset

__all__ = ["IrcHarness", "IrcTaskset"]
