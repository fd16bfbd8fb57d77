"""The desk of the expert policy: it answers a plan from the transcript of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from stages.envs.airline_mini import phrase_book
from stages.envs.airline_mini.plans import Ask, CallTool, Desk, NextStep, Propose, Step, Tell
from stages.envs.airline_mini.tools import TOOLS
from stages.messages.message import Message

Key = tuple[str, bytes]  # of a call: the tool, and its arguments as JSON

# What a hasty agent assumes.
USUAL = {"get_flight_status": {"status": "scheduled"}}


class Transcript(Desk):
    """Reads the customer's latest request, and the progress on it, from the messages.

    Attributes:
        want: what the customer wants, an act of the phrase book; "" if that is not understood.
        hasty: whether it assumes the usual instead of reading, and acts without confirmation.
    """

    def __init__(
        self,
        messages: Sequence[Message],
        lenient: bool = False,
        hasty: bool = False,
    ) -> None:
        self.want = ""
        self.lenient = lenient
        self.hasty = hasty
        self._phrases = phrase_book()
        self._facts: dict[str, str] = {}
        self._results: dict[Key, str] = {}  # also of earlier requests, until one of them writes
        self._confirmed = False
        calls: dict[str, Mapping[str, str]] = {}
        for message in messages:
            calls |= {call["id"]: call["function"] for call in message.get("tool_calls") or ()}
            if message["role"] == "user":
                self._hear(message["content"])
            elif message["role"] == "tool":
                self._note(calls[message["tool_call_id"]], message["content"])

    def ask(self, *facts: str) -> list[str]:
        """Return the customer's answers."""
        slots = {fact: self._phrases.slots(fact) for fact in facts}
        missing = [fact for fact in facts if not self._facts.keys() >= set(slots[fact])]
        if missing:
            raise NextStep(Ask(tuple(missing)))
        return [self._facts[slot] for fact in facts for slot in slots[fact]]

    def look(self, name: str, **arguments: Any) -> Any:
        """Return the result of an earlier read."""
        result = self._results.get((name, _canonical(arguments)))
        if result is None and self.hasty and name in USUAL:
            return USUAL[name]
        if result is None:
            raise NextStep(CallTool(name, arguments))
        if result.startswith("Error"):
            raise NextStep(Tell("refuse"))
        return orjson.loads(result)

    def act(self, name: str, **arguments: Any) -> Step:
        """Return the proposal of a write, then its call, then the report."""
        result = self._results.get((name, _canonical(arguments)))
        if result is not None:
            return Tell("refuse" if result.startswith("Error") else "done")
        call = CallTool(name, arguments)
        return call if self._confirmed or self.hasty else Propose(call)

    def _hear(self, text: str) -> None:
        for section, act, facts in self._phrases.read(text):
            if (section, act) == ("talk", "next"):
                self.want = ""
            if section == "wants" and self.want != act:  # otherwise the customer repeats it
                self.want, self._confirmed = act, False
                self._facts = {key: self._facts[key] for key in self._facts if key == "user_id"}
                if not all(map(_reads, self._results)):
                    self._results = {}  # a write has made them stale
            self._facts |= facts
            self._confirmed |= (section, act) == ("talk", "confirm")

    def _note(self, function: Mapping[str, str], result: str) -> None:
        try:
            key = (function["name"], _canonical(orjson.loads(function["arguments"])))
        except orjson.JSONDecodeError:  # broken by a slip
            return
        self._results[key] = result


def written(step: Step, number: int) -> Message:
    """Return a step as an assistant message; `number` makes the id of its call."""
    if isinstance(step, CallTool):
        function = {"name": step.name, "arguments": orjson.dumps(step.arguments).decode()}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    return {"role": "assistant", "content": _text(step)}


def _text(step: Ask | Propose | Tell) -> str:
    says = phrase_book().sections["agent"]
    match step:
        case Ask():
            return " ".join(says["ask"][fact] for fact in step.facts)
        case Propose():
            sentence = says["propose"][step.call.name].format_map(step.call.arguments)
            return f"{sentence}. {says['confirm']}"
        case Tell():
            sentence = says["tell"].get(step.act) or says[step.act]
            return f"{sentence.format(*step.values)}. {says['else']}"


def _canonical(arguments: Any) -> bytes:
    return orjson.dumps(arguments, option=orjson.OPT_SORT_KEYS)


def _reads(key: Key) -> bool:
    return key[0] not in TOOLS or TOOLS[key[0]].kind != "write"
