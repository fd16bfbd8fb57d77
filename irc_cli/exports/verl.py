"""`irc-cli export verl`: a folder from which verl trains on an environment's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.scorer import load_calibration, score
from stages.core.advantages import AdvantageConfig
from stages.envs.env import Env
from stages.envs.registry import ENVS, open_env
from stages.errors import InputError
from stages.exports.verl import DATASET, NAME, VerlConfig, agent_loops, dataset, trainer_config
from stages.tables.artifacts import write_table
from stages.tables.files import refuse_existing, whole_file
from stages.tiers.file import SHIPPED

DATA = {"train": "train.parquet", "val": "val.parquet"}
AGENT, CONFIG = "agent.yaml", f"{NAME}.yaml"
_D = VerlConfig


@options.expanded()
def command(
    *,
    env: Annotated[str, typer.Option(metavar="|".join(ENVS), help="The environment.")],
    model: Annotated[str, typer.Option(metavar="DIR|NAME", help="The policy to start from.")],
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="Folder to write to.")],
    calibration: writing.Calibration = _D.calibration,
    tiers: Annotated[
        str,
        typer.Option(metavar="NAME|FILE.yaml", help=f"Tiers: {', '.join(SHIPPED)} or a file."),
    ] = _D.tiers,
    split: Annotated[str, typer.Option(metavar="NAME", help="Tasks to train on.")] = "train",
    val_split: Annotated[str, typer.Option(metavar="NAME", help="Held-out tasks.")] = "dev",
    max_tasks: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Only the first N tasks of each split.")
    ] = None,
    advantage: AdvantageConfig,
    group_size: Annotated[
        int, typer.Option(metavar="G", min=1, help="Episodes per task.")
    ] = _D.group_size,
    batch_size: Annotated[int, typer.Option(min=1, help="Tasks of a step.")] = _D.batch_size,
    max_turns: Annotated[
        int, typer.Option(min=1, help="Assistant messages of an episode.")
    ] = _D.max_turns,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of one assistant message.")
    ] = _D.max_tokens,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs of the machine.")] = _D.gpus,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write tasks as verl's dataset, and a configuration that trains on them with our plugin.

    Example: irc-cli export verl --env airline-mini --model MODEL --calibration calibration.yaml
    -o verl
    """
    folder = Path(out).absolute()
    files = {name: str(folder / name) for name in (DATA["train"], DATA["val"], AGENT, CONFIG)}
    _check_folder(folder, list(files.values()), force=force)
    values = None if calibration is None else load_calibration(calibration)
    options.name_or_file("tiers", tiers, SHIPPED)
    score([], calibration=values, tiers=tiers)  # what the reward function refuses, now
    ours = VerlConfig(
        model=str(Path(model).absolute()) if Path(model).exists() else model,
        env=env,
        calibration=calibration,
        tiers=tiers if tiers in SHIPPED else str(Path(tiers).absolute()),
        advantage=advantage,
        group_size=group_size,
        batch_size=batch_size,
        max_turns=max_turns,
        max_tokens=max_tokens,
        gpus=gpus,
    )
    environment = open_env(env)
    tasks = {
        name: _dataset(environment, which, max_tasks)
        for name, which in (("train", split), ("val", val_split))
    }
    if tasks["train"].height < batch_size:
        what = f"a step of {batch_size:,} tasks, but there are {tasks['train'].height:,}"
        raise InputError("--batch-size", what, "give less")
    inputs = [calibration, None if tiers in SHIPPED else tiers]
    settings = {"env": env, "split": split, "val_split": val_split, "max_tasks": max_tasks}
    made_by = console.made_by("export verl", settings, seed, writing.digests(inputs))
    folder.mkdir(exist_ok=True)
    for name, frame in tasks.items():
        write_table(DATASET, frame, files[DATA[name]], made_by, force=force)
    _write_yaml(agent_loops(ours), files[AGENT], force=force)
    _write_yaml(trainer_config(ours, folder), files[CONFIG], force=force)
    launch = f"python -m verl.trainer.main_ppo --config-path {folder} --config-name {NAME}"
    rows = {name: frame.height for name, frame in tasks.items()}
    line = f"{rows['train']:,} tasks to train on, {rows['val']:,} held out; launch with:\n{launch}"
    writing.report(rows | {"launch": launch}, {}, line, out, as_json=as_json, quiet=quiet)


def _check_folder(folder: Path, files: list[str], *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(str(folder), "is no folder", "name another one")
    if not folder.parent.is_dir():
        raise InputError(str(folder), f"no directory '{folder.parent}'", "create it first")
    if folder.exists():
        for path in files:
            refuse_existing(path, force=force)


def _dataset(environment: Env, split: str, most: int | None) -> pl.DataFrame:
    tasks = environment.tasks(split)[:most]
    if not tasks:
        raise InputError("--split", f"split '{split}' has no tasks", "choose another one")
    return dataset(environment, split, tasks)


def _write_yaml(document: Any, path: str, *, force: bool) -> None:
    import yaml

    with whole_file(path, force=force) as file:
        file.write(yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode())
