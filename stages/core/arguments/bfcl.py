"""Mode `bfcl`, after the checker of the Berkeley Function-Calling Leaderboard."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from stages.core.arguments.difference import Difference, at
from stages.core.arguments.plain import exactly_equal


def bfcl_answer(arguments: Mapping[str, object]) -> dict[str, list[Any]]:
    """Convert plain arguments to the leaderboard's answers: a list of allowed values per argument.

    The keys of an object, and of the objects in a list of objects, get their own lists. Objects
    inside those stay plain values, as in the leaderboard's checker.

    Args:
        arguments: plain arguments, by name.

    Returns:
        The allowed values of each argument, a single value each.

    Source: `ast_checker.py` of ShishirPatil/gorilla.
    """
    return {key: [_bfcl_allowed(value)] for key, value in arguments.items()}


def _bfcl_allowed(value: object) -> object:
    if isinstance(value, dict):
        return {key: [item] for key, item in value.items()}
    if isinstance(value, list) and _holds_objects(value):
        return [_bfcl_allowed(item) for item in value]
    return value


def _holds_objects(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(item, dict) for item in value)


def _standardise(value: object) -> object:
    """Normalise a string as the leaderboard does; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def bfcl_differences(expected: object, actual: object) -> list[Difference]:
    """Return where arguments differ in mode `bfcl`.

    The tool's schema is not known here, so a parameter has the types of its allowed values.

    Args:
        expected: the allowed values of each argument, as from `bfcl_answer`.
        actual: the call's arguments, as parsed.

    Returns:
        A difference for each argument that is missing, extra or not allowed.

    Source: `ast_checker.py` of ShishirPatil/gorilla.
    """
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        equal = exactly_equal(expected, actual)
        return [] if equal else [Difference("$", expected, actual, "different types")]
    differing = []
    for key in {**expected, **actual}:
        allowed = expected.get(key)
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if key not in expected:
            differing.append(Difference(at("$", key), None, actual[key], "extra key"))
        elif key not in actual:
            if "" not in allowed:  # "" marks the parameter as optional
                differing.append(Difference(at("$", key), allowed, None, "missing key"))
        elif not _bfcl_allows(allowed, actual[key]):
            differing.append(Difference(at("$", key), allowed, actual[key], "allowed values"))
    return differing


def _bfcl_allows(allowed: list[Any], value: Any) -> bool:
    kinds = {type(answer) for answer in allowed if answer != ""} or {str}
    if type(value) not in kinds and not (type(value) is int and float in kinds):
        return False
    if isinstance(value, dict):
        return any(_bfcl_object(answer, value) for answer in allowed if isinstance(answer, dict))
    if isinstance(value, list):
        return any(_bfcl_list(answer, value) for answer in allowed if isinstance(answer, list))
    return _standardise(value) in map(_standardise, allowed)


def _bfcl_list(answer: list[Any], value: list[Any]) -> bool:
    if len(answer) != len(value):
        return False
    if _holds_objects(value) and _holds_objects(answer):
        return all(map(_bfcl_object, answer, value))
    return all(
        type(left) is type(right) and _standardise(left) == _standardise(right)
        for left, right in zip(answer, value, strict=True)
    )


def _bfcl_object(answer: dict[str, Any], value: dict[str, Any]) -> bool:
    """Return whether an object is allowed; its values compare by plain equality, as upstream."""
    for key in {**answer, **value}:
        allowed = answer.get(key)
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if key not in answer or (key not in value and "" not in allowed):
            return False
        if key in value and _standardise(value[key]) not in map(_standardise, allowed):
            return False
    return True
