"""What one message says: the events that a message of any form is read into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from stages.traces.calls import Written


class Spoken(NamedTuple):
    """What the policy said, or a part of it."""

    content: Any  # as recorded, or the text of its blocks
    calls: Sequence[Written] = ()
    n_tokens: Any = None
    stops_for_call: bool = False  # the recorded reason to stop is a call
    item: str | None = None  # of the Responses API: "call" and "message" may share a turn
    has_ids: bool = True  # the form gives calls ids
    legacy: bool = False  # the call was OpenAI's old `function_call`


class Heard(NamedTuple):
    """What the user said, and the calls of a simulated user's own tools."""

    content: Any
    calls: Sequence[Written] = ()


class Result(NamedTuple):
    """What a tool answered."""

    text: str
    id: str | None = None
    name: str | None = None  # of the tool
    flag: bool | None = None  # failed, by its own flag; None: it has none
    of_user: bool = False  # the answer to a call of the simulated user


Event = Spoken | Heard | Result
