"""Records of a trace format with something else in one place."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

JUNK: tuple[Any, ...] = (None, -1, 1.5, "x", [], {}, [1], [[]], [{}], {"id": []}, True)

Place = tuple[Any, ...]


def broken(record: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """The record with a value of any kind in any one of its places."""
    places = list(_places(record))
    return st.builds(_put, st.just(record), st.sampled_from(places), st.sampled_from(JUNK))


def _places(value: Any, place: Place = ()) -> Iterator[Place]:
    if place:
        yield place
    inner: Any = ()
    if isinstance(value, (dict, list)):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, part in inner:
        yield from _places(part, (*place, key))


def _put(record: dict[str, Any], place: Place, junk: Any) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = copy.deepcopy(junk)
    return changed
