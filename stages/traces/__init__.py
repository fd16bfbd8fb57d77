"""Read traces of every known format into episodes."""

from __future__ import annotations

from stages.traces.episode import Call, Episode, GoldAction, Turn
from stages.traces.opening import Trace, open_trace

__all__ = ["Call", "Episode", "GoldAction", "Trace", "Turn", "open_trace"]
