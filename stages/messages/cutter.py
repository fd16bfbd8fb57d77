"""Cut the text of a conversation into messages, at the marks that a chat template writes.

Trainers log prompt and completion as one text, mostly without special tokens. The marks between
messages are found by rendering a probe: a made-up conversation of words that occur nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from stages.errors import InputError
from stages.messages.message import Message
from stages.messages.template import Template
from stages.messages.tool_parser import begins_thoughts, read_message

_TOOL = {
    "type": "function",
    "function": {
        "name": "zqtool",
        "description": "zqdescription",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string"}}},
    },
}
_SYSTEM = {"role": "system", "content": "zqsystem"}
_USER = {"role": "user", "content": "zquser"}
_TALK = [
    {"role": "assistant", "content": "zqsaid"},
    {"role": "user", "content": "zqmore"},
    {"role": "assistant", "content": "zqlast"},
    {"role": "user", "content": "zqbye"},
]


_NEEDED = {("assistant", "tool"), ("tool", "assistant")}
_IDS = re.compile(r"callzq00\d|0{8}\d")  # ids of calls, or the digits that a template requires


class Mark(NamedTuple):
    """The text that a template writes between two messages."""

    role: str  # of the next message
    pattern: re.Pattern[str]


class Cutter:
    """Cuts texts by the chat template of a model.

    Args:
        tokenizer: tokenizer of transformers, with a chat template.

    Raises:
        InputError: the tokenizer has no chat template, or the template can't hold the probe.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._template = Template(tokenizer)
        self._end = self._template.end
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | {self._end}
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest_first)))
        called = [_USER, *_calls(1), *_TALK]
        self._tool_parser = self._template.tool_parser(called, [_TOOL])
        self._texts = {roles: text for roles, text in self._between() if "zq" not in _bare(text)}
        begins = [self._before([_SYSTEM, _USER]), self._before([_USER])]
        # Some templates write the system message elsewhere.
        self._begins = [begin for begin in begins if "zq" not in begin[1]]
        if lacking := _NEEDED - self._texts.keys():
            first, second = min(lacking)
            what = f"its chat template does not separate '{first}' from '{second}'"
            raise InputError(self._template.name, what, "give the tokenizer of another model")

    def messages(self, prompt: str, completion: str) -> list[Message]:
        """Return the messages of a prompt and its completion.

        Args:
            prompt: text that the model saw, with the opening of its first answer.
            completion: its answers, with tool results and user messages between them.

        Raises:
            InputError: the text lacks special tokens, and nothing else separates its turns.
        """
        parts = list(self._prompt(prompt))
        if parts and parts[-1][0] == "assistant":
            parts.pop()  # only opened; the completion continues it
        before = len(parts)
        parts += self._cut(completion, "assistant")
        messages: list[Message] = []
        waiting: list[str] = []  # ids of calls without a result
        for place, (role, text) in enumerate(parts):
            if role == "assistant":
                thinking = place == before and begins_thoughts(prompt)
                name = f"call_{place}"
                message = read_message(text, self._tool_parser, (), name, thinking)
                waiting = [call["id"] for call in message.get("tool_calls", ())]
            else:
                message = {"role": role, "content": text}
                if role == "tool" and waiting:
                    message["tool_call_id"] = waiting.pop(0)
            messages.append(message)
        return messages

    def _prompt(self, text: str) -> Iterator[tuple[str, str]]:
        """Return the role and text of each message of a prompt."""
        whole = self._end in text
        for role, begin in self._begins:
            if text.startswith(shown := self._shown(begin, whole)):
                return self._cut(text[len(shown) :], role)
        return self._cut(text, "user")

    def _cut(self, text: str, role: str) -> Iterator[tuple[str, str]]:
        """Yield the role and text of each message; `role` is that of the first."""
        marks = self._marks(whole=self._end in text)
        while True:
            hits = [
                (hit.start(), -hit.end(), mark.role, hit.end())
                for mark in marks.get(role, ())
                if (hit := mark.pattern.search(text))
            ]
            if not hits:
                break
            start, _, following, end = min(hits)
            yield role, text[:start]
            role, text = following, text[end:]
        yield role, self._special.sub("", text).rstrip("\n")

    def _marks(self, *, whole: bool) -> dict[str, list[Mark]]:
        """Return the marks after a message of each role, with or without special tokens."""
        marks: dict[str, list[Mark]] = {}
        for (role, following), text in self._texts.items():
            shown = self._shown(text, whole)
            if not shown.strip() and role in ("system", "user"):
                continue  # the prompt then stays in one piece
            if not shown.strip():
                what = "its chat template separates turns by special tokens, which the text lacks"
                raise InputError(self._template.name, what, "write the text with special tokens")
            if role == "assistant" and following == "tool":
                # A result appended to sampled text may lack the space before it.
                end = re.escape(self._end) if whole else ""
                rest = shown.removeprefix(self._end if whole else "").lstrip()
                pattern = rf"{end}\s*{re.escape(rest)}"
            else:
                pattern = re.escape(shown)
            pattern = _IDS.sub(r"\\w+", pattern)
            marks.setdefault(role, []).append(Mark(following, re.compile(pattern)))
        return marks

    def _shown(self, text: str, whole: bool) -> str:
        return text if whole else self._special.sub("", text)

    def _before(self, messages: list[Message]) -> tuple[str, str]:
        """Return the role of the first message, and the template's text before it."""
        text = self._template.render([*messages, *_TALK], [], prompt=False)
        return messages[0]["role"], text.partition(messages[0]["content"])[0]

    def _between(self) -> Iterator[tuple[tuple[str, str], str]]:
        """Yield each pair of roles that may follow each other, and the text between them."""
        talk = self._template.render([_SYSTEM, _USER, *_TALK], [], prompt=False)
        yield ("system", "user"), _part(talk, "zqsystem", "zquser")
        yield ("user", "assistant"), _part(talk, "zquser", "zqsaid")
        yield ("assistant", "user"), _part(talk, "zqsaid", "zqmore")
        called = self._template.render([_USER, *_calls(1), *_TALK], [_TOOL], prompt=False)
        # The end of a call belongs to the call; the end token ends the message.
        _, end, rest = _part(called, "zqvalue0", "zqresult0").partition(self._end)
        yield ("assistant", "tool"), end + rest
        yield ("tool", "assistant"), _part(called, "zqresult0", "zqsaid")
        twice = self._template.render([_USER, *_calls(2), *_TALK], [_TOOL], prompt=False)
        yield ("tool", "tool"), _part(twice, "zqresult0", "zqresult1")


def _bare(text: str) -> str:
    return _IDS.sub("", text)


def _part(text: str, first: str, second: str) -> str:
    return text.partition(first)[2].partition(second)[0]


def _calls(number: int) -> list[Message]:
    """Return a message of `number` calls, and their results."""
    calls = [
        {
            "id": f"callzq00{place}",
            "type": "function",
            "function": {"name": "zqtool", "arguments": f'{{"zqkey": "zqvalue{place}"}}'},
        }
        for place in range(number)
    ]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"zqresult{place}"}
        for place, call in enumerate(calls)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]
