"""Recognise known formats by the keys of a record, so that errors can name them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from stages.errors import few

WITHOUT_TURN = "conversation without a turn"  # opens a note that then describes the messages
SHOWN_KEYS = 6  # keys of an unknown document that an error shows
CONVERT = "write each episode as one JSON line: task_id, trial, messages, gold_actions, outcome"
_RESULTS = "give the episodes that played it"
_AS_MESSAGES = "write its messages as OpenAI-style 'messages', one episode a JSON line"


class Near(NamedTuple):
    """A known format and the keys that show it."""

    name: str
    keys: tuple[str, ...]  # of its records; "a.b": key b of a, or of the first item of list a
    todo: str = CONVERT
    value: str | None = None  # of the first key


# Formats that are not read. The first whose keys are all there counts. Layouts: the formats' own
# documentation.
NEAR = (
    Near("tau2-bench voice simulations", ("simulations.ticks",), "give text simulations"),
    Near("a tau2-bench voice simulation", ("ticks",), "give text simulations"),
    Near("a task of NeMo Gym", ("responses_create_params",), _RESULTS),
    Near("a verifiers episode", ("traces.nodes",)),
    Near("a verifiers trace", ("nodes", "task")),
    Near("a verifiers trace", ("nodes.message",)),
    Near("a prompt and its completion", ("prompt", "completion")),
    Near("a serialised LangChain object", ("lc", "kwargs"), _AS_MESSAGES),
    Near("an OpenTelemetry span", ("attributes.gen_ai.operation.name",)),
    Near("OpenTelemetry GenAI messages", ("gen_ai.input.messages",)),
    Near("OpenTelemetry GenAI messages", ("gen_ai.output.messages",)),
    Near("an Alpaca example", ("instruction", "output"), _AS_MESSAGES),
    Near("an AutoGen message", ("type", "source", "content"), _AS_MESSAGES),
    Near("an OpenPipe ART trajectory", ("messages_and_choices",), _AS_MESSAGES),
    Near("an rLLM episode", ("trajectories.steps",)),
    Near("a SWE-agent trajectory", ("trajectory", "history")),
    Near("a result of OpenHands", ("history", "instance_id")),
    Near("an event of OpenHands", ("source", "action", "args")),
    Near("a run of smolagents", ("steps", "task")),
    Near("a result of AgentBench", ("output.history",)),
    Near("a Codex session", ("payload", "timestamp", "type")),
    Near("an MLflow trace", ("spans", "trace_info")),
    Near("a Claude Code session", ("sessionId", "parentUuid")),
    Near("a record of TRL preferences", ("chosen", "rejected"), "give the episodes themselves"),
    Near("a record of TRL completions", ("prompt", "completions")),
    Near("a row of a verl dataset", ("data_source", "prompt"), "give the episodes themselves"),
    Near("a BFCL result", ("id", "result", "model_name")),
    Near("a BFCL result", ("id", "result", "input_token_count")),
    Near("a task of BFCL", ("id", "question", "function"), _RESULTS),
    Near("a task of tau2-bench", ("evaluation_criteria", "user_scenario"), _RESULTS),
    Near("a task of tau-bench", ("user_id", "actions"), _RESULTS),
    Near("a prime-rl or verifiers prompt", ("prompt", "answer")),
    Near("tool definitions", ("type", "function.parameters"), "give the episodes themselves"),
)

# Formats that are read, for commands that get a trace in place of their own input.
READ = (
    Near("an inspect log", ("eval", "status", "version")),
    Near("a sample of an inspect log", ("epoch", "input", "target")),
    Near("an ATIF trajectory", ("schema_version", "steps")),
    Near("a result of Harbor", ("trial_name", "task_name")),
    Near("a LangSmith run", ("run_type", "inputs")),
    Near("a LangSmith run", ("dotted_order",)),
    Near("a LangChain message", ("type", "content"), value="human"),
    Near("a LangChain message", ("type", "content"), value="ai"),
    Near("a LangChain message", ("type", "data.content")),
    Near("a Langfuse trace", ("observations", "projectId")),
    Near("a Langfuse observation", ("traceId", "startTime")),
    Near("a Langfuse trace", ("observations", "input")),
    Near("a Langfuse observation", ("traceId", "type", "input")),
    Near("a Langfuse observation", ("trace_id", "start_time", "type")),
    Near("OpenTelemetry spans", ("resourceSpans",)),
    Near("OpenTelemetry spans", ("resource_spans",)),
    Near("an OpenTelemetry span", ("attributes", "context.trace_id")),
    Near("an OpenTelemetry span", ("attributes", "traceId")),
    Near("an OpenTelemetry span", ("attributes", "trace_id")),
    Near("a span of the OpenAI Agents SDK", ("span_data", "trace_id")),
    Near("a trace of the OpenAI Agents SDK", ("workflow_name",)),
    Near("an OpenAI Responses object", ("object", "output")),
    Near("an item of the OpenAI Responses API", ("type", "call_id")),
    Near("an OpenAI chat completion", ("choices", "object")),
    Near("an OpenAI chat completion", ("choices.message",)),
    Near("a line of an OpenAI batch", ("custom_id",)),
    Near("an Anthropic response", ("content", "stop_reason")),
    Near("a Gemini content", ("role", "parts")),
    Near("a Gemini request", ("contents",)),
    Near("a Gemini response", ("candidates",)),
    Near("a single chat message", ("role", "content")),
    Near("a single chat message", ("role", "tool_calls")),
    Near("a ShareGPT conversation", ("conversations.from",)),
    Near("a ShareGPT conversation", ("conversations",)),
    Near("a single ShareGPT message", ("from", "value")),
    Near("a conversation under 'conversation'", ("conversation",)),
    Near("an xLAM example", ("query", "answers", "tools")),
)


def near_format(document: Any) -> Near | None:
    """Return the known format, not read, of a document or of the first record of a list."""
    return _of(document, NEAR)


def read_format(document: Any) -> Near | None:
    """Return the trace format of a document, or of the first record of a list."""
    return _of(document, READ)


def _of(document: Any, formats: tuple[Near, ...]) -> Near | None:
    record = document[0] if isinstance(document, list) and document else document
    if not isinstance(record, dict):
        return None
    return next((near for near in formats if _is(record, near)), None)


def description(document: Any) -> str:
    """Describe a JSON document in a few words."""
    if isinstance(document, list):
        return f"a list of {description(document[0])}" if document else "an empty list"
    if isinstance(document, dict):
        keys = ", ".join(f"'{key:.20}'" for key in list(document)[:SHOWN_KEYS])
        return f"an object with the keys {keys}" if keys else "an empty object"
    return type(document).__name__


def messages_seen(messages: Iterable[Any]) -> str:
    """Describe the messages of a conversation without a turn: their roles, or else their keys."""
    records = [message for message in messages if isinstance(message, dict)]
    if not records:
        return "no messages"
    roles = Counter(repr(message["role"]) for message in records if "role" in message)
    if roles:
        return f"messages of role {few(f'{role:.40}' for role in roles)}"
    keys = dict.fromkeys(f"'{key:.20}'" for message in records for key in message)
    return f"messages without a role, with the keys {few(keys)}"


def _is(record: dict[str, Any], near: Near) -> bool:
    values = [_at(record, key) for key in near.keys]
    if any(value is None for value in values):
        return False
    return near.value is None or _at(record, near.keys[0]) == near.value


def _at(record: Any, path: str) -> Any:
    """Return the value at path "a.b", also within the first item of a list; None: there is none."""
    if isinstance(record, list):
        record = record[0] if record else None
    if not isinstance(record, dict):
        return None
    if path in record:  # such as 'gen_ai.input.messages', whose own name has dots
        return True if record[path] is None else record[path]
    key, dot, rest = path.partition(".")
    return _at(record.get(key), rest) if dot else None
