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


def test_a_gold_action_whose_arguments_are_null_is_refused() -> None:
    with pytest.raises(BadItemError, match="whose arguments are null"):
        gold_of([{"name": "end", "arguments": None}], "actions")


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


def read(*messages: Any, tools: list[Any] | None = None) -> tuple[list[Call], dict[str, int]]:
    notes = Counter[str]()
    turns, _ = read_turns(list(messages), notes, tools)
    return [call for turn in turns for call in turn.calls], dict(notes)


def said(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


@pytest.mark.parametrize(
    "text",
    [
        '<TOOL_CALL>{"name": "get", "arguments": {}}</TOOL_CALL>',
        '<|tool_calls|>[{"name": "get", "arguments": {}}]',
        '{"name": "get", "arguments": {}}\n</tool_call>',
        "<tool_code>get_order(a=1)</tool_code>",
        "I look.\n```tool_code\nprint(get_order(a=1))\n```",
        '>>>get\n{"a": 1}',
        'Action: ```json\n[{"tool_name": "get", "parameters": {"a": 1}}]\n```',
        '✿FUNCTION✿: get\n✿ARGS✿: {"a": 1}',
        'Action: get\nAction Input: {"a": 1}',
        '**Action:** get\n**Action Input:** {"a": 1}',
        "Action:\nget\naction input:\n1",
        "Thought 1: x\nAction 1: Search[W1]",
        'get_order("W1")',
        "get_order(a=1)",
        '[get_order("W1")]',
        'get_order\n{"a": 1}',
    ],
)
def test_text_in_no_known_notation_of_calls_is_refused(text: str) -> None:
    with pytest.raises(BadItemError) as caught:
        read(said(text))
    assert caught.value.what.startswith("message 1 has text that looks like a call")


@pytest.mark.parametrize(
    ("text", "doubtful"),
    [
        ('I call\n{"name": "get", "arguments": {"a": 1}}', True),
        ('```json\n{"name": "get", "arguments": {}}\n```\nThat is all.', True),
        ('Write `{"name": "get", "arguments": {}}` to call.', False),
        ("The <tool_call> tag opens, and </tool_call> closes a call.", False),
        ("Llama writes <|python_tag|> as a marker.", False),
        ("get_order(a) gives an order (or none).", False),
        ("Action: call us. Input: your number.", False),
        (">>> print\n{1: 2}", False),
        ("<think><TOOL_CALL>{}</think>Hello (again).", False),
        ('{"name": "get", "parameters": {"type": "object", "properties": {}}, "strict": 1}', True),
    ],
)
def test_prose_about_calls_is_a_message(text: str, doubtful: bool) -> None:
    note = {"text that may be a call: read as a message": 1}
    assert read(said(text)) == ([], note if doubtful else {})


@pytest.mark.parametrize(
    "text",
    [
        '{"thought": "", "tool_calls": [{"name": "get", "arguments": {"a": 1}}]}',
        '<|im_start|>assistant\n{"name": "get", "parameters": {"a": 1}}<|im_end|>',
        '```json\n{"name": "get", "arguments": {"a": 1}}',
        '<TOOLCALL>[{"name": "get", "arguments": {"a": 1}}]</TOOLCALL>',
        'get\n{"a": 1}',
    ],
)
def test_more_texts_that_are_calls(text: str) -> None:
    [call], _ = read(said(text), tools=[{"name": "get"}])
    assert (call.name, json.loads(call.arguments)) == ("get", {"a": 1})


def test_text_beside_recorded_calls_may_only_repeat_them() -> None:
    text = '<tool_call>{"name": "get", "arguments": {"a": 1}}</tool_call>'
    calls, _ = read(said(text, tool_calls=[{"id": "x", "function": GET}]), RESULT)
    assert calls == [Call("get", '{"a": 1}', "ok")]
    for tool_calls in ([{"id": "x", "function": GET}],):
        with pytest.raises(BadItemError, match="a call in its text"):
            read(said(text.replace("1", "2"), tool_calls=tool_calls), RESULT)


def test_a_call_in_text_without_arguments_is_noted() -> None:
    calls, notes = read(said('<tool_call>{"name": "get"}</tool_call>'), RESULT)
    assert calls == [Call("get", "", "ok")]
    assert notes == {"call read from text": 1, "no arguments in text: read as none": 1}


def test_two_arguments_of_a_call_in_text_that_differ_break_it() -> None:
    text = '<tool_call>{"name": "a", "arguments": {"b": 1}, "parameters": {"b": 2}}</tool_call>'
    _, notes = read(said(text), RESULT)
    assert notes["broken call in text"] == 1


@pytest.mark.parametrize("role", ["tool", "user"])
def test_results_between_tags_are_unwrapped(role: str) -> None:
    text = '<tool_call>{"name": "%s", "arguments": {}}</tool_call>'
    plain = "<tool_response>\nError: no\n</tool_response>\n<tool_response>\n2\n</tool_response>"
    named = (
        '<tool_response>{"name": "b", "content": {"error": "x"}}</tool_response>'
        '<tool_response>{"name": "a", "content": "1"}</tool_response>'
    )
    for content, results in ((plain, ["Error: no", "2"]), (named, ["1", '{"error": "x"}'])):
        calls, notes = read(said(text % "a" + text % "b"), {"role": role, "content": content})
        assert [call.result for call in calls] == results
        assert notes == {"call read from text": 2}


@pytest.mark.parametrize(
    ("flag", "failed"),
    [
        ({"is_error": "false"}, False),
        ({"error": ""}, False),
        ({"failed": True}, True),
        ({"status": 500}, True),
        ({"status": "cancelled"}, True),
        ({"success": "false"}, True),
        ({"error_message": "no"}, True),
        ({"state": "output-error"}, True),
        ({"content": {"type": "error-text", "value": "no"}}, True),
        ({"content": {"type": "web_search_tool_result_error", "error_code": "x"}}, True),
        ({"content": {"type": "text", "value": "no"}}, None),
    ],
)
def test_flags_of_results(flag: dict[str, Any], failed: bool | None) -> None:
    [call], notes = read(said("", tool_calls=[{"id": "x", "function": GET}]), RESULT | flag)
    assert call.flagged is failed and not notes


def test_react_in_content_parts_and_with_other_names_of_results() -> None:
    act = 'Action:\n{"name": "get", "arguments": {"a": 1}}'
    parts = [{"type": "text", "text": act}]
    for content in (act, parts):
        for opening in ("API output: ", "API output:", "api output: ", "Observation:\n"):
            calls, _ = read(said(""), {"role": "assistant", "content": content}, user(opening))
            assert calls == [Call("get", {"a": 1}, "Error: no")]


def user(opening: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": f"{opening}Error: no"}]}


def test_calls_beside_an_empty_content_are_read_or_refused() -> None:
    part: dict[str, Any] = {"functionCall": {"name": "get", "args": {"a": 1}}}
    calls, _ = read({"role": "assistant", "content": "", "parts": [part]})
    assert calls == [Call("get", {"a": 1})]
    for part in (
        {"type": "tool-invocation", "toolInvocation": {"toolCallId": "x", "toolName": "get"}},
        {"executableCode": {"code": "1"}},
    ):
        with pytest.raises(BadItemError):
            read({"role": "assistant", "content": "", "parts": [part]})


def test_a_failed_call_of_an_mcp_server_has_its_error() -> None:
    item = {"type": "mcp_call", "id": "m", "name": "get", "arguments": "{}", "error": "no"}
    [call], _ = read(item)
    assert call.flagged is True


def test_autogens_results_are_told_apart() -> None:
    calls = [{"id": i, "function": GET} for i in ("x", "y")]
    results = [{"role": "tool", "tool_call_id": i, "content": i} for i in ("y", "x")]
    several = {"role": "tool", "content": "yx", "tool_responses": results}
    read_calls, _ = read(said("", tool_calls=calls), several)
    assert [call.result for call in read_calls] == ["x", "y"]


def test_sharegpts_call_may_stand_after_thoughts() -> None:
    value = '<think>hm</think>\n{"name": "get", "arguments": {"a": 1}}'
    [call], _ = read({"from": "function_call", "value": value}, {"from": "tool", "value": "ok"})
    assert (call.name, json.loads(call.arguments), call.result) == ("get", {"a": 1}, "ok")


def test_rollouts_say_which_calls_were_made(tmp_path: Path) -> None:
    """What a policy wrote in our own rollouts was read when it played."""
    texts = ('get", "arguments": {}}\n</tool_call>', '<tool_call>{"name": "get", "arguments": {}}')
    messages = [{"role": "user", "content": "hi"}]
    messages += [{"role": "assistant", "content": text} for text in texts]
    row = {"messages": messages, "outcome": 0, "gold_actions": [], "tokens_recorded": True}
    path = tmp_path / "rollouts.jsonl"
    path.write_text(json.dumps(row))
    trace = open_trace(str(path))
    [episode] = trace
    assert [turn.calls for turn in episode.turns] == [[], []]
    assert not [note for note in trace.notes if "text" in note]
