"""Equality without interpretation: modes `exact` and `tau2`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def exactly_equal(first: object, second: object) -> bool:
    """Return whether values are equal as parsed: 1 equals 1.0 but not true, and NaN equals NaN.

    Args:
        first: any JSON value.
        second: another one.

    Returns:
        True if they are equal; the order of keys does not count, the order of lists does.
    """
    queue: list[tuple[Any, Any]] = [(first, second)]
    for left, right in queue:  # the loop extends the queue
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
    """Return whether values are equal by Python's `==`, where true equals 1.

    Args:
        first: any JSON value.
        second: another one.

    Returns:
        True if they are equal or the same object.
    """
    return first is second or bool(first == second)  # as Python's containers compare elements


def tau2_sides(
    expected: object, actual: object, compare_args: Sequence[str] | None
) -> tuple[object, object]:
    """Return the two values that tau2-bench compares with plain `==`.

    Args:
        expected: the gold action's arguments.
        actual: the call's arguments.
        compare_args: keys to compare. None: the keys of the call; []: none.

    Returns:
        Both sides, cut to these keys if both are objects; two empty objects for [].

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
