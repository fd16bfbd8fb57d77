"""What is read without a closer look is what a closer look reads."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.traces import forms
from stages.traces.straight import straight

TEXT = {"type": "text", "text": "x"}
CALL = {"name": "f", "args": {"a": 1}}
ANSWER = {"name": "f", "response": {"result": "ok"}}
TEXTS: list[Any] = [
    {"text": "x"},
    TEXT,
    {**TEXT, "cache_control": {"type": "ephemeral"}},
    {"type": "output_text", "text": "x", "annotations": []},
    {"type": "text", "content": "x"},
]
CALLS: list[Any] = [
    {"functionCall": CALL},
    {"function_call": {**CALL, "id": "c"}},
    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
    {"type": "tool_call", "id": "c", "name": "f", "arguments": '{"a": 1}'},
]
RESULTS: list[Any] = [
    {"functionResponse": ANSWER},
    {"function_response": {**ANSWER, "id": "c", "response": {"output": {"b": [1]}}}},
    {"type": "tool_result", "tool_use_id": "c", "content": "ok"},
    {"type": "tool_result", "tool_use_id": "c", "content": [TEXT], "is_error": True},
    {"type": "tool_result", "tool_use_id": "c", "content": {"type": "error", "text": "x"}},
    {"type": "tool_call_response", "id": "c", "response": "ok"},
]
PARTS = [*TEXTS, *CALLS, *RESULTS]
SAYING = {"assistant": PARTS, "model": PARTS, "user": [*TEXTS, *RESULTS], "tool": RESULTS}
ITEMS: list[Any] = [
    {"from": "human", "value": "x"},
    {"from": "gpt", "value": "x"},
    {"from": "observation", "value": "ok"},
    {"from": "function_call", "value": '[{"name": "f", "arguments": {"a": 1}}]'},
    {"from": "function_call", "value": '{"name": "f", "arguments": "{}"}'},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "id": "i"},
    {"type": "function_call_output", "call_id": "c", "output": "ok", "status": "completed"},
    {"type": "function_call_output", "call_id": "c", "output": "no", "status": "failed"},
]
# What stands in the place of something, or under a name that is none of its form.
ODD = st.sampled_from([None, "", " ", "x", 3, True, [], {}, [TEXT], {"a": 1}, '{"name": "f"}'])
KEYS = ["role", "content", "parts", "type", "id", "name", "text", "status", "error", "value"]
KEYS += ["sampled", "n_tokens", "stop_reason", "usage", "tool_calls", "functionResponse", "thought"]
ROLES = st.sampled_from(["user", "model", "assistant", "tool", "system", "developer", "x"])


@st.composite
def changed(draw: st.DrawFn, values: list[Any]) -> Any:
    """Draw one of some objects, as it is or with a key more, less or of another value."""
    value = dict(draw(st.sampled_from(values)))
    inner = next((key for key in value if isinstance(value[key], dict)), None)
    if inner is not None and draw(st.booleans()):
        return value | {inner: draw(changed([value[inner]]))}
    for key in draw(st.lists(st.sampled_from([*KEYS, *value]), max_size=2)):
        value[key] = draw(ODD)
        if draw(st.booleans()):
            del value[key]
    return value


BLOCKS = st.lists(changed(PARTS), max_size=3)
MESSAGES = st.fixed_dictionaries(
    {"role": ROLES},
    optional={
        "content": BLOCKS,
        "parts": BLOCKS,
        "type": st.sampled_from(["message", "x"]),
        "n_tokens": st.just(3),
        "usage": st.just({"output_tokens": 3}),
        "stop_reason": st.sampled_from(["end_turn", "tool_use"]),
        "sampled": st.booleans(),
    },
)


def looked_at(message: Any) -> Any:
    """What a closer look reads, with what it lost and noted."""
    lost: list[str] = []
    notes = Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "straight", lambda message: None)
        return forms.read_message(message, lost, notes), lost, notes


@pytest.mark.parametrize(
    ("role", "part"), [(r, part) for r, parts in SAYING.items() for part in parts]
)
@pytest.mark.parametrize("key", ["parts", "content"])
def test_common_parts(role: str, part: Any, key: str) -> None:
    message = {"role": role, key: [part]}
    assert (straight(message), [], Counter()) == looked_at(message)


@pytest.mark.parametrize("item", ITEMS)
def test_common_items(item: Any) -> None:
    assert (straight(item), [], Counter()) == looked_at(item)


@settings(max_examples=200, deadline=None)
@given(MESSAGES | changed(ITEMS))
def test_what_is_read_is_what_a_closer_look_reads(message: Any) -> None:
    if (events := straight(message)) is not None:
        assert (events, [], Counter()) == looked_at(message)
