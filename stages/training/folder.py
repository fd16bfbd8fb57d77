"""The output folder of a training run.

OUT/model.safetensors, config.json, tokenizer files   the trained policy, written at the end
OUT/metrics.jsonl             one line per optimizer step
OUT/tensorboard/              the same for TensorBoard
OUT/checkpoints/step-000010/  state to resume from; see `stages.training.checkpoint`
OUT/trainer/                  the final optimizer state, and train.json with the run's provenance
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

import orjson
import polars as pl
import torch

from stages.errors import InputError
from stages.tables.files import is_remains, remove_folder, whole_file, whole_folder, writing
from stages.tables.inputs import refuse_input
from stages.tables.state import read_state
from stages.training import checkpoint
from stages.training.examples import offending
from stages.training.model import read_weights, whole_weights, write_policy, write_weights
from stages.training.sequences import Example
from stages.training.trainer import Trainer

SPACE = "free space, then pass --resume"
RECORD, METRICS = "train.json", "metrics.jsonl"


class _Complete(TypedDict):
    """The field that train.json has beside the run's identity."""

    result: dict[str, Any]


class RunFolder:
    """The output folder of a run; only the main process writes to it.

    Args:
        out: path of the folder.
        main: whether this is the main process.
        keep: number of latest checkpoints to keep, at least 1.
    """

    def __init__(self, out: str, *, main: bool, keep: int) -> None:
        self.path = Path(out)
        self.main = main
        self._keep = keep
        self._checkpoints = self.path / "checkpoints"
        self._metrics = self.path / METRICS
        self._record: dict[str, Any] = {}
        self._board: Any = None

    def begin(self, trainer: Trainer, record: dict[str, Any], *, resume: bool) -> int:
        """Prepare the folder; on resume, load the last checkpoint.

        Args:
            trainer: receives the state of the last checkpoint.
            record: identity of the run.
            resume: continue from the last checkpoint, if there is one.

        Returns:
            The number of steps already taken.

        Raises:
            InputError: the last checkpoint is damaged, or of a run with other settings.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._record = record
        last = checkpoint.saved(self._checkpoints)[-1:] if resume else []
        done = self._load(last[0], trainer) if last else 0
        if self.main:
            with writing(str(self.path), SPACE):
                self._make(done, resume=resume)
                threading.excepthook = _ignore_disk_errors
                board = str(self.path / "tensorboard")
                self._board = SummaryWriter(board, purge_step=done + 1 if done else None)
        return done

    def _make(self, done: int, *, resume: bool) -> None:
        """Create the folder, or on resume clear what the run will write again."""
        folder = Path(os.path.realpath(self.path))  # a symbolic link stays
        if not resume:
            remove_folder(folder)
        folder.mkdir(exist_ok=True)
        self._keep_metrics(done)  # first, because the metrics identify a folder as a run's
        (self.path / "trainer").mkdir(exist_ok=True)
        for old in self._checkpoints.glob(".step-*"):  # left by a process that was killed
            shutil.rmtree(old)
        self._drop_old()

    def log(self, step: int, values: dict[str, Any]) -> None:
        """Add a step to the metrics.

        Args:
            step: number of the step, from 1.
            values: numbers by name; numbers per tier are nested by tier.
        """
        if not self.main:
            return
        with writing(str(self.path), SPACE):
            with self._metrics.open("ab") as file:
                file.write(orjson.dumps({"step": step} | values, option=orjson.OPT_APPEND_NEWLINE))
            for name, value in _flat(values):
                self._board.add_scalar(name, value, step)

    def save(self, trainer: Trainer, step: int, dev_loss: float | None) -> None:
        """Write a checkpoint and delete old ones except the best; every process takes part.

        Args:
            trainer: provides weights and optimizer state.
            step: number of optimizer steps taken.
            dev_loss: mean loss per token on the dev set, in nats; None without a dev set.
        """
        state = checkpoint.state(trainer.bare, trainer.optimizer)
        if self.main:
            folder = self._checkpoints / f"step-{step:06d}"
            checkpoint.save(folder, state, step, dev_loss, self._record)
            self._drop_old()

    def take_best(self, trainer: Trainer, dev_loss: float) -> None:
        """Return to the best checkpoint if its loss on the dev set is lower than the current one.

        Args:
            trainer: receives the state of the best checkpoint.
            dev_loss: loss of its current weights on the dev set, in nats per token.
        """
        best = checkpoint.best(checkpoint.saved(self._checkpoints))
        if best and best.dev_loss < dev_loss:
            self._load(best, trainer)

    def _load(self, chosen: checkpoint.Saved, trainer: Trainer) -> int:
        return checkpoint.load(chosen.path, trainer.bare, trainer.optimizer, self._record)

    def save_batch(self, batch: Iterable[Example]) -> str:
        """Write the sequences of a rejected step.

        Args:
            batch: the examples of the step.

        Returns:
            The path of the table.
        """
        path = str(self.path / "offending-batch.parquet")
        if self.main:
            with whole_file(path, force=True) as file:
                pl.DataFrame(list(offending(batch))).write_parquet(file)
        return path

    def finish(self, trainer: Trainer, tokenizer: Any, result: dict[str, Any]) -> None:
        """Write the policy, and last train.json, which marks the folder as complete.

        Args:
            trainer: provides the policy's weights.
            tokenizer: tokenizer to write beside them.
            result: what the command prints; kept so that a rerun can print it.
        """
        state = checkpoint.state(trainer.bare, trainer.optimizer)
        weights = whole_weights(trainer.bare)
        if not self.main:
            return
        with writing(str(self.path), SPACE):
            self._board.close()
            with whole_folder(str(self.path / "policy")) as folder:
                write_policy(trainer.bare, weights, tokenizer, folder)
            for path in (self.path / "policy").iterdir():
                path.replace(self.path / path.name)
            (self.path / "policy").rmdir()
            write_weights(state.optimizer, self.path / "trainer" / checkpoint.OPTIMIZER)
        with whole_file(str(self.path / "trainer" / RECORD), force=True) as file:
            made = self._record | {"result": result}
            file.write(orjson.dumps(made, option=orjson.OPT_INDENT_2))

    def _drop_old(self) -> None:
        checkpoints = checkpoint.saved(self._checkpoints)
        for old in checkpoints[: -self._keep]:
            if old != checkpoint.best(checkpoints):
                remove_folder(old.path)

    def _keep_metrics(self, steps: int) -> None:
        """Keep the lines of the first `steps` steps; a resumed run repeats the others."""
        lines = self._metrics.read_bytes().splitlines(True) if self._metrics.exists() else []
        with whole_file(str(self._metrics), force=True) as file:
            file.writelines(lines[:steps])


def optimizer_of(model: str) -> dict[str, torch.Tensor]:
    """Return the final optimizer state of a run.

    Args:
        model: output folder of the run.

    Returns:
        Tensors as from `stages.training.checkpoint.optimizer_state`.

    Raises:
        InputError: the folder has no optimizer state, or it is damaged.
    """
    path = Path(model) / "trainer" / checkpoint.OPTIMIZER
    if not path.exists():
        todo = "leave out --keep-optimizer for a policy that irc-cli train did not write"
        raise InputError(str(path), "no such file", todo)
    return read_weights(path)


def result_of(out: str, record: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a complete run.

    Args:
        out: output folder of the run.
        record: expected identity of the run.

    Returns:
        What the command printed; None if the run is not complete.

    Raises:
        InputError: the folder is of another run.
    """
    path = Path(out) / "trainer" / RECORD
    if not path.exists():
        return None
    todo = "pass --force to start over"
    made = read_state(path, _Complete, todo)
    checkpoint.check_same(made, record, str(path))
    result: dict[str, Any] = made["result"]
    return result


