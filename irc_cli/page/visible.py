"""Spell out the characters in text that a person would not see, or that cover other lines."""

from __future__ import annotations

import re
from typing import Any

from markupsafe import Markup

from stages.core.printable import UNSEEN

# Invisible characters that change how text looks: control characters and direction marks.
_HIDDEN = re.compile(
    r"\r(?!\n)|"
    f"[\x00-\x08\x0b\x0c\x0e-\x1f{UNSEEN}]"
)
# Combining marks piled on one letter, which would cover the lines above and below.
_MARKS = (
    "[\u0300-\u036f\u0483-\u0489\u0610-\u061a\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)
_PILED = re.compile(f"({_MARKS}{{4}})({_MARKS}+)")


def visible(value: Any) -> Any:
    """Return a value with the hidden characters of its texts spelled out, such as <U+200F>."""
    if isinstance(value, Markup):
        return value
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value
        value = _PILED.sub(lambda hit: f"{hit[1]}\u27e8{len(hit[2])} marks more\u27e9", value)
        return _HIDDEN.sub(lambda hit: f"\u27e8U+{ord(hit[0]):04X}\u27e9", value)
    if isinstance(value, dict):
        return {visible(key): visible(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [visible(item) for item in value]
    return value
