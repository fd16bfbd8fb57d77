"""`irc-cli loop`: what it plans, that it can be cut off anywhere, and run again by hand."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

from stages import loop as stage
from stages.errors import InputError
from stages.loop import LoopConfig, Places
from stages.loop_files import check_settings
from stages.tables.files import digest
from tests.conftest import Cli
from tests.test_cli import example_of

SMALL = (
    *("--sample-tasks", "4", "--group-size", "4", "--eval-every", "2", "--eval-tasks", "6"),
    *("--set", "rollout.max-turns=8", "--set", "rollout.max-tokens=40"),
    *("--set", "train.lr=3e-4", "--set", "calibrate.min-support=2"),
    *("--set", "calibrate.resamples=100"),
)


def test_each_iteration_plays_other_tasks_with_the_policy_of_the_one_before() -> None:
    config = LoopConfig(env="airline-mini", model="seed", tasks=5, seed=3)
    first = stage.play(config, Places(Path("out"), 0), "seed")
    later = stage.play(config, Places(Path("out"), 7), "out/iter-06/policy")
    assert first.command == (
        "irc-cli rollout --env airline-mini --model seed --split train --group-size 8 --seed 3000 "
        "--sample-tasks 5 --out out/iter-00/rollouts.jsonl"
    )
    assert "--model out/iter-06/policy" in later.command
    assert "--seed 3007" in later.command
    fresh = stage.play(replace(config, fresh=True), Places(Path("out"), 7), "seed")
    assert "--seed 3007 --sample-tasks 5 --fresh" in fresh.command


def test_a_calibration_sees_the_turns_of_a_window() -> None:
    config = LoopConfig(env="airline-mini", model="seed", window=2)
    step = stage.calibrate(config, Places(Path("out"), 4))
    assert step.inputs == ("out/iter-03/turns.parquet", "out/iter-04/turns.parquet")
    assert "--strata none" in step.command  # one policy that learns, not several
    assert "--strata" not in stage.calibrate(config, Places(Path("out"), 0)).command
    again = stage.calibrate(config, Places(Path("out"), 4), ("handoff",))
    assert "--zero handoff" in again.command
    assert again.outputs[0] == "out/iter-04/round-1/calibration.yaml"


def test_an_online_calibration_goes_on_from_a_copy_of_the_state_before() -> None:
    config = LoopConfig(env="airline-mini", model="seed", rewards="online")
    first = stage.calibrate(config, Places(Path("out"), 0))
    later = stage.calibrate(config, Places(Path("out"), 1))
    assert first.command.startswith("rm -f out/iter-00/online.parquet && irc-cli calibrate")
    copy = "cp out/iter-00/online.parquet out/iter-01/online.parquet && irc-cli calibrate "
    assert later.command.startswith(copy + "out/iter-01/turns.parquet ")
    assert "out/iter-00/online.parquet" in later.inputs


def test_the_estimator_is_given_to_both_stages_that_use_it() -> None:
    options: dict[str, dict[str, Any]] = {"train": {"gamma": 0.5, "lr": 1e-3}}
    config = LoopConfig(env="airline-mini", model="seed", options=options)
    at = Places(Path("out"), 0)
    assert "--gamma 0.5" in stage.calibrate(config, at).command
    assert "--lr" not in stage.calibrate(config, at).command
    train = stage.train(config, at, "seed", "c.yaml", first=True).command
    assert train.count("--gamma 0.5") == 1
    assert "--lr 0.001" in train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A loop of two iterations."""
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    from tests.conftest import exit_code

    folder = tmp_path_factory.mktemp("loop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        code = exit_code(["loop", "--iterations", "2", "-o", "out", "--quiet", *SMALL])
    assert code == 0
    return folder


def contents(out: Path) -> dict[str, str]:
    """The sha256 of every file that does not depend on the clock."""
    return {
        str(path.relative_to(out)): digest(str(path))
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix in (".parquet", ".yaml", ".safetensors")
    } | {str(p.relative_to(out)): digest(str(p)) for p in out.rglob("rollouts.jsonl")}


def test_every_step_is_on_disk(finished: Path) -> None:
    out = finished / "out"
    assert yaml.safe_load((out / "loop.yaml").read_bytes())["tasks"] == 4
    rows = [orjson.loads(line) for line in (out / "loop.jsonl").read_bytes().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1]
    assert rows[1]["evaluation"]["episodes"] == 6
    for name in ("rollouts.jsonl", "turns.parquet", "calibration.yaml", "policy/model.safetensors"):
        assert (out / "iter-01" / name).exists()
    assert {path.name for path in (out / "plots").iterdir()} == {
        f"{name}.{kind}" for name in ("pass-rate", "values") for kind in ("png", "svg")
    }


def test_a_step_run_again_by_hand_makes_the_same_files(
    finished: Path, run: Cli, tmp_path: Path
) -> None:
    shutil.copytree(finished / "out", "out")
    before = contents(Path("out"))
    for step in orjson.loads(Path("out/iter-01/steps.json").read_bytes()).values():
        result = run(*shlex.split(step["command"])[1:], "--force", "--quiet")
        assert result.code == 0, result.err
    assert contents(Path("out")) == before


def test_a_loop_goes_on_where_it_was_cut_off(finished: Path, run: Cli) -> None:
    assert run("loop", "--iterations", "1", "-o", "out", "--quiet", *SMALL).code == 0
    # As if it had been killed between two steps, and in the middle of one.
    shutil.rmtree("out/iter-00/policy/trainer")
    Path("out/iter-00/policy/model.safetensors").unlink()
    assert run("loop", "--iterations", "2", "-o", "out", "--quiet", *SMALL).code == 0
    assert contents(Path("out")) == contents(finished / "out")


def test_a_finished_loop_does_nothing_again(
    finished: Path, run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from irc_cli import loop

    shutil.copytree(finished / "out", "out")
    monkeypatch.setattr(loop, "_call", lambda args, step: pytest.fail(f"ran {step.name}"))
    assert run("loop", "--iterations", "2", "-o", "out", "--quiet", *SMALL).code == 0


def test_other_settings_need_another_folder(finished: Path, run: Cli) -> None:
    shutil.copytree(finished / "out", "out")
    result = run("loop", "--iterations", "2", "-o", "out", "--reward-mode", "naive", *SMALL)
    assert (result.code, result.err) == (
        2,
        "error: out/loop.yaml: is of a loop with rewards 'calibrated', not 'naive'; name another "
        "folder, or give the same settings\n",
    )


def test_a_loop_that_was_killed_at_its_start_begins(tmp_path: Path) -> None:
    (tmp_path / ".loop.yaml.k3_x0abc").touch()
    check_settings(tmp_path, {"seed": 0})
    assert (tmp_path / "loop.yaml").read_text() == "seed: 0\n"
    (tmp_path / "loop.yaml").rename(tmp_path / "mine.yaml")
    with pytest.raises(InputError, match="holds something other than a loop"):
        check_settings(tmp_path, {"seed": 0})


def test_the_example_of_the_help_runs(run: Cli) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    _, *words = example_of(run("loop", "--help").out.decode())
    result = run(*words, *SMALL, "--iterations", "1")  # what comes last counts
    assert (result.code, result.err[:12]) == (0, "iteration 0:")
    assert b"before: pass rate" in result.out
    assert Path("first/iter-00/policy/model.safetensors").exists()


def test_online_gates_are_logged_and_drawn(run: Cli) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    options = (*SMALL, "--reward-mode", "online", "--set", "calibrate.open-p=0.04")
    assert run("loop", "--iterations", "2", "-o", "out", "--quiet", *options).code == 0
    last = orjson.loads(Path("out/loop.jsonl").read_bytes().splitlines()[-1])
    assert {event["event"] for event in last["gates"]} <= {"opened", "closed", "turned"}
    assert bool(last["gates"]) == Path("out/plots/gates.png").exists()


def test_a_loop_learns_from_the_critic_of_its_window(run: Cli) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    options = (*SMALL, "--set", "train.advantage=potential", "--set", "train.gae-lambda=0.8")
    assert run("loop", "--iterations", "2", "-o", "out", "--quiet", *options).code == 0
    last = Path("out/iter-01")
    assert not list(last.glob("round-*")), "no value moves a critic"
    judged = pl.read_parquet(last / "advantages.parquet")
    turns = [pl.read_parquet(f"out/iter-0{i}/turns.parquet").height for i in (0, 1)]
    assert judged.height == sum(turns)
    assert judged["forecast_before"].null_count() == 0
    recorded = yaml.safe_load((last / "calibration.yaml").read_text())
    assert recorded["settings"]["advantage"]["gae_lambda"] == 0.8
    assert len(recorded["critic"]["folds"]) == 5
    made = orjson.loads((last / "policy/trainer/train.json").read_bytes())["settings"]["advantage"]
    assert (made["estimator"], made["gae_lambda"]) == ("potential", 0.8)


def test_a_setting_names_its_stage(run: Cli) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    result = run("loop", "-o", "out", "--set", "trian.lr=1")
    assert result.code == 2
    assert result.err.startswith("error: --set: unknown value 'trian'")
    result = run("loop", "-o", "out", "--set", "train.lr={")
    assert result.code == 2
    assert result.err.startswith("error: --set train.lr:")
    assert not Path("out").exists()


def planned_command(run: Cli, monkeypatch: pytest.MonkeyPatch, *args: str) -> str:
    """The command line of the first step of a loop that plays nothing."""
    from irc_cli import loop

    commands: list[str] = []

    def stop(args: list[str], step: stage.LoopStep) -> bytes:
        commands.append(step.command)
        raise InputError("here", "stopped", "done")

    monkeypatch.setattr(loop, "_call", stop)
    assert run("loop", "-o", "out", *args).err == "error: here: stopped; done\n"
    return commands[0]


def test_a_set_adds_to_that_of_the_config(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    both = ["rollout.max-turns=8", "rollout.concurrency=3", "rollout.temperature=0.5"]
    Path("c.yaml").write_text(f"eval-every: 0\nset: [{', '.join(both)}]\n")
    plain = planned_command(run, monkeypatch, "--config", "c.yaml")
    assert plain.endswith("--max-turns 8 --concurrency 3 --temperature 0.5")
    shutil.rmtree("out")
    more = ("--set", "rollout.max-turns=9", "--set", "rollout.top-p=0.9")
    added = planned_command(run, monkeypatch, *more, "--config", "c.yaml")
    assert added.endswith("--max-turns 9 --concurrency 3 --temperature 0.5 --top-p 0.9")
    shutil.rmtree("out")
    Path("c.yaml").write_text("eval-every: 0\nset: rollout.max-turns=8\n")
    alone = planned_command(run, monkeypatch, "--config", "c.yaml", *more[2:])
    assert alone.endswith("--max-turns 8 --top-p 0.9")


@pytest.mark.parametrize(("old", "new"), [("tasks", "sample-tasks"), ("rewards", "reward-mode")])
def test_an_old_name_is_refused_with_the_new_one(run: Cli, old: str, new: str) -> None:
    result = run("loop", "-o", "out", f"--{old}", "naive")
    assert result == (2, b"", f"error: --{old}: was renamed; use --{new}\n")
    Path("c.yaml").write_text(f"iterations: 2\n{old}: 4\n")
    result = run("loop", "-o", "out", "--config", "c.yaml")
    assert result == (2, b"", f"error: c.yaml:2:1: '{old}' was renamed; use '{new}'\n")
    assert f"--{old} " not in run("loop", "--help").out.decode()


class Pretend:
    """Runs nothing; evaluations find what they are told to."""

    def __init__(self, *pass_rates: float) -> None:
        self.pass_rates = iter(pass_rates)
        self.steps: list[stage.LoopStep] = []

    def __call__(self, step: stage.LoopStep, folder: Path) -> dict[str, Any]:
        self.steps.append(step)
        if step.name != "eval":
            return {"pass_rate": 0.5}
        rate = next(self.pass_rates)
        return {"pass_rate": rate, "ci_low": rate - 0.05, "ci_high": rate + 0.05, "episodes": 400}


def iterations(run: Pretend, out: Path, **settings: Any) -> list[Any]:
    from irc_cli.loop import _iterations

    config = LoopConfig(env="airline-mini", model="seed", rewards="none", eval_every=1, **settings)
    start = {"pass_rate": 0.4, "ci_low": 0.35, "ci_high": 0.45}
    return list(_iterations(config, out, start, run))  # type: ignore[arg-type]  # a stand-in


def test_a_policy_that_is_clearly_worse_gives_way_to_the_best(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    run = Pretend(0.6, 0.55, 0.4, 0.6)
    found = iterations(run, tmp_path, iterations=4)
    assert [one.restored for one in found] == [False, False, True, False]
    trained = [step for step in run.steps if step.name == "train"]
    best = str(tmp_path / "iter-00" / "policy")
    assert [step.inputs[0] for step in trained][1:] == [
        best,
        str(tmp_path / "iter-01" / "policy"),
        best,
    ]


def test_a_loop_that_gets_no_better_ends(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    found = iterations(Pretend(0.5, 0.5, 0.5, 0.5), tmp_path, iterations=4, patience=2)
    assert len(found) == 3
