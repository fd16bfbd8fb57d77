"""OpenTelemetry GenAI spans, written after the conventions.

Span and message layouts: open-telemetry/semantic-conventions-genai @0724e29, gen-ai-spans.md,
gen-ai-events.md and non-normative/examples-llm-calls.md; events by role: semantic-conventions
v1.36.0, docs/gen-ai/gen-ai-events.md.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.traces import otel
from stages.traces.fields import BadItemError
from stages.traces.spread import Spread
from tests.translated import clean, episodes, takers, told

Json = dict[str, Any]

USER = {"role": "user", "parts": [{"type": "text", "content": "Weather in Paris?"}]}
CALL = {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}
ASKED = {"role": "assistant", "parts": [CALL], "finish_reason": "tool_call"}
RESULT = {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rain"}]}
WET = {"role": "assistant", "parts": [{"type": "text", "content": "Wet."}], "finish_reason": "stop"}
SYSTEM = [{"type": "text", "content": "Help."}]
TOOLS = [{"type": "function", "name": "get_weather", "parameters": {"type": "object"}}]
TALK = [("", [("get_weather", {"city": "Paris"}, "rain", None)]), ("Wet.", [])]


def typed(value: Any) -> Json:
    """A value in OTLP's JSON: https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding."""
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [typed(item) for item in value]}}
    if isinstance(value, dict):
        return {"kvlistValue": {"values": pairs(value)}}
    return {"stringValue": value}


def pairs(values: Json) -> list[Json]:
    return [{"key": key, "value": typed(value)} for key, value in values.items()]


def span(
    name: str, start: int, attributes: Json, *, trace: str = "t1", parent: str = "root", **more: Any
) -> Json:
    parent = "" if name == "root" else parent
    made: Json = {"traceId": trace, "spanId": name, "parentSpanId": parent, "name": name, "kind": 3}
    made |= {"startTimeUnixNano": str(start), "endTimeUnixNano": str(start + 1)}
    return made | {"attributes": pairs(attributes), "status": {}, **more}


def otlp(*spans: Json) -> Json:
    scope = {"scope": {"name": "x"}, "spans": list(spans)}
    return {"resourceSpans": [{"resource": {"attributes": []}, "scopeSpans": [scope]}]}


def logs(*records: Json) -> Json:
    scope = {"scope": {"name": "x"}, "logRecords": list(records)}
    return {"resourceLogs": [{"resource": {"attributes": []}, "scopeLogs": [scope]}]}


def event(name: str, attributes: Json, **more: Any) -> Json:
    return {"name": name, "timeUnixNano": "9", "attributes": pairs(attributes), **more}


def evaluation(name: str, **score: Any) -> Json:
    stated = {f"gen_ai.evaluation.score.{key}": value for key, value in score.items()}
    return event("gen_ai.evaluation.result", {"gen_ai.evaluation.name": name, **stated})


def chat(name: str, start: int, heard: list[Json], said: Json, encode: Any = json.dumps, **more: Any) -> Json:  # fmt: skip # noqa: E501
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-4",
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.system_instructions": encode(SYSTEM),
        "gen_ai.tool.definitions": encode(TOOLS),
        "gen_ai.input.messages": encode(heard),
        "gen_ai.output.messages": encode([said]),
    }
    return span(name, start, attributes, **more)


def trace(encode: Callable[[Any], Any] = json.dumps, **more: Any) -> list[Json]:
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "get_weather"}
    tool |= {"gen_ai.tool.call.id": "c1"}
    return [
        span("root", 1, {"gen_ai.operation.name": "invoke_agent"}, **more),
        chat("first", 10, [USER], ASKED, encode, **more),
        span("tool", 20, tool, **more),
        chat("second", 30, [USER, ASKED, RESULT], WET, encode, **more),
        span("http", 31, {"http.request.method": "POST"}, **more),
    ]


@pytest.mark.parametrize("encode", [json.dumps, lambda value: value])
def test_a_trace_is_one_conversation(encode: Any) -> None:
    notes = Counter[str]()
    [record] = clean(otel, otlp(*trace(encode)), notes=notes)
    assert [m["role"] for m in record["messages"]] == [
        *("system", "user", "assistant", "tool", "assistant"),
    ]
    [episode] = episodes(otel, otlp(*trace(encode)))
    assert told(episode) == TALK and [turn.n_tokens for turn in episode.turns] == [7, 7]
    assert (episode.episode_id, episode.policy, episode.status) == ("t1", "gpt-4", "ok")
    assert episode.tools and episode.tools[0]["function"]["name"] == "get_weather"
    assert episode.outcome is None and not notes


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(10)), st.lists(st.booleans(), min_size=9, max_size=9))
def test_spans_come_in_any_order_over_any_lines(order: list[int], cuts: list[bool]) -> None:
    spans = [*trace(), *trace(trace="t2")]
    lines: list[list[Json]] = [[]]
    for place, cut in zip(order, [*cuts, False], strict=True):
        lines[-1].append(spans[place])
        if cut:
            lines.append([])
    both = episodes(otel, *(otlp(*line) for line in lines))
    assert sorted(e.episode_id for e in both) == ["t1", "t2"]
    assert [told(episode) for episode in both] == [TALK, TALK]


