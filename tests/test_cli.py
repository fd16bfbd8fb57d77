"""The command line from end to end: documents, artifacts, pipes and exit codes."""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

from irc_cli import __version__
from irc_cli.app import COMMANDS, YOUNG
from irc_cli.export import FORMATS
from stages.tables.artifacts import PAIRS, SUMS, TURNS
from tests.builders import AIRLINE, SHARED, needs_shared
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]
IRC_CLI = [sys.executable, "-m", "irc_cli"]
IN_SUBPROCESS = os.environ | {"PYTHONPATH": str(ROOT)}

# The keys of `--json` that other programs rely on.
SCORE = {"episodes", "excluded", "turns", "calls", "tiers"}
CALIBRATE = {"episodes", "excluded", "tasks", "pass_rate", "correlation", "tiers"} | {
    "before",
    "after",
    "converged",
}
TIER = {"tier", "turns", "episodes", "r_pooled", "r_within", "ci_low", "ci_high", "p", "q"} | {
    "value",
    "status",
}
JUDGEMENT = {"direction", "reward_outcome_correlation", "dead_turn_share", "gradient_mass"} | {
    "misaligned",
    "ci_low",
    "ci_high",
    "farmability",
}
DIRECTION = {"tier", "mean_advantage", "return_part", "outcome_part", "ci_low", "ci_high"} | {
    "wrong_sign_share",
    "verdict",
}
EVAL = {"episodes", "tasks", "excluded", "pass_rate", "ci_low", "ci_high", "pass_k"} | {
    "turns_per_episode",
    "tokens_per_episode",
    "write_accuracy",
}
COMPARED = {"episodes", "calls", "same_name_calls", "unparseable", "matches", "changed"}


def provenance(path: Path) -> Any:
    """What a Parquet file records of its making."""
    return orjson.loads(pl.read_parquet_metadata(path)["irc-cli"])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tiers_section(path: Path) -> str:
    """What sums say of the tiers, digit by digit: all but the landmark r, which takes turns."""
    section = path.read_text().split("\ntiers:\n")[1].split("critic:\n")[0]
    return re.sub(r"  r_landmark: .*\n", "", section)


# --- score ----------------------------------------------------------------------------------------


def test_score_json_has_the_documented_keys(run: Cli, example: Path) -> None:
    result = run("score", example, "--json")
    document = result.json()
    assert (result.code, result.err) == (0, "")
    assert document.keys() >= SCORE
    assert (document["episodes"], document["excluded"]) == (192, 3)
    assert sum(document["tiers"].values()) == document["turns"] == 887


def test_score_writes_the_columns_of_the_spec(run: Cli, example: Path) -> None:
    assert run("score", example, "-o", "turns.parquet").code == 0
    frame = pl.read_parquet("turns.parquet")
    assert frame.columns == [
        *("source", "episode_id", "task_id", "trial", "group_id", "domain", "policy", "turn"),
        *(
            "tool_names",
            "n_calls",
            "tier",
            "match",
            "match_share",
            "reward",
            "outcome",
            "success",
            "status",
            "n_tokens",
        ),
    ]
    assert frame.height == 887
    assert list(Path().iterdir()) == [Path("turns.parquet")]


def test_report_on_standard_output_and_notes_on_standard_error(run: Cli, example: Path) -> None:
    result = run("score", example)
    assert result.out.startswith(b"192 episodes, 887 turns, 696 calls; 3 episodes left out\n")
    assert b"gold_write" in result.out
    assert "tool kinds: airline\n" in result.err
    assert "left out, crashed or cut by infrastructure: 3\n" in result.err


def test_turns_on_standard_output_leave_the_report_to_standard_error(
    run: Cli, example: Path, turns: Path
) -> None:
    result = run("score", example, "-o", "-")
    rows = pl.read_ndjson(result.out, schema=TURNS.columns)
    assert rows.equals(pl.read_parquet(turns))
    assert result.err.startswith("192 episodes, 887 turns")


def test_domain_and_tiers_may_be_files(run: Cli, example: Path) -> None:
    flat = ROOT / "data/tiers/flat.yaml"
    airline = ROOT / "data/domains/airline.yaml"
    named = run("score", example, "--json", "--tiers", "flat", "--domain", "airline").json()
    filed = run("score", example, "--json", "--tiers", flat, "--domain", airline).json()
    assert named == filed
    other = run("score", example, "--json", "--tiers", "flat", "--domain", "retail").json()
    assert other["tiers"] != named["tiers"]


def test_numbers_beyond_a_column_are_noted(run: Cli) -> None:
    said = {"role": "assistant", "content": "hi", "n_tokens": -(2**40)}
    talk = {"trial": 3_000_000_000, "messages": [said], "outcome": 1, "gold_actions": []}
    Path("t.jsonl").write_bytes(orjson.dumps(talk))
    scored = run("score", "t.jsonl", "-o", "turns.parquet")
    assert scored.code == run("eval", "t.jsonl").code == 0
    assert {"no trial: 1", "token count out of range: 1"} <= set(scored.err.splitlines())


def test_traces_of_one_name_are_kept_apart(run: Cli, example: Path) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        Path(folder, "t.jsonl").write_bytes(
            example.read_bytes().replace(b'"episode_id":"', b'"episode_id":"' + folder.encode())
        )
    assert run("score", "a/t.jsonl", "b/t.jsonl", "-o", "turns.parquet", "--quiet").code == 0
    frame = pl.read_parquet("turns.parquet")
    assert frame["source"].unique().sort().to_list() == ["a/t.jsonl", "b/t.jsonl"]
    assert frame.height == 2 * 887


def test_files_may_share_groups_and_leave_ids_to_us(run: Cli) -> None:
    said = [{"role": "assistant", "content": "hi"}]
    for name, outcome in (("a", 0), ("b", 1)):
        talk = {"group_id": "g", "messages": said, "outcome": outcome, "gold_actions": []}
        Path(f"{name}.jsonl").write_bytes(orjson.dumps(talk))
    assert run("score", "a.jsonl", "b.jsonl", "-o", "turns.parquet").code == 0
    frame = pl.read_parquet("turns.parquet")
    assert frame["episode_id"].n_unique() == 2
    assert frame["task_id"].to_list() == ["g", "g"]
    assert frame["group_id"].to_list() == ["g", "b:g:g"]  # of two policies
    assert run("calibrate", "turns.parquet").code == 0


