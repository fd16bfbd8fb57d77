"""The scripted user: it follows a scenario with the sentences of a domain's phrase book.

A scenario is {"persona": ..., "requests": [{"want", "facts", "pressure"}, ...]}. The user opens
with what it wants and, depending on the persona, some of the facts. It gives the others when asked,
confirms, pushes back when refused, moves on to its next request, and ends with the stop marker.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, TypeVar

from stages.envs.env import STOP
from stages.messages.message import Message

T = TypeVar("T")
Facts = Mapping[str, str]

PERSONAS = ("cooperative", "terse", "rambling", "impatient", "manipulative")
PATIENCE = 2  # how often a user repeats its request before it gives up
END = re.compile(r"[.?!](?:\s+|$)")  # of a sentence


class Rng(Protocol):
    """The part of `random.Random` and `numpy.random.Generator` that we use."""

    def random(self) -> float:
        """Return a number in [0, 1)."""


def pick(rng: Rng, options: Sequence[T]) -> T:
    """Return one of the options; the same on every version of Python and numpy."""
    return options[int(rng.random() * len(options))]


@dataclass(frozen=True)
class PhraseBook:
    """The sentences of a domain, which users say and the expert reads.

    Attributes:
        sections: the phrases file: section -> act -> sentences; see data/airline-mini/phrases.yaml.
        patterns: for each fact, the regular expression of its values.
    """

    sections: Mapping[str, Any]
    patterns: Mapping[str, str]

    def say(self, section: str, act: str, rng: Rng, facts: Facts, short: bool = False) -> str:
        """Return one of the act's sentences, the last if `short`, with its end mark."""
        forms = self.sections[section][act]
        text: str = (forms[-1] if short else pick(rng, forms)).format_map(facts)
        return text if text.endswith("?") else text + "."

    def slots(self, act: str) -> list[str]:
        """Return the facts in the sentences of an act of section `facts`: its own, or several."""
        return self._slots[act]

    def read(self, text: str) -> list[tuple[str, str, dict[str, str]]]:
        """Return (section, act, facts) of each sentence of a user, without unknown ones."""
        readings = map(self._read_sentence, END.split(text))
        return [reading for reading in readings if reading is not None]

    @cached_property
    def _slots(self) -> dict[str, list[str]]:
        forms = self.sections["facts"]
        return {act: re.findall(r"\{(\w+)\}", forms[act][0]) for act in forms}

    @cached_property
    def _read_sentence(self) -> Callable[[str], tuple[str, str, dict[str, str]] | None]:
        @functools.lru_cache(maxsize=10_000)
        def read(sentence: str) -> tuple[str, str, dict[str, str]] | None:
            for section, act, pattern in self._readers:
                if match := pattern.fullmatch(sentence):
                    return section, act, match.groupdict()
            return None

        return read

    @cached_property
    def _readers(self) -> list[tuple[str, str, re.Pattern[str]]]:
        return [
            (section, act, re.compile(self._pattern(form)))
            for section in ("wants", "facts", "pressure", "talk")
            for act, forms in self.sections[section].items()
            for form in forms
        ]

    def _pattern(self, form: str) -> str:
        """Return the regular expression of a sentence, with a group for each fact."""
        parts = re.split(r"\{(\w+)\}", form.rstrip("?"))
        texts, slots = parts[::2], parts[1::2]
        groups = [f"(?P<{slot}>{self.patterns[slot]})" for slot in slots] + [""]
        return "".join(re.escape(text) + group for text, group in zip(texts, groups, strict=True))


class ScriptedUser:
    """A user of one episode; see the module's text."""

    def __init__(self, scenario: Mapping[str, Any], phrases: PhraseBook, rng: Rng) -> None:
        self._persona: str = scenario["persona"]
        self._requests: list[Mapping[str, Any]] = list(scenario["requests"])
        self._phrases = phrases
        self._rng = rng
        self._told: set[str] = set()  # acts of the section `facts` given for this request
        self._pushes: list[str] = []  # remaining acts of pressure
        self._patience = PATIENCE

    def open(self) -> str:
        """Return the first message."""
        return " ".join([*self._greeting(), *self._request()])

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        """Answer the agent's text; STOP when there is nothing left to say."""
        heard = agent.lower()
        hears = self._phrases.sections["hears"]
        asked = [act for act, words in hears["facts"].items() if _any_of(words, heard)]
        if asked and "?" in heard:
            return " ".join(self._answers(asked))
        if _any_of(hears["confirm"], heard):
            return self._talk("confirm")
        if _any_of(hears["refused"], heard):
            if self._pushes:
                return self._phrases.say("pressure", self._pushes.pop(0), self._rng, {})
            return " ".join([self._talk("accept"), *self._next()])
        if _any_of(hears["finished"], heard):
            return " ".join(self._next())
        return " ".join(self._again())

    def _greeting(self) -> list[str]:
        match self._persona:
            case "rambling":
                return [self._talk("hello"), self._talk("ramble")]
            case "impatient":
                return [self._talk("hurry")]
            case "manipulative":
                return [self._phrases.say("pressure", "flatter", self._rng, {})]
            case "cooperative":
                return [self._talk("hello")]
            case _:
                return []

    def _request(self) -> list[str]:
        """Open the next request, with the facts that this persona gives unasked."""
        request = self._requests[0]
        self._pushes = list(request["pressure"])
        known = self._known()
        self._told &= {"user_id"}  # the agent knows it from the request before
        unasked = {"terse": 0.0, "rambling": 0.4, "manipulative": 0.5, "cooperative": 0.7}
        share = unasked.get(self._persona, 1.0)
        chosen = [act for act in known if act not in self._told and self._rng.random() < share]
        return [self._phrases.say("wants", request["want"], self._rng, {}), *self._tell(chosen)]

    def _known(self) -> list[str]:
        """Return the acts of `facts` that this request can fill."""
        facts = self._requests[0]["facts"]
        acts = self._phrases.sections["facts"]
        return [act for act in acts if all(slot in facts for slot in self._phrases.slots(act))]

    def _tell(self, acts: Iterable[str]) -> list[str]:
        facts = self._requests[0]["facts"]
        acts = list(acts)
        self._told |= set(acts)
        short = self._persona in ("terse", "impatient")
        return [self._phrases.say("facts", act, self._rng, facts, short) for act in acts]

    def _answers(self, asked: list[str]) -> list[str]:
        known = [act for act in asked if act in self._known()]
        if not known:
            return [self._talk("unknown")]
        ramble = self._persona == "rambling" and self._rng.random() < 0.3
        return [*([self._talk("ramble")] if ramble else []), *self._tell(known)]

    def _next(self) -> list[str]:
        """Move on to the next request, or end."""
        del self._requests[:1]
        self._patience = PATIENCE
        if not self._requests:
            return [self._talk("bye"), STOP]
        return [self._talk("next"), *self._request()]

    def _again(self) -> list[str]:
        """Repeat the request with all facts, until patience ends."""
        self._patience -= 1
        if self._patience < 0:
            return [STOP]
        request = self._requests[0]
        want = self._phrases.say("wants", request["want"], self._rng, {})
        return [self._talk("confused"), want, *self._tell(self._known())]

    def _talk(self, act: str) -> str:
        return self._phrases.say("talk", act, self._rng, {})


def _any_of(words: Sequence[str], text: str) -> bool:
    return any(word in text for word in words)
