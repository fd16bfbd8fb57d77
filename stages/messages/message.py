"""A chat message, and the tools that go with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

Message = dict[str, Any]  # OpenAI chat format: role, content, tool_calls, tool_call_id


def definitions(tools: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Return the functions of OpenAI tool definitions by name; entries may be bare functions."""
    functions = {}
    for tool in tools:
        if isinstance(tool, dict):
            function = tool.get("function")
            # Annotations may stand beside the function as well as within it.
            function = {**tool, **function} if isinstance(function, dict) else tool
            if isinstance(name := function.get("name"), str):
                functions[name] = function
    return functions


def without_kind(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool's definition for a model or a server, without our `x-kind`."""
    function = {key: value for key, value in tool["function"].items() if key != "x-kind"}
    return {"type": "function", "function": function}


class Told(NamedTuple):
    """How a model's prompt presents its tools and the system message."""

    record: dict[str, str]  # "tools": template, messages, weights or server; "system": see Template
    notes: list[str]  # what a user should know about it
