"""Read Langfuse observations, alone or inside a trace with scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.calls import object_in
from stages.traces.definitions import tool_definitions
from stages.traces.fields import BadItemError, is_number, list_in
from stages.traces.formats import ReadOptions
from stages.traces.histories import ModelCall, ToolRun, conversation
from stages.traces.langsmith import heard_in, said_in
from stages.traces.spread import Spread

Record = dict[str, Any]

NAME = "langfuse"
GATHERED = "langfuse_observations"
KINDS = (  # a tuple: a damaged record may have a list for its kind
    "GENERATION",
    "SPAN",
    "EVENT",
    "AGENT",
    "TOOL",
    "CHAIN",
    "RETRIEVER",
    "EVALUATOR",
    "EMBEDDING",
    "GUARDRAIL",
)
TRACES = ("traceId", "trace_id")
STARTS = ("startTime", "start_time")


def accepts(record: Record) -> bool:
    """Return whether a record is an observation, a trace that holds some, or from `gather`."""
    if GATHERED in record or _is_observation(record):
        return True
    inner = record.get("observations")
    return isinstance(inner, list) and all(isinstance(part, dict) for part in inner)


def gather(records: Iterable[Record]) -> Iterator[Record]:
    """Collect each trace with its observations in the order of their start."""
    with Spread() as parts:
        for record in records:
            if not _is_observation(record):
                trace = str(record.get("id"))
                parts.add(trace, "", {key: record[key] for key in record if key != "observations"})
                for part in list_in(record, "observations"):
                    parts.add(trace, _start(part), part)
            else:
                parts.add(str(_first(record, TRACES)), _start(record), record)
        for trace, several in parts.groups():
            yield {GATHERED: several, "id": trace}


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one trace.

    Raises:
        BadItemError: no observation holds messages, or a call or a result can't be read.
    """
    several: list[Record] = record[GATHERED]
    trace: Record = next((part for part in several if not _is_observation(part)), {})
    observations = [part for part in several if _is_observation(part)]
    models = [part for part in observations if part.get("type") == "GENERATION"]
    roots = [
        p for p in observations if not _first(p, ("parentObservationId", "parent_observation_id"))
    ]
    calls = [call for part in models if (call := _model_call(part)) is not None]
    if not calls:
        calls = [call for part in [trace, *roots][:2] if (call := _model_call(part)) is not None][
            :1
        ]
    if not calls:
        what = f"trace '{record['id']}' holds no messages in its observations"
        raise BadItemError(what, "export observations with their input and output")
    rewards = _scores(trace)
    failed = [part for part in roots if part.get("level") == "ERROR"]
    model_names = (_first(part, ("model", "providedModelName")) for part in models)
    clean = {
        "messages": conversation(calls, [_tool_run(p) for p in observations if _is_tool(p)], notes),
        "tools": next((d for part in models if (d := _definitions(part))), None),
        "episode_id": record["id"],
        "model": next((name for name in model_names if isinstance(name, str)), None),
        "rewards": rewards,
        "status": "error" if failed else None,
        "stop": _first(failed[0], ("statusMessage", "status_message")) if failed else None,
    }
    yield {key: value for key, value in clean.items() if value not in (None, {})}


def _is_observation(record: Mapping[str, Any]) -> bool:
    return record.get("type") in KINDS and _first(record, TRACES) is not None


def _is_tool(part: Record) -> bool:
    return part.get("type") == "TOOL"


def _model_call(part: Record) -> ModelCall | None:
    heard, said = heard_in(object_in(part.get("input"))), said_in(object_in(part.get("output")))
    if not said and isinstance(part.get("output"), str):
        said = [{"role": "assistant", "content": part["output"]}]
    return ModelCall(heard, said) if said else None


def _tool_run(part: Record) -> ToolRun:
    failed = part.get("level") == "ERROR"
    result = part.get("output")
    if result is None and failed:
        result = _first(part, ("statusMessage", "status_message"))
    return ToolRun(None, part.get("name"), object_in(part.get("input")), result, failed)


def _definitions(part: Record) -> list[dict[str, Any]] | None:
    given = object_in(part.get("input"))
    return tool_definitions(given.get("tools")) if isinstance(given, dict) else None


def _scores(trace: Record) -> dict[str, float]:
    scores = [score for score in list_in(trace, "scores") if isinstance(score, dict)]
    return {
        str(score["name"]): float(score["value"])
        for score in scores
        if is_number(score.get("value")) and score.get("name")
    }


def _start(part: Mapping[str, Any]) -> str:
    return str(_first(part, STARTS) or "")


def _first(place: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((place[key] for key in keys if place.get(key) is not None), None)
