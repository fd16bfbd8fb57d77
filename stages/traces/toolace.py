"""Read ToolACE's notation of calls: a list as text, in which tool names may contain spaces."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from typing import Any

from stages.traces.calls import object_in

NAME = re.compile(r"\s*,?\s*([A-Za-z_][\w .:/&'-]*?)\s*\(")
QUOTES = "'\""


def toolace_messages(messages: Sequence[Any]) -> Iterator[Any]:
    """Yield messages, with calls in this notation and their results as objects.

    The results of several calls are in one message, as a list of objects that name their tools.
    """
    waiting = 0
    for message in messages:
        text = message.get("value") if isinstance(message, dict) else None
        speaker = message.get("from") if isinstance(message, dict) else None
        if speaker in ("assistant", "gpt") and isinstance(text, str) and (calls := _calls(text)):
            waiting = len(calls)
            yield {"from": "function_call", "value": calls}
        elif speaker == "tool" and waiting:
            results = object_in(text)
            if isinstance(results, list) and len(results) == waiting > 1:
                yield from ({"from": "tool", **_named(result)} for result in results)
            else:
                yield message
            waiting = 0
        else:
            yield message


def _named(result: Any) -> dict[str, Any]:
    if isinstance(result, dict) and isinstance(result.get("name"), str):
        return {"name": result["name"], "value": result}
    return {"value": result}


def _calls(text: str) -> list[dict[str, Any]] | None:
    """Parse a text that consists of calls; return None for any other text."""
    text = text.strip()
    if not text.startswith("[") or not text.endswith("]"):
        return None
    calls, place, end = list[dict[str, Any]](), 1, len(text) - 1
    while text[place:end].strip():
        name = NAME.match(text, place, end)
        close = _close(text, name.end(), end) if name else None
        if name is None or close is None:
            return None
        arguments = _arguments(text[name.end() : close])
        if arguments is None:
            return None
        calls.append({"name": name[1], "arguments": arguments})
        place = close + 1
    return calls or None


def _close(text: str, start: int, end: int) -> int | None:
    """Return the position where the bracket closes that opened before `start`, else None."""
    depth, quote, place = 1, "", start
    while place < end:
        letter = text[place]
        if quote:
            if letter == "\\":
                place += 1
            elif letter == quote:
                quote = ""
        elif letter in QUOTES:
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0:
                return place
        place += 1
    return None


def _arguments(text: str) -> dict[str, Any] | None:
    """Parse named arguments with literal values of Python or JSON; None if the text is not that."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if not isinstance(call, ast.Call) or call.args:
        return None
    try:
        return {
            str(word.arg): ast.literal_eval(_Constants().visit(word.value))
            for word in call.keywords
        }
    except (ValueError, TypeError):
        return None


class _Constants(ast.NodeTransformer):
    """Replaces JSON's `true`, `false` and `null` by Python's constants."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        values = {"true": True, "false": False, "null": None}
        return ast.Constant(values[node.id]) if node.id in values else node
