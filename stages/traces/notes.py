"""Notes on what was read: counts by text, and which of them are more than information."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stages.tables.near import WITHOUT_TURN
from stages.traces.episode import Episode

# How notes open that only inform: what they count was read exactly as it was recorded. Every other
# note counts what was repaired, guessed or left out, so that a new one is never overlooked.
INFORMATION = (
    "call id used again after its result",
    "call of the user",
    "call read from text",
    "content in parts",
    # tau2-bench's own defaults; older versions and other writers leave them out.
    "gold action without 'compare_args'",
    "gold action without 'requestor'",
    "groups without advantages",
    "legacy function_call",
    "no recorded action checks",
    "no trial",  # the order of the records numbers them
    "result without 'error'",
    "sequences sampled with top_p below 1",
    "task never run",
    "turn without text or calls",
)
CRASHED = "crashed or cut by infrastructure"
MASKED = "masked by the trace"
NO_OUTCOME = "no outcome"
GIVE_GOLD = "give them by --gold FILE, or name their field by --map gold_actions=PATH"
GIVE_OUTCOME = "rerun irc-cli score with --map outcome=PATH, or collect episodes that have one"
READ_AS_PYTHON, UNPARSEABLE = "arguments read as a Python literal", "arguments unparseable"
_LEFT_OUT = "left out, "


def serious(notes: Mapping[str, int]) -> dict[str, int]:
    """Return the notes on what was repaired, guessed or left out."""
    return {
        text: count for text, count in notes.items() if count and not text.startswith(INFORMATION)
    }


def left_out(reasons: Mapping[str, int]) -> Counter[str]:
    """Return notes on episodes that were left out, from their number by reason."""
    return Counter({f"{_LEFT_OUT}{reason}": count for reason, count in reasons.items() if count})


def why_left_out(status: str) -> str:
    """Return why no statistic counts episodes of a status that is among LEFT_OUT."""
    return MASKED if status == "masked" else CRASHED


def note_left_out(episode: Episode, notes: Counter[str], *, outcome: bool = False) -> None:
    """Note an episode that no figure counts.

    Args:
        episode: of any trace.
        notes: what is added to.
        outcome: whether figures need its outcome.
    """
    if not episode.counts:
        notes[f"{_LEFT_OUT}{why_left_out(episode.status)}"] += 1
    elif outcome and episode.outcome is None:
        notes[f"{_LEFT_OUT}{NO_OUTCOME}"] += 1


def why_none(notes: Mapping[str, int]) -> str:
    """Return why no episode counts, from what was noted; empty where nothing was."""
    reasons = [
        f"{count:,} {text.removeprefix(_LEFT_OUT)}"
        for text, count in notes.items()
        if text.startswith((_LEFT_OUT, WITHOUT_TURN))
    ]
    return f": {', '.join(reasons)}" if reasons else ""
