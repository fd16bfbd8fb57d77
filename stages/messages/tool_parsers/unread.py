"""Detect texts that look like calls but are in an unread notation, or within prose."""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Literal

from stages.messages.tool_parsers.signs import THOUGHTS

# Code samples: they show calls and do not make them.
CODE = re.compile(r"(```|~~~).*?(?:\1|\Z)|`[^`\n]*`", re.DOTALL)
THOUGHT = re.compile(
    "|".join(f"{re.escape(begin)}.*?(?:{re.escape(end)}|\\Z)" for begin, end in THOUGHTS.items()),
    re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`[^`\n]+`(?!`)")
TAG = r"[\w:.\-]*(?:tool|function|action)(?:[_\-]?(?:calls?|code|use|name|invocation))?"
TAGGED = re.compile(
    rf"<\|?{TAG}\|?>\s*(?:[\[{{]|[\w.\-]+\s*(?:\(|</|\n\s*\{{))|[}}\])]\s*<(?:/|\|/){TAG}\|?>",
    re.IGNORECASE,
)
# Cohere's Command R, LangChain's JSON agent, Gemma 3, Qwen-Agent, Functionary.
MARKED = re.compile(
    r"(?:^|\n)[ \t*_]*Action[*_ \t]*:[*_\s]*```(?:json)?\s*[\[{]|```tool_code\b|✿FUNCTION✿"
    r"|(?:\A|\n)>>>\w+\n[\[{]"
)
REACT = re.compile(
    r"(?:^|\n)[ \t*_#]*Action[ \t]*\d*[*_ \t]*:[^\n]*\n(?:[^\n]+\n)?[\s*_#]*Action[ _]Input\b"
    r"|(?:^|\n)[ \t]*Action[ \t]*\d*:[ \t]*\w+\[[^\n]*\][ \t]*(?:\n|\Z)",
    re.IGNORECASE,
)
SNAKE_CALL = re.compile(r"\s*(?:\[\s*)?[A-Za-z][^\W_]*_\w*\(")
NAME_AND_JSON = re.compile(r"\s*[A-Za-z][^\W_]*_\w*[ ]*\n\s*(\{.*\})\s*", re.DOTALL)
IN_PROSE = re.compile(
    r'\{\s*"(?:name|tool|tool_name|function|action|recipient_name)"\s*:\s*"[\w.\-/:]+"\s*,\s*'
    r'"(?:arguments|parameters|args|input|kwargs|params|action_input|tool_input|tool_args'
    r'|tool_arguments)"\s*:'
)


def unread_call(text: str) -> Literal["sure", "doubtful"] | None:
    """Return whether a text in which `recorded_calls` finds no call looks like one.

    Args:
        text: the recorded text.

    Returns:
        "sure" for a call in a notation that is not read, "doubtful" for JSON in prose that may be
        a call or an example of one, None for any other text.
    """
    if "<" in text or "[THINK]" in text or "◁" in text:
        text = THOUGHT.sub("", text)
    if _is_unread(text):
        return "sure"
    return "doubtful" if _may_be(text) else None


def _is_unread(text: str) -> bool:
    """Return whether a text without calls that were read surely is, or holds, a call.

    Args:
        text: text without thoughts.
    """
    has_data = "{" in text or "[" in text
    if (has_data or "```" in text or "✿" in text) and MARKED.search(text):
        return True
    if "ction" in text and (has_data or "nput" in text) and REACT.search(text):
        return True
    if "<" in text and TAGGED.search(CODE.sub("", text)):
        return True
    return ("(" in text and _is_code(text)) or ("{" in text and _is_name_and_json(text))


def _may_be(text: str) -> bool:
    """Return whether a text without calls that were read holds JSON that may mean a call."""
    return "{" in text and IN_PROSE.search(INLINE.sub("", text)) is not None


def _is_code(text: str) -> bool:
    """Return whether a text is nothing but Python calls with names like those of tools."""
    if not SNAKE_CALL.match(text):
        return False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser warns of odd escapes in the text
            body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    values = [line.value for line in body if isinstance(line, ast.Expr)]
    nodes = [part for value in values for part in getattr(value, "elts", [value])]
    return len(values) == len(body) and all(isinstance(node, ast.Call) for node in nodes)


def _is_name_and_json(text: str) -> bool:
    match = NAME_AND_JSON.fullmatch(text)
    try:
        return match is not None and isinstance(json.loads(match[1]), dict)
    except (ValueError, RecursionError):
        return False
