"""The critic in a calibration: as a file and a table, and who uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
import yaml

from irc_cli.scorer import load_calibration, load_critic, score
from irc_cli.verl.reward import compute_score
from stages.calibration.file import critic_record, read_previous
from stages.core.advantages import AdvantageConfig
from stages.core.critic import FOLDS, Critic, Weights, gains
from stages.core.leave_one_out import mean_of_others
from stages.core.potential import RIDGE
from stages.errors import InputError
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.tables.turn_arrays import fitted_critic, potential_rewards, turn_arrays
from stages.training.inputs import played_advantages, read_rollouts, read_values
from tests.builders import line_of
from tests.conftest import Cli

POTENTIAL = ("--advantage", "potential")
QUICK = ("--resamples", "100")


def forecast(run: Cli, turns: Path, *options: str) -> pl.DataFrame:
    """The advantages of `calibrate --advantage potential`."""
    assert run("calibrate", turns, *POTENTIAL, *QUICK, "-o", "c.yaml", "-q", *options).code == 0
    return pl.read_parquet("advantages.parquet")


def test_each_turn_is_stored_with_its_forecasts(run: Cli, turns: Path) -> None:
    frame = forecast(run, turns, "--gae-lambda", "0.8")
    played = pl.read_parquet(turns).filter(pl.col("status") != "error")
    joined = frame.join(played.select("episode_id", "turn", "outcome"), on=["episode_id", "turn"])
    by_episode = joined.group_by("episode_id", maintain_order=True).agg(
        pl.col("reward").sum().abs(),
        pl.col("outcome").first(),
        pl.col("group_mean").first(),
        error=pl.col("td_error").sum(),
        begin=pl.col("forecast_before").first(),
        end=pl.col("forecast_after").last(),
        last=pl.col("advantage").last() - pl.col("td_error").last(),
    )
    columns = {name: by_episode[name].to_numpy() for name in by_episode.columns[1:]}
    gain = columns["outcome"] - columns["group_mean"]
    assert columns["reward"] == pytest.approx(0, abs=1e-9)
    assert columns["begin"] == pytest.approx(columns["group_mean"], abs=1e-9)
    assert columns["end"] == pytest.approx(columns["outcome"], abs=0)
    assert columns["error"] == pytest.approx(gain, abs=1e-9)
    assert columns["last"] == pytest.approx(0, abs=1e-9)
    assert frame["group_std"].null_count() == frame.height


def test_other_estimators_forecast_nothing(calibration: Path) -> None:
    frame = pl.read_parquet(calibration.with_name("advantages.parquet"))
    for name in ("forecast_before", "forecast_after", "td_error"):
        assert frame[name].null_count() == frame.height


def test_the_file_holds_the_critic_and_reads_it_back(turns: Path, calibration: Path) -> None:
    arrays = turn_arrays(read_table(TURNS, str(turns)))
    fitted = fitted_critic(arrays)
    assert read_previous(str(calibration)).values.critic == fitted
    document = yaml.safe_load(calibration.read_text())["critic"]
    assert document == critic_record(fitted) and len(document["folds"]) == FOLDS
    assert document["first"]["soft"] < -0.2 < 0.1 < document["first"]["gold_write"]


def test_json_tables_and_gate(run: Cli, turns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    told = run("calibrate", turns, *POTENTIAL, *QUICK)
    assert told.code == 0
    lines = [line.strip() for line in told.out.decode().splitlines()]
    assert any(line.startswith("tier          first turn adds  each repeat adds") for line in lines)
    assert any(line.startswith("gold_write    +0.137 +- 0.032   +0.042 +- 0.023") for line in lines)
    assert any(
        line.startswith("after: last forecast and outcome correlate by +0.5") for line in lines
    )
    assert any(line.startswith("hidden bonus per further turn") for line in lines)
    document = run("calibrate", turns, *POTENTIAL, *QUICK, "--json", "--check").json()
    assert document["converged"] and document["objections"] == []
    assert document["critic"]["turn"] == pytest.approx(0.005, abs=0.001)
    after, before = document["after"], document["before"]
    assert after["followed"] == "last forecast" and before["followed"] == "mean reward"
    assert not any(after["farmability"]["extra_turns"].values())
    assert after["farmability"]["failure_reward"] == after["farmability"]["success_reward"] == 0
    assert before["length_bias"]["bonus"] == 0  # rewards as scored get rloo's advantages
    assert after["length_bias"]["ci_low"] < 0 < after["length_bias"]["ci_high"]
    plain = run("calibrate", turns, *QUICK)
    assert b"first turn adds" not in plain.out and b"hidden bonus" in plain.out


def test_the_penalty_hardly_matters(turns: Path) -> None:
    """Squared error of forecasts before the last turn, by weights of other tasks."""
    arrays = turn_arrays(read_table(TURNS, str(turns)))
    baseline = mean_of_others(arrays.outcome, arrays.layout.group)
    errors = {}
    for ridge in (1.0, RIDGE, 10.0):
        reward = potential_rewards(arrays, fitted_critic(arrays, ridge))
        forecast = baseline - reward[arrays.layout.last]
        errors[ridge] = float(np.mean((arrays.outcome - forecast) ** 2))
    assert max(errors.values()) < 1.06 * min(errors.values())
    assert errors[RIDGE] < 0.7 * np.mean((arrays.outcome - baseline) ** 2)


def test_the_normalised_estimators_hide_a_price_on_turns(run: Cli, turns: Path) -> None:
    """Every read of the example's rewards pays, and normalising per turn index takes it back."""
    options = ("--advantage", "mt-grpo", *QUICK, "--json")
    bias = run("calibrate", turns, *options).json()["before"]["length_bias"]
    assert bias["bonus"] == pytest.approx(-0.245, abs=0.001)
    assert bias["ci_low"] < bias["bonus"] < bias["ci_high"] < 0
    assert bias["pull"] < bias["unbiased_pull"]


