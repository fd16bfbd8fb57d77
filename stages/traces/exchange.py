"""Find the request to a model and its response in a log record, and read both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from stages.core.statuses import STATUSES
from stages.traces.calls import object_in
from stages.traces.clean import clean_messages, was_cut_off
from stages.traces.definitions import tool_definitions
from stages.traces.envelopes import first_of
from stages.traces.fields import BadItemError, policy_in
from stages.traces.messages import OWN

Record = dict[str, Any]

# Keys of a request in logs; batches use `body` or `params`, Langfuse and others use `input`.
REQUESTS = ("request", "request_body", "requestBody", "params", "body", "kwargs", "input", "inputs")
RESPONSES = (
    "response",
    "response_body",
    "responseBody",
    "result",
    "output",
    "outputs",
    "completion",
)
ENVELOPES = ("body", "json", "data")  # wrap a request or response that has status and headers
# Fields of ours that a user may add to records; they are kept unchanged.
KEPT = (*OWN, "policy")
# Keys of other formats whose records also hold a request and a response: LangSmith's runs,
# batches, NeMo Gym's rollouts, inspect's samples, tau-bench's and tau2-bench's results.
FOREIGN = frozenset(
    ["run_type", "custom_id", "responses_create_params", "epoch", "traj", "termination_reason"]
)
FAILED_STATUS = 400  # HTTP statuses from here on are errors


class Exchange(NamedTuple):
    """One call of a model's API, as logged."""

    request: Record  # empty: not logged
    response: Record  # empty: there was none
    failed: str | None = None  # why there was no response, if logged


class Answer(NamedTuple):
    """One answer in a response; several are samples of one request."""

    messages: Sequence[Any]
    stop: Any = None


class Logged(NamedTuple):
    """The content of an exchange, in its vendor's form."""

    exchange: Exchange
    history: Sequence[Any]  # the request's messages, the system prompt first
    answers: Sequence[Answer]  # the response's answers
    tools: Any  # the request's tool definitions


def exchange_of(record: Record, asks: Sequence[str], answers: Sequence[str]) -> Exchange:
    """Return the request and the response in a log record.

    Args:
        record: one line of a log or of a batch, or a bare request or response.
        asks: keys that identify this vendor's requests.
        answers: keys that identify this vendor's responses.
    """
    request = _under(record, REQUESTS, asks) or (record if _has(record, asks) else {})
    response = _under(record, RESPONSES, answers)
    if not response and request is not record and _has(record, answers):
        response = record
    return Exchange(request, response, None if response else _failure(record))


def is_foreign(record: Record) -> bool:
    """Return whether a record is in another format, even if it holds a request and a response."""
    return not FOREIGN.isdisjoint(record)


def clean_records(record: Record, logged: Logged, notes: Counter[str]) -> Iterator[Record]:
    """Yield one clean record per answer; without an answer, one record with the history alone.

    Args:
        record: the record that holds the exchange; our own fields in it are kept.
        logged: the content of the exchange.
        notes: counts what was skipped.

    Raises:
        BadItemError: there are no messages, or a call or a result in them can't be read.
    """
    exchange, history, answers, tools = logged
    kept = {key: record[key] for key in KEPT if record.get(key) is not None}
    if kept.get("status") not in STATUSES:  # a vendor's own word
        kept.pop("status", None)
    kept["model"] = policy_in(record) or policy_in(exchange.request) or policy_in(exchange.response)
    kept["tools"] = tool_definitions(tools)
    kept = {key: value for key, value in kept.items() if value is not None}
    if exchange.failed is not None:
        kept |= {"status": "error", "stop": exchange.failed}
    if not history and not answers and exchange.failed is None:
        raise BadItemError("holds neither messages nor a response", "log both, or give 'messages'")
    for trial, answer in enumerate(answers or [Answer(())]):
        if not (isinstance(history, Sequence) and isinstance(answer.messages, Sequence)):
            raise BadItemError("has messages that are no list", "give the record as it was logged")
        clean = {**kept, "messages": clean_messages([*history, *answer.messages], notes)}
        if len(answers) > 1:
            clean["trial"] = trial
        if answer.stop is not None:
            clean["stop"] = str(answer.stop)
        if was_cut_off(answer.stop):
            clean.setdefault("status", "truncated")
        yield clean


def _under(record: Record, keys: Sequence[str], signs: Sequence[str]) -> Record:
    """Return the first object under a key, or in an envelope there, that has one of the signs."""
    for key in keys:
        if key not in record:
            continue
        value = object_in(record[key])
        for _ in range(3):
            if not isinstance(value, dict) or _has(value, signs):
                break
            value = next((object_in(value[name]) for name in ENVELOPES if value.get(name)), None)
        if isinstance(value, dict) and _has(value, signs):
            return dict(value)
    return {}


def _has(value: Mapping[str, Any], signs: Sequence[str]) -> bool:
    return first_of(value, signs) is not None


def _failure(record: Record) -> str | None:
    """Return why a request got no response; None if the record does not say."""
    for key in ("error", "exception"):
        if record.get(key):
            return f"{record[key]!s:.80}"
    for place in (record.get("response"), record.get("result")):
        if not isinstance(place, dict):
            continue
        code = place.get("status_code")
        if isinstance(code, int) and code >= FAILED_STATUS:
            return f"status {code}"
        if place.get("type") in ("errored", "canceled", "expired", "error"):
            return str(place["type"])
        if place.get("error"):
            return f"{place['error']!s:.80}"
    return None
