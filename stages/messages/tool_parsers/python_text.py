"""Calls in Python's notation, and in the notations of Gemma that resemble it."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any

from stages.messages.tool_parsers.calls import (
    Reader,
    Reading,
    TextCall,
    Tools,
    as_text,
    broken_until,
)
from stages.messages.tool_parsers.json_text import json_block

WORDS = {"true": True, "false": False, "null": None}
BEGINNING = re.compile(r"\s*\[?\s*([A-Za-z_][\w.]*)\(\s*(?=[A-Za-z_]\w*\s*(?:=|\Z)|\)|\Z)")


def python_calls(source: str) -> list[TextCall]:
    """Parse `[f(a=1), g(b="x")]`, or such calls without the list, one per line.

    Raises:
        ValueError: the text is something else, or an argument has no name or no plain value.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of odd escapes in the text
            lines = ast.parse(source.strip()).body
    except (SyntaxError, MemoryError, RecursionError) as error:
        raise ValueError("not Python") from error
    nodes: list[ast.expr] = []
    for line in lines:
        if not isinstance(line, ast.Expr):
            raise ValueError("not an expression")
        value = line.value
        nodes += value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    try:
        return [_call(node) for node in nodes]
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _call(node: ast.expr) -> TextCall:
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("not a call by keywords")
    arguments = {}
    for keyword in node.keywords:
        if keyword.arg is None:
            raise ValueError("an argument without a name")
        arguments[keyword.arg] = _value(keyword.value)
    return TextCall(_name(node.func), as_text(arguments))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    raise ValueError("not a name")


def _value(node: ast.expr) -> Any:
    """Return the JSON value of an expression; tuples and sets become lists."""
    match node:
        case ast.Constant(value=None | str() | int() | float() as value):
            return value
        case ast.Name(id=word) if word in WORDS:
            return WORDS[word]
        case ast.List(elts=elements) | ast.Tuple(elts=elements) | ast.Set(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            names = [_value(key) if key else None for key in keys]
            if not all(isinstance(name, str | int | float) for name in names):
                raise ValueError("a key that JSON has not")
            return dict(zip(names, map(_value, values), strict=True))
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
    raise ValueError("not a plain value")


def python_block(close: str) -> Reader:
    """Return a reader of calls in Python's notation up to a closing marker."""

    def read(text: str, opening: re.Match[str], _tools: Tools) -> Reading:
        stop = text.find(close, opening.end())
        try:
            calls = python_calls(text[opening.end() : stop if stop >= 0 else len(text)])
        except ValueError:
            begun = BEGINNING.match(text, opening.end())
            return broken_until(text, opening.end(), close, begun[1] if begun else "")
        return Reading(stop + len(close) if stop >= 0 else len(text), calls)

    return read


def read_python_tag(text: str, opening: re.Match[str], tools: Tools) -> Reading | None:
    """Parse the text after `<|python_tag|>`: Llama's JSON, or a built-in `name.call(a=1)`."""
    reading = _TAGGED_JSON(text, opening, tools)
    if reading is None or not all(call.broken for call in reading.calls):
        return reading
    try:
        calls = python_calls(text[opening.end() :])
    except ValueError:
        line = text[text.rfind("\n", 0, opening.start()) + 1 : opening.start()]
        return None if line.strip() and MENTION.match(text, opening.end()) else reading
    return Reading(
        len(text), [call._replace(name=call.name.removesuffix(".call")) for call in calls]
    )


MENTION = re.compile(r"[`'\"]?\s+\w+\s+\w")  # the text only mentions the marker
_TAGGED_JSON = json_block(several=True)
GEMMA_NAME = re.compile(r"\s*call:\s*([\w.\-]+)\s*(?=\{)")
GEMMA_CUT = re.compile(r"\s*call:\s*([\w.\-]*)")


def gemma_block(close: str, quote: str) -> Reader:
    """Return a reader of `call:name{key:value}`, where a marker quotes texts and keys are bare."""
    mark = re.escape(quote)
    plain = r'"(?:[^"\\]|\\.)*"|([A-Za-z_][\w\-]*)(?=\s*:)'
    token = re.compile(f"{mark}(.*?){mark}|{plain}", re.DOTALL)

    def quoted(match: re.Match[str]) -> str:
        words = match[1] if match[1] is not None else match[2]
        return match[0] if words is None else json.dumps(words, ensure_ascii=False)

    def read(text: str, opening: re.Match[str], _tools: Tools) -> Reading:
        named = GEMMA_NAME.match(text, opening.end())
        stop = text.find(close, opening.end())
        if named is not None:
            body = text[named.end() : stop if stop >= 0 else len(text)].strip()
            try:
                arguments = json.loads(token.sub(quoted, body))
            except (ValueError, RecursionError):
                arguments = None
            if isinstance(arguments, dict):
                end = stop + len(close) if stop >= 0 else len(text)
                return Reading(end, [TextCall(named[1], as_text(arguments))])
        cut = GEMMA_CUT.match(text, opening.end())
        return broken_until(text, opening.end(), close, cut[1] if cut else "")

    return read