@needs_shared
def test_reference_figures_from_end_to_end(run: Cli) -> None:
    # Source: docs/method.md, "Reference figures": gpt-4o-airline.json under `flat`.
    scored = run("score", AIRLINE, "--tiers", "flat", "-o", "turns.parquet", "--json").json()
    document = run("calibrate", "turns.parquet", "--resamples", "100", "--json").json()
    evaluated = run("eval", AIRLINE, "--json").json()
    expected = {
        "gold": (397, 113, 0.0723),
        "soft": (55, 47, -0.4000),
        "state_change": (44, 40, -0.4255),
        "handoff": (48, 48, 0.3520),
        "read_only": (547, 123, -0.0970),
        "error": (73, 36, -0.1614),
        "message": (1290, 200, None),
    }
    assert (scored["turns"], scored["calls"]) == (2454, 1164)
    found = {tier["tier"]: tier for tier in document["tiers"]}
    assert found.keys() == expected.keys()
    for tier, (turns, episodes, r_pooled) in expected.items():
        assert (found[tier]["turns"], found[tier]["episodes"]) == (turns, episodes)
        assert found[tier]["r_pooled"] == (r_pooled and pytest.approx(r_pooled, abs=1e-4))
    pass_k = {"1": 0.42, "2": 0.2733, "4": 0.2}
    assert evaluated["pass_k"] == pytest.approx(pass_k, abs=1e-4)


# --- what every command has -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["score", "eval", "compare-args", "calibrate"])
def test_quiet_prints_nothing(run: Cli, command: str, example: Path, turns: Path) -> None:
    trace = turns if command == "calibrate" else example
    assert run(command, trace, "--quiet") == (0, b"", "")


@pytest.mark.parametrize("command", ["score", "eval", "compare-args", "calibrate"])
def test_force_replaces_an_output(run: Cli, command: str, example: Path, turns: Path) -> None:
    Path("out").write_text("mine")
    assert run(command, turns if command == "calibrate" else example, "-o", "out").code == 2
    assert Path("out").read_text() == "mine"
    again = run(command, turns if command == "calibrate" else example, "-o", "out", "--force")
    assert again.code == 0
    assert Path("out").read_bytes() != b"mine"


def test_outputs_have_the_permissions_of_any_new_file(run: Cli, example: Path) -> None:
    run("score", example, "-o", "turns.parquet")
    Path("any").touch()
    assert Path("turns.parquet").stat().st_mode == Path("any").stat().st_mode


def test_version(run: Cli) -> None:
    assert run("--version") == (0, f"irc-cli {__version__}\n".encode(), "")


def test_same_seed_same_bytes(run: Cli, turns: Path) -> None:
    one, two, other = (
        run("calibrate", turns, "--json", "--resamples", "100", "--seed", seed).out
        for seed in ("1", "1", "2")
    )
    assert one == two
    assert one != other


# --- --config -------------------------------------------------------------------------------------


def test_config_holds_the_long_option_names(run: Cli, turns: Path) -> None:
    Path("c.yaml").write_text(
        "lambda: 0.7\nlast-turn-reward: false\nmin-support: 5\nresamples: 100\nout: c/calib.yaml\n"
    )
    Path("c").mkdir()
    result = run("calibrate", turns, "--config", "c.yaml", "--min-support", "7")
    settings = yaml.safe_load(Path("c/calib.yaml").read_text())["settings"]
    assert result.code == 0
    assert settings["advantage"]["outcome_weight"] == 0.7
    assert settings["advantage"]["last_turn_reward"] is False
    assert settings["calibrate"]["resamples"] == 100
    assert settings["calibrate"]["min_support"] == 7, "the command line wins"
    run("calibrate", turns, "--config", "c.yaml", "--last-turn-reward", "--force")
    settings = yaml.safe_load(Path("c/calib.yaml").read_text())["settings"]
    assert settings["advantage"]["last_turn_reward"] is True, "the command line wins"


@pytest.mark.parametrize("names", [["one.jsonl", "two.jsonl"], ["one.jsonl"]])
def test_config_takes_one_or_several_values(run: Cli, example: Path, names: list[str]) -> None:
    episodes = example.read_bytes().splitlines(keepends=True)
    Path("one.jsonl").write_bytes(b"".join(episodes[:16]))
    Path("two.jsonl").write_bytes(b"".join(episodes[16:32]))
    several = names[0] if len(names) == 1 else f"[{', '.join(names)}]"
    Path("c.yaml").write_text(f"against: {several}\nby-task: true\njson: true\n")
    options = [word for name in names for word in ("--against", name)]
    typed = run("eval", example, *options, "--by-task", "--json")
    assert run("eval", example, "--config", "c.yaml") == typed
    assert typed.json()["against"]["episodes"] > 8 * len(names)


# --- calibrate ------------------------------------------------------------------------------------


def test_calibrate_json_has_the_documented_keys(run: Cli, turns: Path) -> None:
    result = run("calibrate", turns, "--json")
    document = result.json()
    assert (result.code, result.err) == (0, "")
    assert document.keys() >= CALIBRATE
    assert (document["episodes"], document["excluded"], document["tasks"]) == (192, 3, 24)
    assert len(document["tiers"]) == 10
    assert all(tier.keys() >= TIER for tier in document["tiers"])
    for judged in (document["before"], document["after"]):
        assert judged.keys() >= JUDGEMENT
        assert len(judged["direction"]) == 10
        assert all(row.keys() >= DIRECTION for row in judged["direction"])
        assert sum(judged["gradient_mass"].values()) == pytest.approx(1)
    assert document["converged"] is True


def test_calibration_lies_beside_its_advantages(calibration: Path) -> None:
    recorded = yaml.safe_load(calibration.read_text())
    frame = pl.read_parquet(calibration.with_name("advantages.parquet"))
    assert frame.columns == [
        *("episode_id", "group_id", "turn", "tier", "reward", "advantage"),
        *("return_part", "outcome_part", "group_mean", "group_std"),
        *("forecast_before", "forecast_after", "td_error"),
    ]
    assert frame.height == 887
    parts = pl.col("return_part") + pl.col("outcome_part") - pl.col("advantage")
    assert frame.select(parts.abs().max()).item() < 1e-6
    assert recorded["pay"] == "once"
    first = pl.struct("episode_id", "tier").is_first_distinct()
    rewards = frame.filter(first).group_by("tier").agg(pl.col("reward").unique())
    assert {tier: reward for tier, [reward] in rewards.iter_rows()} == recorded["rewards"]
    assert set(frame.filter(~first)["reward"]) == {0.0}


@pytest.mark.parametrize("estimator", ["grpo", "mt-grpo", "gtpo", "hybrid", "rloo", "potential"])
def test_every_estimator_stores_parts_that_add_up(run: Cli, turns: Path, estimator: str) -> None:
    options = ["--advantage", estimator, "--resamples", "100", "--quiet"]
    assert run("calibrate", turns, "-o", "c.yaml", *options).code == 0
    frame = pl.read_parquet("advantages.parquet")
    parts = pl.col("return_part") + pl.col("outcome_part") - pl.col("advantage")
    assert frame.select(parts.abs().max()).item() < 1e-6
    assert frame.select(pl.col("advantage").abs().max()).item() > 0.1


