"""Play episodes for `eval`, with the options of `rollout`."""

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
    """Raise InputError for an option on playing, which does nothing for recorded traces."""
    for field, value in options.values_of(play):
        if field.name not in ("seed", "tokenizer") and value != field.default:
            what, todo = "does nothing for traces", "give --env and --policy to play"
            raise InputError(options.flag(field), what, todo)


@contextmanager
def played(
    env: str, policy: str, kept: str | None, play: PlayOptions, printing: options.Writing
) -> Iterator[tuple[str, dict[str, Any], Counter[str]]]:
    """Play episodes; yield the path of their rollouts, their settings and inputs, and notes.

    Args:
        env: name of the environment.
        policy: name of the policy.
        kept: path to keep the rollouts at; None: a temporary folder.
        play: options on playing.
        printing: what to show; the report of the rollouts goes to standard error.
    """
    quietly = options.Writing(quiet=printing.quiet, strict=printing.strict, force=printing.force)
    with temporary_folder() as folder:
        path = kept or str(Path(folder, "rollouts.jsonl"))
        with redirect_stdout(sys.stderr):  # standard output is for the results of `eval`
            notes = roll_out(env, policy, play, path, quietly)
        *_, meta = RunFiles(path).sidecars
        made_by = orjson.loads(Path(meta).read_bytes())
        yield path, {name: made_by[name] for name in ("settings", "inputs")}, notes
