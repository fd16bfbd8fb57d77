"""`irc-cli` with a slow policy in a tiny environment, as a process that a test can kill."""

from __future__ import annotations

import pytest

from irc_cli import rollout
from irc_cli.app import app
from tests.till import Adder, Till


def play(args: list[str]) -> None:
    """Run the command line; exits this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rollout, "open_policy", lambda name, options: Adder(pause_s=0.001))
        patch.setattr(rollout, "open_env", lambda name: Till(8))
        app(args, prog_name="irc-cli")