def test_traces_of_one_conversation_are_one_episode() -> None:
    name = {"gen_ai.conversation.id": "conv"}
    more = {"role": "user", "parts": [{"type": "text", "content": "And Rome?"}]}
    dry = {"role": "assistant", "parts": [{"type": "text", "content": "Dry."}]}
    before = trace()
    before[1]["attributes"] += pairs(name)
    after = chat("third", 50, [USER, ASKED, RESULT, WET, more], dry, trace="t2")
    after["attributes"] += pairs(name)
    [episode] = episodes(otel, otlp(*before), otlp(after))
    assert told(episode) == [*TALK, ("Dry.", [])] and episode.episode_id == "conv"


def test_two_layers_that_record_one_call_count_once() -> None:
    again = chat("inner", 11, [USER], ASKED, parent="first")
    [episode] = episodes(otel, otlp(*trace(), again))
    assert told(episode) == TALK


def test_an_older_result_is_read() -> None:
    part = {"type": "tool_call_response", "id": "c1", "result": "rain"}
    heard = [USER, ASKED, {"role": "tool", "parts": [part]}]
    [episode] = episodes(otel, otlp(chat("a", 1, [USER], ASKED), chat("b", 2, heard, WET)))
    assert told(episode) == TALK


@pytest.mark.parametrize(
    ("attributes", "status", "result", "failed"),
    [
        ({"error.type": "timeout"}, {"code": 2, "message": "too slow"}, "too slow", True),
        ({"error.type": "timeout"}, {}, "timeout", True),
        ({"gen_ai.tool.call.result": '{"rain": 1}'}, {}, '{"rain": 1}', None),
        ({}, {"code": "STATUS_CODE_ERROR"}, "error", True),
    ],
)
def test_a_tool_span_tells_of_its_call(
    attributes: Json, status: Json, result: str, failed: Any
) -> None:
    tool = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "get_weather"}
    for by in ({"gen_ai.tool.call.id": "c1"}, {"gen_ai.tool.call.arguments": '{"city": "Paris"}'}, {}):  # fmt: skip # noqa: E501
        spans = [chat("a", 1, [USER], ASKED), span("b", 2, tool | by | attributes, status=status)]
        [episode] = episodes(otel, otlp(*spans))
        [(_, [(_, _, got, flag)])] = told(episode)
        assert (got, flag) == (result, failed)


def test_an_error_of_a_tool_span_flags_the_recorded_result() -> None:
    spans = trace()
    spans[2]["attributes"] += pairs({"error.type": "ValueError"})
    [episode] = episodes(otel, otlp(*spans))
    assert [call.flagged for turn in episode.turns for call in turn.calls] == [True]


@pytest.mark.parametrize(
    ("score", "outcome"),
    [({"value": 0.5}, 0.5), ({"value": 1}, 1.0), ({"label": "pass"}, 1.0), ({"label": "fail"}, 0.0),
     ({"label": "relevant"}, None)],
)  # fmt: skip
def test_an_evaluation_is_the_outcome(score: Json, outcome: float | None) -> None:
    spans = trace()
    spans[0]["events"] = [evaluation("solved", **score)]
    record = {**evaluation("solved", **score), "traceId": "t1", "spanId": "root"}
    record["eventName"] = record.pop("name")
    for lines in ([otlp(*spans)], [otlp(*trace()), logs(record)]):
        [episode] = episodes(otel, *lines)
        assert episode.outcome == outcome


def test_of_several_evaluations_none_is_chosen() -> None:
    spans = trace()
    spans[0]["events"] = [evaluation("a", value=0.0), evaluation("b", value=1.0)]
    [record] = clean(otel, otlp(*spans))
    assert record["rewards"] == {"a": 0.0, "b": 1.0} and "outcome" not in record


def test_an_agent_that_failed_crashed() -> None:
    spans = trace()
    spans[0]["attributes"] += pairs({"error.type": "ConnectionError"})
    [episode] = episodes(otel, otlp(*spans))
    assert (episode.status, told(episode)) == ("error", TALK)


