"""What `irc-cli export verl` writes; tests/verl has verl itself read it."""

from __future__ import annotations

from pathlib import Path

import orjson
import polars as pl
import pytest
import yaml

from stages.envs.airline_mini import airline_mini
from stages.exports.verl import DATASET
from stages.tables.table_file import made_by, read_table
from tests.conftest import Cli

EXPORT = ("export", "verl", "--env", "airline-mini", "--model", "org/name", "-o", "out")
SMALL = ("--max-tasks", "4", "--tasks-per-step", "4")


def test_a_folder_for_verl(run: Cli, calibration: Path, tmp_path: Path) -> None:
    estimator = ("--advantage", "gtpo", "--gamma", "0.5", "--no-last-turn-reward")
    result = run(*EXPORT, *SMALL, *estimator, "--calibration", calibration, "--json")
    folder = tmp_path / "out"
    launch = f"python -m verl.trainer.main_ppo --config-path {folder} --config-name irc"
    assert result.json() == {"train": 4, "val": 4, "launch": launch, "notes": {}}

    train = read_table(DATASET, str(folder / "train.parquet"))
    tasks = airline_mini().tasks("train")[:4]
    extra = train["extra_info"].struct
    assert extra.field("task_id").to_list() == [task.task_id for task in tasks]
    assert extra.field("index").to_list() == [0, 1, 2, 3]
    gold = train["reward_model"].struct.field("ground_truth")
    assert [orjson.loads(text) for text in gold] == [[*task.gold_actions] for task in tasks]
    held_out = pl.read_parquet(folder / "val.parquet")["extra_info"].struct.field("split")
    assert held_out.to_list() == ["dev"] * 4
    assert made_by(str(folder / "train.parquet"))["inputs"][0]["path"] == str(calibration)

    config = yaml.safe_load((folder / "irc.yaml").read_text())
    assert config["actor_rollout_ref"]["model"]["path"] == "org/name"
    options = {"estimator": "gtpo", "gamma": 0.5, "outcome_weight": 0.3, "normalise": "turn"}
    options |= {"last_turn_reward": False, "gae_lambda": 0.5, "eps": 1e-6}
    assert config["algorithm"] == {"adv_estimator": "irc", "irc": options}
    reward = config["reward"]["custom_reward_function"]["reward_kwargs"]
    assert reward == {"calibration": str(calibration), "tiers": "extended"}
    [loop] = yaml.safe_load((folder / "agent.yaml").read_text())
    assert loop["name"] == config["actor_rollout_ref"]["rollout"]["agent"]["default_agent_loop"]


def test_a_folder_is_not_overwritten_unasked(run: Cli, tmp_path: Path) -> None:
    assert run(*EXPORT, *SMALL).code == 0
    before = (tmp_path / "out/irc.yaml").read_bytes()
    again = run(*EXPORT, *SMALL, "--advantage", "grpo")
    line = f"error: {tmp_path}/out/train.parquet: exists already; pass --force to replace it\n"
    assert (again.code, again.err) == (2, line)
    assert (tmp_path / "out/irc.yaml").read_bytes() == before
    assert run(*EXPORT, *SMALL, "--advantage", "grpo", "--force").code == 0
    assert (tmp_path / "out/irc.yaml").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--max-tasks", "4"),
            "--tasks-per-step: a step of 32 tasks, but there are 4; give less",
        ),
        (
            ("--tiers", "flat", "--calibration", "calibration.yaml"),
            "irc_cli.scorer: calibration of unknown tier 'duplicate'; use a tier of 'flat'",
        ),
        (("--val-split", "none"), "split 'none'"),
        (("--advantage", "gae"), "--advantage: unknown value 'gae'"),
        (("--env", "nowhere"), "--env: no environment 'nowhere'"),
    ],
)
def test_bad_options(
    run: Cli, calibration: Path, tmp_path: Path, options: tuple[str, ...], line: str
) -> None:
    (tmp_path / "calibration.yaml").write_bytes(calibration.read_bytes())
    result = run(*EXPORT, *options)
    assert result.code == 2 and line in result.err
    assert not (tmp_path / "out").exists()
