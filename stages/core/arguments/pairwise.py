"""Mode `deep` for a single pair, without the texts of the parts that are plainly equal."""

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
    """The canonical text, without rules, of what orjson read, unless a number may be rounded."""
    if has_rounded(value):
        raise RoundedError
    return text_of(value, NO_RULES)


def _same(one: Any, two: Any) -> bool:
    """Whether two values are `deep`-equal without rules; canonical texts decide what differs."""
    kind, other = type(one), type(two)
    if kind is other:
        if kind is str:
            return _same_text(one, two)
        if kind is dict:
            return same_objects(one, two)
        if kind is list:
            return len(one) == len(two) and _same_bags(_out_of_place(one, two))
        if kind is int or kind is bool or one is None:
            return bool(one == two)
    elif kind is int and other is str and -EXACT < one < EXACT:
        if str(one) == two:
            return True
    elif kind is str and other is int and -EXACT < two < EXACT and one == str(two):
        return True
    return _form_as_read(one) == _form_as_read(two)


def may_open(value: Any) -> bool:
    """Whether a value may be a string that holds the JSON of an object or a list."""
    return type(value) is str and value.lstrip()[:1] in OPENING


def _same_text(one: str, two: str) -> bool:
    if one.isdigit() and two.isdigit():
        return one == two  # distinct digits: distinct numbers, or with leading zeros distinct ids
    if may_open(one) or may_open(two):
        return string_text(one, NO_RULES, None) == string_text(two, NO_RULES, None)
    one, two = one.casefold(), two.casefold()
    if one == two:
        return True
    left, right = one.split(), two.split()
    if left == right:
        return True
    if len(left) != 1 or len(right) != 1 or left[0][0] not in NUMERIC:
        return False
    if not plain_decimal(left[0]) or not plain_decimal(right[0]):
        return False
    return string_text(one, NO_RULES, None) == string_text(two, NO_RULES, None)


def _out_of_place(one: list[Any], two: list[Any]) -> list[tuple[Any, Any]]:
    """Elements of lists of equal length that differ from the one at the same position."""
    pairs = []
    for i, item in enumerate(one):
        other = two[i]
        if not (type(item) is str and item == other) and not _same(item, other):
            pairs.append((item, other))
    return pairs


def _same_bags(pairs: list[tuple[Any, Any]]) -> bool:
    """Whether the left sides, in some order, are the right sides, when no pair is equal."""
    if len(pairs) < 2:
        return not pairs
    left = sorted([_form_as_read(item) for item, _ in pairs])
    return left == sorted([_form_as_read(item) for _, item in pairs])


def same_objects(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two objects are `deep`-equal without rules.

    Raises:
        RoundedError: a number may have been rounded while reading.
    """
    may_miss = len(one) != len(two)  # `two` may have keys that `one` lacks
    reordered = False  # lists that may only be reordered together
    for key, item in one.items():
        other: Any = two.get(key)  # a missing key is null
        kind = type(item)
        if (kind is str and item == other) or (item is other is not None):
            continue
        if may_open(item) or may_open(other):
            return _form_as_read(one) == _form_as_read(two)
        if kind is list and type(other) is list:
            if len(item) != len(other):
                return False
            pairs = _out_of_place(item, other)
            if len(pairs) > 1 and (str(key)[:4] == "new_" or f"new_{key}" in one):
                reordered = True
            elif not _same_bags(pairs):
                return False
        elif not _same(item, other) and (
            kind is type(other) or not (is_empty(item, NO_RULES) and is_empty(other, NO_RULES))
        ):
            return False
        may_miss |= other is None
    if may_miss:
        for key, other in two.items():
            if key not in one and not is_empty(other, NO_RULES):
                return False
    return not reordered or _same_lists(_lists(one), _lists(two))


def _lists(value: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: part for key, item in value.items() if type(part := opened(item)) is list}


def _same_lists(one: dict[str, list[Any]], two: dict[str, list[Any]]) -> bool:
    """Whether two objects' lists are equal where some may only be reordered together."""
    kinds = {type(item) for side in (one, two) for items in side.values() for item in items}
    if one.keys() == two.keys() and kinds == {str}:
        left, right = (
            zip_longest(*[side[key] for key in one], fillvalue="") for side in (one, two)
        )
        if sorted(left) == sorted(right):
            return True  # all moved together, as they are
    return _form_as_read(one) == _form_as_read(two)


def equal_texts(expected: str, actual: str) -> bool:
    """Whether two argument texts are `deep`-equal without rules: the fast path for a single pair.

    The verdict of `equal` on what `parse_arguments` reads; a text that is unparseable equals none.

    Raises:
        InputError: a text is nested too deep.
    """
    try:
        one = orjson.loads(expected)
        two = one if expected == actual else orjson.loads(actual)
        if type(one) is dict and type(two) is dict:
            return one is two or same_objects(one, two)
    except (ValueError, RecursionError, RoundedError):
        pass
    left, right = parse_arguments(expected), parse_arguments(actual)
    return left.readable and right.readable and canonical(left.value) == canonical(right.value)
