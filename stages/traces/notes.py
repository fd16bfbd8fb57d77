"""Notes on what was read, as counts by text; some are only information, the others warn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from stages.tables.near import WITHOUT_TURN
from stages.traces.episode import Episode

# Prefixes of notes that are only information: what they count was read exactly as recorded. Every
# other note counts what was repaired, guessed or left out, so a new note is never overlooked.
INFORMATION = (
    "call id used again after its result",
    "call of the user",
    "call read from text",
    "content in parts",
    # tau2-bench has defaults for these; older versions and other writers omit them.
    "gold action without 'compare_args'",
    "gold action without 'requestor'",
    "groups without advantages",
    "legacy function_call",
    "no recorded action checks",
    "no trial",  # trials are numbered in the order of the records
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
    """Return notes on the episodes that were left out, given their number by reason."""
    return Counter({f"{_LEFT_OUT}{reason}": count for reason, count in reasons.items() if count})


def why_left_out(status: str) -> str:
    """Return why statistics exclude episodes with a status in LEFT_OUT."""
    return MASKED if status == "masked" else CRASHED


def note_left_out(episode: Episode, notes: Counter[str], *, outcome: bool = False) -> None:
    """Note an episode that statistics exclude.

    Args:
        episode: an episode of any trace.
        notes: counts that the note is added to.
        outcome: whether the statistics need the outcome of the episode.
    """
    if not episode.counts:
        notes[f"{_LEFT_OUT}{why_left_out(episode.status)}"] += 1
    elif outcome and episode.outcome is None:
        notes[f"{_LEFT_OUT}{NO_OUTCOME}"] += 1


def why_none(notes: Mapping[str, int]) -> str:
    """Return why no episode counts, according to the notes; empty if there are no such notes."""
    reasons = [
        f"{count:,} {text.removeprefix(_LEFT_OUT)}"
        for text, count in notes.items()
        if text.startswith((_LEFT_OUT, WITHOUT_TURN))
    ]
    return f": {', '.join(reasons)}" if reasons else ""
