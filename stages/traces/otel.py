"""Read OpenTelemetry GenAI spans, as OTLP JSON or alone, into one conversation per trace.

The conventions are supported up to semantic-conventions-genai @0724e29 (status: development).
Messages are attributes of a span or of its event `gen_ai.client.inference.operation.details`, or
the older events by role (1.28 to 1.36). `otel_messages` finds the messages in each of these, and in
OpenLLMetry and OpenInference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from stages.traces.clean import was_cut_off
from stages.traces.definitions import tool_definitions
from stages.traces.fields import BadItemError, is_number
from stages.traces.formats import ReadOptions
from stages.traces.histories import ModelCall, ToolRun, conversation
from stages.traces.otel_messages import finish_reason, messages_of, value_of
from stages.traces.otlp import Span, has_spans, spans_in
from stages.traces.spread import Spread

NAME = "opentelemetry"
GATHERED = "otel_spans"
CONVERSATION = "gen_ai.conversation.id"
EVALUATION = "gen_ai.evaluation.result"
DETAILS = "gen_ai.client.inference.operation.details"
# Prefixes of names that mark a span of a model, an agent or a tool.
SIGNS = ("gen_ai.", "llm.", "openinference.", "tool.", "ai.")
AGENT = frozenset({"invoke_agent", "create_agent", "invoke_workflow", "AGENT", "CHAIN"})
TOOL = frozenset({"execute_tool", "TOOL"})
OTHER = frozenset({"embeddings", "retrieval", "EMBEDDING", "RETRIEVER", "RERANKER", "EVALUATOR"})
PASSED, NOT_PASSED = frozenset({"pass", "passed", "true"}), frozenset({"fail", "failed", "false"})
CAPTURE = "record it with OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=SPAN_ONLY"


def accepts(record: dict[str, Any]) -> bool:
    """Return whether a record holds spans, is a span, or is a trace that `gather` collected."""
    return GATHERED in record or has_spans(record)


def gather(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Collect the spans of each conversation in order of time; lines may be in any order.

    A conversation is the traces with the same `gen_ai.conversation.id`, else a single trace.
    """
    conversations = dict[str, set[str]]()
    with Spread() as spans:
        for record in records:
            for span in spans_in(record):
                if not _tells(span):
                    continue
                named = conversations.setdefault(span["trace"], set())
                if isinstance(name := span["attributes"].get(CONVERSATION), str):
                    named.add(name)
                spans.add(span["trace"], span["start"], span)
        if not conversations:
            yield {GATHERED: []}  # `translate` raises the error
        for trace, named in conversations.items():
            if len(named) == 1:
                spans.join(trace, f"conversation {next(iter(named))}")
        for name, parts in spans.groups():
            yield {GATHERED: parts, "id": name.removeprefix("conversation ")}


