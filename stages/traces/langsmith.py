"""Read LangSmith runs: a root run and its children form a conversation; feedback is the score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from stages.traces.calls import object_in
from stages.traces.definitions import tool_definitions
from stages.traces.envelopes import bared
from stages.traces.fields import BadItemError, list_in
from stages.traces.formats import ReadOptions
from stages.traces.histories import ModelCall, ToolRun, conversation
from stages.traces.spread import Spread

Run = dict[str, Any]

NAME = "langsmith"
GATHERED = "langsmith_runs"
MODEL_RUNS = ("llm", "chat_model", "prompt_llm")  # a tuple: a damaged run may have a list
SAYING = ("message", "output", "generations", "choices", "content")


def accepts(record: Run) -> bool:
    """Return whether a record is a run, or the runs of one trace that `gather` collected."""
    return GATHERED in record or ("run_type" in record and ("inputs" in record or "id" in record))


def gather(records: Iterable[Run]) -> Iterator[Run]:
    """Collect the runs of each trace in the order of their start; lines may be in any order."""
    with Spread() as runs:
        for record in records:
            for run in _with_children(record):
                key = str(run.get("trace_id") or run.get("parent_run_id") or run.get("id"))
                place = str(run.get("dotted_order") or run.get("start_time") or "")
                runs.add(key, place, run)
        for _, parts in runs.groups():
            yield {GATHERED: parts}


def translate(record: Run, options: ReadOptions, notes: Counter[str]) -> Iterator[Run]:
    """Yield the clean record of one trace.

    Raises:
        BadItemError: its runs hold no messages, or a call or a result in them can't be read.
    """
    runs = [_decoded(run) for run in record[GATHERED]]
    root = next((run for run in runs if not run.get("parent_run_id")), runs[0])
    models = [run for run in runs if run.get("run_type") in MODEL_RUNS]
    calls = [call for run in models or [root] if (call := _model_call(run)) is not None]
    if not calls and models:
        calls = [call for call in [_model_call(root)] if call is not None]
    tools = [_tool_run(run) for run in runs if run.get("run_type") == "tool"]
    if not calls and not root.get("error"):
        raise BadItemError(
            f"run '{root.get('id')}' holds no messages in its inputs or outputs",
            "export runs with inputs and outputs, children too",
        )
    messages = conversation(calls, tools, notes)
    clean: Run = {
        "messages": messages,
        "tools": next((d for run in models if (d := _definitions(run))), None),
        "episode_id": root.get("trace_id") or root.get("id"),
        "task_id": root.get("reference_example_id"),
        "model": next((name for run in models if (name := _model(run))), None),
        "rewards": _scores(root),
        "status": "error" if root.get("error") else None,
        "stop": root.get("error"),
    }
    yield {key: value for key, value in clean.items() if value not in (None, {})}


def _with_children(run: Run) -> Iterator[Run]:
    yield {key: value for key, value in run.items() if key != "child_runs"}
    for child in list_in(run, "child_runs"):
        if isinstance(child, dict):
            yield from _with_children({"trace_id": run.get("trace_id") or run.get("id"), **child})


def _decoded(run: Run) -> Run:
    """Parse the fields of a run that a table stores as JSON text."""
    keys = ("inputs", "outputs", "extra", "feedback_stats", "feedback")
    return run | {key: object_in(run[key]) for key in keys if key in run}


def _model_call(run: Run) -> ModelCall | None:
    """Return the input and output messages of a run; None if it holds none."""
    heard = heard_in(run.get("inputs"))
    said = said_in(run.get("outputs"))
    if not said and not heard:
        return None
    if _is_history(said, heard):  # LangGraph's state holds the whole conversation
        return ModelCall([], said)
    return ModelCall(heard, said)


def _is_history(said: list[Any], heard: list[Any]) -> bool:
    return len(said) > len(heard) > 0 and said[: len(heard)] == heard


def heard_in(inputs: Any) -> list[Any]:
    """Return the messages in a run's inputs, from any place where frameworks keep them."""
    if isinstance(inputs, list):
        inner = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], list) else inputs
        return [message for message in inner if isinstance(message, (dict, list))]
    if not isinstance(inputs, dict):
        return []
    system = inputs.get("system") or inputs.get("instructions")
    before = [{"role": "system", "content": system}] if system else []
    for key in ("messages", "input", "chat_history", "kwargs"):
        value = object_in(inputs.get(key))
        if isinstance(value, (list, dict)) and (inner := heard_in(value)):
            return [*before, *inner]
    text = next((inputs[key] for key in ("input", "question", "query") if inputs.get(key)), None)
    return [*before, {"role": "user", "content": text}] if isinstance(text, str) else []


def said_in(outputs: Any) -> list[Any]:
    """Return the messages in a run's outputs, in LangChain's form or a vendor's."""
    if not isinstance(outputs, dict):
        return []
    if isinstance(generations := outputs.get("generations"), list) and generations:
        first = generations[0][0] if isinstance(generations[0], list) else generations[0]
        message = first.get("message") if isinstance(first, dict) else None
        return [message or {"role": "assistant", "content": first.get("text")}]
    if isinstance(choices := outputs.get("choices"), list) and choices:
        first = choices[0].get("message") if isinstance(choices[0], dict) else None
        return [{"role": "assistant", **(first if isinstance(first, dict) else {})}]
    if isinstance(outputs.get("messages"), list):
        return list(outputs["messages"])
    if isinstance(outputs.get("message"), dict):
        return [{"role": "assistant", **outputs["message"]}]
    value = outputs.get("output")
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        return said_in(value) or [value]
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    if "content" in outputs:
        return [{"role": "assistant", **outputs}]
    return []


def _tool_run(run: Run) -> ToolRun:
    inputs, outputs = run.get("inputs"), run.get("outputs")
    arguments = inputs
    if isinstance(inputs, dict) and set(inputs) == {"input"}:  # the arguments as text
        arguments = inputs["input"]
    result = outputs.get("output", outputs) if isinstance(outputs, dict) else outputs
    call_id, failed = _call_id(run), bool(run.get("error"))
    message = bared(result) if isinstance(result, dict) else {}
    if "tool_call_id" in message:
        call_id, result = message["tool_call_id"], message.get("content")
        failed = failed or message.get("status") == "error"
    if result is None and run.get("error"):
        result = run["error"]
    return ToolRun(call_id, run.get("name"), arguments, result, failed)


def _call_id(run: Run) -> str | None:
    call_id = _extra(run, "tool_call_id")
    return call_id if isinstance(call_id, str) else None


def _extra(run: Run, *keys: str) -> Any:
    value: Any = run.get("extra")
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _definitions(run: Run) -> list[dict[str, Any]] | None:
    inputs = run.get("inputs") if isinstance(run.get("inputs"), dict) else {}
    places = (_extra(run, "invocation_params", "tools"), (inputs or {}).get("tools"))
    return next((tools for place in places if (tools := tool_definitions(place))), None)


def _model(run: Run) -> str | None:
    places = (("metadata", "ls_model_name"), ("invocation_params", "model"))
    names = [_extra(run, *place) for place in places]
    names.append(_extra(run, "invocation_params", "model_name"))
    return next((name for name in names if isinstance(name, str)), None)


def _scores(root: Run) -> dict[str, float]:
    """Return the mean of each kind of feedback on the root run."""
    stats = root.get("feedback_stats")
    if not isinstance(stats, dict):
        return {}
    means = {
        key: stat.get("avg") if isinstance(stat, dict) else stat for key, stat in stats.items()
    }
    return {key: float(mean) for key, mean in means.items() if isinstance(mean, (int, float))}
