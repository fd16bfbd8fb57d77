"""`irc-cli export verl`: a folder from which verl trains on an environment's tasks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.scorer import load_calibration, score
from stages.calibration.file import check_critic
from stages.envs.env import Env
from stages.envs.registry import open_env
from stages.errors import InputError
from stages.exports.verl import DATASET, NAME, VerlConfig, agent_loops, dataset, trainer_config
from stages.settings import Setting
from stages.tables.files import refuse_existing, together, whole_file
from stages.tables.table_file import write_table
from stages.tiers.file import SHIPPED

DATA = {"train": "train.parquet", "val": "val.parquet"}
AGENT, CONFIG = "agent.yaml", f"{NAME}.yaml"
TASKS = "Tasks"  # panel of the help


@dataclass(frozen=True)
class Splits:
    """The tasks that are written."""

    split: Annotated[str, Setting("Split to train on.", TASKS, metavar="NAME")] = "train"
    val_split: Annotated[str, Setting("Held-out split.", TASKS, metavar="NAME")] = "dev"
    max_tasks: Annotated[
        int | None, Setting("Write only the first N tasks of each split.", TASKS, low=1)
    ] = None


@options.expanded(renamed={"batch-size": "tasks-per-step"})
def command(
    *,
    ours: VerlConfig,
    splits: Splits,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write to.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    printing: options.Reporting,
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
    inputs = [ours.calibration, None if ours.tiers in SHIPPED else ours.tiers]
    ours = _checked(ours)
    tasks = _tasks(ours, splits)
    settings = {"env": ours.env, **asdict(splits)}
    made_by = console.made_by("export verl", settings, seed, writing.digests(inputs))
    folder.mkdir(exist_ok=True)
    with together():  # the configuration appears last: it names the others
        _write_yaml(trainer_config(ours, folder), files[CONFIG], force=force)
        _write_yaml(agent_loops(ours), files[AGENT], force=force)
        for name, frame in tasks.items():
            write_table(DATASET, frame, files[DATA[name]], made_by, force=force)
    launch = f"python -m verl.trainer.main_ppo --config-path {folder} --config-name {NAME}"
    rows = {name: frame.height for name, frame in tasks.items()}
    line = f"{rows['train']:,} tasks to train on, {rows['val']:,} held out; launch with:"
    writing.report(
        rows | {"launch": launch}, {}, line, out, as_json=printing.as_json, quiet=printing.quiet
    )
    if not (printing.as_json or printing.quiet):
        console.heading(launch)


def _checked(ours: VerlConfig) -> VerlConfig:
    """Return the configuration with absolute paths.

    Raises:
        InputError: a setting that the reward function would reject.
    """
    values = None if ours.calibration is None else load_calibration(ours.calibration)
    check_critic(values, ours.calibration, ours.advantage)
    options.name_or_file("tiers", ours.tiers, SHIPPED)
    score([], calibration=values, tiers=ours.tiers)
    return replace(
        ours,
        model=str(Path(ours.model).absolute()) if Path(ours.model).exists() else ours.model,
        tiers=ours.tiers if ours.tiers in SHIPPED else str(Path(ours.tiers).absolute()),
    )


def _tasks(ours: VerlConfig, splits: Splits) -> dict[str, pl.DataFrame]:
    """Return the dataset of each split (DATASET)."""
    environment = open_env(ours.env)
    tasks = {
        name: _dataset(environment, which, splits.max_tasks)
        for name, which in (("train", splits.split), ("val", splits.val_split))
    }
    if tasks["train"].height < ours.batch_size:
        what = f"a step of {ours.batch_size:,} tasks, but there are {tasks['train'].height:,}"
        raise InputError("--tasks-per-step", what, "give less")
    return tasks


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
