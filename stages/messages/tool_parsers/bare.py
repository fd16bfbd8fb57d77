"""Calls without markers: a text counts only if all of it is calls.

Answers may be JSON or Python too, so that a call must have its exact form and, if the tools are
known, the name of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

from stages.messages.tool_parsers.calls import TextCall, broken_call, decode, entry_call
from stages.messages.tool_parsers.json_text import SEPARATOR
from stages.messages.tool_parsers.python_text import BEGINNING, python_calls
from stages.messages.tool_parsers.signs import NAME_ABOVE_JSON

FENCE = re.compile(
    r"```(?:json|python|tool_calls?|xml)?[ ]*\n(?:(.*?)\n?```|([\[{].*))",  # may be cut
    re.DOTALL,
)
TOOL_NAME = re.compile(r"[\w.\-/:]+")
# A single capitalized word names a thing or a class rather than a tool.
THING = re.compile(r"[A-Z][a-z0-9]*")
TOOL_CODE = re.compile(r"```tool_code[ ]*\n(.*?)\n?```", re.DOTALL)
CALL_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})
WRAPPER_KEYS = frozenset({"function", "type", "id", "index"})
WRAPPED_KEYS = frozenset({"tool_calls", "thought", "thoughts", "content"})
CUT_JSON = re.compile(
    r'\s*\[?\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([\w.\-/:]+)"\s*,\s*'
    r'"(?:arguments|parameters)"\s*:'
)
KEYWORD_LIST = re.compile(r"\[\s*[A-Za-z_][\w.]*\(\s*[A-Za-z_]\w*\s*=.*\)\s*\]", re.DOTALL)
QUOTED_OR_BRACKET = re.compile(r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[\[\](){}"']""", re.DOTALL)


def unfenced(text: str) -> str:
    """Return the content of a code fence if the text is nothing else, otherwise the text."""
    fence = FENCE.fullmatch(text.strip())
    if fence is None:
        return text
    body = fence[1] or fence[2] or ""
    return text if "```" in body else body


def bare_calls(text: str, names: Collection[str]) -> list[TextCall]:
    """Parse a text that is calls and nothing else; any other text holds none.

    Args:
        text: text without thoughts.
        names: names of the tools; empty: unknown.
    """
    if code := TOOL_CODE.fullmatch(text.strip()):
        return _python_form(code[1]) or []  # the form that Gemma 3's prompts ask for
    body = unfenced(text).strip()
    if body[:1] not in {"[", "{"}:
        return []
    calls = _json_form(body)
    if calls is None:
        calls = _python_form(body)
    if calls is None:
        calls = _cut_form(body)
    return calls if all(_is_tool(call.name, names) for call in calls) else []


def wrapped_calls(text: str, names: Collection[str]) -> list[TextCall]:
    """Parse the forms without a marker that `bare_calls` does not cover.

    xLAM wraps its list in `{"thought": ..., "tool_calls": [...]}`. GLM-4 writes a name and JSON
    below it, which counts only if the name is a known tool's.

    Args:
        text: text without thoughts.
        names: names of the tools; empty: unknown.
    """
    body = unfenced(text).strip()
    if body.startswith("{"):
        try:
            value, end = decode(body, 0)
        except ValueError:
            return []
        entries = value.get("tool_calls")
        whole = end == len(body) and value.keys() <= WRAPPED_KEYS and isinstance(entries, list)
        calls = [_exact_call(entry, body) for entry in entries] if whole else []
        return [call for call in calls if call] if all(calls) else []
    named = NAME_ABOVE_JSON.match(body)
    if named is None or named[1] not in names:
        return []
    rest = body[named.end() :]
    return [TextCall(named[1], rest) if _is_object(rest) else broken_call(body, named[1])]


def _is_tool(name: str, names: Collection[str]) -> bool:
    return name in names if names else THING.fullmatch(name) is None


def _json_form(body: str) -> list[TextCall] | None:
    """Parse Llama's JSON objects or xLAM's list of them; None if the text is not JSON."""
    calls: list[TextCall | None] = []
    end = 0
    try:
        while more := SEPARATOR.match(body, end):
            value, end = decode(body, more.end())
            written = body[more.end() : end]
            values = value if isinstance(value, list) else [value]
            calls += [_exact_call(entry, written) for entry in values]
    except ValueError:
        return None
    is_all = end >= len(body.rstrip(" \n;"))
    return [call for call in calls if call] if is_all and all(calls) else []


def _exact_call(value: Any, written: str) -> TextCall | None:
    """Parse an object that has the keys of a call and no others."""
    if not isinstance(value, dict):
        return None
    entry = value
    if value.keys() <= WRAPPER_KEYS and isinstance(value.get("function"), dict):
        entry = value["function"]
    elif value.get("type") == "function" and isinstance(value.get("function"), str):
        entry = {**value, "name": value["function"]}  # Llama 3.2 sometimes writes this
        del entry["function"]
    if not entry.keys() <= CALL_KEYS or ("arguments" in entry) == ("parameters" in entry):
        return None
    given = entry.get("arguments", entry.get("parameters"))
    name = entry.get("name")
    if "parameters" in entry and is_schema(given):
        return None  # the definition of a tool
    if not (isinstance(name, str) and TOOL_NAME.fullmatch(name) and _is_object(given)):
        return None
    return entry_call(entry, written)


def is_schema(given: Any) -> bool:
    """Return whether parameters are a JSON schema of an object rather than values."""
    return isinstance(given, dict) and given.get("type") == "object" and "properties" in given


def _is_object(given: Any) -> bool:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            return False
    return isinstance(given, dict)


def _python_form(body: str) -> list[TextCall] | None:
    """Parse BFCL's list of Python calls; None if the text is not one."""
    if not BEGINNING.match(body):
        return None
    try:
        return python_calls(body)
    except ValueError:
        return None


def _cut_form(body: str) -> list[TextCall]:
    """Return a broken call if the text begins one that is malformed or never ends."""
    if begun := CUT_JSON.match(body):
        return [broken_call(body, begun[1])]
    begun = BEGINNING.match(body) if body.startswith("[") else None
    if begun and (_is_open(body) or KEYWORD_LIST.fullmatch(body)):
        return [broken_call(body, begun[1])]
    return []


def _is_open(body: str) -> bool:
    """Return whether a bracket or a quote of the text is never closed."""
    depth = 0
    for match in QUOTED_OR_BRACKET.finditer(body):
        if match[0] in {'"', "'"}:
            return True
        depth += (match[0] in "[({") - (match[0] in "])}") if len(match[0]) == 1 else 0
    return depth > 0
