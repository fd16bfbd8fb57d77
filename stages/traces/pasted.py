"""Extract name and arguments from a tool call that a user pastes, in the form of any API.

A value is a call only if its keys leave no doubt; a key `name` alone is not enough. For example,
`{"name": "Bob", "input": "x"}` and `{"agent_tool_name": ..., "arguments": ...}` are arguments.
"""

from __future__ import annotations

from itertools import chain
from typing import Any, NamedTuple, TypeGuard

from stages.core.arguments import PYTHON_REPR, parse_arguments
from stages.traces import calls
from stages.traces.calls import UnreadableCallError
from stages.traces.vocabulary import SILENT_TYPES

_FLAT = ("arguments", "args", "parameters", "kwargs", "input")
# Keys that may accompany a name and arguments; the last three occur in tau2-bench's gold actions.
_BESIDE = frozenset({"type", "index", "requestor", "status", "namespace", *calls.IDS})
_BESIDE |= {"action_id", "info", "compare_args"}
# Keys of name and arguments that only calls have, by form.
_OWN = {
    "ai-sdk": ("toolName", ("input", "args")),
    "atif": ("function_name", ("arguments",)),
    "langchain": ("tool", ("tool_input",)),
    "react": ("action", ("action_input",)),
}
_TYPES = {
    **dict.fromkeys(("tool_use", "server_tool_use", "mcp_tool_use"), "anthropic"),
    **dict.fromkeys(("function_call", "custom_tool_call", "mcp_call"), "responses"),
}
_SPEAKERS = ("assistant", "model", "ai")
_SILENT = SILENT_TYPES | {"message"}
_DEPTH = 6  # maximum nesting depth of a call in an API's answer


class Pasted(NamedTuple):
    """A pasted call."""

    form: str  # API or framework that the form is from
    name: str
    arguments: Any
    repaired: bool = False  # the arguments were read as a Python literal


def unwrapped(value: Any) -> Pasted | None:
    """Return the call in a value; None if the value is not a call and is thus arguments.

    Raises:
        UnreadableCallError: the value holds several calls, or arguments that can't be read.
    """
    pasted = _calls(value)
    if len(pasted) > 1:
        raise UnreadableCallError(f"{len(pasted):,} calls")
    return pasted[0] if pasted else None


def _calls(value: Any, depth: int = _DEPTH) -> list[Pasted]:
    """Return the calls in a value: a call, a list of only calls, a message or an API's answer."""
    if not depth:
        return []
    if isinstance(value, list):
        parts = [_calls(item, depth - 1) for item in value]
        whole = all(part or _is_silent(item) for part, item in zip(parts, value, strict=True))
        return list(chain(*parts)) if whole else []
    if not isinstance(value, dict):
        return []
    if call := _call(value):
        return [call]
    speaks = value.get("role", value.get("type")) in _SPEAKERS
    entries = value.get("tool_calls")
    if entries and isinstance(entries, list) and (speaks or all(map(_call, entries))):
        return [_call(entry) or _read("openai", entry) for entry in entries]
    if speaks:
        blocks = value.get("content") or value.get("parts")
        return list(filter(None, map(_call, blocks))) if isinstance(blocks, list) else []
    return _calls(_spoken(value), depth - 1)


def _spoken(answer: dict[str, Any]) -> Any:
    """Return the messages, or blocks and calls, in an API's answer; None if it is not an answer."""
    for choices, message in (("choices", "message"), ("candidates", "content")):
        if isinstance(answer.get(choices), list):
            return [choice.get(message) for choice in answer[choices] if isinstance(choice, dict)]
    if "finish_reason" in answer:
        return answer.get("message")
    return answer.get("output") if isinstance(answer.get("output"), list) else None


def _is_silent(block: Any) -> bool:
    """Return whether a block among calls is text or reasoning."""
    if not isinstance(block, dict):
        return False
    return str(block.get("type")) in _SILENT or block.keys() <= {
        "text",
        "thought",
        "thoughtSignature",
    }


def _call(value: Any) -> Pasted | None:
    """Return the call that an object is, in the first form that fits without doubt, else None."""
    if not isinstance(value, dict):
        return None
    kind, function = value.get("type"), value.get("function")
    bare = kind == "function" or value.keys() <= _BESIDE | {"function"}
    if bare and _named(function) and not calls.is_definition(function):
        return _read("openai", function)
    if isinstance(kind, str) and kind in _TYPES and _named(value):
        return _read(_TYPES[kind], value)
    if value.get("method") == "tools/call" and _named(call := value.get("params")):
        return _read("mcp", call, optional=True)
    if _named(call := value.get("toolUse")):
        return _read("bedrock", call)
    for key in ("functionCall", "function_call"):
        if _named(call := value.get(key)):
            gemini = "arguments" not in call
            return _read("gemini" if gemini else "openai", call, optional=gemini)
    return _flat(value)


def _flat(value: dict[str, Any]) -> Pasted | None:
    """Return the call in an object without a wrapper, which has a name and arguments, else None."""
    for form, (name, keys) in _OWN.items():
        arguments = [value[key] for key in keys if _is_object(value.get(key))]
        if isinstance(value.get(name), str) and arguments:
            return _read(form, {"name": value[name], "arguments": arguments[0]})
    given = [key for key in _FLAT if key in value]
    name = "name" if "name" in value else "function"
    if not isinstance(value.get(name), str) or not value.keys() <= _BESIDE | {name, *given}:
        return None
    if len(given) != 1 or not _is_object(value[given[0]]):
        return None
    if name == "function":  # inspect's form, which has an id
        return _read("inspect", value) if "id" in value else None
    return _read("langchain" if given == ["args"] else "flat", value)


def _is_object(value: Any) -> bool:
    """Return whether a value is an object, or text that may be one."""
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _named(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _read(form: str, call: Any, *, optional: bool = False) -> Pasted:
    """Decode the arguments of a call; missing `optional` arguments are an empty object."""
    if optional and not any(key in call for key in calls.ARGUMENTS):
        return Pasted(form, call["name"], {})
    name, arguments, _ = calls.read_call(call)
    if arguments in (None, ""):  # a call without arguments
        return Pasted(form, name, {})
    parsed = parse_arguments(arguments)
    if not parsed.readable:
        raise UnreadableCallError(f"arguments {parsed.problem}")
    return Pasted(form, name, parsed.value, parsed.problem == PYTHON_REPR)
