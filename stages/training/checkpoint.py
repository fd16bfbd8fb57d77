"""Checkpoints of a training run: weights, optimizer, random state and position.

A checkpoint is a folder without pickles that is written atomically:

    model.safetensors      the trainable weights, by name
    optimizer.safetensors  the optimizer's state for each of them
    state.json             the step, torch's random state, and the identity of the run
"""

from __future__ import annotations

import base64
import math
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import orjson
import torch

from stages.errors import InputError
from stages.tables.files import whole_folder
from stages.tables.state import damaged, read_state
from stages.training.model import read_weights, trained, whole, write_weights

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # AdamW's state
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class State(NamedTuple):
    """The tensors that a run needs to resume."""

    weights: dict[str, torch.Tensor]  # the trainable weights
    optimizer: dict[str, torch.Tensor]


class _Position(TypedDict):
    """The fields of a checkpoint's state.json."""

    step: int
    dev_loss: float | None
    random: str
    run: dict[str, Any]


class Saved(NamedTuple):
    """A checkpoint on disk."""

    path: Path
    dev_loss: float  # infinite without a dev set


def random_state() -> str:
    """Return torch's random state as text.

    Returns:
        Base64 of the state's bytes.
    """
    return base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()


def set_random_state(text: str) -> None:
    """Set torch's random state.

    Args:
        text: a state from `random_state`.
    """
    state = bytearray(base64.b64decode(text))
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))


