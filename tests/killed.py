"""The commands that `tests.kill` kills, small enough for hundreds of kills, and their processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any, NamedTuple

from irc_cli.app import app

PLAYED = (
    "rollout --env airline-mini --policy expert --noise 0.3 --max-tasks 12 --group-size 4 --quiet"
)
ROLLOUTS, TURNS = "../inputs/rollouts.jsonl", "../inputs/turns.parquet"
FEW = "../inputs/few.jsonl"  # for exports that write files per episode
INPUTS = (
    f"{PLAYED} -o {ROLLOUTS}",
    f"{PLAYED} --max-tasks 1 --group-size 1 -o {FEW}",
    f"score {ROLLOUTS} -o {TURNS} --quiet",
)
EXPORTS = (
    f"export sft {ROLLOUTS} -o sft.jsonl --quiet",
    f"export verifiers {ROLLOUTS} --turns {TURNS} -o verifiers.jsonl --quiet",
    f"export atif {FEW} -o atif --quiet",
    "export verl --env airline-mini --model none --tasks-per-step 4 -o verl --quiet",
)
LEARNED = (
    "train --model ../inputs/model --rollouts ../inputs/r.jsonl --turns ../inputs/t.parquet "
    "--calibration ../inputs/c.yaml --lr 3e-3 --epochs 3 --batch-size 4 --kl 0.1 --lora-rank 2 "
    "--save-every 2 --resume -o policy --quiet"
)
LOOPED = (
    "loop --iterations 2 --sample-tasks 2 --group-size 4 --eval-every 2 --eval-tasks 1 "
    "--set rollout.max-turns=6 --set rollout.max-tokens=40 --set train.lr=3e-4 "
    "--set train.save-every=1 --set calibrate.resamples=100 -o out --quiet"
)
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class Workload(NamedTuple):
    """Command lines for a folder beside `inputs`; runs alternate between them.

    Attributes:
        lines: arguments of `irc-cli`. A line that was killed is called again unchanged.
        modules: modules to import once, before processes are forked.
    """

    lines: tuple[str, ...]
    modules: tuple[str, ...]


_TRAINED = ("accelerate", "peft", "stages.train", "stages.training.folder", "tests.learning")
WORKLOADS = {
    "rollout": Workload((f"{PLAYED} --resume -o r.jsonl",), ("irc_cli.rollout",)),
    "score": Workload((f"score {ROLLOUTS} -o turns.parquet --quiet",), ("irc_cli.score",)),
    "calibrate": Workload(
        (f"calibrate {TURNS} -o calibration.yaml --resamples 200 --quiet",), ("irc_cli.calibrate",)
    ),
    "export": Workload(EXPORTS, tuple(f"irc_cli.exports.{line.split()[1]}" for line in EXPORTS)),
    "eval": Workload((f"eval {ROLLOUTS} -o eval.json --quiet",), ("irc_cli.evaluate",)),
    "train": Workload((LEARNED,), ("irc_cli.train", *_TRAINED)),
    "loop": Workload((LOOPED,), ("irc_cli.loop", "matplotlib.pyplot", *_TRAINED)),
}


def prepare(name: str, folder: str) -> None:
    """Make the inputs of a workload's command lines.

    Args:
        name: name of the workload.
        folder: folder in which to make `inputs`.
    """
    inputs = Path(folder) / "inputs"
    inputs.mkdir(parents=True)
    os.chdir(inputs)
    if name == "train":
        from tests.learning import played

        played(inputs)
    elif name != "loop":
        for line in INPUTS:
            call(line)


def call(line: str) -> None:
    """Call `irc-cli`; return if it succeeds."""
    try:
        app(line.split(), prog_name="irc-cli")
    except SystemExit as end:
        if end.code:
            raise


def live(line: str, folder: str, last: int | None) -> None:
    """Call `irc-cli` in a folder, in a separate process; write the number of changes beside it.

    Args:
        line: arguments of `irc-cli`.
        folder: working directory. The output is written beside it.
        last: number of the change before which this process dies, from 0; None: it doesn't die.
    """
    os.chdir(folder)
    for stream, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(f"{folder}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    made = 0

    def count(event: str, given: tuple[Any, ...]) -> None:
        nonlocal made
        if _changes(event, given, folder):
            if made == last:
                os.kill(os.getpid(), signal.SIGKILL)
            made += 1

    sys.addaudithook(count)
    call(line)
    changes = made
    Path(f"{folder}.changes").write_text(str(changes))


def _changes(event: str, given: tuple[Any, ...], folder: str) -> bool:
    """Return whether an audit event changes the folder."""
    writes = event == "open" and given[2] & WRITING
    if not (writes or event in CHANGES) or not isinstance(given[0], (str, os.PathLike)):
        return False
    return Path(folder) in Path(given[0]).absolute().parents
