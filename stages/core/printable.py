"""Untrusted text as one inert line: control and invisible characters escaped."""

from __future__ import annotations

import re

# Characters that control a terminal or a page, or are invisible, as the body of a regex class: C1
# controls, direction marks, line separators, lone surrogates, tags. C0 controls are not included,
# because some callers keep line breaks.
UNSEEN = (
    "\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNPRINTABLE = re.compile(f"[\x00-\x1f{UNSEEN}]")


def printable(text: str) -> str:
    r"""Return text on one line, with control and invisible characters escaped.

    Args:
        text: text of any origin.

    Returns:
        The text with escapes such as `\n`, `\x1b` and `\u202e` in place of those characters.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda hit: hit[0].encode("unicode_escape").decode(), text)
