"""Calls and results of every form are read, or refused with their place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from irc_cli.scorer import score
from stages.traces import Call, open_trace
from stages.traces.fields import BadItemError, gold_of
from stages.traces.turns import read_turns
from tests.builders import SHARED

INPUTS = SHARED / "data/inputs"
GET = {"name": "get", "arguments": '{"a": 1}'}
RESULT = {"role": "tool", "tool_call_id": "x", "content": "ok"}


@pytest.mark.skipif(not INPUTS.is_dir(), reason="the shared inputs are not here")
@pytest.mark.parametrize(
    ("name", "calls"),
    [("anth.jsonl", 1), ("lc1.jsonl", 1), ("react_min.json", 1), ("args_both.json", 1)],
)
def test_the_shared_inputs(name: str, calls: int) -> None:
    read = [c for e in open_trace(str(INPUTS / name)) for turn in e.turns for c in turn.calls]
    assert len(read) == calls and all(call.result is not None for call in read)


@pytest.mark.parametrize(
    "tool_calls",
    [
        [json.dumps({"id": "x", "function": GET})],
        [{"id": "x", "function": "get", "arguments": {"a": 1}}],
        {"id": "x", "function": GET},
        json.dumps([{"id": "x", "function": GET}]),
        [{"id": "x", "name": "get", "args": {"a": 1}}],
        [{"id": "x", "name": "get", "input": {"a": 1}}],
        [{"id": "x", "name": "get", "parameters": {"a": 1}}],
        [{"id": "x", "name": "get", "kwargs": {"a": 1}, "arguments": None}],
        [{"toolCallId": "x", "toolName": "get", "args": {"a": 1}}],
    ],
)
def test_tool_calls_of_any_shape(tool_calls: Any) -> None:
    messages = [{"role": "assistant", "tool_calls": tool_calls}, RESULT]
    [turn], _ = read_turns(messages, Counter())
    [call] = turn.calls
    given = json.loads(call.arguments) if isinstance(call.arguments, str) else call.arguments
    assert (call.name, given, call.result) == ("get", {"a": 1}, "ok")


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (RESULT, "message 1 has a result without its call"),
        (
            {"role": "assistant", "tool_calls": [{"id": "x", "name": "get"}]},
            "message 1 has a call of 'get' without arguments",
        ),
        (
            {"role": "assistant", "tool_calls": [{"name": "get", "args": {}, "input": {"a": 1}}]},
            "message 1 has a call of 'get' whose 'args' and 'input' differ",
        ),
        (
            {"role": "assistant", "content": "", "finish_reason": "tool_calls"},
            "message 1 has no call, although it stopped to make one",
        ),
        (
            {"role": "assistant", "content": [{"type": "odd", "name": "get", "input": {}}]},
            "message 1 has a content block of the unknown type 'odd'",
        ),
        ({"type": "web_search_call", "id": "x"}, "message 1 has a call of the kind"),
    ],
)
def test_a_lost_call_is_refused(message: Any, what: str) -> None:
    with pytest.raises(BadItemError) as caught:
        read_turns([message], Counter())
    assert caught.value.what.startswith(what)
    with pytest.raises(ValueError, match=r"^irc_cli\.scorer: message 1 has "):
        score([message], [], [])


def test_a_gold_action_without_arguments_is_refused() -> None:
    with pytest.raises(BadItemError) as caught:
        gold_of([{"name": "end"}], "actions")
    assert caught.value.what == (
        "an entry of 'actions' is a call of 'end' without arguments: {'name': 'end'}"
    )


def test_broken_actions_are_speech_as_in_tau_bench() -> None:
    act = {"role": "assistant", "content": 'Action:\n{"name": "get", "arguments": {"a": 1}}'}
    broken = {"role": "assistant", "content": 'Action:\n{"name": "get", '}
    answer = {"role": "user", "content": "API output: Error: no"}
    turns, _ = read_turns([act, answer, broken], Counter())
    assert turns[0].calls == [Call("get", {"a": 1}, "Error: no")]
    assert turns[1].calls == []


def test_bad_items_are_left_out_of_every_container(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([{"messages": [RESULT]}, {"messages": []}]))
    skipped: list[tuple[int, bytes, str]] = []
    trace = open_trace(str(path), skip_bad=lambda *bad: skipped.append(bad))
    assert len(list(trace)) == 1 and trace.notes["bad record left out"] == 1
    assert [(number, reason) for number, _, reason in skipped] == [
        (1, "message 1 has a result without its call")
    ]