def refuse_existing_run(out: str, *, resume: bool, force: bool) -> None:
    """Raise InputError unless a run may write to its folder.

    Args:
        out: path of the folder.
        resume: continue the existing run.
        force: replace the existing run.

    Raises:
        InputError: the folder is a file, holds a run or an input, or can't be made.
    """
    path = Path(os.path.realpath(out))
    if path.exists() and not path.is_dir():
        raise InputError(out, "is a file", "name a folder")
    if not path.parent.is_dir():
        folder = path.parent if Path(out).is_symlink() else Path(out).parent
        raise InputError(out, f"no directory '{folder}'", "create it first")
    held = list(path.iterdir()) if path.exists() else []
    if not held:
        return
    if not (resume or force):
        todo = "pass --resume to continue it, or --force to start over"
        raise InputError(out, "exists already", todo)
    if force and not any(file.name == METRICS or is_remains(file, METRICS) for file in held):
        raise InputError(out, "holds something other than a training run", "name another folder")
    refuse_input(out, folder=True)


def _ignore_disk_errors(failed: threading.ExceptHookArgs) -> None:
    """Ignore a full disk in TensorBoard's thread, because the next step reports it, too."""
    if not isinstance(failed.exc_value, OSError):
        threading.__excepthook__(failed)


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    numbers = []
    for name, value in values.items():
        if isinstance(value, dict):
            numbers += _flat(value, f"{prefix}{name}/")
        else:
            numbers.append((prefix + name, float(value)))
    return numbers
