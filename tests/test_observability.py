"""LangSmith runs, Langfuse observations, and traces of the OpenAI Agents SDK."""

from __future__ import annotations

import json
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.traces import agents_sdk, langfuse, langsmith, open_trace
from stages.traces.fields import BadItemError
from tests.translated import clean, episodes, takers, told

Json = dict[str, Any]

USER = {"role": "user", "content": "Weather in Paris?"}
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
ASKED: Json = {"role": "assistant", "content": None}
ASKED |= {"tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "rain"}
WET = {"role": "assistant", "content": "Wet."}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {}}}]


def spoken(flag: bool | None, result: str | None = "rain") -> list[Any]:
    return [("", [("get_weather", {"city": "Paris"}, result, flag)]), ("Wet.", [])]


# --- LangSmith ------------------------------------------------------------------------------------


def lc(kind: str, **kwargs: Any) -> Json:
    path = ["langchain", "schema", "messages", kind]
    return {"lc": 1, "type": "constructor", "id": path, "kwargs": kwargs}


HUMAN = lc("HumanMessage", content="Weather in Paris?")
AI = lc("AIMessage", content="", tool_calls=[{"id": "c1", "name": "get_weather", "args": {"city": "Paris"}, "type": "tool_call"}])  # fmt: skip # noqa: E501
TOOL = lc("ToolMessage", content="rain", tool_call_id="c1")
LAST = lc("AIMessage", content="Wet.")


def run(name: str, kind: str, inputs: Any, outputs: Any, **more: Any) -> Json:
    root = name == "r"
    made: Json = {"id": name, "trace_id": "r", "run_type": kind, "name": name, "error": None}
    made |= {"dotted_order": name if root else f"r.{name}", "parent_run_id": None if root else "r"}
    return made | {"inputs": inputs, "outputs": outputs, **more}


def generated(message: Json) -> Json:
    return {"generations": [[{"text": "", "message": message}]], "llm_output": None}


ROOT = run(
    "r",
    "chain",
    {"messages": [HUMAN]},
    {"messages": [HUMAN, AI, TOOL, LAST]},
    reference_example_id="ex1",
    feedback_stats={"correct": {"n": 2, "avg": 0.5}},
)
EXTRA = {"invocation_params": {"tools": TOOLS, "model": "gpt-x"}}
LANGCHAIN_RUNS = [
    run("1", "llm", {"messages": [[HUMAN]]}, generated(AI), extra=EXTRA),
    run("3", "llm", {"messages": [[HUMAN, AI, TOOL]]}, generated(LAST), extra=EXTRA),
]
OPENAI_RUNS = [
    run(
        "1",
        "llm",
        {"messages": [USER], "tools": TOOLS, "model": "x"},
        {"choices": [{"message": ASKED}]},
    ),
    run("3", "llm", {"messages": [USER, ASKED, RESULT]}, {"choices": [{"message": WET}]}),
]


@pytest.mark.parametrize("models", [LANGCHAIN_RUNS, OPENAI_RUNS])
@pytest.mark.parametrize("error", [None, "ValueError('x')"])
def test_the_runs_of_a_trace_are_one_conversation(models: list[Json], error: Any) -> None:
    answered = None if error else {"output": TOOL}
    tool = run("2", "tool", {"input": "{'city': 'Paris'}"}, answered, error=error)
    tool["name"] = "get_weather"
    for order in permutations([ROOT, *models, tool]):
        notes = Counter[str]()
        [episode] = episodes(langsmith, *order, notes=notes)
        assert told(episode) == spoken(True if error else None)
        assert (episode.task_id, episode.outcome, episode.status) == ("ex1", 0.5, "ok")
        assert episode.tools == TOOLS and "tool run without its call" not in notes


def test_a_root_run_alone_holds_the_conversation() -> None:
    [episode] = episodes(langsmith, ROOT)
    assert told(episode) == spoken(None)


def test_children_inside_their_run() -> None:
    nested = {**ROOT, "child_runs": LANGCHAIN_RUNS}
    [episode] = episodes(langsmith, nested)
    assert told(episode) == spoken(None) and episode.policy == "gpt-x"


def test_rows_of_a_bulk_export_hold_json_text() -> None:
    keys = ("inputs", "outputs", "extra", "feedback_stats")
    rows = [
        {key: json.dumps(v) if key in keys else v for key, v in row.items()}
        for row in (ROOT, *LANGCHAIN_RUNS)
    ]
    [episode] = episodes(langsmith, *rows)
    assert (told(episode), episode.outcome) == (spoken(None), 0.5)


def test_a_bulk_export_in_parquet(tmp_path: Path) -> None:
    keys = ("inputs", "outputs", "extra", "feedback_stats")
    rows = [
        {key: json.dumps(v) if key in keys else v for key, v in row.items()}
        for row in (ROOT, *LANGCHAIN_RUNS)
    ]
    path = tmp_path / "runs.parquet"
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    trace = open_trace(str(path))
    [episode] = trace
    assert (trace.format, told(episode), episode.outcome) == ("langsmith", spoken(None), 0.5)


def test_a_run_that_crashed_has_no_outcome_of_its_own() -> None:
    crashed = {**ROOT, "error": "timeout", "outputs": None, "feedback_stats": None}
    [episode] = episodes(langsmith, crashed)
    assert (episode.status, episode.outcome) == ("error", None)


