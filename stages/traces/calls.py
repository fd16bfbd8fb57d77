"""Read a tool call of any known form, and the failure flag of a result."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

# In order of preference; the Responses API has both `call_id` and an `id` of the item itself.
IDS = ("call_id", "tool_call_id", "toolCallId", "tool_use_id", "toolUseId", "source_call_id", "id")
BARE_NAMES = ("function", "tool", "action", "recipient_name")  # keys of a name in unknown forms
NAMES = ("name", "tool_name", "toolName", "function_name", "functionName")
ARGUMENTS = (
    "arguments",
    "args",
    "input",
    "parameters",
    "kwargs",
    "params",
    "tool_input",
    "toolInput",
    "tool_args",
    "tool_arguments",
    "action_input",
)
WRAPPERS = ("function", "functionCall", "function_call", "toolUse", "tool_use", "tool_call")
RESULT_WRAPPERS = ("functionResponse", "function_response", "toolResult", "tool_result")

# Keys of a result that flag a failure, and keys that hold the error as text or an object.
FLAGS = ("error", "is_error", "isError", "failed", "errored", "has_error", "hasError")
ERRORS = ("error_message", "errorMessage", "errorText", "error_text", "exception", "traceback")
FAILURES = frozenset(
    {"error", "errored", "failed", "failure", "timeout", "timed_out", "exception", "output-error"}
    | {"cancelled", "canceled", "denied", "rejected", "aborted", "output-denied"}
)
SUCCESSES = frozenset({"success", "ok"})
NOT_FAILED = frozenset({"", "false", "none", "null", "0"})
TELLING = frozenset([*FLAGS, *ERRORS, "status", "state", "success", "ok"])
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one per call
BARE = {"name", "arguments"}
WRAPPING = frozenset([*WRAPPERS, "method", "custom"])


class UnreadableCallError(Exception):
    """A call whose name or arguments can't be determined."""


class Written(NamedTuple):
    """A call as recorded."""

    name: str
    arguments: Any  # as recorded: text or a value
    id: str | None  # None: the call has no id


def read_call(entry: Any) -> Written:
    """Read one call in any form.

    Args:
        entry: an object, or its JSON text. Its name is under a key in `NAMES` and its arguments
            under a key in `ARGUMENTS`, at the top level or inside one of `WRAPPERS`.

    Raises:
        UnreadableCallError: the name or the arguments are missing or ambiguous.
    """
    if type(entry) is dict and entry.keys() == BARE and type(entry["name"]) is str:
        return Written(entry["name"], entry["arguments"], None)  # the most common form
    parts = _unwrapped(entry)
    names = {part[key]: None for part in parts for key in NAMES if isinstance(part.get(key), str)}
    # `function` and `tool` may hold the name itself.
    names |= {part[key]: None for part in parts for key in ("function", "tool") if _bare(part, key)}
    if len(names) != 1:
        raise UnreadableCallError(
            f"a call with two names ({', '.join(names)})" if names else "a call without a name"
        )
    [name] = names
    return Written(name, _arguments(parts, name), _id(parts))


def plain_call(entry: Any) -> tuple[str, Any, str | None] | None:
    """Read a call in OpenAI's form as (name, arguments, id); None: only `read_call` can read it."""
    if type(entry) is not dict:
        return None
    function, call_id = entry.get("function"), entry.get("id")
    if len(entry) != 1 + ("id" in entry) + ("type" in entry):
        return None
    if type(function) is not dict or len(function) != 2 or "arguments" not in function:
        return None
    name = function.get("name")
    if type(name) is not str:
        return None
    return name, function["arguments"], call_id if type(call_id) is str and call_id else None


def as_text(arguments: Any) -> Any:
    """Return arguments as JSON text, the form that OpenAI uses; null stays null."""
    if arguments is None or isinstance(arguments, str):
        return arguments
    return _ENCODER.encode(arguments)


def _bare(part: Mapping[str, Any], key: str) -> bool:
    value = part.get(key)
    return isinstance(value, str) and not value.lstrip().startswith("{")