def optimizer_state(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return an optimizer's state by `weights/quantity`; a collective call on sharded weights.

    Args:
        model: transformers model, possibly wrapped by peft.
        optimizer: its optimizer.

    Returns:
        Unsharded tensors, on their devices.
    """
    return {
        f"{name}/{quantity}": whole(value)
        for name, weights in trained(model).items()
        for quantity, value in optimizer.state.get(weights, {}).items()
    }


def set_optimizer_state(model: Any, optimizer: Any, state: dict[str, torch.Tensor]) -> None:
    """Load another optimizer's state for the same weights.

    Args:
        model: transformers model, possibly wrapped by peft.
        optimizer: its optimizer; changed in place.
        state: a state from `optimizer_state`.

    Raises:
        InputError: the state is of other weights, or does not hold exactly MOMENTS.
    """
    weights = trained(model)
    held_of = {key.rpartition("/")[0] for key in state}
    lacking = {f"{name}/{quantity}" for name in held_of for quantity in MOMENTS} ^ state.keys()
    for key, value in state.items():
        name, _, quantity = key.rpartition("/")
        scalar = value.ndim == 0
        if name not in weights or not (scalar or value.shape == weights[name].shape):
            todo = "resume with the model and the adapters that it was made with"
            raise InputError(OPTIMIZER, f"is of other weights: '{name}'", todo)
        held = value.to(weights[name].device) if scalar else like(value, weights[name])
        optimizer.state[weights[name]][quantity] = held
    if lacking:
        what = f"damaged: '{min(lacking)}' is missing or unexpected"
        raise InputError(OPTIMIZER, what, "take another checkpoint")


def set_weights(model: Any, state: dict[str, torch.Tensor], where: str) -> None:
    """Load values of the trainable weights into a model.

    Args:
        model: transformers model, possibly wrapped by peft; changed in place.
        state: values by name, one for each trainable weight.
        where: name of the state in errors.

    Raises:
        InputError: the state is of other weights.
    """
    weights = trained(model)
    other = weights.keys() ^ state.keys()
    other |= {name for name in weights.keys() - other if weights[name].shape != state[name].shape}
    if other:
        todo = "resume with the model and the adapters that it was made with"
        raise InputError(where, f"is of other weights: '{min(other)}'", todo)
    with torch.no_grad():
        for name, value in state.items():
            weights[name].copy_(like(value, weights[name]))


def like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return a tensor with the device and the sharding of another.

    Args:
        value: an unsharded tensor.
        target: the other tensor, of the same shape.

    Returns:
        The same values.
    """
    value = value.to(target.device)
    if not hasattr(target, "device_mesh"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(target, DTensor)
    return distribute_tensor(value, target.device_mesh, target.placements)


def state(model: Any, optimizer: Any) -> State:
    """Return trainable weights and optimizer state; a collective call on sharded weights.

    Args:
        model: transformers model, possibly wrapped by peft.
        optimizer: its optimizer.

    Returns:
        Unsharded tensors by name.
    """
    weights = {name: whole(value) for name, value in trained(model).items()}
    return State(weights, optimizer_state(model, optimizer))


def save(
    folder: Path, held: State, step: int, dev_loss: float | None, record: dict[str, Any]
) -> None:
    """Write a checkpoint atomically.

    Args:
        folder: folder of the checkpoint.
        held: weights and optimizer state.
        step: number of optimizer steps taken.
        dev_loss: mean loss per token on the dev set, in nats; None without a dev set.
        record: identity of the run, as for `check_same`.
    """
    with whole_folder(str(folder)) as path:
        write_weights(held.weights, path / WEIGHTS)
        write_weights(held.optimizer, path / OPTIMIZER)
        position = {"step": step, "dev_loss": dev_loss, "random": random_state(), "run": record}
        (path / STATE).write_bytes(orjson.dumps(position, option=orjson.OPT_INDENT_2))


def load(folder: Path, model: Any, optimizer: Any, record: dict[str, Any]) -> int:
    """Restore model, optimizer and random state from a checkpoint; return its step.

    Args:
        folder: folder of the checkpoint.
        model: transformers model, possibly wrapped by peft; changed in place.
        optimizer: its optimizer; changed in place.
        record: expected identity of the run.

    Returns:
        The number of optimizer steps taken before the checkpoint.

    Raises:
        InputError: the checkpoint is damaged, or of another run.
    """
    position = _position(folder)
    check_same(position["run"], record, str(folder))
    set_weights(model, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))
    set_optimizer_state(model, optimizer, read_weights(folder / OPTIMIZER))
    with damaged(str(folder / STATE), "delete the checkpoint"):
        set_random_state(position["random"])
    return int(position["step"])


def saved(folder: Path) -> list[Saved]:
    """Return a run's checkpoints, oldest first.

    Args:
        folder: folder with the checkpoints of a run.

    Returns:
        The checkpoints; [] if the folder is missing.

    Raises:
        InputError: a checkpoint is damaged.
    """
    paths = sorted(path for path in folder.glob("step-*") if path.is_dir())
    losses = [_position(path)["dev_loss"] for path in paths]
    return [
        Saved(path, math.inf if loss is None else loss)
        for path, loss in zip(paths, losses, strict=True)
    ]


def best(checkpoints: list[Saved]) -> Saved | None:
    """Return the checkpoint with the lowest loss on the dev set.

    Args:
        checkpoints: checkpoints of a run, oldest first.

    Returns:
        The earliest one with the lowest loss; None without a dev set.
    """
    judged = [checkpoint for checkpoint in checkpoints if checkpoint.dev_loss < math.inf]
    return min(judged, key=lambda checkpoint: checkpoint.dev_loss, default=None)


def check_same(made: dict[str, Any], record: dict[str, Any], where: str) -> None:
    """Raise InputError unless the resumed run is the same as the recorded one.

    Args:
        made: identity of the recorded run, by name.
        record: identity of the resumed run, by name.
        where: name of the recorded run in the error.

    Raises:
        InputError: they differ in a name of `record`.
    """
    for name in record:
        if record[name] != made.get(name):
            what = f"is of a run with other {name}"
            raise InputError(where, what, "resume with the same options, or pass --force")


def _position(folder: Path) -> dict[str, Any]:
    try:
        return dict(read_state(folder / STATE, _Position, "delete it"))
    except InputError:
        raise InputError(str(folder), "no whole checkpoint", "delete it") from None