def test_files_of_turns_give_the_critic_of_one(run: Cli, turns: Path) -> None:
    frame = pl.read_parquet(turns)
    episodes = frame["episode_id"].unique(maintain_order=True)
    for i in range(3):
        some = frame.filter(pl.col("episode_id").is_in(episodes[i::3].to_list()))
        some.write_parquet(f"{i}.parquet")
    whole = run("calibrate", turns, *QUICK, "--json").json()["critic"]
    parts = run("calibrate", "2.parquet", "0.parquet", "1.parquet", *QUICK, "--json")
    for tier, weight in parts.json()["critic"]["first"].items():
        assert weight == pytest.approx(whole["first"][tier], abs=1e-12)


def test_train_gives_the_advantages_that_calibrate_judged(run: Cli) -> None:
    play = ("rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.3", "-q")
    assert run(*play, "--max-tasks", "8", "--group-size", "4", "-o", "r.jsonl").code == 0
    assert run("score", "r.jsonl", "-o", "t.parquet", "-q").code == 0
    judged = forecast(run, Path("t.parquet"), "--min-support", "2")
    config = AdvantageConfig("potential")
    values = read_values("c.yaml", "t.parquet", config)
    scored = read_table(TURNS, "t.parquet")
    played = read_rollouts("r.jsonl")
    ours = played_advantages(played, scored, values, config, "t.parquet")
    assert ours.equals(judged)
    as_inspected = played_advantages(
        played, scored, values, AdvantageConfig(), "t.parquet", "advantages.parquet"
    )
    assert as_inspected.equals(judged)
    assert np.abs(ours["advantage"].to_numpy()).max() > 0.1


def test_the_scorer_pays_what_a_turn_adds(turns: Path, calibration: Path, example: Path) -> None:
    critic = load_critic(str(calibration))
    arrays = turn_arrays(read_table(TURNS, str(turns)))
    expected = arrays.frame.with_columns(earned=potential_rewards(arrays, critic))
    compared = 0
    for line in example.read_bytes().splitlines()[:24]:
        record = orjson.loads(line)
        mine = expected.filter(pl.col("episode_id") == record["episode_id"])
        if mine.is_empty():
            continue
        scored = score(
            record["messages"],
            record.get("tools"),
            record["gold_actions"],
            critic,
            domain="airline",
            task_id=mine["task_id"][0],
        )
        assert scored.turn_tiers == mine["tier"].to_list()
        assert scored.turn_rewards == pytest.approx(mine["earned"].to_list(), abs=1e-12)
        assert sum(scored.turn_rewards) == pytest.approx(0, abs=1e-12)
        compared += 1
    assert compared > 10


def test_gains_are_what_a_turn_adds_in_all() -> None:
    def weights(first: float) -> Weights:
        return Weights(-0.01, {"read": first, "write": 0.4}, {"read": -0.05, "write": 0.0})

    folds = tuple(weights(x) for x in (0.1, 0.2, 0.3, 0.2, 0.2))
    write, read = gains(Critic(weights(0.2), folds))
    assert write.tier == "write" and write.first == pytest.approx((0.39, 0.0))
    # The jackknife: sqrt(4 / 5 * (0.1^2 + 0.1^2)).
    assert read.first == pytest.approx((0.19, np.sqrt(0.016)))
    assert read.again == pytest.approx((-0.06, 0.0))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("--merge",),
            "--merge: sums hold no turns to fit the critic of --advantage potential to; "
            "calibrate the turns themselves for that",
        ),
        (
            ("--keep-rewards",),
            "--keep-rewards: judges the rewards as scored, but --advantage potential computes its "
            "own; drop one of them",
        ),
    ],
)
def test_what_does_not_go_with_a_critic(
    run: Cli, turns: Path, options: tuple[str, ...], line: str
) -> None:
    assert run("calibrate", turns, *POTENTIAL, *options) == (2, b"", f"error: {line}\n")


