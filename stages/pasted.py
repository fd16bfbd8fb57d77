"""A tool call as people paste it, from any API, down to its name and arguments.

A value is a call only where its keys leave no doubt; what merely has a key `name` is not one. So
`{"name": "Bob", "input": "x"}` and `{"agent_tool_name": ..., "arguments": ...}` are arguments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

from stages.core.arguments import PYTHON_REPR, parse_arguments

ARGUMENTS = ("arguments", "args", "parameters", "kwargs")  # of a call without a wrapper
_BESIDE = frozenset({"id", "type", "call_id", "tool_call_id", "index", "requestor", "status"})
_WRAPPERS = ("tool_calls", "content", "parts")  # of a message whose calls are a list
_SPEAKERS = ("assistant", "model", "ai")


class Pasted(NamedTuple):
    """One call."""

    form: str  # whose
    name: str
    arguments: Any
    repaired: bool = False  # the arguments were read as a Python literal


class UnreadableCallError(ValueError):
    """A value is a call without doubt, but can't be read, or several."""


def unwrapped(value: Any) -> Pasted | None:
    """Return the call that a value is; None: it is none, and thus arguments.

    Raises:
        UnreadableCallError: it is several calls, or one whose arguments can't be read.
    """
    calls = list(_calls(value))
    if len(calls) > 1:
        raise UnreadableCallError(f"{len(calls):,} calls")
    return calls[0] if calls else None


def _calls(value: Any) -> Iterator[Pasted]:
    """The calls of a value: of itself, of a list of nothing else, of a message."""
    if isinstance(value, list):
        calls = [_call(item) for item in value]
        if all(calls):
            yield from filter(None, calls)
    elif isinstance(value, dict):
        if call := _call(value):
            yield call
        elif value.get("role") in _SPEAKERS:
            lists = (value[key] for key in _WRAPPERS if isinstance(value.get(key), list))
            yield from filter(None, map(_call, next(lists, ())))
        elif value.keys() == {"tool_calls"} and isinstance(value["tool_calls"], list):
            yield from _calls(value["tool_calls"])


def _call(value: Any) -> Pasted | None:
    """The one call that an object is, by the first form that it has without doubt."""
    if not isinstance(value, dict):
        return None
    kind, keys = value.get("type"), value.keys()
    if _named(function := value.get("function")) and keys <= _BESIDE | {"function"}:
        return _read("openai", function, "arguments")
    if kind in ("tool_use", "server_tool_use", "mcp_tool_use") and _named(value):
        return _read("anthropic", value, "input")
    if kind in ("function_call", "mcp_call") and _named(value):
        return _read("responses", value, "arguments")
    if value.get("method") == "tools/call" and _named(call := value.get("params")):
        return _read("mcp", call, "arguments", optional=True)
    for key in ("functionCall", "function_call"):
        if _named(call := value.get(key)):
            form, name = ("gemini", "args") if "arguments" not in call else ("openai", "arguments")
            return _read(form, call, name, optional=form == "gemini")
    return _flat(value)


def _flat(value: dict[str, Any]) -> Pasted | None:
    """The call that an object without a wrapper is: a name, arguments, and what may be beside."""
    given = [key for key in ARGUMENTS if key in value]
    if not _named(value) or len(given) != 1 or not value.keys() <= _BESIDE | {"name", *given}:
        return None
    arguments = value[given[0]]
    written = isinstance(arguments, str) and arguments.lstrip().startswith("{")
    if not (written or isinstance(arguments, dict)):
        return None
    return _read("langchain" if given == ["args"] else "flat", value, given[0])


def _named(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _read(form: str, call: Mapping[str, Any], key: str, *, optional: bool = False) -> Pasted:
    """The call with its arguments decoded; none are an empty object where the API says so."""
    name, arguments = call["name"], call.get(key)
    if key not in call and not optional:
        raise UnreadableCallError(f"the call of '{name}' has no '{key}'")
    if arguments in (None, ""):  # how a tool without parameters is called
        return Pasted(form, name, {})
    parsed = parse_arguments(arguments)
    if not parsed.readable:
        raise UnreadableCallError(f"arguments {parsed.problem}")
    return Pasted(form, name, parsed.value, parsed.problem == PYTHON_REPR)