def test_check_passes_on_the_calibrated_and_fails_on_the_rewards_kept(
    run: Cli, turns: Path
) -> None:
    assert run("calibrate", turns, "--check", "--quiet") == (0, b"", "")
    kept = run("calibrate", turns, "--check", "--keep-rewards", "--json")
    assert kept.code == 1
    assert kept.err == (
        "check failed: undecided: mean reward and outcome correlate by 0.268 [0.129, 0.396], "
        "want surely more than 0.3; collect more episodes\n"
        "check failed: farmable: a failure out-earns a success by repeating a tier: "
        "1 x gold_read, 1 x gold_write, 1 x soft, 2 x read_only, 4 x state_change\n"
        "check failed: farmable: the reward sum of failures follows their length, "
        "r = 0.792 [0.622, 0.890]\n"
    )
    assert kept.json()["converged"] is False


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            "--eta 0.9",
            "mean reward and outcome correlate by 0.697 [0.602, 0.773], not more than 0.9",
        ),
        (
            "--eta 0.65",
            "undecided: mean reward and outcome correlate by 0.697 [0.602, 0.773], want surely "
            "more than 0.65; collect more episodes",
        ),
        (
            "--pay turn",
            "farmable: a failure out-earns a success by repeating a tier: "
            "1 x gold_write, 4 x gold_read",
        ),
        ("--min-tasks 25", "24 tasks, fewer than 25"),
    ],
)
def test_check_says_why_not(run: Cli, turns: Path, options: str, reason: str) -> None:
    result = run("calibrate", turns, "--check", "--quiet", *options.split())
    assert result == (1, b"", f"check failed: {reason}\n")
    assert run("calibrate", turns, "--quiet", *options.split()).code == 0, "only --check is a gate"


def test_payment_follows_the_measure_unless_it_is_chosen(run: Cli, turns: Path) -> None:
    for options, pay in (
        ("", "once"),
        ("--measure count", "turn"),
        ("--measure share", "turn"),
        ("--measure count --pay once", "once"),
        ("--pay turn", "turn"),
    ):
        given = ("--resamples", "100", "--json", *options.split())
        assert run("calibrate", turns, *given).json()["pay"] == pay
    wrong = run("calibrate", turns, "--pay", "twice")
    assert (wrong.code, wrong.err) == (
        2,
        "error: --pay: unknown value 'twice'; use auto | turn | once\n",
    )


def test_farmability_is_in_the_document_and_the_report(run: Cli, turns: Path) -> None:
    document = run("calibrate", turns, "--pay", "turn", "--json").json()
    found = document["after"]["farmability"]
    assert found["extra_turns"]["gold_write"] == 1 and found["extra_turns"]["gold_read"] == 4
    assert found["extra_turns"]["soft"] is None, "it costs"
    assert found["slack_turns"] == 10
    assert 0 < found["ci_low"] < found["length_correlation"] < found["ci_high"]
    assert found["failure_reward"] < found["success_reward"]
    assert found["reward_std"] > found["outcome_std"] > 0
    report = run("calibrate", turns, "--pay", "turn").out.decode()
    assert "gold_read repeats to out-earn" in report
    assert report.splitlines()[-1] == (
        "Next: pay each value once per episode (--pay once): repeating a tier pays: gold_read, "
        "gold_write."
    )
    assert "message repeats to out-earn" not in report, "they never do"


def test_method_paper_is_the_paper_to_the_letter(run: Cli, example: Path) -> None:
    assert run("score", example, "--tiers", "paper", "-o", "paper.parquet").code == 0
    assert run("calibrate", "paper.parquet", "--method", "paper", "-o", "c.yaml").code == 0
    recorded = yaml.safe_load(Path("c.yaml").read_text())
    assert (recorded["correlation"], recorded["pay"]) == ("pooled", "turn")
    advantage = recorded["settings"]["advantage"]
    assert (advantage["estimator"], advantage["gamma"]) == ("hybrid", 0.9)
    assert (advantage["outcome_weight"], advantage["last_turn_reward"]) == (0.3, False)
    tiers = recorded["tiers"]
    known = {tier["tier"]: tier["r_pooled"] for tier in tiers if tier["r_pooled"] is not None}
    largest = max(map(abs, known.values()))
    for tier in tiers:  # value = alpha rho where |rho| > delta, whatever its p
        rho = known.get(tier["tier"], 0.0)
        assert tier["value"] == pytest.approx(rho / largest if abs(rho) > 0.05 else 0.0)
    assert any(tier["value"] and tier["q"] > 0.05 for tier in tiers)


def test_method_paper_notes_tiers_that_the_paper_has_not(run: Cli, turns: Path) -> None:
    result = run("calibrate", turns, "--method", "paper", "--json")
    notes = result.json()["notes"]
    assert list(notes)[1:] == [
        f"turns of tier '{tier}', which the paper does not have: score with --tiers paper"
        for tier in ("gold_read", "gold_write", "handoff", "unknown_tool")
    ]
    assert all(turns > 0 for turns in notes.values())


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--pay once", "--pay: contradicts --method paper; drop one of them"),
        ("--measure count", "--measure: contradicts --method paper; drop one of them"),
        ("--correlation within", "--correlation: contradicts --method paper; drop one of them"),
        ("--lambda 1", "--lambda: contradicts --method paper; drop one of them"),
        (
            "--last-turn-reward",
            "--last-turn-reward: contradicts --method paper; drop one of them",
        ),
        ("--config given.yaml", "--gamma: contradicts --method paper; drop one of them"),
        (
            "--online state.parquet",
            "--online: uses the correlation within tasks, but --method paper the pooled one; "
            "drop one of them",
        ),
    ],
)
def test_what_contradicts_a_method_is_refused(
    run: Cli, turns: Path, options: str, line: str
) -> None:
    Path("given.yaml").write_text("gamma: 0.5\n")
    for words in (["--method", "paper", *options.split()], [*options.split(), "--method", "paper"]):
        assert run("calibrate", turns, *words, "-o", "c.yaml") == (2, b"", f"error: {line}\n")
    assert not Path("c.yaml").exists()


def test_a_config_file_may_choose_a_method(run: Cli, turns: Path) -> None:
    Path("given.yaml").write_text("method: paper\npay: turn\n")
    document = run("calibrate", turns, "--config", "given.yaml", "--json").json()
    assert (document["pay"], document["correlation"]) == ("turn", "pooled")
    wrong = run("calibrate", turns, "--method", "papers")
    assert (wrong.code, wrong.err) == (
        2,
        "error: --method: unknown value 'papers'; did you mean 'paper'?\n",
    )


def test_calibrated_rewards_converge_when_scored_anew(
    run: Cli, example: Path, calibration: Path
) -> None:
    assert run("score", example, "--rewards", calibration, "-o", "turns.parquet").code == 0
    result = run("calibrate", "turns.parquet", "--keep-rewards", "--check", "--json")
    document = result.json()
    assert (result.code, document["converged"]) == (0, True)
    for one, two in zip(
        document["before"]["direction"], document["after"]["direction"], strict=True
    ):
        assert one["mean_advantage"] == pytest.approx(two["mean_advantage"])