def test_a_critic_is_asked_for_where_there_is_none(
    run: Cli, turns: Path, calibration: Path
) -> None:
    without = yaml.safe_load(calibration.read_text())
    del without["critic"]
    Path("old.yaml").write_text(yaml.safe_dump(without))
    todo = "calibrate the turns themselves: irc-cli calibrate TURNS"
    line = f"error: old.yaml: has no critic for the estimator 'potential'; {todo}\n"
    assert run("calibrate", turns, *POTENTIAL, "--previous", "old.yaml") == (2, b"", line)
    assert load_calibration("old.yaml").critic is None
    with pytest.raises(InputError) as caught:
        load_critic("old.yaml")
    assert f"error: {line_of(caught)}\n" == line
    Path("r.jsonl").write_text("")
    missing = "--advantage potential: needs the critic of a calibration; give --calibration FILE"
    env = ("export", "verl", "--env", "airline-mini", "--model", "m", *POTENTIAL, "-o", "verl")
    assert run(*env) == (2, b"", f"error: {missing}\n")
    assert run(*env, "--calibration", "old.yaml") == (2, b"", line)
    loop = ("loop", "--set", "train.advantage=potential", "--reward-mode", "naive", "-o", "out")
    what = "needs the critic of a calibration; use --reward-mode calibrated"
    assert run(*loop) == (2, b"", f"error: --set train.advantage=potential: {what}\n")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"folds": []}, "has 0 'folds', not 5"),
        ({"turn": None}, "expected a number"),
        ({"first": {"gold_write": "much"}}, "expected a number"),
    ],
)
def test_a_broken_critic_is_one_line(
    run: Cli, turns: Path, calibration: Path, change: dict[str, Any], line: str
) -> None:
    document = yaml.safe_load(calibration.read_text())
    document["critic"] |= change
    Path("broken.yaml").write_text(yaml.safe_dump(document))
    result = run("calibrate", turns, "--previous", "broken.yaml")
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith("error: broken.yaml:") and line in result.err


def test_verls_reward_function_pays_by_the_critic(calibration: Path) -> None:
    reply = {"role": "assistant", "content": "Sorry."}
    asked = {"role": "user", "content": "Cancel it."}
    messages = [asked, reply, asked, reply, asked, reply]
    info = {"messages": messages, "outcome": 0.0, "domain": "airline"}
    path = str(calibration)
    said = compute_score("airline", "", "[]", info, calibration=path, potential=True)
    weights = load_critic(path).every
    rewards = orjson.loads(said["turn_rewards"])
    assert said["score"] == 0.0 and orjson.loads(said["turn_tiers"]) == ["message"] * 3
    assert rewards[0] == pytest.approx(weights.first["message"] + weights.turn)
    assert sum(rewards) == pytest.approx(0, abs=1e-12)


def test_verl_gets_the_critic_by_its_calibration(run: Cli, calibration: Path) -> None:
    options = ("--model", "m", "--calibration", calibration, *POTENTIAL, "--tasks-per-step", "4")
    assert run("export", "verl", "--env", "airline-mini", *options, "-o", "verl", "-q").code == 0
    document = yaml.safe_load(Path("verl/irc.yaml").read_text())
    assert document["algorithm"]["irc"]["estimator"] == "potential"
    kwargs = document["reward"]["custom_reward_function"]["reward_kwargs"]
    assert kwargs["potential"] is True and kwargs["calibration"] == str(calibration)


def test_page_and_markdown_show_what_turns_add(run: Cli, turns: Path) -> None:
    pages = ("--report", "page.html", "--markdown", "page.md")
    assert run("calibrate", turns, *POTENTIAL, *QUICK, *pages, "-q").code == 0
    row = "| gold\\_write | +0.137 +- 0.032 | +0.042 +- 0.023 |"
    assert row in Path("page.md").read_text().splitlines()
    page = Path("page.html").read_text()
    assert "What a turn adds to the forecast" in page and "+0.137 ± 0.032" in page
    assert "of the last forecast" in page and "hidden bonus per further turn" in page
    assert "GAE&#39;s lambda 0.5" in page or "GAE's lambda 0.5" in page
    assert run("calibrate", turns, *QUICK, *pages, "-q", "--force").code == 0
    assert "adds to the forecast" not in Path("page.md").read_text() + Path("page.html").read_text()


def test_a_critic_is_tested_on_other_turns(run: Cli, turns: Path) -> None:
    options = (*POTENTIAL, *QUICK, "--test", str(turns))
    [elsewhere] = run("calibrate", turns, *options, "--json").json()["test"]
    assert elsewhere["followed"] == "last forecast"
    assert elsewhere["ci_low"] > 0.3 and not any(elsewhere["farmability"]["extra_turns"].values())
    line = "last forecast by this calibration and outcome correlate by +0.556"
    assert line in run("calibrate", turns, *options).out.decode()
