"""Text from outside as one line that does nothing but stand there."""

from __future__ import annotations

import re

# Characters that act on a terminal or a page, or are not seen, in a class of a regular expression:
# C1 controls, marks of direction, separators of lines, half surrogates, tags. C0 is left to users:
# some let line breaks stand.
UNSEEN = (
    "\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNPRINTABLE = re.compile(f"[\x00-\x1f{UNSEEN}]")


def printable(text: str) -> str:
    r"""Return text on one line, without what acts on a terminal or is not seen.

    Args:
        text: of any origin.

    Returns:
        The text, with escapes in the place of such characters: `\n`, `\x1b`, `\u202e`.
    """
    if text.isascii() and text.isprintable():
        return text
    return _UNPRINTABLE.sub(lambda hit: hit[0].encode("unicode_escape").decode(), text)
