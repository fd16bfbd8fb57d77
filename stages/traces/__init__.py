"""Traces of every known format, read into episodes."""

from __future__ import annotations

from stages.traces.detect import Trace, open_trace
from stages.traces.episode import Call, Episode, GoldAction, Turn

__all__ = ["Call", "Episode", "GoldAction", "Trace", "Turn", "open_trace"]