def test_merged_shards_equal_one_run(
    run: Cli, example: Path, turns: Path, calibration: Path
) -> None:
    episodes = example.read_bytes().splitlines(keepends=True)
    for i in range(3):  # dealt out, so that every shard has episodes of every task
        Path(f"{i}.jsonl").write_bytes(b"".join(episodes[i::3]))
        run("score", f"{i}.jsonl", "-o", f"{i}.parquet", "--quiet")
        result = run("calibrate", f"{i}.parquet", "--partial", "-o", f"sums{i}", "--json")
        recorded = provenance(Path(f"sums{i}"))["summary"]
        notes = {"left out, crashed or without an outcome": recorded["excluded"]}
        assert result.json() == recorded | {"notes": {t: n for t, n in notes.items() if n}}
    shards = ["sums0", "sums1", "sums2"]
    assert pl.read_parquet("sums0").schema == SUMS.columns
    assert run("calibrate", "--merge", *shards, "-o", "merged.yaml", "--quiet").code == 0
    assert run("calibrate", "--merge", *shards[::-1], "-o", "back.yaml", "--quiet").code == 0
    assert tiers_section(Path("merged.yaml")) == tiers_section(calibration)
    assert tiers_section(Path("back.yaml")) == tiers_section(calibration)
    merged = run("calibrate", "--merge", *shards, "--json").json()
    one = run("calibrate", turns, "--json").json()
    of_turns = {"before", "after", "converged", "objections", "landmark", "critic"}
    assert all(tier.pop("r_landmark") is None for tier in merged["tiers"])
    assert any(tier.pop("r_landmark") is not None for tier in one["tiers"])
    for tier in one["tiers"]:
        tier.pop("r_landmark", None)
    assert all(merged[key] == one[key] for key in one.keys() - of_turns)
    assert merged["before"] is merged["after"] is merged["converged"] is merged["critic"] is None


def test_sums_on_a_pipe(run: Cli, turns: Path, calibration: Path) -> None:
    sums = run("calibrate", turns, "--partial", "-o", "-")
    assert sums.err == (
        "sums of 192 episodes of 24 tasks; 3 left out\nleft out, crashed or without an outcome: 3\n"
    )
    assert run("calibrate", "-", "--merge", "-o", "merged.yaml", stdin=sums.out).code == 0
    assert tiers_section(Path("merged.yaml")) == tiers_section(calibration)


def test_previous_shows_what_changed(run: Cli, turns: Path, calibration: Path) -> None:
    same = run("calibrate", turns, "--previous", calibration, "--json").json()["previous"]
    assert same["flipped_advantages"] == 0
    assert all(row["value_then"] == row["value_now"] for row in same["tiers"])
    earlier = yaml.safe_load(calibration.read_text())
    earlier["rewards"] = {tier: -value for tier, value in earlier["rewards"].items()}
    earlier["rewards"] |= {"retired": 0.5}
    del earlier["rewards"]["soft"]
    Path("earlier.yaml").write_text(yaml.safe_dump(earlier))
    result = run("calibrate", turns, "--previous", "earlier.yaml", "--json")
    changes = result.json()["previous"]
    assert changes["flipped_advantages"] > changes["turns"] / 4
    rows = {row["tier"]: row for row in changes["tiers"]}
    gone = {"value_then": 0.5, "value_now": None, "status_then": None, "status_now": None}
    assert rows["retired"] == {"tier": "retired", **gone}
    assert rows["gold_write"]["value_then"] == -rows["gold_write"]["value_now"]
    assert rows["soft"]["value_then"] is None
    shown = run("calibrate", turns, "--previous", "earlier.yaml").out.decode()
    assert f"{changes['flipped_advantages']:,} of 887 advantages change sign" in shown


def test_given_advantages_are_judged(run: Cli, turns: Path, calibration: Path) -> None:
    ours = pl.read_parquet(calibration.with_name("advantages.parquet"))
    given = ours.select("episode_id", "turn", "advantage").sample(fraction=1, shuffle=True, seed=1)
    given.write_ndjson("good.jsonl")
    given.with_columns(-pl.col("advantage")).write_parquet("bad.parquet")
    good = run("calibrate", turns, "--advantages", "good.jsonl", "--check", "--json")
    plain = run("calibrate", turns, "--json").json()
    assert good.code == 0
    for one, two in zip(
        good.json()["after"]["direction"], plain["after"]["direction"], strict=True
    ):
        assert one["mean_advantage"] == pytest.approx(two["mean_advantage"])
        assert one["verdict"] == two["verdict"]
        assert one["return_part"] is None, "these advantages have no parts"
    command = ("calibrate", turns, "--advantages", "-", "--check", "--json")
    assert run(*command, stdin=Path("good.jsonl").read_bytes()).out == good.out
    bad = run("calibrate", turns, "--advantages", "bad.parquet", "--check", "--json")
    assert bad.code == 1
    assert set(bad.json()["after"]["misaligned"]) == {
        *("gold_read", "gold_write", "soft", "state_change")
    }
    assert bad.json()["before"] == plain["before"], "without --keep-rewards they stand for `after`"
    assert bad.err == "check failed: misaligned: gold_read, gold_write, soft, state_change\n"
    kept = run("calibrate", turns, "--advantages", "bad.parquet", "--keep-rewards", "--json").json()
    assert kept["after"] == plain["after"]
    assert kept["before"]["misaligned"] == bad.json()["after"]["misaligned"]


def test_report_says_what_to_do_next(run: Cli, turns: Path) -> None:
    shown = run("calibrate", turns).out.decode()
    assert "Simpson's paradox: 'gold_read'" in shown
    assert "A mean over a tier is a diagnosis, not proof of causal credit." in shown
    assert shown.splitlines()[-1].startswith("Next: train with the calibrated values")
    assert max(map(len, shown.splitlines())) <= 120


def test_calibration_on_standard_output(run: Cli, turns: Path, calibration: Path) -> None:
    result = run("calibrate", turns, "-o", "-")
    assert result.code == 0
    assert result.out == calibration.read_bytes()
    assert result.err.startswith("192 episodes of 24 tasks (23 mixed)")
    assert not list(Path().iterdir())


