"""One place where arguments differ."""

from __future__ import annotations

from typing import Any, NamedTuple


class Difference(NamedTuple):
    """One place where arguments differ."""

    path: str  # "$.flights[0].date", by the expected side's indices
    expected: Any  # None where the rule is "extra key" or "extra element"
    actual: Any  # None where the rule is "missing key" or "missing element"
    rule: str  # what decided


def at(path: str, key: str) -> str:
    """The path of a key's value.

    Args:
        path: of the object, from "$" on.
        key: of the value in it.

    Returns:
        The path of the value, such as "$.flights[0].date".
    """
    return f"{path}.{key}" if str(key).isidentifier() else f"{path}[{key!r}]"
