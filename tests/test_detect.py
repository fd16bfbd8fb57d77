"""Which format a record is of: never of two, and never of another than its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.errors import InputError
from stages.traces import Episode, open_trace
from stages.traces.detect import FORMATS, MESSAGES
from stages.traces.formats import ReadOptions

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

SAID = [{"role": "assistant", "parts": [{"type": "text", "content": "hello"}]}]
SPAN: dict[str, Any] = {
    "traceId": "t",
    "spanId": "s",
    "startTimeUnixNano": "1",
    "attributes": [{"key": "gen_ai.output.messages", "value": {"stringValue": json.dumps(SAID)}}],
}
CLAUDE: dict[str, Any] = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "text", "text": "hello"}],
    "stop_reason": "end_turn",
}
COMPLETION = {"object": "chat.completion", "choices": [{"index": 0, "message": TALK[1]}]}
ITEM: dict[str, Any] = {
    "type": "message",
    "role": "assistant",
    "content": [{"type": "output_text", "text": "hello"}],
}
MODEL = {"role": "model", "parts": [{"text": "hello"}]}
INVOCATION = {"user_content": {"parts": [{"text": "hi"}]}, "final_response": MODEL}

# Records of each format as small as they come, and with all that may stand in them: a new format
# adds its own here.
NODES: list[dict[str, Any]] = [
    {"parent": None, "message": TALK[0]},
    {"parent": 0, "message": TALK[1], "sampled": True},
]
TRACE: dict[str, Any] = {
    "version": 1,
    "id": "t",
    "task": {"type": "Task", "key": "k"},
    "agent": {"name": "agent"},
    "nodes": NODES,
    "rewards": {"solved": {"score": 1.0, "weight": 1.0}},
}
CREATED: dict[str, Any] = {"input": "hi", "tools": []}

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "tau-bench": [
        {"task_id": 0, "reward": 1.0, "info": {"task": {"actions": []}}, "traj": TALK, "trial": 0},
        {"task_id": 0, "reward": 0.0, "info": {"error": "timeout"}, "traj": [], "trial": 0},
        {"task_id": 0, "traj": TALK, "messages": TALK},
    ],
    "verifiers": [
        {"id": "e", "task": {"key": "k"}, "group": {"id": "g"}, "ok": True, "traces": [TRACE]},
        TRACE,
    ],
    "verifiers-v0": [
        {
            "example_id": 0,
            "task": "default",
            "prompt": TALK[:1],
            "completion": TALK[1:],
            "reward": 1.0,
            "answer": "hello",
            "info": {},
        },
        {"id": 0, "prompt": "hi", "completion": "hello", "reward": 0.0, "task": "default"},
        {
            "prompt": TALK[:1],
            "completion": TALK[1:],
            "reward": 1.0,
            "is_completed": True,
            "metrics": {},
        },
    ],
    "atif": [
        {
            "schema_version": "ATIF-v1.5",
            "session_id": "s",
            "agent": {"name": "a", "version": "1"},
            "steps": [{"step_id": 1, "source": "agent", "message": "hello"}],
        },
        {"task_name": "t", "trial_name": "t__1", "verifier_result": None, "exception_info": {}},
    ],
    "tau2": [
        {
            "id": "s",
            "task_id": "0",
            "trial": 0,
            "termination_reason": "user_stop",
            "reward_info": {"reward": 1.0, "action_checks": []},
            "messages": TALK,
        },
        {"task_id": "0", "termination_reason": "max_steps", "messages": None},
        {"task_id": "0", "reward_info": {"reward": 1.0}, "messages": TALK},
    ],
    "nemo-gym": [
        {"responses_create_params": CREATED, "response": {"output": [ITEM]}, "reward": 1.0},
        {
            "responses_create_params": CREATED,
            "response": {"object": "response", "output": [ITEM]},
            "reward": 0.0,
            "mask_sample": True,
            "_ng_task_index": 0,
            "_ng_rollout_index": 1,
        },
    ],
    "inspect": [
        {"id": 1, "epoch": 1, "input": "hi", "target": "", "messages": TALK, "scores": {}},
    ],
    "opentelemetry": [
        {"resourceSpans": [{"scopeSpans": [{"spans": [SPAN]}]}]},
        SPAN,
        {
            "name": "chat",
            "context": {"trace_id": "0x1", "span_id": "0x2"},
            "attributes": {"gen_ai.output.messages": json.dumps(SAID)},
        },
    ],
    "langsmith": [
        {
            "id": "r",
            "run_type": "llm",
            "inputs": {"messages": TALK[:1]},
            "outputs": {"choices": [{"message": TALK[1]}]},
        },
        {"id": "r", "run_type": "chain", "inputs": {}, "outputs": {"messages": TALK}},
    ],
    "langfuse": [
        {"id": "g", "traceId": "t", "type": "GENERATION", "input": TALK[:1], "output": TALK[1]},
        {"id": "t", "input": TALK[:1], "output": TALK[1], "observations": [], "scores": []},
    ],
    "openai-agents": [
        {
            "object": "trace.span",
            "id": "s",
            "trace_id": "t",
            "span_data": {"type": "generation", "input": TALK[:1], "output": TALK[1:]},
        },
    ],
    "batch": [
        {"custom_id": "a", "result": {"type": "succeeded", "message": CLAUDE}},
        {"custom_id": "a", "response": {"status_code": 200, "body": COMPLETION}, "error": None},
        {"custom_id": "a", "response": {"status_code": 500, "body": {}}, "error": None},
    ],
    "responses": [
        {"input": "hi", "instructions": "Help.", "output": [ITEM], "model": "m"},
        {"object": "response", "output": [ITEM]},
        {"input": "hi", "output": [{"type": "mcp_call", "name": "f", "arguments": "{}"}]},
        {"type": "response.completed", "response": {"object": "response", "output": [ITEM]}},
        {"input": [{"type": "message", "role": "user", "content": "hi"}, ITEM], "model": "m"},
    ],
    "gemini": [
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}, MODEL]},
        {"request": {"contents": "hi"}, "response": {"candidates": [{"content": MODEL}]}},
        {"candidates": [{"content": MODEL}], "modelVersion": "g"},
    ],
    "adk": [
        {"id": "s", "appName": "a", "events": [{"author": "a", "content": MODEL}]},
        {"eval_set_id": "e", "eval_cases": [{"eval_id": "c", "conversation": [INVOCATION]}]},
    ],
    "anthropic": [
        {"messages": TALK, "tools": [{"name": "f", "input_schema": {}}]},
        {"request": {"messages": TALK[:1], "system": "Help."}, "response": CLAUDE},
        {"messages": TALK[:1], "response": CLAUDE},
        CLAUDE,
    ],
    "chat completions": [
        {"messages": TALK[:1], "response": COMPLETION},
        {"request": {"body": {"messages": TALK[:1]}}, "response": {"body": COMPLETION}},
        COMPLETION,
    ],
    "sharegpt": [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"conversations": TALK, "system": "Help.", "tools": "[]"},
        {"id": "x", "items": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"query": "hi", "answers": "[]", "tools": "[]", "id": 0},
        {"system": "SYSTEM: Help.", "chat": "USER: hi\n\n\nASSISTANT: hello <|endoftext|>"},
    ],
    "message list": [
        {"role": "assistant", "content": "hello"},
        {"type": "ai", "content": "hello", "tool_calls": []},
        {"type": "ai", "data": {"content": "hello"}},
        {"role": "model", "parts": [{"text": "hello"}]},
        {"from": "gpt", "value": "hello"},
    ],
    "trl completions": [
        {"step": 1, "prompt": "hi", "completion": "hello", "right": 1.0, "advantage": 0.5},
        {"step": "1", "prompt": TALK[:1], "completion": TALK[1:], "right": 1.0, "advantage": 0.5},
    ],
    "verl dump": [
        {"input": "hi", "output": "hello", "gts": "hello", "score": 1.0, "step": 1},
        {"input": "hi", "output": "hello", "score": 1.0},
    ],
    "messages": [
        {"messages": TALK},
        {"messages": TALK, "task_id": "t", "trial": 0, "outcome": 1, "gold_actions": []},
        {"messages": TALK, "tools": [], "reward": 0.5, "info": {}, "status": "masked"},
    ],
}
PAIRS = [
    (name, record, format)
    for name, records in EXAMPLES.items()
    for record in records
    for format in FORMATS
]


def is_text(record: dict[str, Any]) -> bool:
    """Whether turns can only be told by a tokenizer's chat template."""
    return (
        any(record.get(key) == "hello" for key in ("completion", "output")) and "task" not in record
    )


