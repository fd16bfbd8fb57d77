"""What shows quickly, and without the parsers, that a text may hold calls; most texts hold none."""

from __future__ import annotations

import re

THOUGHTS = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
}
NAME_ABOVE_JSON = re.compile(r"\s*([\w.\-]+)[ ]*\n\s*(?=\{)")  # GLM-4
# Every text with a call has one of these, and hardly any other text has.
FIRST_BRACKET = re.compile(r"\s*[\[{]|\s*```")


def has_signs(text: str) -> bool:
    """Tell quickly whether a text has what every call, read or not, is written with."""
    return (
        "{" in text
        or "<" in text
        or "[" in text
        or "(" in text
        or "```" in text
        or " to=functions." in text
        or "nput" in text
        or "✿" in text
    )


def may_hold_calls(text: str) -> bool:
    """Tell quickly whether a text can hold calls; most texts cannot."""
    return (
        "<" in text
        or "[TOOL_CALLS]" in text
        or "functools[" in text
        or " to=functions." in text
        or FIRST_BRACKET.match(text) is not None
        or ("{" in text and NAME_ABOVE_JSON.match(text) is not None)
    )