def test_an_answer_cut_by_its_limit_is_truncated() -> None:
    [episode] = episodes(otel, otlp(chat("a", 1, [USER], {**WET, "finish_reason": "length"})))
    assert episode.status == "truncated"


def test_content_that_was_not_recorded_is_refused_in_one_line() -> None:
    with pytest.raises(BadItemError) as caught:
        clean(otel, otlp(span("a", 1, {"gen_ai.operation.name": "chat"})))
    assert caught.value.what == "trace 't1' holds no messages: their content was not recorded"
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT" in caught.value.todo


def test_spans_of_something_else_are_refused() -> None:
    with pytest.raises(BadItemError, match="holds no GenAI spans"):
        clean(otel, otlp(span("a", 1, {"http.request.method": "GET"})))


def test_events_by_role_of_older_conventions() -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    call = {"id": "c1", "type": "function", "function": function}
    bodies: list[tuple[str, Json]] = [
        ("gen_ai.system.message", {"content": "Help."}),
        ("gen_ai.user.message", {"content": "Weather in Paris?"}),
        ("gen_ai.assistant.message", {"tool_calls": [call]}),
        ("gen_ai.tool.message", {"id": "c1", "content": "rain"}),
        ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"content": "Wet."}}),
    ]
    bare = span("a", 1, {"gen_ai.operation.name": "chat"})
    at = {"traceId": "t1", "spanId": "a", "timeUnixNano": "5", "attributes": []}
    by_log = logs(*({**at, "eventName": name, "body": typed(body)} for name, body in bodies))
    by_event = [event(name, {"gen_ai.event.content": json.dumps(body)}) for name, body in bodies]
    as_text = json.dumps([{"event.name": name, **body} for name, body in bodies])
    for lines in (
        [otlp(bare), by_log],
        [by_log],
        [otlp({**bare, "events": by_event})],
        [otlp(span("a", 1, {"gen_ai.operation.name": "chat", "events": as_text}))],
    ):
        [episode] = episodes(otel, *lines)
        assert told(episode) == TALK and episode.opening == "Weather in Paris?"


def test_messages_in_an_event_of_the_operation() -> None:
    held = {"gen_ai.input.messages": [USER], "gen_ai.output.messages": [WET]}
    details = event("gen_ai.client.inference.operation.details", held)
    bare = span("a", 1, {"gen_ai.operation.name": "chat", "gen_ai.request.model": "gpt-4"})
    record = {**details, "traceId": "t1", "spanId": "a", "eventName": details["name"]}
    for lines in ([otlp({**bare, "events": [details]})], [logs(record), otlp(bare)]):
        [episode] = episodes(otel, *lines)
        assert (told(episode), episode.policy) == ([("Wet.", [])], "gpt-4")


FLAT = {
    "gen_ai.prompt.0.role": "user",
    "gen_ai.prompt.0.content": "Weather in Paris?",
    "gen_ai.completion.0.role": "assistant",
    "gen_ai.completion.0.tool_calls.0.id": "c1",
    "gen_ai.completion.0.tool_calls.0.name": "get_weather",
    "gen_ai.completion.0.tool_calls.0.arguments": '{"city": "Paris"}',
}
PHOENIX = {
    "openinference.span.kind": "LLM",
    "llm.input_messages.0.message.role": "user",
    "llm.input_messages.0.message.contents.0.message_content.text": "Weather in Paris?",
    "llm.output_messages.0.message.role": "assistant",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.name": "get_weather",
    "llm.output_messages.0.message.tool_calls.0.tool_call.function.arguments": '{"city": "Paris"}',
}


@pytest.mark.parametrize("attributes", [FLAT, PHOENIX])
def test_messages_as_numbered_attributes(attributes: Json) -> None:
    [episode] = episodes(otel, otlp(span("a", 1, attributes)))
    assert told(episode) == [("", [("get_weather", {"city": "Paris"}, None, None)])]
    assert episode.opening == "Weather in Paris?"


def test_spans_as_the_console_exporter_writes_them() -> None:
    flat: Json = {
        "name": "chat gpt-4",
        "context": {"trace_id": "0x1", "span_id": "0x2", "trace_state": "[]"},
        "kind": "SpanKind.CLIENT",
        "parent_id": None,
        "start_time": "2026-01-01T00:00:00.000000Z",
        "status": {"status_code": "UNSET"},
        "attributes": {
            "gen_ai.operation.name": "chat",
            "gen_ai.input.messages": json.dumps([USER]),
            "gen_ai.output.messages": json.dumps([WET]),
        },
        "events": [],
    }
    [episode] = episodes(otel, flat)
    assert (told(episode), episode.episode_id) == ([("Wet.", [])], "0x1")


