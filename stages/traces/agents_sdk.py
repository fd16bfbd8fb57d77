"""Read traces of the OpenAI Agents SDK: one line for the trace and one for each span."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.calls import object_in
from stages.traces.definitions import tool_definitions
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.histories import ModelCall, ToolRun, conversation
from stages.traces.spread import Spread

Record = dict[str, Any]

NAME = "openai-agents"
GATHERED = "agents_spans"
OBJECTS = ("trace", "trace.span")
MODEL_SPANS = ("generation", "response")


def accepts(record: Record) -> bool:
    """Return whether a record is a trace, a span, or the spans that `gather` collected."""
    if GATHERED in record or record.get("object") in OBJECTS:
        return True
    return "span_data" in record and "trace_id" in record


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Collect each trace with its spans in the order of their start."""
    with Spread() as spans:
        for record in records:
            for part in object_in(record.get("data")) or [record]:  # as the SDK posts them
                is_trace = part.get("object") == "trace"
                trace = str(part.get("id") if is_trace else part.get("trace_id"))
                spans.add(trace, "" if is_trace else str(part.get("started_at")), part)
        for trace, parts in spans.groups():
            yield {GATHERED: parts, "id": trace}


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one trace; none for a trace without spans.

    Raises:
        BadItemError: its spans hold no text, or a call or a result in them can't be read.
    """
    parts: list[Record] = record[GATHERED]
    trace: Record = next((part for part in parts if part.get("object") == "trace"), {})
    spans = [part for part in parts if isinstance(part.get("span_data"), dict)]
    if not spans:
        notes["trace without spans"] += 1
        return
    models = [span for span in spans if span["span_data"].get("type") in MODEL_SPANS]
    calls = [call for span in models if (call := _model_call(span["span_data"])) is not None]
    if not calls:
        raise BadItemError(
            f"trace '{record['id']}' holds no text: the SDK exports only the ids of responses",
            "record 'input' and 'response' with a tracing processor of your own",
        )
    runs = [_tool_run(span) for span in spans if span["span_data"].get("type") == "function"]
    failed = models[-1].get("error") if models else None
    clean = {
        "messages": conversation(calls, runs, notes),
        "tools": next((d for span in models if (d := _definitions(span))), None),
        "episode_id": record["id"],
        "group_id": trace.get("group_id"),
        "model": next((name for span in models if (name := _model(span))), None),
        "status": "error" if failed else None,
        "stop": str(failed) if failed else None,
    }
    metadata = trace.get("metadata")
    if isinstance(metadata, dict):
        stated = ("task_id", "trial", "outcome", "reward", "success", "domain", "gold_actions")
        clean |= {key: metadata[key] for key in stated if key in metadata}
    yield {key: value for key, value in clean.items() if value is not None}


def _model_call(data: Mapping[str, Any]) -> ModelCall | None:
    """Return the input and output of a model span; None if it holds no output."""
    response = object_in(data.get("response"))
    said = object_in(data.get("output"))
    if said is None and isinstance(response, dict):
        said = response.get("output")
    if isinstance(said, dict):
        said = [said]
    if not isinstance(said, list) or not said:
        return None
    heard = object_in(data.get("input"))
    if isinstance(heard, str):
        heard = [{"role": "user", "content": heard}]
    if not isinstance(heard, list | None):
        what = f"'input' is {heard!r:.40}, neither text nor a list"
        raise BadItemError(what, "give the file as it was written")
    system = response.get("instructions") if isinstance(response, dict) else None
    before = [{"role": "system", "content": system}] if system else []
    return ModelCall([*before, *(heard or [])], said)


def _tool_run(span: Record) -> ToolRun:
    data, error = span["span_data"], span.get("error")
    result = data.get("output")
    if result is None and isinstance(error, dict):
        result = error.get("message")
    return ToolRun(None, data.get("name"), data.get("input"), result, bool(error))


def _definitions(span: Record) -> list[dict[str, Any]] | None:
    response = object_in(span["span_data"].get("response"))
    return tool_definitions(response.get("tools")) if isinstance(response, dict) else None


def _model(span: Record) -> str | None:
    data = span["span_data"]
    response = object_in(data.get("response"))
    inner = response.get("model") if isinstance(response, dict) else None
    return next((name for name in (data.get("model"), inner) if isinstance(name, str)), None)
