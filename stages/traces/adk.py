"""Read sessions, eval sets and evaluation results of Google's Agent Development Kit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stages.traces.clean import clean_messages
from stages.traces.exchange import Record
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.gemini import content_of

NAME = "adk"
# `EvalStatus` of google.adk.evaluation, as number or name; 3 is "not evaluated".
OUTCOMES = {1: 1.0, 2: 0.0, "PASSED": 1.0, "FAILED": 0.0}


def accepts(record: Record) -> bool:
    """Return whether a record is a session, an eval set or the result of an evaluation."""
    if any(_maps(record.get(key)) for key in ("eval_cases", "eval_case_results")):
        return True
    events = _maps(record.get("events"))
    return any("author" in event and isinstance(event.get("content"), dict) for event in events)


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield a clean record for a session, for each case of an eval set, or for each result.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    for case in _maps(record.get("eval_case_results")):
        yield _result(case, notes)
    for case in _maps(record.get("eval_cases")):
        clean = {"messages": clean_messages(_invocations(case.get("conversation")), notes)}
        yield clean | {"task_id": case.get("eval_id")}
    if _maps(record.get("events")):
        clean = {"messages": clean_messages(_said(record), notes)}
        stated = {"episode_id": record.get("id"), "policy": _first(record, "appName", "app_name")}
        yield clean | {key: value for key, value in stated.items() if value is not None}


def _result(case: Mapping[str, Any], notes: Counter[str]) -> Record:
    """Return the clean record of a result, with the expected calls and the verdict."""
    parts = _maps(case.get("eval_metric_result_per_invocation"))
    messages = _said(case.get("session_details") or {})
    if not messages:
        messages = _invocations([part.get("actual_invocation") for part in parts])
    if not messages:
        raise BadItemError("holds no session and no invocations", "evaluate with session details")
    expected = [part.get("expected_invocation") for part in parts]
    gold = [use for part in _maps(expected) for use in _uses(part)]
    metrics = _maps(case.get("overall_eval_metric_results") or case.get("eval_metric_results"))
    stated = {str(metric.get("metric_name")): metric.get("score") for metric in metrics}
    scores = {name: float(s) for name, s in stated.items() if isinstance(s, (int, float))}
    clean: Record = {
        "messages": clean_messages(messages, notes),
        "task_id": case.get("eval_id"),
        "episode_id": case.get("session_id"),
        "rewards": scores,
    }
    if parts and all(_maps([part]) for part in expected):
        clean["gold_actions"] = [{"name": u.get("name"), "arguments": u.get("args")} for u in gold]
    if (verdict := OUTCOMES.get(case.get("final_eval_status", 0))) is not None:
        clean["outcome"] = verdict
    return clean


def _said(session: Mapping[str, Any]) -> list[Any]:
    """Return the contents of a session's events, without partial streaming events."""
    messages = []
    for event in _maps(session.get("events")):
        content = event.get("content")
        if event.get("partial") or not isinstance(content, dict) or not content.get("parts"):
            continue
        role = "user" if event.get("author") == "user" else content.get("role") or "model"
        messages.append({**content_of(content), "role": role})
    return messages


def _invocations(invocations: Any) -> list[Any]:
    """Return the contents of invocations: user message, calls with results, and final answer."""
    messages: list[Any] = []
    for invocation in _maps(invocations):
        inner = _first(invocation, "intermediate_data", "intermediateData") or {}
        answers = _maps(_first(inner, "tool_responses", "toolResponses"))
        messages.append({**content_of(_first(invocation, "user_content", "userContent"))})
        if inner.get("invocation_events"):
            messages += _said({"events": inner["invocation_events"]})
        elif uses := _uses(invocation):
            messages.append({"role": "model", "parts": [{"functionCall": use} for use in uses]})
            if answers:
                given = [{"functionResponse": answer} for answer in answers]
                messages.append({"role": "user", "parts": given})
        final = _first(invocation, "final_response", "finalResponse")
        if final:
            messages.append({**content_of(final), "role": "model"})
    return messages


def _uses(invocation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inner = _first(invocation, "intermediate_data", "intermediateData") or {}
    return [{"args": {}, **use} for use in _maps(_first(inner, "tool_uses", "toolUses"))]


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _first(place: Mapping[str, Any], *keys: str) -> Any:
    return next((place[key] for key in keys if place.get(key) is not None), None)
