"""Equality of arguments in every mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from stages.core.arguments.bfcl import bfcl_differences
from stages.core.arguments.canonical import NO_RULES, ToolRules, prepare, text_of
from stages.core.arguments.depth import at_any_depth
from stages.core.arguments.pairwise import RoundedError, same_objects
from stages.core.arguments.plain import exactly_equal, plainly_equal, tau2_sides

Mode = Literal["exact", "deep", "tau2", "bfcl"]
MODES: tuple[Mode, ...] = ("exact", "deep", "tau2", "bfcl")


@at_any_depth
def equal(
    expected: object,
    actual: object,
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
    compare_args: Sequence[str] | None = None,
) -> bool:
    """Return whether a call's arguments equal the expected ones, both as parsed.

    Args:
        expected: the gold action's arguments; for `bfcl` a list of allowed values for each
            parameter (`bfcl_answer` converts plain arguments).
        actual: the call's arguments.
        mode: `exact` (1 equals 1.0 but not true, list order counts), `deep`, `tau2` or `bfcl`.
        rules: the tool's own rules; `deep` only.
        compare_args: the only keys to compare; `tau2` only. None: the keys of the call; []: none.

    Returns:
        True if they are equal in this mode.

    Raises:
        InputError: a value is nested too deep.
        ValueError: there is no such mode.

    Source: tau2: `Action.compare_with_tool_call` of sierra-research/tau2-bench, by which a call
        without arguments matches any; bfcl: `ast_checker.py` of ShishirPatil/gorilla.
    """
    if mode == "deep":
        if rules == NO_RULES and type(expected) is dict and type(actual) is dict:
            try:
                return same_objects(expected, actual)
            except RoundedError:  # there is no text to read again, so compare the floats as given
                pass
        return text_of(expected, rules) == text_of(actual, rules)
    if mode == "exact":
        return exactly_equal(expected, actual)
    if mode == "tau2":
        return plainly_equal(*tau2_sides(expected, actual, compare_args))
    if mode == "bfcl":
        return not bfcl_differences(expected, actual)
    raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")


def matched_arguments(
    expected: Mapping[str, object],
    actual: Mapping[str, object],
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
) -> int:
    """Count the expected arguments that the call has equal, without ignored and empty ones.

    In mode `deep`, `share` of prepared arguments is this count over their number, and faster.

    Args:
        expected: the gold action's arguments, by name.
        actual: the call's arguments, by name.
        mode: `exact`, `deep`, `tau2` or `bfcl`.
        rules: the tool's own rules; `deep` only.

    Returns:
        An integer, at most the number of expected arguments.

    Raises:
        InputError: a value is nested too deep.
        ValueError: there is no such mode.

    Source: docs/method.md, "Comparison of arguments".
    """
    return sum(
        key in actual and equal({key: expected[key]}, {key: actual[key]}, mode, rules=rules)
        for key in prepare(expected, rules).items
    )
