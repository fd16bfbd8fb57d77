"""Shared by all notations: a call, its JSON, and the types of its arguments."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from stages.messages.message import definitions

Tools = Sequence[Mapping[str, Any]]

NAME = re.compile(r"""(["'])(?:tool_)?name\1\s*:\s*(["'])(.*?)\2""")
ARGUMENT_KEYS = ("arguments", "parameters", "args", "input", "kwargs")
ARGUMENTS = re.compile(rf'"(?:{"|".join(ARGUMENT_KEYS)})"\s*:\s*')
# A call without arguments has no other keys; with others, its arguments may be among them.
PLAIN_KEYS = frozenset({"name", "tool_name", "function", "type", "id", "tool_call_id", "index"})
WORDS = {"true": True, "false": False, "null": None, "none": None}
SPACE = re.compile(r"\s*")
DECODER = json.JSONDecoder()
JSON_TYPES = {
    bool: ("boolean",),
    int: ("integer", "number"),
    float: ("number",),
    str: ("string",),
    list: ("array",),
    dict: ("object",),
    type(None): ("null",),
}


class TextCall(NamedTuple):
    """A call that a model wrote as text."""

    name: str  # "" if the text has none
    # Text, "" if there are none; the whole text of a broken call; an object if Python printed it.
    arguments: Any
    broken: bool = False


class Reading(NamedTuple):
    """The part of a text that a reader parsed, from its opening on."""

    end: int  # index at which the rest of the text begins
    calls: Sequence[TextCall] = ()
    content: str = ""  # an answer that the notation wraps, as harmony does
    thoughts: str = ""


# Takes the text, the match that opened the call and the tools; None: no call begins here.
Reader = Callable[[str, "re.Match[str]", Tools], "Reading | None"]


def after_space(text: str, at: int) -> int:
    """Return the place of the next character that is not white space."""
    space = SPACE.match(text, at)
    return space.end() if space else at


def decode(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON value at a place, and where it ends.

    Raises:
        ValueError: there is none.
    """
    try:
        return DECODER.raw_decode(text, after_space(text, at))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_calls(text: str, at: int) -> tuple[list[TextCall], int]:
    """Parse a JSON call, or a JSON list of them, and return where it ends.

    Raises:
        ValueError: the text is not JSON, or a part of it is not a call.
    """
    at = after_space(text, at)
    if not text.startswith("[", at):
        call, end = _json_call(text, at)
        return [call], end
    calls: list[TextCall] = []
    at = after_space(text, at + 1)
    if text.startswith("]", at):
        return calls, at + 1
    while True:
        call, at = _json_call(text, at)
        calls.append(call)
        at = after_space(text, at)
        if text.startswith("]", at):
            return calls, at + 1
        if not text.startswith(",", at):
            raise ValueError("the list does not go on")
        at = after_space(text, at + 1)


def _json_call(text: str, at: int) -> tuple[TextCall, int]:
    value, end = decode(text, at)
    call = entry_call(value, text[at:end])
    if call is None:
        raise ValueError("not a call")
    return call, end


def entry_call(value: Any, body: str = "") -> TextCall | None:
    """Read a decoded call, such as `{"name": ..., "arguments": {...}}`.

    Args:
        value: any JSON value.
        body: text of the value; if given, the arguments are returned verbatim.

    Returns:
        The call, or None if the value is not a call.
    """
    if not isinstance(value, dict):
        return None
    entry = value["function"] if isinstance(value.get("function"), dict) else value
    name = next((entry[key] for key in ("name", "tool_name", "function") if key in entry), None)
    keys = [key for key in ARGUMENT_KEYS if entry.get(key) is not None]
    if any(entry[key] != entry[keys[0]] for key in keys):
        return None  # ambiguous
    key = next((key for key in ARGUMENT_KEYS if key in entry), None) if not keys else keys[0]
    if not isinstance(name, str) or (key is None and not PLAIN_KEYS.issuperset(entry)):
        return None
    given = entry[key] if key else None
    if given is None:
        return TextCall(name, "")
    return TextCall(name, _verbatim(body, given) if isinstance(given, dict) else as_text(given))


def _verbatim(body: str, value: dict[str, Any]) -> str:
    """Return the text of the arguments verbatim, including spaces and duplicate keys."""
    for key in ARGUMENTS.finditer(body):
        try:
            read, end = decode(body, key.end())
        except ValueError:
            continue
        if read == value:
            return body[key.end() : end]
    return as_text(value)  # the key is written with escapes


def broken_call(body: str, name: str = "") -> TextCall:
    """Return a call with its whole text as arguments, which no environment accepts."""
    written = None if name else NAME.search(body)
    return TextCall(written[3] if written else name, body.strip(), broken=True)


def broken_until(text: str, at: int, close: str, name: str = "") -> Reading:
    """Return a broken call that ends at its closing marker, or with the text."""
    stop = text.find(close, at) if close else -1
    body, end = (text[at:stop], stop + len(close)) if stop >= 0 else (text[at:], len(text))
    return Reading(end, [broken_call(body, name)])


def as_text(arguments: Any) -> str:
    """Return arguments as text; missing arguments become an empty object."""
    if isinstance(arguments, str):
        return arguments or "{}"
    return "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)


def typed_call(name: str, pairs: Sequence[tuple[str, str]], tools: Tools) -> TextCall:
    """Return a call whose arguments are plain text, with the types of the tool's schema.

    Args:
        name: name of the tool.
        pairs: names and texts of the arguments.
        tools: OpenAI definitions; for a tool that they lack, a value is parsed as JSON if possible.
    """
    schema = definitions(tools).get(name, {}).get("parameters")
    properties = schema.get("properties") if isinstance(schema, dict) else None
    known = properties if isinstance(properties, dict) else {}
    arguments = {key.strip(): typed(text, known.get(key.strip())) for key, text in pairs}
    return TextCall(name, as_text(arguments))


def typed(text: str, schema: Any = None) -> Any:
    """Return an argument's value: text if the schema says so, otherwise JSON if it is valid."""
    types = _types(schema)
    if types == {"string"}:
        return text
    word = text.strip().lower()  # templates write Python's True and None
    try:
        value = WORDS[word] if word in WORDS else json.loads(text)
    except (ValueError, RecursionError):
        return text
    if "string" in types and types.isdisjoint(JSON_TYPES[type(value)]):
        return text
    return value


def _types(schema: Any) -> frozenset[str]:
    """Return the types that a JSON schema names; empty: it names none."""
    if not isinstance(schema, dict):
        return frozenset()
    stated = schema.get("type")
    types = {name for name in _listed(stated) if isinstance(name, str)}
    for key in ("anyOf", "oneOf"):
        for choice in _listed(schema.get(key)):
            types |= _types(choice)
    return frozenset(types)


def _listed(value: Any) -> list[Any]:
    """Return a part of a schema as a list; a single value becomes a list of one."""
    return value if isinstance(value, list) else [value]
