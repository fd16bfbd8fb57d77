"""What `eval` shares with `rollout`: its options on how episodes are played, and playing them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import orjson

from irc_cli import options
from irc_cli.rollout import PlayOptions, roll_out
from stages.errors import InputError
from stages.tables.files import temporary_folder
from stages.tables.paths import RunFiles


def refuse_play_options(play: PlayOptions) -> None:
    """Raise InputError if there is an option that does nothing where nothing is played."""
    for field, value in options.values_of(play):
        if field.name not in ("seed", "tokenizer") and value != field.default:
            what, todo = "does nothing for traces", "give --env and --policy to play"
            raise InputError(options.flag(field), what, todo)


@contextmanager
def played(
    env: str, policy: str, kept: str | None, play: PlayOptions, printing: options.Writing
) -> Iterator[tuple[str, dict[str, Any], Counter[str]]]:
    """Play episodes; yield the path of their rollouts, what made them, and notes on the playing.

    Args:
        env: the environment.
        policy: the policy.
        kept: where the rollouts stay; None: nowhere.
        play: how they are played.
        printing: what is printed; the report goes to standard error.
    """
    quietly = options.Writing(quiet=printing.quiet, strict=printing.strict, force=printing.force)
    with temporary_folder() as folder:
        path = kept or str(Path(folder, "rollouts.jsonl"))
        with redirect_stdout(sys.stderr):  # where the results of `eval` alone belong
            notes = roll_out(env, policy, play, path, quietly)
        *_, meta = RunFiles(path).sidecars
        made_by = orjson.loads(Path(meta).read_bytes())
        yield path, {name: made_by[name] for name in ("settings", "inputs")}, notes
