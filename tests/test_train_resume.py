"""Runs that are killed, and runs of several processes, make what one undisturbed run makes."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import shutil
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

import torch
from safetensors.torch import load, load_file, save_file

from stages.errors import InputError
from stages.tables.files import whole_folder
from stages.train import Known, TierCodes, train
from stages.training import checkpoint
from stages.training.config import TrainConfig
from stages.training.folder import RunFolder, refuse_existing_run
from stages.training.model import write_weights
from tests import slow_train
from tests.builders import line_of
from tests.conftest import Cli
from tests.learning import Played, metrics, played, small_model, some_examples, trainer_of

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork are of POSIX")
KILLS = 3
STEPS = 24
CLOCK = {"tokens_per_s", "memory_gb"}  # what no two runs have in common
MORE = ("--lr", "3e-3", "--epochs", "6", "--batch-size", "4", "--kl", "0.1", "--quiet")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Played:
    return played(tmp_path_factory.mktemp("played"))


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Processes forked off one that has imported everything, which takes long."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.slow_train", "stages.train", "peft", "accelerate"])
    return context


def start(
    forks: ForkServerContext, args: list[str], env: dict[str, str] | None = None, rest_s: float = 0
) -> ForkServerProcess:
    process = forks.Process(target=slow_train.learn, args=(args, env or {}, rest_s))
    process.start()
    return process


def finish(process: ForkServerProcess) -> None:
    process.join(120)
    assert process.exitcode == 0


def timeless(folder: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in line.items() if name not in CLOCK}
        for line in metrics(folder)
    ]


def test_killed_and_resumed(
    run: Cli, files: Played, forks: ForkServerContext, tmp_path: Path
) -> None:
    """With adapters, whose first values are drawn at random."""
    lora = ("--lora-rank", "2")
    out, draw = tmp_path / "out", random.Random(0)
    args = [*files.args, *MORE, *lora, "--save-every", "3", "--resume", "-o", str(out)]
    reached: list[int] = []
    for kill in range(KILLS):
        process = start(forks, args, rest_s=0.02)
        until = sum(reached[-1:]) + draw.randint(1, 6)
        while process.is_alive() and not (
            (out / "metrics.jsonl").exists() and len(metrics_so_far(out)) >= until
        ):
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.join(60)
        reached.append(len(metrics_so_far(out)))
        assert reached[-1] < STEPS, f"it was over before kill {kill}"
    finish(start(forks, args))
    assert run(*files.args, *MORE, *lora, "-o", "whole").code == 0
    whole = Path("whole")
    for name in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert timeless(out) == timeless(whole)
    assert len(timeless(out)) == STEPS
    assert len(list((out / "checkpoints").iterdir())) == 2


def metrics_so_far(folder: Path) -> list[bytes]:
    """The lines that are complete."""
    return (folder / "metrics.jsonl").read_bytes().split(b"\n")[:-1]


def test_two_processes_equal_one(
    run: Cli, files: Played, forks: ForkServerContext, tmp_path: Path
) -> None:
    """As `accelerate launch --cpu --num_processes 2` starts them; an odd number of passes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    more = [*MORE, "--pack-tokens", "40", "--epochs", "2", "--entropy", "0.01", "--save-every", "2"]
    args = [*files.args, *more, "-o", str(tmp_path / "two")]
    where = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    both = [
        start(
            forks,
            args,
            where | {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    for process in both:
        finish(process)
    assert run(*files.args, *more, "-o", "one").code == 0
    two, one = load_file(tmp_path / "two/model.safetensors"), load_file("one/model.safetensors")
    before = load_file(Path(files.model) / "model.safetensors")
    for name, weights in one.items():
        assert torch.allclose(two[name], weights, rtol=0, atol=1e-5), name
    assert max((one[name] - before[name]).abs().max() for name in one) > 1e-3
    for ours, theirs in zip(timeless(tmp_path / "two"), timeless(Path("one")), strict=True):
        for name in ("loss", "grad_norm", "entropy", "ratio", "reference_kl", "tis"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert len(list((tmp_path / "two/checkpoints").iterdir())) == 2


BATCH = some_examples()
CONFIG = TrainConfig(lr=1e-3, batch_size=2, epochs=2)


def begun(folder: Path, steps: int) -> None:
    """Leave a checkpoint behind."""
    trainer = trainer_of(small_model(), CONFIG)
    run = RunFolder(str(folder), main=True, keep=2)
    run.begin(trainer, {"settings": 1}, resume=False)
    for step in train(trainer, BATCH, None, TierCodes([], {}), CONFIG):
        run.log(step.number, step.log)
        if step.number == steps:
            run.save(trainer, steps, None)
            break


def test_random_states_go_on(tmp_path: Path) -> None:
    trainer = trainer_of(small_model())
    torch.manual_seed(5)
    checkpoint.save(
        tmp_path / "step-1", checkpoint.state(trainer.bare, trainer.optimizer), 1, None, {}
    )
    drawn = torch.rand(3)
    assert checkpoint.load(tmp_path / "step-1", trainer.bare, trainer.optimizer, {}) == 1
    assert torch.equal(torch.rand(3), drawn)


def test_a_checkpoint_is_no_pickle(tmp_path: Path) -> None:
    begun(tmp_path / "out", 2)
    [folder] = (tmp_path / "out/checkpoints").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }


def test_metrics_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    begun(tmp_path / "out", 2)
    with (tmp_path / "out/metrics.jsonl").open("ab") as file:
        file.write(b'{"step":3}\n{"step":4,"lo')  # torn
    run = RunFolder(str(tmp_path / "out"), main=True, keep=2)
    assert run.begin(trainer_of(small_model()), {"settings": 1}, resume=True) == 2
    assert [line["step"] for line in metrics(tmp_path / "out")] == [1, 2]


def test_a_folder_that_takes_nothing_more(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "out"), main=True, keep=2)
    run.begin(trainer_of(small_model()), {"settings": 1}, resume=False)
    (tmp_path / "out/metrics.jsonl").unlink()
    (tmp_path / "out/metrics.jsonl").mkdir()
    line = "/out: can't be written: is a directory; free space, then pass --resume"
    with pytest.raises(InputError) as caught:
        run.log(1, {"loss": 1.0})
    assert line_of(caught) == f"{tmp_path}{line}"


def test_weights_that_find_no_space(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"(?i)error while serializing"):
        write_weights({"a": torch.zeros(3)}, tmp_path / "none" / "a")


def refused(folder: Path, record: dict[str, Any] | None = None, **more: Any) -> str:
    """The line that refuses to go on, without the folder's path."""
    run = RunFolder(str(folder), main=True, keep=2)
    with pytest.raises(InputError) as caught:
        run.begin(trainer_of(small_model(), **more), record or {"settings": 1}, resume=True)
    return line_of(caught).replace(f"{folder}/", "")


def test_checkpoints_that_can_not_be_resumed(tmp_path: Path) -> None:
    begun(tmp_path / "out", 2)
    out = tmp_path / "out"
    assert refused(out, {"settings": 2}) == (
        "checkpoints/step-000002: is of a run with other settings; "
        "resume with the same options, or pass --force"
    )
    todo = "; resume with the model and the adapters that it was made with"
    assert refused(out, lora_rank=2).startswith(
        "checkpoints/step-000002/model.safetensors: is of other weights: '"
    )
    assert refused(out, lora_rank=2).endswith(todo)
    folder = out / "checkpoints/step-000002"
    whole = (folder / "optimizer.safetensors").read_bytes()
    (folder / "optimizer.safetensors").write_bytes(whole[:1000])
    assert refused(out).startswith("checkpoints/step-000002/optimizer.safetensors: ")
    assert refused(out).endswith("; take another checkpoint")
    for change, line in DAMAGED_MOMENTS:
        state = load(whole)
        change(state)
        save_file(state, folder / "optimizer.safetensors")
        told = refused(out).removeprefix("checkpoints/step-000002/")
        assert told == f"optimizer.safetensors: damaged: {line}; take another checkpoint"
    (folder / "optimizer.safetensors").write_bytes(whole)
    (folder / "state.json").write_bytes(orjson.dumps({})[:1])
    assert refused(out) == "checkpoints/step-000002: no whole checkpoint; delete it"


NORM = "model.norm.weight"
DAMAGED_MOMENTS: list[tuple[Callable[[dict[str, torch.Tensor]], Any], str]] = [
    (
        lambda state: state[f"{NORM}/exp_avg"].fill_(torch.nan),
        f"'{NORM}/exp_avg' holds something else than finite numbers",
    ),
    (
        lambda state: state.update({f"{NORM}/step": torch.tensor(3)}),
        f"'{NORM}/step' holds something else than finite numbers",
    ),
    (
        lambda state: state.pop(f"{NORM}/exp_avg_sq"),
        f"'{NORM}/exp_avg_sq' is missing or unexpected",
    ),
    (
        lambda state: state.update({f"{NORM}/other": torch.zeros(())}),
        f"'{NORM}/other' is missing or unexpected",
    ),
]


def test_moments_of_other_weights(tmp_path: Path) -> None:
    trainer = trainer_of(small_model())
    with pytest.raises(InputError) as caught:
        checkpoint.set_optimizer_state(
            trainer.bare, trainer.optimizer, {"model.norm.weight/exp_avg": torch.zeros(3)}
        )
    assert line_of(caught) == (
        "optimizer.safetensors: is of other weights: 'model.norm.weight'; "
        "resume with the model and the adapters that it was made with"
    )


def test_a_folder_that_was_not_completed_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, whole_folder(str(tmp_path / "step-1")) as folder:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert line_of(caught) == (
        f"{tmp_path}/step-1: can't be written: no space left on device; "
        "free space or write somewhere else"
    )
    assert not list(tmp_path.iterdir())


def test_old_checkpoints_go_and_the_best_stays(tmp_path: Path) -> None:
    trainer = trainer_of(small_model())
    run = RunFolder(str(tmp_path / "out"), main=True, keep=2)
    run.begin(trainer, {}, resume=False)
    kept = []
    for step, loss in enumerate([3.0, 1.0, 2.0, 2.0, 0.5], 1):
        run.save(trainer, step, loss)
        kept.append([int(path.name[5:]) for path in sorted(run.path.glob("checkpoints/*"))])
    assert kept == [[1], [1, 2], [2, 3], [2, 3, 4], [4, 5]]
    with torch.no_grad():
        trainer.bare.model.norm.weight.zero_()
    run.take_best(trainer, 0.4)
    assert not trainer.bare.model.norm.weight.any()
    run.take_best(trainer, 0.6)
    assert trainer.bare.model.norm.weight.all()


def test_a_checkpoint_is_whole_until_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while old checkpoints are removed, a run goes on, and removes the rest."""
    out, trainer = tmp_path / "out", trainer_of(small_model())
    run = RunFolder(str(out), main=True, keep=1)
    run.begin(trainer, {}, resume=False)
    run.save(trainer, 1, None)

    def killed(path: Path, **_: Any) -> None:
        if path.exists():
            (path / "state.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as dies, pytest.raises(KeyboardInterrupt):
        dies.setattr(shutil, "rmtree", killed)
        run.save(trainer, 2, None)
    again = RunFolder(str(out), main=True, keep=1)
    assert again.begin(trainer, {}, resume=True) == 2
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-000002"]


def test_checkpoints_that_a_killed_run_did_not_drop_are_dropped(tmp_path: Path) -> None:
    trainer = trainer_of(small_model())
    careless = RunFolder(str(tmp_path / "out"), main=True, keep=9)
    careless.begin(trainer, {}, resume=False)
    for step in range(1, 5):
        careless.save(trainer, step, None)
    run = RunFolder(str(tmp_path / "out"), main=True, keep=2)
    assert run.begin(trainer, {}, resume=True) == 4
    kept = sorted(path.name for path in run.path.glob("checkpoints/*"))
    assert kept == ["step-000003", "step-000004"]


def test_a_run_that_was_killed_at_its_start_may_be_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / ".metrics.jsonl.k3_x0abc").touch()
    refuse_existing_run(str(out), resume=False, force=True)
    (out / "notes.txt").touch()
    (out / ".metrics.jsonl.k3_x0abc").unlink()
    with pytest.raises(InputError, match="holds something other than a training run"):
        refuse_existing_run(str(out), resume=False, force=True)


def test_known_is_not_needed_for_messages(tmp_path: Path) -> None:
    trainer = trainer_of(small_model(), CONFIG)
    losses = [step.log["loss"] for step in train(trainer, BATCH, None, TierCodes([], {}), CONFIG)]
    assert losses[-1] < losses[0]
    assert Known([None], None).reference is None