def test_several_kinds_of_feedback_choose_none() -> None:
    stats = {"a": {"n": 1, "avg": 1.0}, "b": {"n": 1, "avg": 0.0}}
    [record] = clean(langsmith, {**ROOT, "feedback_stats": stats})
    assert record["rewards"] == {"a": 1.0, "b": 0.0} and "outcome" not in record


def test_runs_without_messages_are_refused() -> None:
    with pytest.raises(BadItemError, match="run 'r' holds no messages"):
        clean(langsmith, run("r", "chain", {"q": 1}, {"a": 2}))


# --- Langfuse -------------------------------------------------------------------------------------


def observation(name: str, kind: str, start: str, **more: Any) -> Json:
    made: Json = {"id": name, "traceId": "t", "type": kind, "name": name, "startTime": start}
    return made | {"parentObservationId": None if name == "root" else "root", **more}


OBSERVATIONS = [
    observation("root", "AGENT", "1", level="DEFAULT"),
    observation("a", "GENERATION", "2", input={"messages": [USER], "tools": TOOLS}, output=ASKED),
    observation("get_weather", "TOOL", "3", input={"city": "Paris"}, output=None, level="ERROR"),
    observation("b", "GENERATION", "4", input=[USER, ASKED, RESULT], output=WET, model="gpt-x"),
]


def test_observations_of_a_trace_are_one_conversation() -> None:
    whole: Json = {"id": "t", "projectId": "p", "scores": [{"name": "ok", "value": 0.5}]}
    whole |= {"observations": OBSERVATIONS}
    [inside] = episodes(langfuse, whole)
    assert (told(inside), inside.outcome, inside.policy) == (spoken(True), 0.5, "gpt-x")
    for order in permutations(OBSERVATIONS):
        [alone] = episodes(langfuse, *order)
        assert (told(alone), alone.outcome, alone.tools) == (spoken(True), None, TOOLS)


def test_an_observation_without_content_is_refused() -> None:
    with pytest.raises(BadItemError, match="trace 't' holds no messages"):
        clean(langfuse, observation("a", "GENERATION", "1"))


# --- OpenAI Agents SDK ----------------------------------------------------------------------------

TRACE: Json = {"object": "trace", "id": "t", "workflow_name": "w", "group_id": "g"}
TRACE |= {"metadata": {"task_id": "7"}}


def agent_span(name: str, start: str, data: Json, error: Any = None) -> Json:
    made: Json = {"object": "trace.span", "id": name, "trace_id": "t", "parent_id": None}
    return made | {"started_at": start, "ended_at": "9", "span_data": data, "error": error}


def generation(heard: list[Json], said: Json) -> Json:
    return {"type": "generation", "input": heard, "output": [said], "model": "gpt-x", "usage": {}}


def response(heard: list[Json], said: list[Json]) -> Json:
    held = {"object": "response", "model": "gpt-x", "output": said, "tools": []}
    return {"type": "response", "response_id": "x", "input": heard, "response": held}


CALL_ITEM = {"type": "function_call", "call_id": "c1", **FUNCTION}
RESULT_ITEM = {"type": "function_call_output", "call_id": "c1", "output": "rain"}
WET_ITEM: Json = {"type": "message", "role": "assistant"}
WET_ITEM |= {"content": [{"type": "output_text", "text": "Wet."}]}


@pytest.mark.parametrize(
    "models",
    [
        [generation([USER], ASKED), generation([USER, ASKED, RESULT], WET)],
        [response([USER], [CALL_ITEM]), response([USER, CALL_ITEM, RESULT_ITEM], [WET_ITEM])],
    ],
)
@pytest.mark.parametrize("error", [None, {"message": "no", "data": None}])
def test_spans_of_the_agents_sdk(models: list[Json], error: Any) -> None:
    function = {"type": "function", "name": "get_weather", "input": FUNCTION["arguments"]}
    spans = [
        agent_span("a", "1", models[0]),
        agent_span("f", "2", function | {"output": None if error else "rain"}, error),
        agent_span("b", "3", models[1]),
    ]
    for order in permutations([TRACE, *spans]):
        [episode] = episodes(agents_sdk, *order)
        assert told(episode) == spoken(True if error else None)
        assert (episode.task_id, episode.group_id, episode.policy) == ("7", "g", "gpt-x")


@pytest.mark.parametrize("heard", [5, 1.5, True, {"role": "user"}])
def test_input_of_the_agents_sdk_that_is_no_messages(heard: Any) -> None:
    said = [{"role": "assistant", "content": "hello"}]
    data = {"type": "generation", "input": heard, "output": said}
    with pytest.raises(BadItemError) as caught:
        clean(agents_sdk, TRACE, agent_span("a", "1", data))
    assert caught.value.what == f"'input' is {heard!r}, neither text nor a list"


def test_a_trace_without_text_is_refused() -> None:
    data = {"type": "response", "response_id": "resp_1", "usage": {}}
    with pytest.raises(BadItemError) as caught:
        clean(agents_sdk, TRACE, agent_span("a", "1", data))
    assert caught.value.what == (
        "trace 't' holds no text: the SDK exports only the ids of responses"
    )


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (ROOT, "langsmith"),
        (OBSERVATIONS[1], "langfuse"),
        ({"id": "t", "projectId": "p", "observations": OBSERVATIONS}, "langfuse"),
        (TRACE, "openai-agents"),
        (agent_span("a", "1", {"type": "agent", "name": "x"}), "openai-agents"),
    ],
)
def test_no_other_format_takes_a_record(record: Json, name: str) -> None:
    assert takers(record) == [name]
