"""`irc-cli train` as processes that a test starts, and may kill."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from irc_cli.app import app
from stages import train as stage


def learn(args: list[str], env: dict[str, str], pause_s: float = 0.0) -> None:
    """Run the command line in this environment, resting after each step; exits this process."""
    os.environ.update(env)

    learning = stage.train

    def slowly(*known: Any) -> Iterator[Any]:
        for step in learning(*known):
            yield step
            time.sleep(pause_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "train", slowly)
        app(args, prog_name="irc-cli")
