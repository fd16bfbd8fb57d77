"""Calls as JSON between markers."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any

from stages.messages.tool_parsers.calls import (
    Reader,
    Reading,
    TextCall,
    Tools,
    after_space,
    as_text,
    broken_call,
    broken_until,
    decode,
    entry_call,
    json_calls,
)

SEPARATOR = re.compile(r"\s*[;,]?\s*(?=[\[{])")


def json_block(close: str = "", several: bool = False) -> Reader:
    """Return a reader of a JSON call or list of calls that a marker opens.

    Args:
        close: marker that ends the block; a text that ends with the JSON needs none.
        several: whether several JSON values may follow one another.
    """

    def read(text: str, opening: re.Match[str], _tools: Tools) -> Reading:
        start = opening.end()
        try:
            calls, end = json_calls(text, start)
            while several and (more := SEPARATOR.match(text, end)):
                following, end = json_calls(text, more.end())
                calls += following
        except ValueError:
            return broken_until(text, start, close)
        tail = after_space(text, end)
        if close and text.startswith(close, tail):
            return Reading(tail + len(close), calls)
        # Granite's list has no closing marker; an object with more text behind it is broken.
        is_list = text[end - 1] == "]" and (not close or text.find(close, end) < 0)
        if tail == len(text) or not close or is_list:
            return Reading(end, calls)
        return broken_until(text, start, close)

    return read


def printed_block(close: str) -> Reader:
    """Return a reader like `json_block` that also takes a call printed by Python."""
    read_json = json_block(close)

    def read(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
        reading = read_json(text, opening, tools)
        if reading and len(reading.calls) == 1 and reading.calls[0].broken:
            call = _printed_call(reading.calls[0].arguments)
            return reading._replace(calls=[call]) if call else reading
        return reading

    return read


def _printed_call(body: str) -> TextCall | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of odd escapes in the text
            entry: Any = ast.literal_eval(body)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    call = entry_call(entry)
    if call is None:
        return None
    given = entry.get("arguments", entry.get("parameters"))
    return TextCall(call.name, given if isinstance(given, dict) else as_text(given))


def named_json(head: str, tail: str, wrong_end: str) -> Reader:
    """Return a reader of a name followed by its arguments as a JSON object.

    Args:
        head: pattern from the opening to the arguments; its last group is the name.
        tail: pattern of the text after the arguments; the end of the text is accepted too.
        wrong_end: text at which a broken call ends, if it occurs.
    """
    heading, closing = re.compile(head), re.compile(tail)

    def read(text: str, opening: re.Match[str], _tools: Tools) -> Reading:
        named = heading.match(text, opening.end())
        if named is None:
            return broken_until(text, opening.end(), wrong_end)
        name = next((group for group in reversed(named.groups()) if group), "").strip()
        at = named.end()
        if (closed := closing.match(text, at)) and closed.end() > at:
            return Reading(closed.end(), [TextCall(name, "{}")])
        try:
            value, end = decode(text, at)
        except ValueError:
            return broken_until(text, at, wrong_end, name)
        closed = closing.match(text, end)
        if not isinstance(value, dict) or not (closed or after_space(text, end) == len(text)):
            return broken_until(text, at, wrong_end, name)
        arguments = text[after_space(text, at) : end]
        return Reading(closed.end() if closed else len(text), [TextCall(name, arguments)])

    return read


def read_mistral(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Read `[TOOL_CALLS] [{...}]`, or from tokenizer v11 on `[TOOL_CALLS]name[ARGS]{...}`."""
    reader = _MISTRAL_LIST if MISTRAL_JSON.match(text, opening.end()) else _MISTRAL_NAMED
    reading = reader(text, opening, tools)
    if reading and reading.calls and reading.calls[0].broken:
        return broken_until_next(text, opening, reading.calls[0].name)
    return reading


def broken_until_next(text: str, opening: re.Match[str], name: str) -> Reading:
    """Return a broken call that ends where the next call opens."""
    stop = text.find(opening[0], opening.end())
    end = stop if stop >= 0 else len(text)
    return Reading(end, [broken_call(text[opening.end() : end], name)])


MISTRAL_JSON = re.compile(r"\s*[\[{]")
_MISTRAL_LIST = json_block()
_MISTRAL_NAMED = named_json(
    r"\s*([^\s\[{<]+)\s*(?:\[CALL_ID\][^\[]*)?(?:\[ARGS\])?\s*(?=\{)", r"\s*", "[TOOL_CALLS]"
)


def read_apertus(text: str, opening: re.Match[str], _tools: Tools) -> Reading:
    """Read `<|tools_prefix|>[{"name": {arguments}}]<|tools_suffix|>`."""
    close = "<|tools_suffix|>"
    try:
        entries, end = decode(text, opening.end())
        pairs = [pair for entry in entries for pair in entry.items()]
    except (ValueError, AttributeError, TypeError):
        return broken_until(text, opening.end(), close)
    calls = [TextCall(name, as_text(given)) for name, given in pairs]
    tail = after_space(text, end)
    return Reading(tail + len(close) if text.startswith(close, tail) else end, calls)