def test_online_follows_iteration_after_iteration(run: Cli, example: Path) -> None:
    episodes = example.read_bytes().splitlines(keepends=True)
    for i in range(2):
        Path(f"{i}.jsonl").write_bytes(b"".join(episodes[i::2]))
        run("score", f"{i}.jsonl", "-o", f"{i}.parquet", "--quiet")
    online = ("calibrate", "--online", "state", "--half-life", "100")
    first = run(*online, "0.parquet", "-o", "0.yaml", "--json")
    assert first.code == 0
    assert first.json()["online"].keys() == {
        *("half_life", "iteration", "effective_episodes", "open", "events")
    }
    state = Path("state").read_bytes()
    second = run(*online, "1.parquet", "-o", "1.yaml", "--force")
    assert second.code == 0
    # With w = 2^-0.96, (96 w + 96)^2 / (96 w^2 + 96) = 174.
    heading = b"iteration 2: 96 episodes more, at a half-life of 100 worth 174 in all\n"
    assert second.out.startswith(heading)
    recorded = yaml.safe_load(Path("1.yaml").read_text())
    assert recorded["online"]["iteration"] == 2
    opened = [event["tier"] for event in recorded["online"]["events"]]
    assert "gold_write" in opened
    assert {tier for tier, value in recorded["rewards"].items() if value} == set(opened)
    assert [entry["path"] for entry in recorded["inputs"]] == ["1.parquet", "state"]
    assert recorded["inputs"][1]["sha256"] == hashlib.sha256(state).hexdigest()
    assert recorded["settings"]["online"]["half_life"] == 100
    of_state = provenance(Path("state"))
    assert of_state.items() >= {key: recorded[key] for key in ("inputs", "settings")}.items()
    assert of_state["online"]["additions"][0]["inputs"] == {"0.parquet": sha256(Path("0.parquet"))}
    few = pl.read_parquet("0.parquet").filter(pl.col("episode_id").rle_id() % 3 == 0)
    few.unique("task_id", maintain_order=True).write_parquet("lone.parquet")
    lone = run("calibrate", "--online", "other", "lone.parquet", "--json")
    text = "tasks with one episode, which --online cannot learn from"
    assert lone.json()["notes"] == {text: pl.read_parquet("lone.parquet").height}
    assert lone.err == ""
    # Until the state is written the command may be run again, and ends the same.
    Path("state").write_bytes(state)
    written = Path("1.yaml").read_bytes()
    assert run(*online, "1.parquet", "-o", "1.yaml", "--force", "--quiet") == (0, b"", "")
    assert Path("1.yaml").read_bytes() == written


# --- several domains, several policies ------------------------------------------------------------


