"""Choose the trial of a task to compare an episode with, and find where the two part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from stages.reporting.conversations import Track
from stages.reporting.tasks import FAILED, PASSED, TRUNCATED

MOST_COMPARED = 64  # most trials of each other state that an episode is compared with
_OF_ROW = ("episode_id", "group_id", "state")
OPPOSITE = {PASSED: (FAILED, TRUNCATED), FAILED: (PASSED,), TRUNCATED: (PASSED,)}


class Parting(NamedTuple):
    """Where two trials of a task part; a place is (turn, call of the turn), None: no such call."""

    sibling: str
    shared: int  # equal calls before they part
    here: tuple[int, int] | None
    there: tuple[int, int] | None


def parting(sibling: str, own_track: Track, sibling_track: Track) -> Parting:
    """Return where an episode and a sibling part: at their first different call."""
    shared = 0
    for mine, other in zip(own_track, sibling_track, strict=False):
        if mine[2] != other[2]:
            break
        shared += 1
    here, there = (
        track[shared][:2] if shared < len(track) else None for track in (own_track, sibling_track)
    )
    return Parting(sibling, shared, here, there)


def partings(episodes: pl.DataFrame, tracks: Mapping[str, Track]) -> dict[str, Parting]:
    """Return for each episode the sibling of the other outcome that shares most calls with it.

    A sibling is of the same group or, if the group has none, of the same task.

    Args:
        episodes: result of `episode_rows`.
        tracks: tracks of the shown episodes.
    """
    best: dict[str, Parting] = {}
    for _, frame in episodes.group_by("task_id", maintain_order=True):
        rows = [row for row in frame.select(*_OF_ROW).iter_rows() if row[0] in tracks]
        by_state: dict[tuple[str | None, str], list[str]] = {}  # group None: the whole task
        for name, group, state in rows:
            for part in (group, None):
                by_state.setdefault((part, state), []).append(name)
        for name, group, state in rows:
            opposite = OPPOSITE.get(state, ())
            others = [by_state.get((group, other), []) for other in opposite]
            if not any(others):
                others = [by_state.get((None, other), []) for other in opposite]
            close = [other for names in others for other in names[:MOST_COMPARED]]
            if furthest := _furthest(name, close, tracks):
                best[name] = furthest
    return best


def _furthest(name: str, others: Sequence[str], tracks: Mapping[str, Track]) -> Parting | None:
    met = [parting(other, tracks[name], tracks[other]) for other in others]
    return max(met, key=lambda met_at: met_at.shared, default=None)


def as_row(parting_point: Parting) -> dict[str, Any]:
    """Return a parting as plain values."""
    return {
        "sibling": parting_point.sibling,
        "shared": parting_point.shared,
        "here": list(parting_point.here) if parting_point.here else None,
        "there": list(parting_point.there) if parting_point.there else None,
    }
