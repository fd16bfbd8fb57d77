"""Formats of numbers and geometry of plots on the page."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

PLOT = 216  # width of a forest row in pixels
BAR = 110  # width of a bar in pixels
STATES = {
    "passed": ("\u25cf", "passed"),
    "failed": ("\u2715", "failed"),
    "truncated": ("\u25e9", "cut by a limit"),
    "masked": ("\u25cc", "left out: crashed, or without an outcome"),
}
VERDICTS = {
    "aligned": ("\u2713", "pushed as its value intends"),
    "misaligned": ("\u2717", "pushed against its value"),
    "undecided": ("?", "too few tasks to say"),
    "neutral": ("\u00b7", "worth nothing, so no direction is intended"),
}


def signed(value: float | None, digits: int = 3) -> str:
    """Return a number with its sign, a dash if it is undefined; zero has no sign."""
    if value is None:
        return "\u2013"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text


def interval(low: float | None, high: float | None, digits: int = 2) -> str:
    """Return an interval in brackets, an empty text if it is undefined."""
    if low is None or high is None:
        return ""
    return f"[{low:+.{digits}f}, {high:+.{digits}f}]"


def small(value: float | None) -> str:
    """Return a probability as text."""
    if value is None:
        return "\u2013"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share in percent."""
    return "\u2013" if value is None else f"{value:.{digits}%}"


def count(value: int | None) -> str:
    """Return a whole number as text."""
    return "\u2013" if value is None else f"{value:,}"


def at(value: float, width: float = PLOT, reach: float = 1.0) -> float:
    """Return the position of a value on a line from -reach to reach, in pixels."""
    inside = min(max(value, -reach), reach)
    return round((inside + reach) / (2 * reach) * (width - 12) + 6, 1)


def reach_of(values: Iterable[float | None]) -> float:
    """Return a plot's scale: the largest magnitude, with a margin so that rounding draws no bar."""
    return max((abs(value) for value in values if value is not None), default=0.0) + 1e-3


def column(rows: Iterable[dict[str, Any]], *names: str) -> list[Any]:
    """Return the values of some columns, row by row."""
    return [row[name] for row in rows for name in names]


def line(points: Iterable[tuple[float, float]]) -> str:
    """Return the points of a polyline."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def by_size(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tiers sorted by the magnitude of their value, largest first."""
    return sorted(rows, key=lambda row: (-abs(row["value"]), row["tier"]))


def values_of(rows: Iterable[dict[str, Any]]) -> dict[str, float]:
    """Return the value of each tier."""
    return {row["tier"]: row["value"] for row in rows}


FILTERS = {
    "by_size": by_size,
    "values_of": values_of,
    "signed": signed,
    "small": small,
    "percent": percent,
    "count": count,
}
GLOBALS: dict[str, Any] = {
    "interval": interval,
    "at": at,
    "reach_of": reach_of,
    "column": column,
    "line": line,
    "PLOT": PLOT,
    "BAR": BAR,
    "STATES": STATES,
    "VERDICTS": VERDICTS,
}