def example_episodes(folder: Path, name: str) -> Iterator[Episode]:
    """The episodes of a format's examples, but for those that only a tokenizer can cut."""
    path = folder / "trace"
    for record in EXAMPLES[name]:
        if not is_text(record):
            path.write_text(json.dumps(record))
            yield from open_trace(str(path))


def test_every_format_has_examples() -> None:
    assert [format.name for format in FORMATS] == list(EXAMPLES)


@pytest.mark.parametrize(("name", "record", "format"), PAIRS)
def test_no_format_takes_anothers_record(name: str, record: dict[str, Any], format: Any) -> None:
    if format is MESSAGES and name != "messages":
        return  # asked last: whatever else has messages is its
    assert format.accepts(record) == (format.name == name)


@pytest.mark.parametrize("name", list(EXAMPLES))
@pytest.mark.parametrize("indented", [False, True])
def test_files_are_told_by_their_records(tmp_path: Path, name: str, indented: bool) -> None:
    for record in EXAMPLES[name]:
        path = tmp_path / "trace"
        path.write_text(json.dumps(record, indent=2 if indented else None))
        trace = open_trace(str(path))
        assert trace.format == name
        if is_text(record):
            with pytest.raises(InputError, match="is text, not messages; pass --tokenizer"):
                list(trace)
            continue
        for episode in trace:
            assert episode.messages or not episode.counts


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_clean_records_are_of_no_other_format(format: Any) -> None:
    examples: Any = (record for record in EXAMPLES[format.name] if not is_text(record))
    for record in format.gather(examples) if format.gather else examples:
        for clean in format.translate(record, ReadOptions(), Counter()):
            assert clean["messages"] is not None
            told: Iterator[str] = (each.name for each in FORMATS if each.accepts(clean))
            assert next(told) == "messages"
