"""The events that a message of any form is read into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.traces.calls import Written


class Spoken(NamedTuple):
    """A message of the policy, or one item of it."""

    content: Any  # as recorded, or the text of its blocks
    calls: Sequence[Written] = ()
    n_tokens: Any = None
    stops_for_call: bool = False  # the recorded stop reason is a tool call
    item: str | None = None  # Responses API item, "call" or "message"; both may share a turn
    has_ids: bool = True  # the form has call ids
    legacy: bool = False  # the call is OpenAI's old `function_call`


class Heard(NamedTuple):
    """A message of the user, with the simulated user's own tool calls."""

    content: Any
    calls: Sequence[Written] = ()


class Result(NamedTuple):
    """The result of a tool call."""

    text: str
    id: str | None = None  # id of the call
    name: str | None = None  # name of the tool
    flag: bool | None = None  # True: the result's own flag marks a failure; None: no flag
    of_user: bool = False  # the call was made by the simulated user


Event = Spoken | Heard | Result


def shares_turn(item: str | None, last: str | None) -> bool:
    """Return whether a Responses API item belongs to the same response as the previous item.

    Args:
        item: the item, as in `Spoken`.
        last: the previous item of the policy; None if something else came before.
    """
    return last is not None if item == "call" else item == "message" and last == "call"
