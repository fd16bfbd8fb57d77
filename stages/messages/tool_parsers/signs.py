"""Quick checks, without the parsers, whether a text may hold calls; most texts hold none."""

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
# A text of calls without markers begins like this; hardly any other text does.
FIRST_BRACKET = re.compile(r"\s*[\[{]|\s*```")


def has_signs(text: str) -> bool:
    """Return whether a text has one of the signs that every call has, even in unread notations."""
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
    """Return whether a text can hold calls; most texts cannot."""
    return (
        "<" in text
        or "[TOOL_CALLS]" in text
        or "functools[" in text
        or " to=functions." in text
        or FIRST_BRACKET.match(text) is not None
        or ("{" in text and NAME_ABOVE_JSON.match(text) is not None)
    )
