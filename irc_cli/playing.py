"""What `eval` shares with `rollout`: its options on how episodes are played, and playing them."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from copy import copy
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated, Any, get_args

import orjson

from irc_cli import rollout
from stages.errors import InputError
from stages.tables.paths import RunFiles

PANEL = "Playing, as in irc-cli rollout"
# What `eval` declares itself, or has no use for.
OWN = {"env", "policy", "out", "dry_run", "as_json", "quiet", "strict", "force", "seed", "config"}


def _options() -> dict[str, Parameter]:
    parameters = signature(rollout.command, eval_str=True).parameters
    options = {}
    for name, parameter in parameters.items():
        if name not in OWN:
            kind, info = get_args(parameter.annotation)
            info = copy(info)
            info.rich_help_panel = PANEL
            options[name] = parameter.replace(annotation=Annotated[kind, info])
    return options


OPTIONS = _options()


def with_play_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, in the place of `**play`, the options of `rollout` that say how to play."""
    shape = signature(command, eval_str=True)
    own = [one for one in shape.parameters.values() if one.kind != Parameter.VAR_KEYWORD]
    options = [one.replace(kind=Parameter.KEYWORD_ONLY) for one in OPTIONS.values()]
    command.__signature__ = shape.replace(parameters=[*own, *options])  # type: ignore[attr-defined]  # what inspect reads
    return command


def refuse_play_options(play: Mapping[str, Any]) -> None:
    """Raise InputError if there is an option that does nothing where nothing is played."""
    for name, value in play.items():
        if value != OPTIONS[name].default:
            option = f"--{name.replace('_', '-')}"
            raise InputError(option, "does nothing for traces", "give --env and --policy to play")


@contextmanager
def played(
    env: str, policy: str, kept: str | None, play: Mapping[str, Any], **options: Any
) -> Iterator[tuple[str, dict[str, Any], Counter[str]]]:
    """Play episodes; yield the path of their rollouts, what made them, and notes on the playing.

    Args:
        env: the environment.
        policy: the policy.
        kept: where the rollouts stay; None: nowhere.
        play: options of `rollout`, by the names of its parameters.
        options: quiet, strict, force and seed.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = kept or str(Path(folder, "rollouts.jsonl"))
        with redirect_stdout(sys.stderr):  # where the results of `eval` alone belong
            notes = rollout.command(env=env, policy=policy, out=path, **options, **play)
        *_, meta = RunFiles(path).sidecars
        made_by = orjson.loads(Path(meta).read_bytes())
        yield path, {name: made_by[name] for name in ("settings", "inputs")}, notes
