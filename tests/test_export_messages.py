"""`irc-cli export messages`: what it writes of any format reads back the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.exports.messages import row_of
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.traces import messages
from tests.builders import SHARED
from tests.conftest import Cli
from tests.test_detect import EXAMPLES, example_episodes

SAME = ("turns", "gold", "outcome", "status", "policy", "family", "env", "stop", "user_calls")


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_episodes_of_any_format_read_back_the_same(tmp_path: Path, name: str) -> None:
    for episode in example_episodes(tmp_path, name):
        row = row_of(episode, Counter())
        back = messages.reader("trace", Counter())(orjson.loads(orjson.dumps(row)))
        for field in SAME:
            assert getattr(back, field) == getattr(episode, field), field
        assert row == row_of(back, Counter())


def tables(run: Cli, *traces: str) -> Any:
    """The turns of traces and of what is exported of them, but for their sources."""
    read = []
    assert run("export", "messages", *traces, "-o", "back.jsonl", "--force").code == 0
    for paths in (traces, ["back.jsonl"]):
        assert run("score", *paths, "-o", "turns.parquet", "--force").code == 0
        read.append(read_table(TURNS, "turns.parquet").drop("source"))
    return read


def test_tables_are_the_same(run: Cli, example: Path) -> None:
    first, back = tables(run, str(example))
    assert first.height > 0 and first.equals(back)


def test_tables_of_several_traces_are_the_same(run: Cli) -> None:
    """Ids without a domain that mean two tasks, and records without ids."""
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for name, gold in (("a", "x"), ("b", "y")):
        actions = [{"name": gold, "arguments": {}}]
        rows = [{"task_id": "7", "messages": talk, "gold_actions": actions, "outcome": 1}]
        rows += [{"messages": talk, "outcome": 0, "group_id": None, "gold_actions": []}]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, back = tables(run, "a.jsonl", "b.jsonl")
    assert first["task_id"].to_list() == ["7", "a/1", "b/7", "b/1"]
    assert first.equals(back)


def test_text_of_played_episodes_stays_text(run: Cli) -> None:
    text = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text}]
    row = {"task_id": "1", "messages": talk, "tokens_recorded": True, "outcome": 0.0}
    Path("a.jsonl").write_text(json.dumps(row))
    first, back = tables(run, "a.jsonl")
    assert first["n_calls"].to_list() == back["n_calls"].to_list() == [0]


def test_what_is_kept(run: Cli) -> None:
    function = {"name": "look", "arguments": '{"a": 1}'}
    call = {"id": "c", "type": "function", "function": function}
    said: dict[str, Any] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [call],
        "token_ids": [1, 2],
    }
    said |= {"logprobs": [-0.5, -1.0], "prompt_ids": [0], "n_tokens": 2}
    talk = [{"role": "user", "content": "a"}, said]
    talk += [{"role": "tool", "tool_call_id": "c", "content": "x", "error": True}]
    row: dict[str, Any] = {"episode_id": "e", "task_id": "1", "trial": 3, "messages": talk}
    row |= {"outcome": 0.5, "status": "truncated", "stop": "max_turns", "policy": "m"}
    row |= {"group_id": "g", "gold_actions": [{"name": "look", "arguments": {"a": 1}}]}
    Path("a.jsonl").write_text(json.dumps(row))
    assert run("export", "messages", "a.jsonl", "-o", "b.jsonl").code == 0
    assert orjson.loads(Path("b.jsonl").read_bytes()) == row
    made = orjson.loads(Path("b.meta.json").read_bytes())
    assert made["command"] == "export messages"
    assert [one["path"] for one in made["inputs"]] == ["a.jsonl"]


def test_calls_that_were_objects_are_json_text() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": {"a": 1}}}
    talk = [{"role": "assistant", "content": None, "tool_calls": [call | {"index": 0}]}]
    row = row_of(messages.reader("t", Counter())({"messages": talk, "outcome": 1}), Counter())
    [said] = row["messages"]
    assert said["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
    assert "tokens_recorded" not in row


def test_bad_lines_can_be_skipped(run: Cli) -> None:
    talk = [{"role": "assistant", "content": "b"}]
    Path("a.jsonl").write_text(json.dumps({"task_id": "1", "messages": talk}) + "\n{\n")
    ended = run("export", "messages", "a.jsonl", "-o", "b.jsonl")
    assert (ended.code, ended.err[:16]) == (2, "error: a.jsonl:2") and not Path("b.jsonl").exists()
    assert run("export", "messages", "a.jsonl", "-o", "b.jsonl", "--skip-bad").code == 0
    assert Path("b.jsonl.bad.jsonl").exists()


@pytest.mark.skipif(not SHARED.exists(), reason="the shared files are not here")
@pytest.mark.parametrize(
    "file", sorted(path.name for path in (SHARED / "data/formats").glob("*.gz"))
)
def test_public_files_read_back_the_same(run: Cli, file: str) -> None:
    first, back = tables(run, str(SHARED / "data/formats" / file))
    assert first.equals(back)