def talk(task: str, tool: str, **given: Any) -> bytes:
    """A line with an episode of one call that the task expects."""
    function = {"name": tool, "arguments": '{"id": "1"}'}
    said = [
        {"role": "user", "content": f"{tool} for {task}"},
        {"role": "assistant", "tool_calls": [{"id": "c", "function": function}]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    expected = [{"name": tool, "arguments": {"id": "1"}}]
    record = {"task_id": task, "trial": 0, "messages": said, "gold_actions": expected}
    return orjson.dumps(record | {"outcome": 1} | given) + b"\n"


AIRLINE_TALKS = [talk(str(i), "get_reservation_details") for i in range(27)]
RETAIL_TALKS = [talk(str(i), "get_order_details") for i in range(115)]


def test_a_task_is_a_domain_and_an_id(run: Cli) -> None:
    Path("a.jsonl").write_bytes(b"".join(AIRLINE_TALKS))
    Path("r.jsonl").write_bytes(b"".join(RETAIL_TALKS))
    mixed = [*RETAIL_TALKS]
    for at, line in enumerate(AIRLINE_TALKS):
        mixed.insert(3 * at, line)
    Path("mixed.jsonl").write_bytes(b"".join(mixed))
    tasks = {f"airline/{i}" for i in range(27)} | {f"retail/{i}" for i in range(115)}
    for files in (("a.jsonl", "r.jsonl"), ("r.jsonl", "a.jsonl"), ("mixed.jsonl",)):
        document = run("score", *files, "-o", "t.parquet", "--json", "--force").json()
        assert (document["tasks"], document["notes"]) == (142, {})
        frame = pl.read_parquet("t.parquet").filter(pl.col("tier") == "gold_read")
        assert frame.height == 142 and set(frame["task_id"]) == tasks
        assert frame["domain"].value_counts(sort=True).rows() == [("retail", 115), ("airline", 27)]
        assert run("eval", *files, "--json").json()["tasks"] == 142
    mixed_domains = run("score", "mixed.jsonl", "--json").json()["domains"]
    assert mixed_domains == {"mixed.jsonl": {"airline": 27, "retail": 115}}


def test_tasks_of_one_id_without_a_domain_are_counted(run: Cli) -> None:
    Path("a.jsonl").write_bytes(talk("5", "buy"))
    Path("b.jsonl").write_bytes(talk("5", "ship"))
    document = run("score", "a.jsonl", "b.jsonl", "-o", "t.parquet", "--json").json()
    assert document["tasks"] == 2
    assert document["notes"]["task id of another task: kept apart"] == 1
    assert pl.read_parquet("t.parquet")["task_id"].to_list() == ["5", "b/5"]
    pairs = run("compare-args", "a.jsonl", "b.jsonl", "-o", "-").out.splitlines()
    assert [orjson.loads(pair)["task_id"] for pair in pairs] == ["5", "b/5"]
    against = run("eval", "a.jsonl", "--against", "b.jsonl")
    assert against.err == "error: b.jsonl: no task is shared; compare traces of the same tasks\n"


def test_eval_has_a_row_per_policy(run: Cli) -> None:
    for name, outcomes in (("a", (1, 1)), ("b", (0, 1))):
        lines = (
            talk("5", "get_order_details", trial=i, outcome=won, model=name)
            for i, won in enumerate(outcomes)
        )
        Path(f"{name}.jsonl").write_bytes(b"".join(lines))
    document = run("eval", "a.jsonl", "b.jsonl", "--json").json()
    rates = {row["policy"]: (row["pass_rate"], row["pass_k"]) for row in document["policies"]}
    assert rates == {"a": (1, {"1": 1, "2": 1}), "b": (0.5, {"1": 0.5, "2": 0})}
    assert (document["tasks"], document["pass_k"]) == (1, {"1": 0.75, "2": 0.5})
    shown = [line.split() for line in run("eval", "a.jsonl", "b.jsonl").out.decode().splitlines()]
    assert ["a", "2", "1", "100.0%", "0.0%", "to", "100.0%", "1.0000"] in shown
    assert ["b", "2", "1", "50.0%", "0.0%", "to", "100.0%", "0.0000"] in shown
    held = run("eval", "a.jsonl", "b.jsonl", "--against", "a.jsonl", "--json").json()
    assert [(d["policy"], d["difference"]) for d in held["differences"]] == [("a", 0), ("b", -0.5)]
    assert "policy" not in run("eval", "a.jsonl").out.decode()  # there is nothing to tell apart


def test_two_policies_share_tasks_but_no_group(run: Cli) -> None:
    for name in "ab":
        Path(f"{name}.jsonl").write_bytes(talk("5", "get_order_details"))
    assert run("score", "a.jsonl", "b.jsonl", "-o", "t.parquet").code == 0
    frame = pl.read_parquet("t.parquet")
    assert frame["task_id"].to_list() == ["retail/5"] * 2
    assert frame["group_id"].to_list() == ["a:retail/5", "b:retail/5"]
    assert frame["policy"].to_list() == ["a", "b"]


# --- eval -----------------------------------------------------------------------------------------


def test_eval_json_has_the_documented_keys(run: Cli, example: Path) -> None:
    result = run("eval", example, "--json", "--by-task")
    document = result.json()
    assert (result.code, result.err) == (0, "")
    assert document.keys() >= EVAL
    assert list(document["pass_k"]) == list("1248")
    assert document["pass_k"]["1"] == pytest.approx(document["pass_rate"])  # 8 trials each
    assert document["ci_low"] < document["pass_rate"] < document["ci_high"]
    rows = document["by_task"]
    assert sum(row["successes"] for row in rows) == pytest.approx(192 * document["pass_rate"])
    assert sum(row["pass_rate"] == 1 for row in rows) / 24 == document["pass_k"]["8"]


@pytest.mark.parametrize("packed", [True, False])
def test_eval_reads_standard_input_plain_or_gzipped(run: Cli, example: Path, packed: bool) -> None:
    data = example.read_bytes()
    piped = run("eval", "-", "--json", stdin=gzip.compress(data) if packed else data).json()
    named = run("eval", example, "--json").json()
    assert [piped["policies"][0].pop("policy"), named["policies"][0].pop("policy")] == [
        "stdin",  # a record that states no policy is of the file's
        example.stem,
    ]
    assert piped == named


def test_eval_against_another_run(run: Cli, example: Path) -> None:
    worse = [orjson.loads(line) for line in example.read_bytes().splitlines()]
    for episode in worse:
        episode["outcome"] = 0 if episode["task_id"].startswith("bags") else episode["outcome"]
    Path("worse.jsonl.gz").write_bytes(gzip.compress(b"\n".join(map(orjson.dumps, worse))))
    document = run("eval", example, "--against", "worse.jsonl.gz", "--json").json()
    gain = document["pass_rate"] - document["against"]["pass_rate"]
    assert document["difference"]["difference"] == pytest.approx(gain)
    assert document["difference"]["tasks"] == 24
    assert document["difference"]["ci_low"] < gain < document["difference"]["ci_high"]
    itself = run("eval", example, "--against", example, "--json").json()["difference"]
    assert itself["difference"] == 0
    assert itself["ci_low"] == -itself["ci_high"]
    shown = run("eval", example, "--against", "worse.jsonl.gz", "--by-task").out.decode()
    assert "paired over 24 shared tasks" in shown


def test_eval_writes_the_document_with_what_made_it(run: Cli, example: Path) -> None:
    printed = run("eval", example, "-o", "eval.json", "--json").json()
    written = orjson.loads(Path("eval.json").read_bytes())
    recorded = written.pop("made_by")
    assert written == printed
    assert recorded["command"] == "eval"
    assert recorded["inputs"] == [{"path": str(example), "sha256": sha256(example)}]
    piped = run("eval", example, "-o", "-")
    assert piped.json().keys() == written.keys() | {"made_by"}
    assert "pass^8" in piped.err


# --- compare-args ---------------------------------------------------------------------------------

TWO = ("compare-args", "--expected", '{"bags": 2, "to": "Oslo"}', "--actual")


def test_two_values_that_mean_the_same(run: Cli) -> None:
    assert run(*TWO, '{"to": " oslo", "bags": "2.0"}') == (0, b"equal (deep)\n", "")
    result = run(*TWO, '{"to": " oslo", "bags": "2.0"}', "--mode", "exact", "--json")
    assert result.code == 1
    assert result.json().keys() == {"equal", "mode", "differences", "notes"}
    assert (result.json()["equal"], result.json()["mode"]) == (False, "exact")
    assert [row["path"] for row in result.json()["differences"]] == ["$.bags", "$.to"]
    assert all(
        row.keys() == {"path", "expected", "actual", "rule"} for row in result.json()["differences"]
    )


def test_two_values_that_differ_are_explained(run: Cli) -> None:
    result = run(*TWO, '{"bags": 3, "to": "Oslo"}', "--explain")
    assert (result.code, result.err) == (1, "")
    lines = result.out.decode().splitlines()
    assert lines[0] == "different (deep)"
    assert any(re.match(r" \$\.bags +2 +3 ", line) for line in lines)
    assert run(*TWO, '{"bags": 3}', "--quiet") == (1, b"", "")


def test_values_from_a_file_and_from_standard_input(run: Cli) -> None:
    Path("expected.json").write_text('{"a": [1, 2]}')
    given = ("compare-args", "--expected", "@expected.json", "--actual", "-")
    assert run(*given, stdin=b"{'a': [2, 1]}").code == 0, "a Python literal is read as one"
    assert run(*given, stdin=b'{"a": [2, 2]}').code == 1


def test_calls_are_compared_by_name_and_arguments(run: Cli) -> None:
    one = '{"name": "get", "arguments": "{\\"id\\": 1}"}'
    two = '{"name": "get", "kwargs": {"id": "1"}}'
    assert run("compare-args", "--expected", one, "--actual", two).code == 0
    broken = '{"name": "get", "arguments": "{broken"}'
    result = run("compare-args", "--expected", broken, "--actual", broken)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("error: --expected: arguments unparseable")
    three = two.replace("get", "put")
    result = run("compare-args", "--expected", one, "--actual", three, "--json")
    assert result.code == 1
    assert result.json()["differences"][0]["path"] == "$.name"


@pytest.mark.parametrize(
    "value", ["123456789012345678901234567890", "1e400", '"\\ud800"', "[" * 300 + "]" * 300]
)
def test_differences_of_any_value_are_shown(run: Cli, value: str) -> None:
    values = ("compare-args", "--expected", f'{{"a": {value}}}', "--actual", '{"a": 1}')
    assert run(*values, "--explain")[::2] == (1, "")
    result = run(*values, "--json")
    assert (result.code, result.err) == (1, "")
    assert json.loads(result.out)["differences"][0]["actual"] == 1  # orjson reads less


def test_rules_of_a_tool_apply_to_two_values(run: Cli) -> None:
    values = (
        "--expected",
        '{"summary": "gives up"}',
        "--actual",
        '{"summary": "asks for a human"}',
    )
    tool = ("--tool", "transfer_to_human_agents", "--domain", "airline")
    assert run("compare-args", *values).code == 1
    assert run("compare-args", *values, *tool).code == 0


def test_traces_are_held_against_their_gold_actions(run: Cli, example: Path) -> None:
    result = run("compare-args", example, "-o", "pairs.parquet", "--json")
    document = result.json()
    assert (result.code, result.err) == (0, "")
    assert document.keys() >= COMPARED
    assert set(document["matches"]) == {"exact", "deep", "tau2", "bfcl"}
    assert all(change.keys() >= {"from", "to", "calls"} for change in document["changed"])
    pairs = pl.read_parquet("pairs.parquet")
    assert pairs.schema == PAIRS.columns
    assert pairs.height == document["calls"] == 696
    for mode, calls in document["matches"].items():
        assert pairs[mode].sum() == calls
    assert provenance(Path("pairs.parquet"))["command"] == "compare-args"
    shown = run("compare-args", example, "--explain").out.decode()
    assert "exact none -> deep full: " in shown


@needs_shared
@pytest.mark.parametrize("trace", ["airline-grok-4", "retail-gpt-4.1", "telecom-grok-3"])
def test_recorded_tau2_verdicts_agree(run: Cli, trace: str) -> None:
    path = SHARED / f"data/tau2-traces/{trace}.json.gz"
    recorded = run("compare-args", path, "--json").json()["recorded"]
    assert recorded["agree"] > 0
    assert recorded["disagree"] == 0


# --- provenance -----------------------------------------------------------------------------------


def test_every_artifact_records_what_made_it(
    run: Cli, example: Path, turns: Path, calibration: Path
) -> None:
    scored = provenance(turns)
    assert (scored["irc_cli"], scored["command"], scored["seed"]) == (__version__, "score", 0)
    assert scored["settings"]["tiers"] == "extended"
    assert scored["inputs"] == [{"path": str(example), "sha256": sha256(example)}]
    recorded = yaml.safe_load(calibration.read_text())
    of_advantages = provenance(calibration.with_name("advantages.parquet"))
    assert recorded["inputs"] == [{"path": str(turns), "sha256": sha256(turns)}]
    assert recorded["settings"]["calibrate"]["fdr"] == 0.05
    assert of_advantages.items() <= recorded.items()
    run("calibrate", turns, "--partial", "-o", "sums.parquet", "--seed", "3")
    assert provenance(Path("sums.parquet"))["seed"] == 3
    run("score", example, "--rewards", calibration, "-o", "turns.parquet", "--tiers", "extended")
    inputs = {
        entry["path"]: entry["sha256"] for entry in provenance(Path("turns.parquet"))["inputs"]
    }
    assert inputs == {str(path): sha256(path) for path in (example, calibration)}


def test_a_bad_line_skipped_is_kept_in_a_sidecar(run: Cli, example: Path) -> None:
    good = example.read_bytes().splitlines(keepends=True)
    Path("t.jsonl").write_bytes(good[0] + b'{"episode_id": oops}\n' + good[1] + b"[1]\n")
    result = run("score", "t.jsonl", "--skip-bad", "-o", "turns.parquet")
    assert result.code == 0
    assert "2 bad lines were skipped; see turns.parquet.bad.jsonl\n" in result.err
    rows = [
        orjson.loads(line) for line in Path("turns.parquet.bad.jsonl").read_bytes().splitlines()
    ]
    assert [(row["file"], row["line"], row["text"]) for row in rows] == [
        ("t.jsonl", 2, '{"episode_id": oops}'),
        ("t.jsonl", 4, "[1]"),
    ]
    assert pl.read_parquet("turns.parquet")["episode_id"].n_unique() == 2
    Path("turns.parquet").unlink()
    assert run("score", "t.jsonl", "--skip-bad", "-o", "turns.parquet").code == 2, "it exists"
    assert not Path("turns.parquet").exists()


def test_bad_lines_of_the_other_run_are_kept_too(run: Cli, example: Path) -> None:
    Path("t.jsonl").write_bytes(example.read_bytes() + b"[1]\n")
    assert run("eval", example, "--against", "t.jsonl", "--skip-bad", "--quiet").code == 0
    [line] = Path("airline-24x8.bad.jsonl").read_bytes().splitlines()
    assert orjson.loads(line)["file"] == "t.jsonl"


# --- help, examples, completion -------------------------------------------------------------------


def example_of(help_text: str) -> list[str]:
    """The words of a help text's example, which may be broken into lines."""
    found = re.search(r"Example: (.+?)\n\s*\n", help_text, re.DOTALL)
    assert found, "help without an example"
    return shlex.split(" ".join(found[1].split()))


# Those of `train` and `loop`, which need torch, run in test_train_command and test_loop.
@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train", "loop"}))
def test_the_example_of_the_help_runs(
    run: Cli, command: str, example: Path, turns: Path, calibration: Path
) -> None:
    Path("traces.json").symlink_to(example)
    if command in ("calibrate", "report"):
        Path("turns.parquet").symlink_to(turns)
    if command == "report":
        Path("calibration.yaml").symlink_to(calibration)
    shown = run(command, "--help")
    assert (shown.code, shown.err) == (0, "")
    name, *words = example_of(shown.out.decode())
    assert (name, words[0]) == ("irc-cli", command)
    result = run(*words)
    assert (result.code, result.out != b"") == (0, True)
    if "-o" in words:
        assert Path(words[words.index("-o") + 1]).stat().st_size > 0


def test_help_names_every_command(run: Cli) -> None:
    shown = run("--help")
    assert shown.code == 0
    assert all(f" {name} ".encode() in shown.out for name in COMMANDS)
    assert run().code == 2, "no command at all is wrong use"


@pytest.mark.parametrize(
    ("typed", "offered"), [("", list(COMMANDS)), ("co", ["compare-args"]), ("x", [])]
)
def test_completion_of_commands(
    run: Cli, monkeypatch: pytest.MonkeyPatch, typed: str, offered: list[str]
) -> None:
    monkeypatch.setenv("_IRC_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"irc-cli {typed}")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert run().out.decode().split() == offered


def test_completion_of_options(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_IRC_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "irc-cli calibrate --min")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run().out.decode().split() == ["--min-support", "--min-tasks"]


def shell_blocks(markdown: str) -> Iterator[str]:
    """The shell blocks of a page and its workflows' steps, but for what installs or builds."""
    for block in re.findall(r"^```sh\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        if not block.startswith(("make", "pip", "git")):
            yield block

    for block in re.findall(r"^```yaml\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        jobs = yaml.safe_load(block).get("jobs", {})
        runs = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
        yield "".join(f"{line}\n" for line in runs if line.startswith("irc-cli"))


def test_shell_blocks_are_collected() -> None:
    page = "```sh\nmake demo\n```\n\n```sh\nirc-cli a |\n  irc-cli b\n```\n\n```text\nout\n```\n"
    assert list(shell_blocks(page)) == ["irc-cli a |\n  irc-cli b\n"]
    steps = "[{uses: c}, {run: pip install d}, {run: irc-cli e}, {run: irc-cli f}]"
    workflow = f"```yaml\njobs: {{one: {{steps: {steps}}}}}\n```\n"
    assert list(shell_blocks(workflow)) == ["irc-cli e\nirc-cli f\n"]


# Each page builds on the files of those before it.
PAGES = (
    "README",
    "docs/quickstart",
    "docs/rollouts",
    "docs/tiers",
    "docs/calibrate",
    "docs/report",
    "docs/formats",
    "docs/exporters",
    "docs/verl",
)


def test_shell_blocks_of_the_pages_run_as_written(run: Cli) -> None:
    pages = [ROOT / f"{page}.md" for page in PAGES]
    blocks = [block for page in pages for block in shell_blocks(page.read_text())]
    Path("data").symlink_to(ROOT / "data")
    if AIRLINE.exists():
        Path(AIRLINE.name).symlink_to(AIRLINE)
    else:
        blocks = [block for block in blocks if AIRLINE.name not in block]
    lines = "".join(blocks).replace("\\\n", " ").splitlines()  # one block builds on another
    for line in lines:
        if line.startswith("mkdir "):
            Path(line.removeprefix("mkdir ")).mkdir()
            continue
        piped = b""
        for words in piped_words(line):
            assert words[0] == "irc-cli", f"can't run here: {line}"
            code, piped, err = run(*words[1:], stdin=piped)
            said_no = "calibrate scored.parquet" in line  # of naive rewards, in the workflow
            assert code == int(said_no), f"{line}\n{err}"


def piped_words(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell line."""
    words = shlex.split(line, comments=True)
    while words:
        end = words.index("|") if "|" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


# --- real processes -------------------------------------------------------------------------------


def test_score_pipes_into_calibrate(example: Path) -> None:
    score = shlex.join([*IRC_CLI, "score", str(example), "-o", "-", "--quiet"])
    calibrate = shlex.join([*IRC_CLI, "calibrate", "-", "--check", "--json"])
    ended = subprocess.run(
        ["sh", "-c", f"{score} | {calibrate}"], env=IN_SUBPROCESS, capture_output=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert orjson.loads(ended.stdout)["converged"] is True


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="no SIGPIPE here")
def test_a_reader_that_leaves_ends_the_writer_quietly(example: Path) -> None:
    with subprocess.Popen(
        [*IRC_CLI, "score", str(example), "-o", "-", "--quiet"],
        env=IN_SUBPROCESS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == -signal.SIGPIPE  # 141 in a shell


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_ctrl_c_ends_with_130(tmp_path: Path) -> None:
    fifo = tmp_path / "traces.jsonl"
    os.mkfifo(fifo)
    with subprocess.Popen(
        [*IRC_CLI, "score", str(fifo), "-o", str(tmp_path / "turns.parquet")],
        env=IN_SUBPROCESS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        with fifo.open("wb"):  # opens when the command does, which then waits for us
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (130, b"", b"")
    assert list(tmp_path.iterdir()) == [fifo]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("options", [["--json"], ["-o", "-"], []])
def test_standard_output_on_a_full_disk(tmp_path: Path, options: list[str], example: Path) -> None:
    few = tmp_path / "few.jsonl"
    few.write_bytes(b"".join(example.read_bytes().splitlines(keepends=True)[:2]))
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [*IRC_CLI, "score", str(few), "--quiet" if "-o" in options else "--seed=1", *options],
            env=IN_SUBPROCESS,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    line = "error: standard output: no space left on device; free space or write elsewhere\n"
    assert (ended.returncode, ended.stderr) == (2, line)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from irc_cli.app import app\n"
        "try: app(['--help'], prog_name='irc-cli')\n"
        "except SystemExit: print(*sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env=IN_SUBPROCESS,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = set(ended.stdout.splitlines()[-1].split())
    heavy = {"polars", "numpy", "scipy", "orjson", "yaml", "torch", "transformers"}
    assert "typer" in loaded
    assert not loaded & heavy


EXTRAS = (
    *("torch", "transformers", "safetensors", "tokenizers", "accelerate", "peft", "tensorboard"),
    *("matplotlib", "openai", "inspect_evals", "inspect_ai", "vllm", "ray", "verl"),
)


def without_extras(*commands: str) -> list[tuple[int, str, str]]:
    """Run commands, in one process, as on an install without extras: code, output, errors."""
    code = (
        "import io, json, sys\n"
        "from contextlib import redirect_stderr, redirect_stdout\n"
        f"sys.modules.update(dict.fromkeys({EXTRAS}))\n"
        "from irc_cli.app import app\n"
        "for command in sys.argv[1:]:\n"
        "    out, err = io.StringIO(), io.StringIO()\n"
        "    try:\n"
        "        with redirect_stdout(out), redirect_stderr(err):\n"
        "            app(command.split(), prog_name='irc-cli')\n"
        "    except SystemExit as ended:\n"
        "        print(json.dumps([ended.code, out.getvalue(), err.getvalue()]))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *commands],
        env=IN_SUBPROCESS,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [tuple(json.loads(line)) for line in ended.stdout.splitlines()]


def test_help_of_every_command_needs_no_extra() -> None:
    commands = ["", *COMMANDS, *(f"export {name}" for name in FORMATS)]
    for command, (code, out, err) in zip(
        commands, without_extras(*(f"{name} --help" for name in commands)), strict=True
    ):
        assert (code, err) == (0, ""), command
        assert "Usage: irc-cli" in out


def test_a_missing_extra_is_named_with_its_command() -> None:
    play = "rollout --env airline-mini"
    lines = {
        "train --model m --sft s -o out": ("irc-cli train", "torch", "train"),
        "train --model m --plan": ("irc-cli train --plan", "torch", "transformers"),
        "loop -o out": ("irc-cli loop", "matplotlib", "train"),
        play: ("--policy transformers", "torch", "transformers"),
        f"{play} --policy openai --model m --base-url http://localhost:1": (
            *("--policy openai", "openai", "openai"),
        ),
    }
    for (where, package, extra), ended in zip(lines.values(), without_extras(*lines), strict=True):
        line = f"error: {where}: needs the package '{package}'; pip install 'irc-cli[{extra}]'\n"
        assert ended == (2, "", line)


def test_scipy_is_imported_only_where_it_is_needed(example: Path) -> None:
    code = (
        "import sys; from irc_cli.app import app\n"
        "try: app(sys.argv[1:], prog_name='irc-cli')\n"
        "except SystemExit: print(*sys.modules)\n"
    )
    values = ["compare-args", "--expected", "{}", "--actual", "{}"]
    ended = subprocess.run(
        [sys.executable, "-c", code, *values],
        env=IN_SUBPROCESS,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    loaded = ended.stdout.splitlines()[-1].split()
    assert not [name for name in loaded if name.startswith(("scipy", "torch"))]


def test_no_collection_looks_through_what_a_command_imports(run: Cli, example: Path) -> None:
    thresholds = gc.get_threshold()
    gc.disable()  # as `main` does
    try:
        assert run("score", example, "--quiet").code == 0
        assert gc.isenabled() and gc.get_freeze_count() > 10_000
        assert gc.get_threshold()[0] == YOUNG
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        gc.enable()
