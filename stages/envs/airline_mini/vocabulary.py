"""Every piece of text that an episode can hold, for a word-level tokenizer.

A text is cut into the longest pieces from left to right, never within a word or number. Pieces of
ids, names, numbers and choices have no space, so that they are the same in a sentence and in JSON.
Other words include the space before them. The JSON syntax between two values is one piece.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Iterator
from typing import Any

import orjson

from stages.envs.airline_mini import names
from stages.envs.airline_mini.database import Database
from stages.envs.airline_mini.env import airline_mini, phrase_book
from stages.envs.airline_mini.tools import TOOLS, call_tool

WORD = re.compile(r" ?[A-Za-z_']+:?| \+ ")
SLOT = re.compile(r"\{\w+\}")
SCAFFOLD = re.compile(r'(?:[{}\[\],"]|[a-z_]+":)+')  # of JSON, between two values
# The words of all errors that tools answer with.
ERRORS = (
    "Error: unknown tool. Error: arguments are not json. Error: conversation is over. "
    "Error: arguments must be object. Error: unknown key in arguments. Error: flight is missing. "
    "Error: bags must be integer. Error: passengers must be array. Error: first must be string. "
    "Error: passengers has a wrong number of entries. Error: amount is out of range. "
    "Error: unknown cabin. Error: last is not readable. Error: user not found. "
    "Error: reservation not found. Error: flight not found. Error: reservation is cancelled. "
    "Error: nothing to change. Error: flight is not on offer. Error: not enough seats. "
    "Error: payment not found. Error: not enough balance. Error: too many paid_bags. "
    "Error: number of passengers can't change. Error: too many certificates. Error: not a sum. "
    "Error: no reservation left."
)


@functools.cache
def vocabulary() -> dict[str, list[str]]:
    """Return the pieces by class; no piece is in two classes, and any ASCII text can be cut."""
    pieces = {
        "first": list(names.FIRST),
        "last": list(names.LAST),
        "user_last": [f"_{last}_" for last in names.LAST],
        "reservation_left": list(names.LEFT),
        "reservation_right": [f"-{right}" for right in names.RIGHT],
        "flight": [f"{fleet}-" for fleet in names.FLEET],
        "payment": [f"{kind}-" for kind in names.METHODS],
        "date": [f"{month}-" for month in names.MONTHS],
        "city": list(names.CITIES),
        "choice": _choices(),
        "number": _numbers(),
        "tool": list(TOOLS),
        "json": sorted(_scaffolds()),
        "word": sorted(set(_words())),
        "character": [*string.printable[:95], "\n"],
    }
    seen: set[str] = set()
    for group, of_group in pieces.items():
        pieces[group] = [piece for piece in of_group if piece not in seen]
        seen.update(of_group)
    return pieces


def _choices() -> list[str]:
    """Return the values of enumerations in results and arguments."""
    choices = (*names.CABINS, *names.DEPARTURES, "cheapest", *names.MEMBERS, *names.REASONS)
    states = ("scheduled", "delayed", "cancelled", "confirmed", "yes", "no")
    return [*choices, *states, *names.TOPICS]


def _numbers() -> list[str]:
    """Return the numbers that are one piece: days, counts, hours, and amounts in tens."""
    tables = airline_mini().tables
    hours = {record["hours"] for record in tables["reservations"].values()}
    return [str(number) for number in sorted({*range(40), *range(0, 1000, 10), *hours})]


def _scaffolds() -> Iterator[str]:
    """Yield the JSON syntax between the values of all gold calls and their results."""
    environment = airline_mini()
    scaffolds: set[str] = set()
    for split in ("train", "dev", "test"):
        for task in environment.tasks(split):
            database = Database(environment.tables)
            for action in task.gold_actions:
                scaffolds.update(SCAFFOLD.findall(orjson.dumps(action["arguments"]).decode()))
                result = call_tool(database, action["name"], action["arguments"])
                scaffolds.update(SCAFFOLD.findall(result))
    scaffolds.update(SCAFFOLD.findall(call_tool(Database(environment.tables), "list_airports", {})))
    yield from {*scaffolds, "{}"}


def _words() -> Iterator[str]:
    """Yield the words of all phrases and errors; those that open a message also without space."""
    choices = {*_choices(), *TOOLS}
    for sentence in [*_strings(_spoken()), *ERRORS.split(". "), *names.METHODS.values()]:
        for part in SLOT.split(sentence):
            yield from (f" {w.strip()}" for w in WORD.findall(part) if w.strip() not in choices)
        opening = WORD.match(sentence)
        if opening and opening[0] not in choices:
            yield opening[0]
    keys = {key for tool in TOOLS.values() for key in tool.parameters["properties"]}
    yield from (f" {key}" for key in sorted(keys - choices))
    yield from (" + ", ". ", "? ", "transferred")


def _spoken() -> list[Any]:
    sections = phrase_book().sections
    return [sections[name] for name in ("wants", "facts", "pressure", "talk", "agent")]


def _strings(value: Any) -> Iterator[str]:
    """Yield the texts in nested lists and dictionaries."""
    if isinstance(value, str):
        yield value
    else:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)
