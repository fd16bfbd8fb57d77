"""One tool call in any form that the field writes: its name, arguments and id; and its flags."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

# In order of preference; the Responses API has both `call_id` and an `id` of the item itself.
IDS = ("call_id", "tool_call_id", "toolCallId", "tool_use_id", "toolUseId", "source_call_id", "id")
BARE_NAMES = ("function", "tool", "action", "recipient_name")  # not of a call in a known form
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

# Of a result: whether its call failed, or text or an object that tells the error.
FLAGS = ("error", "is_error", "isError", "failed", "errored", "has_error", "hasError")
ERRORS = ("error_message", "errorMessage", "errorText", "error_text", "exception", "traceback")
FAILURES = frozenset(
    {"error", "errored", "failed", "failure", "timeout", "timed_out", "exception", "output-error"}
    | {"cancelled", "canceled", "denied", "rejected", "aborted", "output-denied"}
)
SUCCESSES = frozenset({"success", "ok"})
NOT_FAILED = frozenset({"", "false", "none", "null", "0"})
TELLING = frozenset([*FLAGS, *ERRORS, "status", "state", "success", "ok"])
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` makes one each time
BARE = {"name", "arguments"}
WRAPPING = frozenset([*WRAPPERS, "method", "custom"])


class UnreadableCallError(Exception):
    """Something is a call, but its name or its arguments can't be told."""


class Written(NamedTuple):
    """A call as recorded."""

    name: str
    arguments: Any  # as recorded: text or a value
    id: str | None  # None: it has none


def read_call(entry: Any) -> Written:
    """Read one call, whatever its form.

    Args:
        entry: an object with a name and arguments under any of the names in `NAMES` and
            `ARGUMENTS`, bare or inside one of `WRAPPERS`; or JSON text of one.

    Raises:
        UnreadableCallError: it has no name or no arguments, or has two that differ.
    """
    if type(entry) is dict and entry.keys() == BARE and type(entry["name"]) is str:
        return Written(entry["name"], entry["arguments"], None)  # as most lists of calls have them
    parts = _unwrapped(entry)
    names = {part[key]: None for part in parts for key in NAMES if isinstance(part.get(key), str)}
    # `function` and `tool` may hold the bare name.
    names |= {part[key]: None for part in parts for key in ("function", "tool") if _bare(part, key)}
    if len(names) != 1:
        raise UnreadableCallError(
            f"a call with two names ({', '.join(names)})" if names else "a call without a name"
        )
    [name] = names
    return Written(name, _arguments(parts, name), _id(parts))


def plain_call(entry: Any) -> tuple[str, Any, str | None] | None:
    """A call in OpenAI's own form, as (name, arguments, id); None: it needs a closer look."""
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
    """Return arguments as JSON text, as OpenAI has them; null stays null."""
    if arguments is None or isinstance(arguments, str):
        return arguments
    return _ENCODER.encode(arguments)


def _bare(part: Mapping[str, Any], key: str) -> bool:
    value = part.get(key)
    return isinstance(value, str) and not value.lstrip().startswith("{")


def _unwrapped(entry: Any) -> list[Mapping[str, Any]]:
    """Return the objects that a call is made of, from the outermost to the innermost."""
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
        if value.get("type") == "custom":  # OpenAI's tools whose input is plain text
            inner.append(value.get("custom"))
        value = next((part for part in inner if isinstance(part, Mapping)), None)
    if not parts:
        raise UnreadableCallError(f"a call that is not an object ({entry!r:.40})")
    return parts


def _arguments(parts: list[Mapping[str, Any]], name: str) -> Any:
    given = [(key, part[key]) for part in parts for key in ARGUMENTS if key in part]
    if not given:
        raise UnreadableCallError(f"a call of '{name:.40}' without arguments")
    # Merged tables fill the columns of other forms with null.
    stated = [(key, value) for key, value in given if value is not None] or given
    first, value = stated[0]
    for key, other in stated[1:]:
        if _meaning(other) != _meaning(value):
            raise UnreadableCallError(f"a call of '{name:.40}' whose '{first}' and '{key}' differ")
    return value


def _meaning(arguments: Any) -> Any:
    """Return arguments such that JSON text equals its value."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _id(parts: list[Mapping[str, Any]]) -> str | None:
    return next((name for part in parts if (name := stated_id(part))), None)


def stated_id(part: Mapping[str, Any]) -> str | None:
    """Return the id that a call or a result states; None where it states none."""
    for key in IDS:
        if isinstance(value := part.get(key), str) and value:
            return value
    return None


def object_in(value: Any) -> Any:
    """Return the value of JSON text of an object or a list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return orjson.loads(value)
        except orjson.JSONDecodeError:
            return value
    return value


def looks_like_call(value: Any, depth: int = 4) -> bool:
    """Whether a value holds what may be a call or a result: a name beside arguments, or an id."""
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
    """Whether an object defines a tool: its `parameters` are a schema, not values."""
    schema = value.get("parameters")
    return "description" in value or (isinstance(schema, dict) and "properties" in schema)


def flag_of(result: Mapping[str, Any]) -> bool | None:
    """Return whether a result is flagged as failed; None where it has no flag that says so.

    Args:
        result: the message or block of the result. `error` may be a flag, or text or an object
            that tells the error; `status` of the Responses API tells nothing ("completed").
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
    """Return whether the value of a flag that stands for a failure says that there was one."""
    return value.strip().lower() not in NOT_FAILED if isinstance(value, str) else bool(value)


def _typed_error(result: Mapping[str, Any]) -> bool:
    """Return whether the type of an answer is an error: AI SDK's, Anthropic's server tools'."""
    for key in ("content", "output"):
        answer = result.get(key)
        kind = answer.get("type") if isinstance(answer, dict) else None
        if isinstance(kind, str) and kind.startswith("error"):
            return True
        if isinstance(kind, str) and kind.endswith(("_error", "-denied")):
            return True
    return False
