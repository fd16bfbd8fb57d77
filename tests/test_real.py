"""`make real`: the commands that it runs, and how it goes on; no model is loaded here."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import typer
import yaml

from examples.real import make
from examples.real.report import write_report
from examples.study.runs import TimeBudget
from irc_cli.app import app
from stages.loop import as_args

RECIPE = yaml.safe_load((Path(make.__file__).parent / "recipe.yaml").read_bytes())


def parsed(args: list[str]) -> typer.Context:
    """The options of a command line, which it must have."""
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(typer.Context(group), args)  # type: ignore[attr-defined]
    return command.make_context(name, rest)  # type: ignore[no-any-return]


def test_every_step_is_a_command_with_these_options(tmp_path: Path) -> None:
    for step in make.steps(RECIPE, tmp_path):
        parsed([*step.args, "--quiet"])


def test_stages_of_the_loop_have_these_options() -> None:
    parsed(["rollout", *make.ENV, *as_args(RECIPE["rollout"])])
    for arm in RECIPE["arms"].values():
        parsed(["train", *as_args({"model": "m"} | RECIPE["train"] | arm["train"])])


def test_both_arms_start_from_the_same_policy_with_the_same_episodes(tmp_path: Path) -> None:
    runs = [make.training(RECIPE, arm, 0, tmp_path).args for arm in RECIPE["arms"]]
    differ = {(one, other) for one, other in zip(*runs, strict=True) if one != other}
    assert {one.split("=")[0] for one, _ in differ} <= {
        "none",
        "train.advantage",
        str(make.run_folder("sparse GRPO", 0, tmp_path)),
    }


def test_what_is_done_is_skipped_and_the_budget_ends_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def call(args: list[str], budget: TimeBudget) -> None:
        called.append(args[0])
        if len(called) % 3:
            done = next(
                step.done for step in make.steps(RECIPE, tmp_path) if step.args == args[:-1]
            )
            done.parent.mkdir(parents=True, exist_ok=True)
            done.write_bytes(b"{}")

    monkeypatch.setattr(make, "call", call)
    (tmp_path / "model").mkdir()
    make.run(RECIPE, tmp_path, TimeBudget(None))
    assert called == ["eval", "rollout", "rollout"]
    make.run(RECIPE, tmp_path, TimeBudget(None))
    assert called[3:] == ["rollout", "train", "eval"]


def test_the_tables(tmp_path: Path) -> None:
    found = {"pass_rate": 0.25, "ci_low": 0.2, "ci_high": 0.31, "episodes": 200}
    (tmp_path / "eval-sft.json").write_bytes(orjson.dumps(found))
    done = tmp_path / "sft" / make.TRAINED
    done.parent.mkdir(parents=True)
    metrics = [
        {"tokens_per_s": speed, "memory_gb": 5.0 + speed / 1000} for speed in (300, 100, 200)
    ]
    (tmp_path / "sft/metrics.jsonl").write_bytes(b"\n".join(map(orjson.dumps, metrics)))
    step = {"name": "sft", "seconds": 90, "done": str(done)}
    (tmp_path / "steps.jsonl").write_bytes(orjson.dumps(step) + b"\n")
    write_report(tmp_path, tmp_path)
    text = (tmp_path / "real-model.md").read_text()
    assert "| sft | 25.0 % | 20.0 % to 31.0 % | 200 |" in text
    assert "| sft | 1.5 | 200 | 5.3 |" in text