def test_nested_attributes_as_phoenix_exports_them() -> None:
    call = {"tool_call": {"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}}
    heard = {"message": {"role": "user", "content": "Weather in Paris?"}}
    said = {"message": {"role": "assistant", "tool_calls": [call]}}
    attributes = {
        "openinference": {"span": {"kind": "LLM"}},
        "llm": {"input_messages": [heard], "output_messages": [said], "model_name": "gpt-4"},
    }
    context = {"trace_id": "t", "span_id": "s"}
    made = {"name": "x", "context": context, "parent_id": None, "start_time": "2026"}
    [episode] = episodes(otel, made | {"attributes": attributes, "events": []})
    assert told(episode) == [("", [("get_weather", {"city": "Paris"}, None, None)])]
    assert (episode.policy, episode.opening) == ("gpt-4", "Weather in Paris?")


def test_spans_of_the_ai_sdk() -> None:
    heard: list[Json] = [{"role": "user", "content": [{"type": "text", "text": "Weather?"}]}]
    call = {"type": "tool-call", "toolCallId": "c1", "toolName": "get_weather"}
    asked = {"role": "assistant", "content": [call | {"input": {"city": "Paris"}}]}
    result = {"type": "tool-result", "toolCallId": "c1", "toolName": "get_weather"}
    told_it = result | {"output": {"type": "text", "value": "rain"}}
    answered = [*heard, asked, {"role": "tool", "content": [told_it]}]
    outer = {"ai.operationId": "ai.generateText", "ai.prompt": "{}", "ai.response.text": "Wet."}
    first = {
        "ai.operationId": "ai.generateText.doGenerate",
        "gen_ai.request.model": "gpt-4",
        "ai.prompt.messages": json.dumps(heard),
        "ai.response.toolCalls": json.dumps([call | {"input": '{"city": "Paris"}'}]),
        "ai.response.finishReason": "tool-calls",
    }
    second = {"ai.prompt.messages": json.dumps(answered), "ai.response.text": "Wet."}
    spans = [span("root", 1, outer), span("a", 2, first), span("b", 3, second)]
    [episode] = episodes(otel, otlp(*spans))
    assert told(episode) == TALK and episode.policy == "gpt-4"


@pytest.mark.parametrize("record", [otlp(*trace()), logs(), span("a", 1, {"gen_ai.system": "x"})])
def test_no_other_format_takes_spans(record: Json) -> None:
    assert takers(record) == ["opentelemetry"]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("123"), st.integers())))
def test_what_is_spread_comes_together(parts: list[tuple[str, str, int]]) -> None:
    joined = {"a": "b"} if any(group == "a" for group, _, _ in parts) else {}
    in_order = sorted(parts, key=lambda part: part[1])
    right = {
        group: [value for name, _, value in in_order if joined.get(name, name) == group]
        for group in {joined.get(name, name) for name, _, _ in parts}
    }
    with Spread() as spread:
        for group, place, value in parts:
            spread.add(group, place, value)
        for group, into in joined.items():
            spread.join(group, into)
        assert dict(spread.groups()) == right


def test_what_is_put_is_alone_in_the_place_of_its_group() -> None:
    with Spread() as spread:
        for group, value in (("a", 1), ("b", 2), ("a", 3)):
            spread.put(group, value)
        assert list(spread.groups()) == [("a", [3]), ("b", [2])]


def test_spans_that_the_sdk_exports() -> None:
    common = "opentelemetry.exporter.otlp.proto.common.trace_encoder"
    encode = pytest.importorskip(common).encode_spans
    as_dict = pytest.importorskip("google.protobuf.json_format").MessageToDict
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    kept = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    memory, provider = kept.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(memory))
    tracer = provider.get_tracer("x")
    with tracer.start_as_current_span("invoke_agent") as root:
        root.set_attribute("gen_ai.operation.name", "invoke_agent")
        for heard, said in (([USER], ASKED), ([USER, ASKED, RESULT], WET)):
            with tracer.start_as_current_span("chat") as part:
                part.set_attribute("gen_ai.operation.name", "chat")
                part.set_attribute("gen_ai.input.messages", json.dumps(heard))
                part.set_attribute("gen_ai.output.messages", json.dumps([said]))
        score = {"gen_ai.evaluation.name": "ok", "gen_ai.evaluation.score.value": 0.25}
        root.add_event("gen_ai.evaluation.result", score)
    spans = memory.get_finished_spans()
    whole = as_dict(encode(spans))
    parts = [as_dict(encode([part])) for part in spans]
    flat = [json.loads(part.to_json()) for part in spans]
    for lines in ([whole], parts, flat, *itertools.permutations(parts)):
        [episode] = episodes(otel, *lines)
        assert (told(episode), episode.outcome) == (TALK, 0.25)
