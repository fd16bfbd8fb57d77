"""Evidence counts once: `eval` and `compare-args` refuse copies and contradictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.errors import InputError
from stages.traces.copies import Copies
from tests.builders import call, episode, line_of
from tests.conftest import Cli


def row(number: int, **more: Any) -> dict[str, Any]:
    function = {"name": "buy", "arguments": '{"bags": 1}'}
    calls = [{"id": "1", "type": "function", "function": function}]
    return {
        "task_id": f"t{number % 3}",
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": f"hi {number}", "tool_calls": calls},
            {"role": "tool", "tool_call_id": "1", "content": "done"},
        ],
        "gold_actions": [{"name": "buy", "arguments": {"bags": 1}}],
        "outcome": number % 2,
    } | more


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(record) + b"\n" for record in rows))


@pytest.mark.parametrize("command", ["eval", "compare-args"])
def test_a_copy_under_other_ids_is_refused(run: Cli, tmp_path: Path, command: str) -> None:
    """Without ids of their own, episodes are called after their file."""
    rows = [row(number) for number in range(6)]
    write(tmp_path / "a.jsonl", rows)
    write(tmp_path / "b.jsonl", rows[::-1])
    write(tmp_path / "part.jsonl", rows[:3])
    write(tmp_path / "more.jsonl", [*rows[3:], row(6)])
    for name, other, line in (
        ("a.jsonl", "b.jsonl", "a.jsonl: all of its 6 episodes with turns are in 'b.jsonl' too"),
        ("a.jsonl", "part.jsonl", "part.jsonl: all of its 3 episodes with turns are in 'a.jsonl'"),
    ):
        result = run(command, name, other)
        assert result.code == 2 and result.err.startswith(f"error: {line}")
        assert result.err.endswith("; count each episode once\n")
    assert run(command, "a.jsonl", "more.jsonl").code == 0


@pytest.mark.parametrize("command", ["eval", "compare-args"])
def test_each_episode_twice_in_one_file(run: Cli, tmp_path: Path, command: str) -> None:
    rows = [row(number, episode_id=f"e{number}") for number in range(4)]
    write(tmp_path / "twice.jsonl", rows * 2)
    assert run(command, "twice.jsonl").err == (
        "error: twice.jsonl: 4 of its episodes are there twice, by id and content; "
        "count each episode once\n"
    )
    write(tmp_path / "once.jsonl", [*rows, rows[0]])
    assert run(command, "once.jsonl").code == 0


@pytest.mark.parametrize("command", ["eval", "compare-args"])
def test_equal_ids_in_two_files(run: Cli, tmp_path: Path, command: str) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / name, [row(number, episode_id=f"e{number}") for number in range(2)])
    assert run(command, "a.jsonl", "b.jsonl").err == (
        "error: a.jsonl, b.jsonl: both have an episode 'e0'; give every episode an 'episode_id' "
        "of its own, or read the files separately\n"
    )


def test_what_a_deterministic_policy_does_alike_is_no_copy() -> None:
    copies = Copies()
    for path in ("a", "b"):
        for trial in range(3):
            copies.add(path, episode([call("look")], task="t", trial=trial))
    copies.check()
    for path in ("a", "b"):
        copies.add(path, episode([call("buy")], task="u"))
    with pytest.raises(InputError) as caught:
        copies.check()
    assert line_of(caught) == (
        "a: all of its 4 episodes with turns are in 'b' too; count each episode once"
    )


@pytest.mark.parametrize("command", ["eval", "score", "compare-args"])
@pytest.mark.parametrize(("outcome", "success"), [(0, True), (1, False), (0.5, True), (1.0, False)])
def test_an_outcome_that_success_contradicts(
    run: Cli, tmp_path: Path, command: str, outcome: float, success: bool
) -> None:
    write(tmp_path / "a.jsonl", [row(0), row(1, outcome=outcome, success=success)])
    assert run(command, "a.jsonl").err == (
        f"error: a.jsonl:2: 'success' is {success}, but 'outcome' is {outcome}; "
        "fix the record, or name one by --map outcome=FIELD\n"
    )
    assert run(command, "a.jsonl", "--map", "outcome=success").code == 0
    write(tmp_path / "b.jsonl", [row(0), row(1, outcome=float(success), success=success)])
    assert run(command, "b.jsonl").code == 0


@pytest.mark.parametrize("outcome", [1.5, -1, 1e308, "x", [1], {"a": 1}])
@pytest.mark.parametrize("command", ["eval", "compare-args"])
def test_an_outcome_that_is_none(run: Cli, tmp_path: Path, command: str, outcome: object) -> None:
    write(tmp_path / "a.jsonl", [row(0), row(1, outcome=outcome)])
    result = run(command, "a.jsonl")
    assert result.code == 2 and result.err.startswith("error: a.jsonl:2: 'outcome' is ")
