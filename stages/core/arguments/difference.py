"""A single difference between arguments, and its path."""

from __future__ import annotations

from typing import Any, NamedTuple


class Difference(NamedTuple):
    """A place where arguments differ."""

    path: str  # for example "$.flights[0].date", with the expected side's indices
    expected: Any  # None if the rule is "extra key" or "extra element"
    actual: Any  # None if the rule is "missing key" or "missing element"
    rule: str  # the rule by which they differ


def at(path: str, key: str) -> str:
    """Return the path of a value in an object.

    Args:
        path: path of the object; "$" is the root.
        key: key of the value.

    Returns:
        The path of the value, for example "$.flights[0].date".
    """
    return f"{path}.{key}" if str(key).isidentifier() else f"{path}[{key!r}]"
