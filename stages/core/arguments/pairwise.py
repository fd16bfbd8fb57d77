"""Mode `deep` for a single pair, without canonical texts for parts that are plainly equal."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import orjson

from stages.core.arguments.canonical import (
    NO_RULES,
    NUMERIC,
    OPENING,
    canonical,
    is_empty,
    plain_decimal,
    string_text,
    text_of,
)
from stages.core.arguments.reading import EXACT, has_rounded, opened, parse_arguments


class RoundedError(Exception):
    """A float that may have been rounded while reading: compare the texts by their digits."""


def _form_as_read(value: object) -> str:
    """Return the canonical text, without rules, of a value read by orjson.

    Raises:
        RoundedError: a number may have been rounded while reading.
    """
    if has_rounded(value):
        raise RoundedError
    return text_of(value, NO_RULES)


def _same(first: Any, second: Any) -> bool:
    """Return whether two values are `deep`-equal without rules.

    The shortcuts only decide plain cases; the canonical texts decide the rest.
    """
    kind, other = type(first), type(second)
    if kind is other:
        if kind is str:
            return _same_text(first, second)
        if kind is dict:
            return same_objects(first, second)
        if kind is list:
            return len(first) == len(second) and _same_bags(_out_of_place(first, second))
        if kind is int or kind is bool or first is None:
            return bool(first == second)
    elif kind is int and other is str and -EXACT < first < EXACT:
        if str(first) == second:
            return True
    elif kind is str and other is int and -EXACT < second < EXACT and first == str(second):
        return True
    return _form_as_read(first) == _form_as_read(second)


def may_open(value: Any) -> bool:
    """Return whether a value may be a string that holds the JSON of an object or a list.

    Args:
        value: any JSON value.

    Returns:
        True for a string that starts like an object or a list, False for anything else.
    """
    return type(value) is str and value.lstrip()[:1] in OPENING


def _same_text(first: str, second: str) -> bool:
    if first.isdigit() and second.isdigit():
        # Different digits are different numbers or, with leading zeros, different ids.
        return first == second
    if may_open(first) or may_open(second):
        return string_text(first, NO_RULES, None) == string_text(second, NO_RULES, None)
    first, second = first.casefold(), second.casefold()
    if first == second:
        return True
    left, right = first.split(), second.split()
    if left == right:
        return True
    if len(left) != 1 or len(right) != 1 or left[0][0] not in NUMERIC:
        return False
    if not plain_decimal(left[0]) or not plain_decimal(right[0]):
        return False
    return string_text(first, NO_RULES, None) == string_text(second, NO_RULES, None)


def _out_of_place(first: list[Any], second: list[Any]) -> list[tuple[Any, Any]]:
    """Return the pairs at the same position that differ, for lists of equal length."""
    pairs = []
    for i, item in enumerate(first):
        other = second[i]
        if not (type(item) is str and item == other) and not _same(item, other):
            pairs.append((item, other))
    return pairs


def _same_bags(pairs: list[tuple[Any, Any]]) -> bool:
    """Return whether the left sides are a permutation of the right sides; no pair is equal."""
    if len(pairs) < 2:
        return not pairs
    left = sorted([_form_as_read(item) for item, _ in pairs])
    return left == sorted([_form_as_read(item) for _, item in pairs])


def same_objects(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Return whether two objects are `deep`-equal without rules.

    Args:
        first: an object as orjson reads it.
        second: another one.

    Returns:
        Whether their `canonical` texts are equal.

    Raises:
        RoundedError: a number may have been rounded while reading.
    """
    may_miss = len(first) != len(second)  # `second` may have keys that `first` lacks
    reordered = False  # lists that may only be reordered together
    for key, item in first.items():
        other: Any = second.get(key)  # a missing key is null
        kind = type(item)
        if (kind is str and item == other) or (item is other is not None):
            continue
        if may_open(item) or may_open(other):
            return _form_as_read(first) == _form_as_read(second)
        if kind is list and type(other) is list:
            if len(item) != len(other):
                return False
            pairs = _out_of_place(item, other)
            if len(pairs) > 1 and (str(key)[:4] == "new_" or f"new_{key}" in first):
                reordered = True
            elif not _same_bags(pairs):
                return False
        elif not _same(item, other) and (
            kind is type(other) or not (is_empty(item, NO_RULES) and is_empty(other, NO_RULES))
        ):
            return False
        may_miss |= other is None
    if may_miss:
        for key, other in second.items():
            if key not in first and not is_empty(other, NO_RULES):
                return False
    return not reordered or _same_lists(_lists(first), _lists(second))


def _lists(value: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: part for key, item in value.items() if type(part := opened(item)) is list}


def _same_lists(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> bool:
    """Return whether two objects' lists are equal if some may only be reordered together."""
    kinds = {type(item) for side in (first, second) for items in side.values() for item in items}
    if first.keys() == second.keys() and kinds == {str}:
        left, right = (
            zip_longest(*[side[key] for key in first], fillvalue="") for side in (first, second)
        )
        if sorted(left) == sorted(right):
            return True  # all lists are permuted alike
    return _form_as_read(first) == _form_as_read(second)


def equal_texts(expected: str, actual: str) -> bool:
    """Return whether two argument texts are `deep`-equal without rules, fast for a single pair.

    The verdict is that of `equal` on the results of `parse_arguments`. An unparseable text equals
    no other text.

    Args:
        expected: JSON text of the gold action's arguments.
        actual: JSON text of the call's arguments.

    Returns:
        True where both are readable and mean the same.

    Raises:
        InputError: a text is nested too deep.
    """
    try:
        first = orjson.loads(expected)
        second = first if expected == actual else orjson.loads(actual)
        if type(first) is dict and type(second) is dict:
            return first is second or same_objects(first, second)
    except (ValueError, RecursionError, RoundedError):
        pass
    left, right = parse_arguments(expected), parse_arguments(actual)
    return left.readable and right.readable and canonical(left.value) == canonical(right.value)
