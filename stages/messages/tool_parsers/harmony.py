"""Messages of harmony, the format of gpt-oss."""

from __future__ import annotations

import re

from stages.messages.tool_parsers.calls import (
    Reading,
    TextCall,
    Tools,
    after_space,
    broken_call,
    decode,
)

OPENING = r"(?:<\|start\|>(?:assistant)?[ ]*)?(?:to=[^\s<]{1,99} ?)?<\|channel\|>"
HEADER = re.compile(
    r"(?P<before>(?:<\|start\|>(?:assistant)?)?[^<]*)<\|channel\|>"
    r"(?P<after>[^<]*(?:<\|constrain\|>[^<]*)?)(?P<message><\|message\|>)?"
)
RECIPIENT = re.compile(r"to=([^\s<]+)")
END = re.compile(r"<\|(?:end|call|return|start)\|>")


def read_harmony(text: str, opening: re.Match[str], _tools: Tools) -> Reading | None:
    """Parse one message: thoughts, an answer, or a call of its recipient."""
    header = HEADER.match(text, opening.start())
    if header is None:
        return None
    end = END.search(text, header.end())
    body = text[header.end() : end.start() if end else len(text)]
    # A message without an end marker ends at the start of the next, which keeps its marker.
    rest = len(text) if end is None else end.start() if end[0] == "<|start|>" else end.end()
    recipient = RECIPIENT.search(header["before"] + " " + header["after"])
    if recipient is None:
        thought = header["after"].strip().startswith("analysis")
        return Reading(rest, thoughts=body) if thought else Reading(rest, content=body)
    name = recipient[1].removeprefix("functions.")
    return Reading(rest, [_call(name, body, whole=header["message"] is not None)])


def _call(name: str, body: str, whole: bool) -> TextCall:
    if whole and not body.strip():
        return broken_call(body, name)
    try:
        value, end = decode(body, 0)
    except ValueError:
        return broken_call(body, name)
    if not whole or not isinstance(value, dict) or after_space(body, end) != len(body):
        return broken_call(body, name)
    return TextCall(name, body.strip())
