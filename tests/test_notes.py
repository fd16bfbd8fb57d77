"""Notes: shown by every command that reads, under one key of --json, and refused by --strict."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from stages.traces.notes import INFORMATION, left_out, note_left_out, serious, why_none
from tests.builders import call, episode
from tests.conftest import Cli, exit_code

CRASHED = "left out, crashed or cut by infrastructure"
PYTHON = "arguments read as a Python literal"
PLAY = "--env airline-mini --policy replay --recording twice.jsonl --max-tasks 3 --group-size 2"

# Command (what it writes last), and what it notes of the files of `desk`.
COMMANDS: dict[str, dict[str, int]] = {
    "score odd.jsonl -o OUT": {PYTHON: 1, CRASHED: 1},
    "eval odd.jsonl -o OUT": {CRASHED: 1, PYTHON: 1},
    "eval good.jsonl --against odd.jsonl -o OUT": {CRASHED: 1, PYTHON: 1},
    f"eval {PLAY} -o OUT": {"left out, recorded again later": 6},
    "compare-args odd.jsonl -o OUT": {CRASHED: 1, PYTHON: 1},
    "export sft odd.jsonl -o OUT": {CRASHED: 1},
    "export trl odd.jsonl -o OUT": {CRASHED: 1},
    "export preferences failed.jsonl --turns turns.parquet --prefix calls -o OUT": {CRASHED: 1},
    "calibrate odd.parquet -o OUT": {"left out, crashed or without an outcome": 1},
    "calibrate odd.parquet --partial -o OUT": {"left out, crashed or without an outcome": 1},
    f"rollout {PLAY} -o OUT": {"left out, recorded again later": 6},
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Path:
    """Files of which something is left out or repaired, and one that is good."""
    desk = tmp_path_factory.mktemp("notes")
    lines = [orjson.loads(line) for line in example.read_bytes().splitlines()]
    good = [row for row in lines if row["status"] == "ok" and all(map(is_json, texts(row)))][:48]
    odd = orjson.loads(orjson.dumps(good))
    odd.append(good[0] | {"episode_id": "crashed", "trial": 99, "status": "error"})
    repaired = next(row for row in odd if texts(row))
    said = calls_of(repaired)[0]["function"]
    said["arguments"] = repr(orjson.loads(said["arguments"]))
    write(desk / "good.jsonl", good)
    write(desk / "odd.jsonl", odd)
    score = ("score", str(desk / "odd.jsonl"), "-o", str(desk / "odd.parquet"), "--quiet")
    assert exit_code(list(score)) == 0
    played, turns = str(desk / "played.jsonl"), str(desk / "turns.parquet")
    play = "rollout --env airline-mini --policy expert --noise 0.4 --max-tasks 3 --group-size 2"
    assert exit_code([*play.split(), "-o", played, "--quiet"]) == 0
    assert exit_code(["score", played, "-o", turns, "--quiet"]) == 0
    rows = [orjson.loads(line) for line in Path(played).read_bytes().splitlines()]
    write(desk / "twice.jsonl", rows * 2)
    write(desk / "failed.jsonl", [*rows, rows[0] | {"episode_id": "x", "status": "error"}])
    return desk


def calls_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [call for message in row["messages"] for call in message.get("tool_calls") or ()]


def texts(row: dict[str, Any]) -> list[str]:
    """The arguments of calls."""
    return [entry["function"]["arguments"] for entry in calls_of(row)]


def is_json(text: str) -> bool:
    try:
        return isinstance(orjson.loads(text), dict)
    except orjson.JSONDecodeError:
        return False


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def test_the_desk_is_odd_where_it_should_be(desk: Path) -> None:
    assert len((desk / "good.jsonl").read_bytes().splitlines()) == 48
    assert pl.read_parquet(desk / "odd.parquet")["episode_id"].n_unique() == 49


@pytest.mark.parametrize("command", COMMANDS)
def test_json_has_the_notes_under_one_key(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(desk)
    args = shlex.split(command.replace("OUT", str(tmp_path / "out")))
    for quiet in ([], ["-q"]):
        result = run(*args, "--json", "--force", *quiet)
        assert result.code == 0, result.err
        assert result.json()["notes"] == COMMANDS[command]
        assert "left out, " not in result.err or command.startswith("eval --env")


@pytest.mark.parametrize("command", COMMANDS)
def test_notes_are_shown_and_quiet_hides_them(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(desk)
    args = shlex.split(command.replace("OUT", str(tmp_path / "out")))
    lines = run(*args).err.splitlines()
    for text, count in COMMANDS[command].items():
        assert lines.count(f"{text}: {count:,}") == 1
    assert run(*args, "--force", "--quiet") == (0, b"", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_strict_refuses_and_writes_nothing(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, tmp_path: Path, command: str
) -> None:
    monkeypatch.chdir(desk)
    args = shlex.split(command.replace("OUT", str(tmp_path / "out")))
    listed = ", ".join(f"'{text}': {count}" for text, count in COMMANDS[command].items())
    line = f"error: --strict: {listed}; fix the input, or drop --strict\n"
    assert run(*args, "--strict") == (2, b"", line)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "command",
    ["score good.jsonl", "eval good.jsonl", "compare-args good.jsonl", "export sft good.jsonl"],
)
def test_strict_passes_what_is_as_it_was_written(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, command: str
) -> None:
    monkeypatch.chdir(desk)
    result = run(*command.split(), "--strict", "--json")
    assert (result.code, result.json()["notes"]) == (0, {})


def test_bad_lines_skipped_are_refused_before_they_are_kept(
    run: Cli, desk: Path, tmp_path: Path
) -> None:
    good = (desk / "good.jsonl").read_bytes()
    Path("bad.jsonl").write_bytes(good + b"{oops\n")
    line = "error: --strict: 'bad record left out': 1; fix the input, or drop --strict\n"
    assert run("score", "bad.jsonl", "--skip-bad", "--strict") == (2, b"", line)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]


def test_strict_keeps_episodes_that_failed_out_of_the_rollouts(run: Cli, desk: Path) -> None:
    args = ("rollout", "--env", "airline-mini", "--policy", "replay", "--max-tasks", "3")
    recording = ("--recording", desk / "played.jsonl", "--group-size", "3", "-o", "r.jsonl")
    result = run(*args, *recording, "--strict")
    assert (result.code, result.out) == (2, b"")
    what = f"left out, policy: no such episode in {desk / 'played.jsonl'}"
    assert result.err == f"error: --strict: '{what}': 3; fix the input, or drop --strict\n"
    assert [path.name for path in Path().iterdir()] == ["r.jsonl.partial"]  # for --resume


def test_two_values_read_as_python(run: Cli) -> None:
    values = ("compare-args", "{'a': 1}", '{"a": 1}')
    assert run(*values) == (0, b"equal (deep)\n", f"{PYTHON}: 1\n")
    assert run(*values, "--json").json()["notes"] == {PYTHON: 1}
    line = f"error: --strict: '{PYTHON}': 1; fix the input, or drop --strict\n"
    assert run(*values, "--strict") == (2, b"", line)


def test_a_tier_without_a_calibrated_reward_is_a_guess(run: Cli, example: Path) -> None:
    Path("c.yaml").write_text("rewards: {gold_write: 1.0}\n")
    notes = run("score", example, "--rewards", "c.yaml", "--json").json()["notes"]
    unrewarded = {text for text in notes if text.startswith("no calibrated reward, so 0: ")}
    assert "no calibrated reward, so 0: message" in unrewarded
    assert "no calibrated reward, so 0: gold_write" not in unrewarded


# --- which are more than information --------------------------------------------------------------


def test_only_what_is_listed_is_information() -> None:
    notes = dict.fromkeys(INFORMATION, 2) | {"anything else": 1, "never met": 0}
    assert serious(notes) == {"anything else": 1}


def test_the_reasons_why_none_counts() -> None:
    assert why_none({}) == why_none({"call id missing": 3}) == ""
    notes = left_out({"crashed": 2, "no outcome": 0}) + Counter(
        {"conversation without a turn: messages of role 'bot'": 3}
    )
    expected = ": 2 crashed, 3 conversation without a turn: messages of role 'bot'"
    assert why_none(notes) == expected


def test_episodes_that_do_not_count_are_noted_on_the_way() -> None:
    episodes = [
        episode([call("buy")]),
        episode([call("buy")], outcome=None),
        episode([], status="error", outcome=None),
    ]
    for outcome, number in ((True, {"left out, no outcome": 1}), (False, {})):
        notes = Counter[str]()
        for met in episodes:
            note_left_out(met, notes, outcome=outcome)
        assert notes == {CRASHED: 1} | number
