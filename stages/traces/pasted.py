"""A tool call as people paste it, from any API, down to its name and arguments.

A value is a call only where its keys leave no doubt; what merely has a key `name` is not one. So
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
# What may stand beside a name and arguments; the last three in a gold action of tau2-bench.
_BESIDE = frozenset({"type", "index", "requestor", "status", "namespace", *calls.IDS})
_BESIDE |= {"action_id", "info", "compare_args"}
# Keys of the name and the arguments that only calls have, by whose calls they are.
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
_DEPTH = 6  # of a call in the answer of an API


class Pasted(NamedTuple):
    """One call."""

    form: str  # whose
    name: str
    arguments: Any
    repaired: bool = False  # the arguments were read as a Python literal


def unwrapped(value: Any) -> Pasted | None:
    """Return the call that a value is; None: it is none, and thus arguments.

    Raises:
        UnreadableCallError: it is several calls, or one whose arguments can't be read.
    """
    pasted = _calls(value)
    if len(pasted) > 1:
        raise UnreadableCallError(f"{len(pasted):,} calls")
    return pasted[0] if pasted else None


def _calls(value: Any, depth: int = _DEPTH) -> list[Pasted]:
    """The calls of a value: of itself, of a list of nothing else, of a message or an answer."""
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
    """What an API's answer holds: messages, or blocks and calls; None where it is no answer."""
    for choices, message in (("choices", "message"), ("candidates", "content")):
        if isinstance(answer.get(choices), list):
            return [choice.get(message) for choice in answer[choices] if isinstance(choice, dict)]
    if "finish_reason" in answer:
        return answer.get("message")
    return answer.get("output") if isinstance(answer.get("output"), list) else None


def _is_silent(block: Any) -> bool:
    """Whether a block among calls is text or thoughts."""
    if not isinstance(block, dict):
        return False
    return str(block.get("type")) in _SILENT or block.keys() <= {
        "text",
        "thought",
        "thoughtSignature",
    }


def _call(value: Any) -> Pasted | None:
    """The one call that an object is, by the first form that it has without doubt."""
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
    """The call that an object without a wrapper is: a name, arguments, and what may be beside."""
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
    if name == "function":  # of inspect, whose calls have ids
        return _read("inspect", value) if "id" in value else None
    return _read("langchain" if given == ["args"] else "flat", value)


def _is_object(value: Any) -> bool:
    """Whether a value is an object, or may be the text of one."""
    return isinstance(value, dict) or (isinstance(value, str) and value.lstrip().startswith("{"))


def _named(value: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and isinstance(value.get("name"), str)


def _read(form: str, call: Any, *, optional: bool = False) -> Pasted:
    """The call with its arguments decoded; none are an empty object where the API says so."""
    if optional and not any(key in call for key in calls.ARGUMENTS):
        return Pasted(form, call["name"], {})
    name, arguments, _ = calls.read_call(call)
    if arguments in (None, ""):  # how a tool without parameters is called
        return Pasted(form, name, {})
    parsed = parse_arguments(arguments)
    if not parsed.readable:
        raise UnreadableCallError(f"arguments {parsed.problem}")
    return Pasted(form, name, parsed.value, parsed.problem == PYTHON_REPR)
