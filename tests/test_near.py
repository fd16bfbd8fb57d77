"""What a refusal says of a file of a known format that is not read, or of none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.tables.near import CONVERT, NEAR, messages_seen, near_format
from tests.conftest import Cli

AS_MESSAGES = "write its messages as OpenAI-style 'messages', one episode a JSON line"

# A minimal record of each format, as its own documentation lays it out.
RECORDS: dict[str, tuple[Any, str, str]] = {
    "verifiers": (
        {"nodes": [{"message": {}}], "task": {}},
        "a verifiers trace",
        CONVERT,
    ),
    "nemo": (
        {"responses_create_params": {"input": []}, "ground_truth": []},
        "a task of NeMo Gym",
        "give the episodes that played it",
    ),
    "genai": (
        {"gen_ai.input.messages": "[]", "gen_ai.system": "openai"},
        "OpenTelemetry GenAI messages",
        CONVERT,
    ),
    "trl": (
        {"prompt": [], "chosen": [], "rejected": []},
        "a record of TRL preferences",
        "give the episodes themselves",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_a_known_format_is_named(run: Cli, name: str, ending: str) -> None:
    record, what, todo = RECORDS[name]
    path = f"t.{ending}"
    option = orjson.OPT_INDENT_2 if ending == "json" else orjson.OPT_APPEND_NEWLINE
    Path(path).write_bytes(orjson.dumps(record, option=option))
    for command in ("score", "eval", "compare-args"):
        assert run(command, path) == (
            2,
            b"",
            f"error: {path}: is {what}, which is not read; {todo}\n",
        )


def test_voice_simulations_are_named(run: Cli) -> None:
    simulation: dict[str, Any] = {"id": "1", "task_id": "1", "ticks": [{"t": 0}], "messages": []}
    simulation |= {"termination_reason": "user_stop", "reward_info": {"reward": 1.0}}
    Path("v.json").write_bytes(orjson.dumps({"info": {}, "tasks": [], "simulations": [simulation]}))
    line = "error: v.json:simulation 1: is a voice simulation, which is not read; "
    assert run("score", "v.json") == (2, b"", line + "give text simulations\n")


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"prompt": [], "completion": []}, "a prompt and its completion"),
        ({"nodes": [{"message": {}}], "rewards": {}}, "a verifiers trace"),
        ({"attributes": {"gen_ai.operation.name": "chat"}}, "an OpenTelemetry span"),
        ({"messages_and_choices": [], "reward": 1}, "an OpenPipe ART trajectory"),
        ({"trajectory": [], "history": [], "info": {}}, "a SWE-agent trajectory"),
        ({"type": "session_meta", "timestamp": "t", "payload": {}}, "a Codex session"),
        ({"id": "0", "evaluation_criteria": {}, "user_scenario": {}}, "a task of tau2-bench"),
        ({"user_id": "a", "actions": [], "instruction": ""}, "a task of tau-bench"),
    ],
)
def test_more_formats_are_named(record: dict[str, Any], name: str) -> None:
    near = near_format([record])
    assert near is not None and near.name == name


def test_what_is_read_is_near_nothing(example: Path) -> None:
    assert near_format(orjson.loads(example.read_bytes().splitlines()[0])) is None
    for record in ({}, [], None, 3, {"a": 1}, [{"b": None}]):
        assert near_format(record) is None


def test_every_format_has_a_record_of_its_own() -> None:
    """No row of the table is hidden by an earlier one of another name."""
    for near in NEAR:
        record: dict[str, Any] = {}
        for path in near.keys:
            key, dot, rest = path.partition(".")
            whole = path.startswith("gen_ai.")
            record[path if whole else key] = [{rest: "x"}] if dot and not whole else "x"
        if near.value:
            record[near.keys[0]] = near.value
        found = near_format(record)
        assert found is not None and found.name == near.name


@pytest.mark.parametrize(
    ("messages", "seen"),
    [
        ([], "no messages"),
        ([{"role": "human", "content": ""}, {"role": "user"}], "messages of role 'human', 'user'"),
        ([{"from": "gpt", "value": ""}], "messages without a role, with the keys 'from', 'value'"),
    ],
)
def test_a_conversation_without_a_turn_says_what_was_seen(messages: list[Any], seen: str) -> None:
    assert messages_seen(messages) == seen


def test_many_roles_are_shortened() -> None:
    seen = messages_seen([{"role": f"r{i}"} for i in range(100)])
    assert seen == "messages of role 'r0', 'r1', 'r2', 'r3', 'r4', 'r5', 94 others"


def test_no_episode_that_counts_says_why(run: Cli) -> None:
    said = [{"role": "user", "content": "hi"}]
    rows = [
        {"task_id": "a", "trial": 0, "messages": said, "gold_actions": [], "outcome": 1},
        {"task_id": "b", "trial": 0, "messages": [], "status": "error", "gold_actions": []},
    ]
    Path("t.jsonl").write_bytes(b"\n".join(map(orjson.dumps, rows)))
    line = (
        "error: t.jsonl: no episode that counts: 1 conversation without a turn: messages of role "
        "'user', 1 conversation without a turn: no messages, 1 no turn of the agent, "
        "1 crashed or cut by infrastructure; give traces with finished episodes\n"
    )
    assert run("score", "t.jsonl") == (2, b"", line)
