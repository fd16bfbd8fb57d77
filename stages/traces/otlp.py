"""Read spans and log records from OTLP JSON or from the flat forms that exporters write."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stages.traces.calls import object_in

Span = dict[str, Any]

RESOURCES = ("resourceSpans", "resource_spans", "resourceLogs", "resource_logs", "batches")
SCOPES = ("scopeSpans", "scope_spans", "instrumentationLibrarySpans", "scopeLogs", "scope_logs")
PARTS = ("spans", "logRecords", "log_records")
TRACES = ("traceId", "trace_id")
IDS = ("spanId", "span_id")
PARENTS = ("parentSpanId", "parent_span_id", "parent_id", "parentId")
STARTS = ("startTimeUnixNano", "start_time_unix_nano", "start_time", "startTime", "start_timestamp")
TIMES = ("timeUnixNano", "time_unix_nano", "observedTimeUnixNano", "timestamp")
NESTED = ("gen_ai", "llm", "openinference", "tool")  # Phoenix exports these as objects
INT64 = re.compile(r"-?\d{1,19}")
KINDS = ("string", "int", "double", "bool", "array", "kvlist", "bytes")
TYPED = frozenset(f"{kind}{ending}" for kind in KINDS for ending in ("Value", "_value"))
LEVELS = ("STATUS_CODE_ERROR", "ERROR", "2")


def has_spans(record: dict[str, Any]) -> bool:
    """Return whether a record is OTLP JSON, or a single span or log record."""
    if any(isinstance(record.get(key), list) for key in RESOURCES[:-1]):
        return True
    if isinstance(record.get("batches"), list):
        return any(isinstance(part, dict) and "resource" in part for part in record["batches"])
    if isinstance(record.get("attributes"), (dict, list, str)):
        place = record["context"] if isinstance(record.get("context"), dict) else record
        return any(place.get(key) for key in TRACES)
    return False


def spans_in(record: Mapping[str, Any]) -> Iterator[Span]:
    """Yield every span and log record in a record.

    Each is {id, trace, parent, name, start, attributes, events, error, error_text, is_log, body}.
    `start` sorts as text, `attributes` are plain values, and a log record has the id of its span.
    """
    resources = [part for key in RESOURCES if key in record for part in _list(record[key])]
    if not resources:
        yield _span(record)
        return
    for resource in resources:
        for scope in (part for key in SCOPES if key in resource for part in _list(resource[key])):
            for part in (part for key in PARTS if key in scope for part in _list(scope[key])):
                yield _span(part)


def _span(span: Mapping[str, Any]) -> Span:
    context = span["context"] if isinstance(span.get("context"), dict) else span
    status = span["status"] if isinstance(span.get("status"), dict) else {}
    attributes = attributes_of(span.get("attributes"))
    is_log = not any(key in span for key in STARTS)
    code = str(status.get("code", status.get("status_code", span.get("status_code", ""))))
    error = attributes.get("error.type")
    name = span.get("eventName", span.get("event_name", span.get("name"))) or ""
    trace, start = _first(context, TRACES), _first(span, TIMES if is_log else STARTS)
    return {
        "id": str(_first(context, IDS) or ""),
        "trace": str(trace or attributes.get("gen_ai.conversation.id") or ""),
        "parent": str(_first(span, PARENTS) or ""),
        "name": str(attributes.get("event.name", name) if is_log else name),
        "start": f"{start:0>20}" if str(start).isdigit() else str(start or ""),
        "attributes": attributes,
        "events": [_event(event) for event in _list(span.get("events"))],
        "error": error or (code.rpartition(".")[2] in LEVELS and "error") or None,
        "error_text": status.get("message") or status.get("description") or "",
        "is_log": is_log,
        "body": plain(span["body"]) if _is_typed(span.get("body")) else span.get("body"),
    }


def _event(event: Mapping[str, Any]) -> Span:
    name, attributes = str(event.get("name") or ""), attributes_of(event.get("attributes"))
    return {"name": name, "attributes": attributes, "body": event.get("body")}


def attributes_of(attributes: Any) -> dict[str, Any]:
    """Return attributes as plain values by name, from OTLP's list, an object, or JSON of either."""
    attributes = object_in(attributes)
    if isinstance(attributes, dict):
        return dict(_flat(attributes))
    pairs = (pair for pair in _list(attributes) if "key" in pair)
    return {str(pair["key"]): plain(pair.get("value")) for pair in pairs}


def plain(value: Any) -> Any:
    """Unwrap a value from OTLP's typed JSON; return any other value unchanged."""
    if type(value) is not dict or len(value) != 1:
        return value
    [(kind, inner)] = value.items()
    if kind not in TYPED:
        return value
    if kind in ("arrayValue", "array_value"):
        return [plain(item) for item in _any_list(inner, "values")]
    if kind in ("kvlistValue", "kvlist_value"):
        pairs = [pair for pair in _any_list(inner, "values") if isinstance(pair, dict)]
        return {str(pair.get("key")): plain(pair.get("value")) for pair in pairs}
    if kind in ("intValue", "int_value") and isinstance(inner, str):  # int64 is text in JSON
        return int(inner) if INT64.fullmatch(inner) else inner
    return inner


def _is_typed(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and not TYPED.isdisjoint(value)


def _flat(attributes: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield attributes by their dotted names; Phoenix exports them as nested objects and lists."""
    for key, value in attributes.items():
        name = f"{above}{key}"
        is_nested = "." not in key and name.partition(".")[0] in NESTED
        if is_nested and isinstance(value, list) and all(isinstance(v, dict) for v in value):
            value = {str(number): item for number, item in enumerate(value)}
        if is_nested and isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _any_list(value: Any, key: str) -> list[Any]:
    inner = value.get(key) if isinstance(value, dict) else None
    return inner if isinstance(inner, list) else []


def _list(value: Any) -> list[Mapping[str, Any]]:
    value = object_in(value)
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []


def _first(place: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:  # a generator would be twice as slow, and each span passes here six times
        if (value := place.get(key)) not in (None, ""):
            return value
    return None