def _unwrapped(entry: Any) -> list[Mapping[str, Any]]:
    """Return the nested objects of a call, from the outermost to the innermost."""
    if type(entry) is dict and WRAPPING.isdisjoint(entry):
        return [entry]
    parts: list[Mapping[str, Any]] = []
    value: Any = object_in(entry)
    while isinstance(value, Mapping) and len(parts) < 4:
        parts.append(value)
        inner = [object_in(value[key]) for key in WRAPPERS if value.get(key)]
        if value.get("method") == "tools/call":  # MCP's request
            inner.append(value.get("params"))
            parts.pop()
        if value.get("type") == "custom":  # an OpenAI custom tool; its input is plain text
            inner.append(value.get("custom"))
        value = next((part for part in inner if isinstance(part, Mapping)), None)
    if not parts:
        raise UnreadableCallError(f"a call that is not an object ({entry!r:.40})")
    return parts


def _arguments(parts: list[Mapping[str, Any]], name: str) -> Any:
    given = [(key, part[key]) for part in parts for key in ARGUMENTS if key in part]
    if not given:
        raise UnreadableCallError(f"a call of '{name:.40}' without arguments")
    # A table that merges several forms has null in the columns of the other forms.
    stated = [(key, value) for key, value in given if value is not None] or given
    first, value = stated[0]
    for key, other in stated[1:]:
        if _meaning(other) != _meaning(value):
            raise UnreadableCallError(f"a call of '{name:.40}' whose '{first}' and '{key}' differ")
    return value


def _meaning(arguments: Any) -> Any:
    """Parse arguments that are JSON text, so that text and value compare equal."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _id(parts: list[Mapping[str, Any]]) -> str | None:
    return next((name for part in parts if (name := stated_id(part))), None)


def stated_id(part: Mapping[str, Any]) -> str | None:
    """Return the id that a call or a result states; None if it states none."""
    for key in IDS:
        if isinstance(value := part.get(key), str) and value:
            return value
    return None


def object_in(value: Any) -> Any:
    """Parse JSON text of an object or a list; return anything else unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def looks_like_call(value: Any, depth: int = 4) -> bool:
    """Return whether a value may hold a call or a result: a name with arguments, or a call id."""
    if isinstance(value, list):
        return depth > 0 and any(looks_like_call(item, depth - 1) for item in value)
    if not isinstance(value, dict):
        return False
    if any(value.get(key) for key in ("tool_calls", *WRAPPERS[1:], *RESULT_WRAPPERS)):
        return True
    if any(value.get(key) for key in IDS[:-1]):
        return True
    named = any(isinstance(value.get(key), str) for key in (*NAMES, *BARE_NAMES))
    if named and any(key in value for key in ARGUMENTS) and not is_definition(value):
        return True
    return depth > 0 and any(looks_like_call(item, depth - 1) for item in value.values())


def is_definition(value: Mapping[str, Any]) -> bool:
    """Return whether an object defines a tool: its `parameters` are a schema, not values."""
    schema = value.get("parameters")
    return "description" in value or (isinstance(schema, dict) and "properties" in schema)


def flag_of(result: Mapping[str, Any]) -> bool | None:
    """Return whether a result is flagged as failed; None if it has no flag.

    Args:
        result: the message or block of the result. `error` may be a flag, or the error as text or
            an object. The Responses API's `status` "completed" is not a flag.
    """
    if TELLING.isdisjoint(result):
        return _typed_error(result) or None
    for key in FLAGS:
        if (value := result.get(key)) is not None:
            return says_failed(value)
    if any(result.get(key) for key in ERRORS):
        return True
    for status in (result.get("status"), result.get("state")):
        if isinstance(status, int) and 400 <= status < 600:
            return True
        if isinstance(status, str) and status.lower() in FAILURES:
            return True
        if isinstance(status, str) and status.lower() in SUCCESSES:
            return False
    for key in ("success", "ok"):
        if (value := result.get(key)) is not None:
            return not says_failed(value)
    return _typed_error(result) or None


def says_failed(value: Any) -> bool:
    """Return whether the value of a failure flag means that the call failed."""
    return value.strip().lower() not in NOT_FAILED if isinstance(value, str) else bool(value)


def _typed_error(result: Mapping[str, Any]) -> bool:
    """Return whether an answer has an error type, as in the AI SDK and Anthropic's server tools."""
    for key in ("content", "output"):
        answer = result.get(key)
        kind = answer.get("type") if isinstance(answer, dict) else None
        kind = kind if isinstance(kind, str) else ""
        if kind.startswith("error") or kind.endswith(("_error", "-denied")):
            return True
    return False
