"""Calls as people paste them: the form, the name, the arguments; and what is no call."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.traces.calls import UnreadableCallError
from stages.traces.pasted import unwrapped
from tests.conftest import Cli

ARGUMENTS = {"id": 1, "bags": [{"n": 2}]}
TEXT = json.dumps(ARGUMENTS)
OPENAI = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": TEXT}}
ANTHROPIC = {"type": "tool_use", "id": "toolu_1", "name": "get", "input": ARGUMENTS}
GEMINI = {"functionCall": {"name": "get", "args": ARGUMENTS}}
LANGCHAIN = {"name": "get", "args": ARGUMENTS, "id": "x", "type": "tool_call"}
RESPONSES = {"type": "function_call", "id": "f", "call_id": "c", "name": "get", "arguments": TEXT}

# Form, and how an API writes the call of `get` with ARGUMENTS.
CALLS: list[tuple[str, Any]] = [
    ("openai", OPENAI),
    ("openai", {"type": "function", "function": {"name": "get", "arguments": ARGUMENTS}}),
    ("openai", [OPENAI]),
    ("openai", {"tool_calls": [OPENAI]}),
    ("openai", {"role": "assistant", "content": None, "tool_calls": [OPENAI]}),
    ("openai", {"role": "assistant", "function_call": {"name": "get", "arguments": TEXT}}),
    ("anthropic", ANTHROPIC),
    ("anthropic", [ANTHROPIC]),
    ("anthropic", {"role": "assistant", "content": [{"type": "text", "text": "a"}, ANTHROPIC]}),
    ("anthropic", ANTHROPIC | {"type": "server_tool_use"}),
    ("gemini", GEMINI),
    ("gemini", GEMINI | {"thoughtSignature": "x"}),
    ("gemini", {"function_call": {"name": "get", "args": ARGUMENTS}}),
    ("gemini", {"role": "model", "parts": [{"text": "a"}, GEMINI]}),
    ("langchain", LANGCHAIN),
    (
        "mcp",
        {
            "jsonrpc": "2.0",
            "id": 7,
            "method": "tools/call",
            "params": {"name": "get", "arguments": ARGUMENTS},
        },
    ),
    ("responses", RESPONSES),
    ("flat", {"name": "get", "arguments": ARGUMENTS}),
    ("flat", {"name": "get", "arguments": TEXT}),
    ("flat", {"id": "c", "name": "get", "arguments": ARGUMENTS, "requestor": "assistant"}),
    ("flat", {"name": "get", "parameters": ARGUMENTS}),
    ("flat", {"name": "get", "kwargs": ARGUMENTS}),
    ("flat", {"name": "get", "input": ARGUMENTS}),
    ("flat", {"type": "function", "id": "x", "name": "get", "namespace": None, "arguments": TEXT}),
    ("flat", {"action_id": "1_0", "name": "get", "arguments": ARGUMENTS, "compare_args": None}),
    ("openai", OPENAI | {"extra_content": {"google": {"thought_signature": "x"}}}),
    ("openai", {"role": "assistant", "tool_calls": [json.dumps(OPENAI)]}),
    ("openai", {"content": None, "tool_calls": [OPENAI]}),
    (
        "openai",
        {"choices": [{"index": 0, "message": {"role": "assistant", "tool_calls": [OPENAI]}}]},
    ),
    ("openai", {"message": {"tool_calls": [OPENAI]}, "finish_reason": "tool_calls"}),
    ("anthropic", [{"type": "text", "text": "a"}, ANTHROPIC]),
    ("anthropic", [{"type": "message", "role": "assistant", "content": [ANTHROPIC]}]),
    ("gemini", {"candidates": [{"content": {"role": "model", "parts": [{"text": "a"}, GEMINI]}}]}),
    ("langchain", {"type": "ai", "content": "", "tool_calls": [LANGCHAIN]}),
    ("langchain", {"tool": "get", "tool_input": ARGUMENTS, "log": ""}),
    ("react", {"action": "get", "action_input": ARGUMENTS}),
    ("responses", {"output": [{"type": "reasoning", "summary": []}, RESPONSES]}),
    ("bedrock", {"toolUse": {"toolUseId": "x", "name": "get", "input": ARGUMENTS}}),
    ("ai-sdk", {"type": "tool-call", "toolCallId": "x", "toolName": "get", "input": ARGUMENTS}),
    ("atif", {"tool_call_id": "x", "function_name": "get", "arguments": ARGUMENTS}),
    ("inspect", {"id": "x", "function": "get", "arguments": ARGUMENTS, "type": "function"}),
]

# Arguments that look a little like a call.
NO_CALLS: list[Any] = [
    {},
    [],
    3,
    "get",
    None,
    {"name": "Bob"},
    {"name": "Bob", "input": "x"},
    {"name": "Bob", "input": {"a": 1}, "age": 3},
    [{"type": "text", "text": "a"}],
    [{"type": ["text"]}, {}],
    {"output": [{"a": 1}]},
    {"type": "function", "function": {"name": "get", "parameters": {"properties": {}}}},
    {"choices": ["a", "b"]},
    {"name": "Bob", "arguments": "for and against"},
    {"name": "Bob", "arguments": [1]},
    {"name": "Bob", "arguments": None},
    {"name": "Bob", "arguments": {}, "age": 3},
    {"name": "Bob", "args": {}, "arguments": {}},
    {"name": 3, "arguments": {}},
    {"name": "get", "description": "a tool", "parameters": {"type": "object"}},
    {"agent_tool_name": "get", "arguments": TEXT},
    {"function": {"name": "sine"}, "range": [0, 1]},
    {"function": "sine", "arguments": {}},
    {"method": "tools/list", "params": {"name": "x"}},
    {"type": "tool_use", "input": {}},
    {"role": "admin", "content": [ANTHROPIC]},
    {"role": "assistant", "content": "hi"},
    [{"name": "Bob", "arguments": {}}, {"name": "Bob"}],
]


@pytest.mark.parametrize(("form", "value"), CALLS)
def test_a_call_of_any_api_is_unwrapped(form: str, value: Any) -> None:
    call = unwrapped(value)
    assert call is not None
    assert (call.form, call.name, call.arguments) == (form, "get", ARGUMENTS)


@pytest.mark.parametrize("value", NO_CALLS)
def test_arguments_are_no_call(value: Any) -> None:
    assert unwrapped(value) is None


@pytest.mark.parametrize("form", [OPENAI, ANTHROPIC])
def test_arguments_that_are_not_there(form: dict[str, Any]) -> None:
    inner = form.get("function", form)
    key = "arguments" if "function" in form else "input"
    lacking = {name: value for name, value in inner.items() if name != key}
    with pytest.raises(UnreadableCallError, match=r"^a call of 'get' without arguments$"):
        unwrapped({**form, "function": lacking} if "function" in form else lacking)
    for nothing in (None, ""):
        empty = inner | {key: nothing}
        call = unwrapped({**form, "function": empty} if "function" in form else empty)
        assert call is not None and call.arguments == {}


def test_mcp_and_gemini_may_leave_arguments_out() -> None:
    for value in (
        {"method": "tools/call", "params": {"name": "get"}},
        {"functionCall": {"name": "get"}},
    ):
        call = unwrapped(value)
        assert call is not None and call.arguments == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4), st.text(min_size=1))
def test_every_form_gives_the_same_call(arguments: dict[str, Any], name: str) -> None:
    written = json.dumps(arguments)
    forms: list[Any] = [
        {"id": "a", "type": "function", "function": {"name": name, "arguments": written}},
        {"type": "tool_use", "id": "b", "name": name, "input": arguments},
        {"functionCall": {"name": name, "args": arguments}},
        {"name": name, "args": arguments, "id": "c", "type": "tool_call"},
        {"method": "tools/call", "params": {"name": name, "arguments": arguments}},
        {"type": "function_call", "call_id": "d", "name": name, "arguments": written},
        {"name": name, "arguments": arguments},
    ]
    calls = [unwrapped(form) for form in forms]
    assert {call and call.name for call in calls} == {name}
    assert all(call is not None and call.arguments == arguments for call in calls)


# --- irc-cli compare-args -------------------------------------------------------------------------


def compare(run: Cli, one: Any, two: Any, *options: str) -> Any:
    values = ("--expected", json.dumps(one), "--actual", json.dumps(two))
    return run("compare-args", *values, *options)


@pytest.mark.parametrize(("form", "value"), CALLS)
def test_two_forms_of_a_call_are_equal(run: Cli, form: str, value: Any) -> None:
    result = compare(run, OPENAI, value, "--mode", "exact", "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json()["unwrapped"] == {"expected": "openai", "actual": form}
    assert compare(run, OPENAI, value).out.decode() == (
        "equal (deep)\n"
        f"calls unwrapped: expected openai, actual {form}; names and arguments compared\n"
    )


def test_a_call_against_arguments_compares_the_arguments(run: Cli) -> None:
    result = compare(run, ARGUMENTS, OPENAI)
    told = "calls unwrapped: expected arguments, actual openai; arguments only compared\n"
    assert (result.code, result.out.decode()) == (0, f"equal (deep)\n{told}")
    document = compare(run, ARGUMENTS, OPENAI, "--json").json()
    assert document["unwrapped"] == {"expected": None, "actual": "openai"}
    assert "unwrapped" not in compare(run, ARGUMENTS, ARGUMENTS, "--json").json()


def test_names_and_arguments_decide_and_ids_do_not(run: Cli) -> None:
    assert compare(run, OPENAI, OPENAI | {"id": "other"}).code == 0
    result = compare(run, OPENAI, ANTHROPIC | {"name": "put"}, "--json")
    [difference] = result.json()["differences"]
    assert (result.code, difference["path"]) == (1, "$.name")
    other = compare(run, OPENAI, ANTHROPIC | {"input": ARGUMENTS | {"id": 2}}, "--json")
    [difference] = other.json()["differences"]
    assert (other.code, difference["path"]) == (1, "$.id")


def test_arguments_with_the_keys_of_a_call_beside_a_call(run: Cli) -> None:
    """The arguments of a tool that takes `name` and `parameters` are no call themselves."""
    arguments = {"name": "index", "parameters": {"k": 1}}
    call = {"id": "x", "type": "function", "function": {"name": "create", "arguments": arguments}}
    for one, two in ((call, arguments), (arguments, call)):
        assert compare(run, one, two).code == 0
    assert compare(run, call, arguments | {"name": "other"}).code == 1
    assert compare(run, arguments, arguments).code == 0
    assert compare(run, arguments, arguments | {"name": "other"}).code == 1


def test_calls_that_cannot_be_read_are_never_passed_over(run: Cli) -> None:
    message = {"role": "assistant", "tool_calls": [OPENAI, {"x": 1}]}
    assert compare(run, OPENAI, message).code == 2


def test_raw_compares_documents(run: Cli) -> None:
    assert compare(run, OPENAI, OPENAI, "--raw").out == b"equal (deep)\n"
    assert compare(run, OPENAI, OPENAI | {"id": "other"}, "--raw").code == 1
    assert compare(run, OPENAI, ANTHROPIC, "--raw").code == 1


def test_two_values_need_no_options(run: Cli) -> None:
    values = (json.dumps(OPENAI), json.dumps(ANTHROPIC))
    assert run("compare-args", *values).code == 0
    assert run("compare-args", "[1]", "[2]").code == 1
    assert run("compare-args", values[0]).code == 2


LINES = [
    ([OPENAI, OPENAI], "2 calls; give one call in JSON, or pass --raw"),
    (
        {"function": {"name": "get"}},
        "a call of 'get' without arguments; give one call in JSON, or pass --raw",
    ),
]


@pytest.mark.parametrize(("value", "line"), LINES)
def test_what_is_no_single_call_is_one_line(run: Cli, value: Any, line: str) -> None:
    assert compare(run, OPENAI, value) == (2, b"", f"error: --actual: {line}\n")
    assert compare(run, value, OPENAI) == (2, b"", f"error: --expected: {line}\n")


def test_raw_does_nothing_for_traces(run: Cli) -> None:
    line = "error: --raw: does nothing for traces; leave it out or give two values\n"
    assert run("compare-args", "few.jsonl", "--raw") == (2, b"", line)
