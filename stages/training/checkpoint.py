"""The state of a training run on disk: weights, optimizer, random states and position.

A checkpoint is a folder that appears whole or not at all, without pickles:

    model.safetensors      the weights that training changes, by name
    optimizer.safetensors  what the optimizer keeps for each of them
    state.json             the step, torch's random state, and what the run is
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

MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps
WEIGHTS, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"


class State(NamedTuple):
    """All that a run needs to go on, but for its position."""

    weights: dict[str, torch.Tensor]  # those that training changes
    optimizer: dict[str, torch.Tensor]


class _Position(TypedDict):
    """What a checkpoint records beside its tensors."""

    step: int
    dev_loss: float | None
    random: str
    run: dict[str, Any]


class Saved(NamedTuple):
    """A checkpoint on disk."""

    path: Path
    dev_loss: float  # infinite: there is no dev set


def random_state() -> str:
    """Return torch's random state as text.

    Returns:
        Base64 of the state's bytes.
    """
    return base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode()


def set_random_state(text: str) -> None:
    """Set torch's random state.

    Args:
        text: as from `random_state`.
    """
    state = bytearray(base64.b64decode(text))
    torch.set_rng_state(torch.frombuffer(state, dtype=torch.uint8))


def optimizer_state(model: Any, optimizer: Any) -> dict[str, torch.Tensor]:
    """Return what an optimizer keeps, as `weights/quantity`; a collective on sharded weights.

    Args:
        model: of transformers, or peft's around it.
        optimizer: of its weights.

    Returns:
        Whole tensors, on whatever device they lie.
    """
    return {
        f"{name}/{quantity}": whole(value)
        for name, weights in trained(model).items()
        for quantity, value in optimizer.state.get(weights, {}).items()
    }


def set_optimizer_state(model: Any, optimizer: Any, state: dict[str, torch.Tensor]) -> None:
    """Give an optimizer what another one kept for the same weights.

    Args:
        model: of transformers, or peft's around it.
        optimizer: of its weights; changed in place.
        state: as from `optimizer_state`.

    Raises:
        InputError: it kept something else, or not all of MOMENTS.
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
    """Give a model other values for the weights that training changes.

    Args:
        model: of transformers, or peft's around it; changed in place.
        state: values by the names of the weights that training changes.
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
    """Return a tensor on the device, and with the shards, of another.

    Args:
        value: the tensor, whole.
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
    """Return weights and optimizer state; on several devices every process takes part.

    Args:
        model: of transformers, or peft's around it.
        optimizer: of its weights.

    Returns:
        Whole tensors by name.
    """
    weights = {name: whole(value) for name, value in trained(model).items()}
    return State(weights, optimizer_state(model, optimizer))


def save(
    folder: Path, held: State, step: int, dev_loss: float | None, record: dict[str, Any]
) -> None:
    """Write a checkpoint: state, position, and what the run is.

    Args:
        folder: of the checkpoint; appears when it is whole.
        held: weights and optimizer state.
        step: number of optimizer steps taken.
        dev_loss: mean loss of a token of the dev set, in nats; None: there is no dev set.
        record: what the run is, as for `check_same`.
    """
    with whole_folder(str(folder)) as path:
        write_weights(held.weights, path / WEIGHTS)
        write_weights(held.optimizer, path / OPTIMIZER)
        position = {"step": step, "dev_loss": dev_loss, "random": random_state(), "run": record}
        (path / STATE).write_bytes(orjson.dumps(position, option=orjson.OPT_INDENT_2))


def load(folder: Path, model: Any, optimizer: Any, record: dict[str, Any]) -> int:
    """Put model, optimizer and random state where a checkpoint was; return its step.

    Args:
        folder: of the checkpoint.
        model: of transformers, or peft's around it; changed in place.
        optimizer: of its weights; changed in place.
        record: what the run must be.

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
        folder: that holds the checkpoints of a run.

    Returns:
        The checkpoints; [] where the folder is missing.

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
    """Return the checkpoint with the least loss on the dev set, if there is one.

    Args:
        checkpoints: of a run.

    Returns:
        The first of those with the least loss; None: there is no dev set.
    """
    judged = [checkpoint for checkpoint in checkpoints if checkpoint.dev_loss < math.inf]
    return min(judged, key=lambda checkpoint: checkpoint.dev_loss, default=None)


def check_same(made: dict[str, Any], record: dict[str, Any], where: str) -> None:
    """Raise InputError unless a run that was begun is the one that goes on.

    Args:
        made: what the begun run is, by name.
        record: what the run that goes on is, by name.
        where: name of the begun run in the error.

    Raises:
        InputError: they differ.
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
