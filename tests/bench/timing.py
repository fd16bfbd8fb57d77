"""Timing of the benches: medians of interleaved runs, so that all see the same noisy machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

RUNS = 7


class Row(NamedTuple):
    """One measurement: our time and a peer's, and the largest ratio that we want."""

    name: str
    peer: str
    ours_s: float
    peer_s: float
    at_most: float  # wanted ours / peer; below 1 it reads "at least 1 / at_most times faster"
    unit: str = "s"  # GB: memory instead of time, and "smaller" instead of "faster"

    @property
    def ratio(self) -> float:
        """Ours / peer."""
        return self.ours_s / self.peer_s


def medians(
    *calls: Callable[[], object], runs: int = RUNS, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Return the median seconds of each call; the calls alternate."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(runs):
        for call, kept in zip(calls, seconds, strict=True):
            begin = clock()
            call()
            kept.append(clock() - begin)
    return [statistics.median(kept) for kept in seconds]


def row(
    name: str,
    peer: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    at_most: float,
    runs: int = RUNS,
    clock: Callable[[], float] = time.perf_counter,
) -> Row:
    """Time ours and the peer's alternately."""
    ours_s, peer_s = medians(ours, theirs, runs=runs, clock=clock)
    return Row(name, peer, ours_s, peer_s, at_most)
