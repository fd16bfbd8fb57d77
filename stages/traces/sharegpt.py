"""Read ShareGPT conversations (LLaMA-Factory, Hermes, ToolACE) and those of xLAM and Glaive."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from stages.traces.calls import object_in
from stages.traces.exchange import Answer, Exchange, Logged, Record, clean_records
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.toolace import toolace_messages

NAME = "sharegpt"
SPOKEN_KEYS = ("conversations", "conversation", "items")
FORMS = ({"from", "value"}, {"role", "content"})
# A Glaive conversation is one text; a speaker's name begins each message, at the start of a line.
SPEAKERS = {"USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
SPEAKER = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):")
END_OF_TEXT = "<|endoftext|>"
GLAIVE_CALL = re.compile(r"<functioncall>\s*(\{.*\})\s*$", re.DOTALL)
# The arguments are JSON in single quotes, so the whole call is not valid JSON.
QUOTED = re.compile(r'("arguments"\s*:\s*)\'(.*)\'(\s*\})\s*$', re.DOTALL)


def accepts(record: Record) -> bool:
    """Return whether a record is a conversation of one of these datasets."""
    if "chosen" in record:  # a preference pair: its conversation ends before the answer
        return False
    return _spoken(record) is not None or _is_xlam(record) or _is_glaive(record)


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of one conversation.

    Raises:
        BadItemError: a call or a result can't be read.
    """
    if _is_xlam(record):
        calls = object_in(record["answers"])
        if not isinstance(calls, list):
            raise BadItemError("'answers' is not a list of calls", "give the data set's own rows")
        messages = [
            {"role": "user", "content": record["query"]},
            {"role": "assistant", "content": None, "tool_calls": _with_ids(calls)},
        ]
    elif _is_glaive(record):
        messages = list(_glaive_messages(record["chat"]))
    else:
        messages = list(toolace_messages(_spoken(record) or []))
    system = record.get("system")
    if isinstance(system, str) and system:
        messages = [{"role": "system", "content": system.removeprefix("SYSTEM: ")}, *messages]
    tools = record.get("tools")
    logged = Logged(Exchange({}, {}), messages, [Answer(())], tools)
    yield from clean_records(record, logged, notes)


def _spoken(record: Record) -> list[Any] | None:
    for key in SPOKEN_KEYS:
        said = object_in(record.get(key))
        first = said[0] if isinstance(said, list) and said else None
        if isinstance(first, dict) and any(form <= first.keys() for form in FORMS):
            return list(said)
    return None


def _is_xlam(record: Record) -> bool:
    return {"query", "answers", "tools"} <= record.keys()


def _is_glaive(record: Record) -> bool:
    chat = record.get("chat")
    return isinstance(chat, str) and SPEAKER.search(chat) is not None


def _with_ids(calls: list[Any]) -> list[Any]:
    """Add an id to each call, because xLAM's calls have none."""
    return [
        {"id": f"call_{place}", **call} if isinstance(call, dict) else call
        for place, call in enumerate(calls, 1)
    ]


def _glaive_messages(chat: str) -> Iterator[dict[str, Any]]:
    pieces = SPEAKER.split(chat)[1:]
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        text = text.replace(END_OF_TEXT, "").strip()
        call = GLAIVE_CALL.search(text) if speaker == "ASSISTANT" else None
        if call is None:
            yield {"role": SPEAKERS[speaker], "content": text}
            continue
        if before := text[: call.start()].strip():
            yield {"role": "assistant", "content": before, "function_call": _glaive_call(call[1])}
        else:
            yield {"from": "function_call", "value": _glaive_call(call[1])}


def _glaive_call(text: str) -> Any:
    """Return the call in a text, with its arguments unquoted."""
    quoted = QUOTED.search(text)
    if quoted is None:
        return object_in(text)
    head = object_in(f"{text[: quoted.start()]}{quoted[1]}null{quoted[3]}")
    if not isinstance(head, dict):
        return text
    return {**head, "arguments": quoted[2].replace("\\'", "'")}