def translate(
    record: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the clean record of a conversation; none for a trace without model calls.

    Raises:
        BadItemError: the spans hold no messages, or a call or a result in them can't be read.
    """
    parts: list[Span] = record[GATHERED]
    if not parts:
        raise BadItemError("holds no GenAI spans", "give spans with 'gen_ai.' attributes")
    spans = _with_events([part for part in parts if part["name"] != EVALUATION])
    rewards = dict(_scores(parts, notes))
    models = [span for span in spans if _is_model(span)]
    answered = _speaking(models)
    speaking = answered or _speaking(_outermost(spans, AGENT))
    if not speaking:
        if not models and not rewards and not any(_operation(span) in AGENT for span in spans):
            notes["trace without a model's call"] += 1
            return
        what = f"trace '{record['id']}' holds no messages: their content was not recorded"
        raise BadItemError(what, CAPTURE)
    calls = [ModelCall(heard, said) for _, heard, said in speaking]
    stop = finish_reason(speaking[-1][0], speaking[-1][2])
    failed = _failure(spans, models, {id(span) for span, _, _ in answered})
    clean = {
        "messages": conversation(calls, [_tool_run(s) for s in spans if _is_tool(s)], notes),
        "tools": next((d for s in spans if (d := _definitions(s))), None),
        "episode_id": record["id"],
        "model": next((name for s in [*models, *spans] if (name := _model(s))), None),
        "rewards": rewards,
        "status": "error" if failed else "truncated" if was_cut_off(stop) else None,
        "stop": failed or stop,
    }
    yield {key: value for key, value in clean.items() if value not in (None, {})}


def _tells(span: Span) -> bool:
    events = [span["name"], *(event["name"] for event in span["events"])]
    keys = (*span["attributes"], *events)
    return any(isinstance(key, str) and key.startswith(SIGNS) for key in keys)


def _operation(span: Span) -> str:
    attributes = span["attributes"]
    for key in ("gen_ai.operation.name", "openinference.span.kind", "traceloop.span.kind"):
        if kind := attributes.get(key):
            return str(kind)
    return ""


def _is_tool(span: Span) -> bool:
    return _operation(span) in TOOL and "mcp.method.name" not in span["attributes"]


def _is_model(span: Span) -> bool:
    """Return whether a span is a model call: its operation is none of the other known ones."""
    return _operation(span) not in AGENT | TOOL | OTHER


def _outermost(spans: list[Span], kinds: frozenset[str]) -> list[Span]:
    """Return the spans of some kinds that are not inside another span of these kinds."""
    chosen = [span for span in spans if _operation(span) in kinds]
    parents = {span["id"]: span["parent"] for span in spans}
    ids = {span["id"] for span in chosen}

    def is_inner(span: Span) -> bool:
        above, seen = span["parent"], {span["id"]}
        while above in parents and above not in seen:
            if above in ids:
                return True
            seen.add(above)
            above = parents[above]
        return False

    return [span for span in chosen if not is_inner(span)]


def _with_events(parts: list[Span]) -> list[Span]:
    """Add log records to their spans as events; log records without a span remain as spans."""
    spans = {part["id"]: part for part in parts if not part["is_log"]}
    alone = dict[str, Span]()
    for part in parts:
        if not part["is_log"]:
            continue
        span = spans.get(part["id"]) or alone.setdefault(part["id"], {**part, "events": []})
        span["events"] = [*span["events"], part]
    for span in (*spans.values(), *alone.values()):
        for event in span["events"]:
            if event["name"] == DETAILS:
                span["attributes"] = {**event["attributes"], **span["attributes"]}
    return sorted([*spans.values(), *alone.values()], key=lambda span: span["start"])


def _speaking(spans: list[Span]) -> list[tuple[Span, list[Any], list[Any]]]:
    """Return (span, input, output) of the spans that hold an answer."""
    held = [(span, *messages_of(span)) for span in spans]
    return [(span, heard, said) for span, heard, said in held if said]


def _tool_run(span: Span) -> ToolRun:
    attributes = span["attributes"]

    def stated(*keys: str) -> Any:
        return next((value_of(attributes[key]) for key in keys if key in attributes), None)

    result = stated("gen_ai.tool.call.result", "output.value")
    if result is None and span["error"]:
        result = span["error_text"] or span["error"]
    return ToolRun(
        stated("gen_ai.tool.call.id", "tool_call.id"),
        stated("gen_ai.tool.name", "tool.name"),
        stated("gen_ai.tool.call.arguments", "tool.parameters", "input.value"),
        result,
        bool(span["error"]),
    )


def _definitions(span: Span) -> list[dict[str, Any]] | None:
    return tool_definitions(value_of(span["attributes"].get("gen_ai.tool.definitions")))


def _model(span: Span) -> str | None:
    keys = ("gen_ai.request.model", "gen_ai.response.model", "llm.model_name")
    names = (span["attributes"].get(key) for key in keys)
    return next((name for name in names if isinstance(name, str)), None)


def _failure(spans: list[Span], models: list[Span], answered: set[int]) -> str | None:
    """Return the error of an agent or of an unanswered last model call; None without a crash."""
    for span in _outermost(spans, AGENT):
        if span["error"]:
            return str(span["error"])
    last = next((span for span in reversed(models) if span["error"] or id(span) in answered), None)
    return str(last["error"]) if last and last["error"] and id(last) not in answered else None


def _scores(parts: list[Span], notes: Counter[str]) -> Iterator[tuple[str, float]]:
    """Yield (name, score) of each evaluation; if a name is repeated, the last one counts."""
    events = [event for part in parts for event in (part, *part["events"])]
    names = Counter[str]()
    for event in events:
        if event["name"] != EVALUATION:
            continue
        told: Mapping[str, Any] = event["attributes"]
        name = str(told.get("gen_ai.evaluation.name") or "evaluation")
        value = _score(told)
        if value is None:
            notes["evaluation without a score"] += 1
            continue
        names[name] += 1
        if names[name] > 1:
            notes[f"score '{name:.40}' given again: the last counts"] += 1
        yield name, value


def _score(told: Mapping[str, Any]) -> float | None:
    value = told.get("gen_ai.evaluation.score.value")
    if is_number(value):
        return float(value)
    label = str(told.get("gen_ai.evaluation.score.label") or "").lower()
    return 1.0 if label in PASSED else 0.0 if label in NOT_PASSED else None
