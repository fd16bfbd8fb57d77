"""Mistakes that models make, and that a noisy expert makes on purpose."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from stages.envs.airline_mini import names
from stages.envs.airline_mini.database import Record
from stages.envs.airline_mini.plans import HAND_OFF, CallTool, Step, Tell, next_step
from stages.envs.airline_mini.tools import TOOLS
from stages.envs.airline_mini.transcript import Transcript, written
from stages.envs.users import Rng, pick
from stages.messages.message import Message

# Pools of the pieces of ids and names; a piece belongs to the first pool that holds it.
POOLS: tuple[tuple[str, ...], ...] = (
    *(tuple(names.METHODS), names.CABINS, names.DEPARTURES, names.CITIES, names.MONTHS),
    *(names.FLEET, names.LEFT, names.RIGHT, names.FIRST, names.LAST, names.NUMBERS, names.DAYS),
)
IDS = re.compile("|".join(names.FACTS[fact] for fact in ("user_id", "reservation", "flight")))


def slip(step: Step, messages: Sequence[Message], rng: Rng) -> Message:
    """Return a wrong or needless message in place of the right step.

    Args:
        step: the right step.
        messages: messages so far.
        rng: random generator that picks a mistake which applies to the step.
    """
    weighted = [make for weight, make in MISTAKES for _ in range(weight)]
    while True:
        message = pick(rng, weighted)(step, messages, rng)
        if message is not None:
            return message


def _wrong_piece(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Replace a value, or a piece of an id, in a call or an answer."""
    number = len(messages)
    if isinstance(step, CallTool) and step.arguments and not _hands_off(step):
        return written(replace(step, arguments=_distorted(step.arguments, rng)), number)
    if isinstance(step, Tell) and step.values:
        wrong = tuple(_other(value, rng) for value in step.values)
        return written(replace(step, values=wrong), number)
    return None


def _skipped_read(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Act or answer without reading the flight's status, as if it were on time."""
    return _instead(step, Transcript(messages, hasty=True), messages)


def _gives_in(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Do what the policy forbids."""
    if step != Tell("refuse") and not _hands_off(step):
        return None
    return _instead(step, Transcript(messages, lenient=True, hasty=True), messages)


def _instead(step: Step, transcript: Transcript, messages: Sequence[Message]) -> Message | None:
    """Return the next step of a hasty or lenient agent, if it differs from the right one."""
    try:
        other = next_step(transcript.want, transcript)
    except KeyError:  # the step needs a fact of the flight that can't be assumed
        return None
    return None if other == step else written(other, len(messages))


def _refuses(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Refuse what is allowed."""
    if isinstance(step, Tell):
        return None
    return written(Tell("refuse"), len(messages))


def _hands_off_early(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    if _hands_off(step):
        return None
    return written(CallTool(HAND_OFF, {"summary": pick(rng, names.TOPICS)}), len(messages))


def _needless_read(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Read something that the request doesn't need."""
    seen = sorted({name for m in messages[1:] for name in IDS.findall(m["content"] or "")})
    reads = [CallTool("list_airports", {}), *filter(None, map(_read_of, seen))]
    return written(pick(rng, reads), len(messages))


def _repeated_read(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Read once more what a tool has shown already."""
    calls = [m["tool_calls"][0] for m in messages if m.get("tool_calls")]
    reads = [c["function"] for c in calls if TOOLS[c["function"]["name"]].kind == "read"]
    if not reads:
        return None
    call = {"id": f"call_{len(messages)}", "type": "function", "function": pick(rng, reads)}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _broken_json(step: Step, messages: Sequence[Message], rng: Rng) -> Message | None:
    """Write arguments that can't be parsed."""
    if not isinstance(step, CallTool):
        return None
    message = written(step, len(messages))
    function = message["tool_calls"][0]["function"]
    whole = function["arguments"]
    function["arguments"] = pick(rng, (whole[:-1], whole[:-2], whole + "}"))
    return message


# Weights of the mistakes; one that doesn't apply to the step is redrawn.
MISTAKES: tuple[tuple[int, Callable[[Step, Sequence[Message], Rng], Message | None]], ...] = (
    (4, _wrong_piece),
    (3, _skipped_read),
    (4, _gives_in),
    (1, _refuses),
    (1, _hands_off_early),
    (2, _needless_read),
    (1, _repeated_read),
    (1, _broken_json),
)


def _hands_off(step: Step) -> bool:
    return isinstance(step, CallTool) and step.name == HAND_OFF


def _read_of(name: str) -> CallTool | None:
    """Return the call that reads the record of an id."""
    for fact, tool in (
        ("user_id", "get_user"),
        ("reservation", "get_reservation"),
        ("flight", "get_flight_status"),
    ):
        if re.fullmatch(names.FACTS[fact], name):
            return CallTool(tool, {next(iter(TOOLS[tool].parameters["properties"])): name})
    return None


def _distorted(arguments: Record, rng: Rng) -> Record:
    """Return arguments with one wrong value."""
    key = pick(rng, list(arguments))
    return arguments | {key: _wrong(arguments[key], rng)}


def _wrong(value: object, rng: Rng) -> object:
    if isinstance(value, int):
        return value + 1 if value < 10 else value + 50
    if isinstance(value, list):
        return [_distorted(value[0], rng), *value[1:]]
    return _other(str(value), rng)


def _other(value: str, rng: Rng) -> str:
    """Return an id, name or number with one piece replaced by another of its kind."""
    pieces = re.split(r"([-_ ])", value)
    place = 2 * int(rng.random() * ((len(pieces) + 1) // 2))
    pool = next((pool for pool in POOLS if pieces[place] in pool), names.NUMBERS)
    pieces[place] = pick(rng, [piece for piece in pool if piece != pieces[place]])
    return "".join(pieces)
