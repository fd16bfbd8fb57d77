"""Equality without interpretation: modes `exact` and `tau2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def exactly_equal(first: object, second: object) -> bool:
    """Whether values are equal as parsed: 1 is 1.0, but not true, and NaN is itself.

    Args:
        first: any JSON value.
        second: another.

    Returns:
        True where they are equal; the order of keys does not count, that of lists does.
    """
    queue: list[tuple[Any, Any]] = [(first, second)]
    for left, right in queue:  # grows as it is read
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            queue.extend((item, right[key]) for key, item in left.items())
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            queue.extend(zip(left, right, strict=True))
        elif isinstance(left, bool) or isinstance(right, bool):
            if left is not right:
                return False
        elif left != right and (left == left or right == right):  # NaN equals NaN
            return False
    return True


def plainly_equal(first: object, second: object) -> bool:
    """Whether values are equal by Python's `==`, where true is 1.

    Args:
        first: any JSON value.
        second: another.

    Returns:
        True where they are equal.
    """
    return first is second or bool(first == second)  # as containers compare what they hold


def tau2_sides(
    expected: object, actual: object, compare_args: Sequence[str] | None
) -> tuple[object, object]:
    """What tau2-bench holds against each other with plain `==`.

    Args:
        expected: the gold action's arguments.
        actual: the call's arguments.
        compare_args: keys to compare; None: those of the call, []: none.

    Returns:
        Both sides, cut to these keys where they are objects.

    Source: `Action.compare_with_tool_call` of sierra-research/tau2-bench.
    """
    if compare_args is not None and not compare_args:
        return {}, {}
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        return expected, actual
    keys = actual if compare_args is None else frozenset(compare_args)
    return (
        {key: item for key, item in expected.items() if key in keys},
        {key: item for key, item in actual.items() if key in keys},
    )
