"""Probes of a chat template: made-up conversations of words that occur nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from stages.messages.message import Message

Tools = Sequence[Mapping[str, Any]]
SYSTEM = ("system", "developer")


class Shape(NamedTuple):
    """The features of a conversation on which templates differ."""

    system: bool = True  # it begins with a system message
    greets: bool = False  # the assistant speaks before the user
    tools: bool = True
    calls: bool = True  # there are calls, or there may be

    @classmethod
    def of(cls, messages: Sequence[Message], tools: Tools) -> Shape:
        """Return the shape of a conversation."""
        roles = [message["role"] for message in messages]
        system = roles[:1] != [] and roles[0] in SYSTEM
        greets = roles[system : system + 1] == ["assistant"]
        calls = any(message.get("tool_calls") for message in messages)
        return cls(system, greets, bool(tools), bool(tools) or calls)


SAID = "zqanswer"


def _tool(word: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {f"{word}parameter": {"type": "string", "description": f"{word}meaning"}},
        "required": [f"{word}parameter"],
    }
    function = {"name": f"{word}tool", "description": f"{word}description"}
    return {"type": "function", "function": function | {"parameters": parameters}}


PROBE_TOOLS = [_tool("zq"), _tool("zz")]  # two, because a template may show only the first


def probes(shape: Shape) -> list[list[Message]]:
    """Return conversations of a shape: at the first turn, and at later ones."""
    opening: list[Message] = [{"role": "system", "content": "zqsystem"}] if shape.system else []
    if shape.greets:
        opening.append({"role": "assistant", "content": "zqgreeting"})
    opening.append({"role": "user", "content": "zquser"})
    answer = [{"role": "assistant", "content": SAID}, {"role": "user", "content": "zqmore"}]
    if not shape.calls:
        return [opening, opening + answer]
    first = _called(0, '{"zqparameter": "zqvalue"}')
    second = _called(2, '{"zqparameter": "zqother"}', "zqbroken")
    return [opening, opening + first, opening + first + answer + second, opening + answer]


def _called(number: int, *arguments: str) -> list[Message]:
    """Return a message of calls, and their results."""
    ids = [f"call_{number}_{place}" for place in range(len(arguments))]
    calls = [
        {"id": name, "type": "function", "function": {"name": "zqtool", "arguments": given}}
        for name, given in zip(ids, arguments, strict=True)
    ]
    results = [
        {"role": "tool", "tool_call_id": name, "content": f"zqresult{number}{place}"}
        for place, name in enumerate(ids)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def words(
    messages: Iterable[Message], tools: Tools, *, by_heart: bool
) -> Iterator[tuple[str, str]]:
    """Yield the words of a probe that a model must see, and the part that each belongs to.

    Args:
        messages: messages of the probe.
        tools: tools of the probe.
        by_heart: whether the model knows tools and instructions without seeing them.
    """
    if tools and not by_heart:
        for word, part in product(("zq", "zz"), ("tool", "description", "parameter")):
            yield word + part, "tools"
    for message in messages:
        role = message["role"]
        if message["content"] and not (by_heart and role in SYSTEM):
            yield message["content"], "results of tools" if role == "tool" else f"role '{role}'"
        for call in message.get("tool_calls") or ():
            yield call["function"]["name"], "calls"
            for word in ("zqvalue", "zqother", "zqbroken"):
                if word in call["function"]["arguments"]:
                    yield word, "the arguments of calls"
