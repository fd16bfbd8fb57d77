"""Explanation of where arguments differ and by which rule, in every mode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from stages.core.arguments.bfcl import bfcl_differences
from stages.core.arguments.canonical import (
    NO_RULES,
    ToolRules,
    is_empty,
    item_texts,
    paired_groups,
    paired_rows,
    text_of,
)
from stages.core.arguments.depth import at_any_depth
from stages.core.arguments.difference import Difference, at
from stages.core.arguments.modes import MODES, Mode
from stages.core.arguments.plain import exactly_equal, plainly_equal, tau2_sides
from stages.core.arguments.reading import opened

_MAX_PAIRED_UP = 64  # longer list remainders are paired in order, because assignment is cubic


@at_any_depth
def differences(
    expected: object,
    actual: object,
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
    compare_args: Sequence[str] | None = None,
) -> list[Difference]:
    """Return where two values differ, and by which rule.

    Elements of unordered lists are paired up so that few differences are shown.

    Args:
        expected: the gold action's arguments, as for `equal`.
        actual: the call's arguments, as parsed.
        mode: `exact`, `deep`, `tau2` or `bfcl`.
        rules: the tool's own rules; `deep` only.
        compare_args: the only keys to compare; `tau2` only. None: the keys of the call; []: none.

    Returns:
        The differences, in the order of the expected side's keys; empty exactly when `equal` with
        the same options is true.

    Raises:
        InputError: a value is nested too deep.
        ValueError: there is no such mode.

    Source: docs/method.md, "Comparison of arguments".
    """
    if mode == "deep":
        explanation = _Explanation(rules)
        if text_of(expected, rules) != text_of(
            actual, rules
        ):  # also raises if a value is nested too deep
            explanation.value("$", expected, actual)
        return explanation.differing
    if mode == "exact":
        return _plain_differences(expected, actual, exactly_equal, "exact value")
    if mode == "tau2":
        sides = tau2_sides(expected, actual, compare_args)
        return _plain_differences(*sides, plainly_equal, "plain equality")
    if mode == "bfcl":
        return bfcl_differences(expected, actual)
    raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")


def _plain_differences(
    expected: object, actual: object, same: Callable[[Any, Any], bool], rule: str
) -> list[Difference]:
    """Return the differences key by key and index by index, with `same` for the leaves."""
    differing: list[Difference] = []

    def explain(path: str, left: Any, right: Any) -> None:
        if isinstance(left, dict) and isinstance(right, dict):
            for key in {**left, **right}:
                if key not in right:
                    differing.append(Difference(at(path, key), left[key], None, "missing key"))
                elif key not in left:
                    differing.append(Difference(at(path, key), None, right[key], "extra key"))
                else:
                    explain(at(path, key), left[key], right[key])
        elif isinstance(left, list) and isinstance(right, list):
            for i in range(max(len(left), len(right))):
                if i >= len(right):
                    differing.append(Difference(f"{path}[{i}]", left[i], None, "missing element"))
                elif i >= len(left):
                    differing.append(Difference(f"{path}[{i}]", None, right[i], "extra element"))
                else:
                    explain(f"{path}[{i}]", left[i], right[i])
        elif not same(left, right):
            differing.append(Difference(path, left, right, rule))

    explain("$", expected, actual)
    return differing


class _Explanation:
    """Collector of the differences between two values in mode `deep`."""

    def __init__(self, rules: ToolRules) -> None:
        self.rules = rules
        self.differing: list[Difference] = []

    def value(
        self, path: str, expected: Any, actual: Any, key: str | None = None, rule: str | None = None
    ) -> None:
        """Collect where two values differ, under the given rule or else the values' own."""
        expected, actual = opened(expected), opened(actual)
        if isinstance(expected, dict) and isinstance(actual, dict):
            self.objects(path, expected, actual)
        elif isinstance(expected, list) and isinstance(actual, list):
            self.lists(path, expected, actual, key)
        else:
            forms = [text_of(side, self.rules, key) for side in (expected, actual)]
            if forms[0] != forms[1]:
                rule = rule or _scalar_rule(forms, as_text=key in self.rules.text)
                self.differing.append(Difference(path, expected, actual, rule))

    def objects(self, path: str, expected: dict[str, Any], actual: dict[str, Any]) -> None:
        """Collect where two objects differ, key by key, and paired lists row by row."""
        expected, actual = (
            {key: opened(item) for key, item in side.items()} for side in (expected, actual)
        )
        left, right = self.kept(expected), self.kept(actual)
        # If only one side pairs its lists, their lengths differ, which `value` shows per list.
        others = paired_groups(actual, right, self.rules)
        groups = [
            keys
            for keys in paired_groups(expected, left, self.rules)
            if keys in others and len(expected[keys[0]]) == len(actual[keys[0]])
        ]
        for key in dict.fromkeys([*left, *right]):
            if key not in right:
                self.differing.append(Difference(at(path, key), expected[key], None, "missing key"))
            elif key not in left:
                self.differing.append(Difference(at(path, key), None, actual[key], "extra key"))
            elif not any(key in keys for keys in groups):
                self.value(at(path, key), expected[key], actual[key], key)
        for keys in groups:
            self.paired(path, expected, actual, keys)

    def kept(self, value: dict[str, Any]) -> list[str]:
        """Return the keys that are compared and not empty."""
        rules = self.rules
        return [k for k in value if k not in rules.ignore and not is_empty(value[k], rules)]

    def paired(
        self, path: str, expected: dict[str, Any], actual: dict[str, Any], keys: list[str]
    ) -> None:
        """Collect where the rows of paired lists differ."""
        left, right = paired_rows(expected, keys, self.rules), paired_rows(actual, keys, self.rules)
        order: _Pairs = [(i, i) for i in range(len(left))]
        if self.rules.ordered.isdisjoint(keys):
            order = _pair_up(
                ["|".join(row) for row in left],
                ["|".join(row) for row in right],
                # The first list counts twice, so that differences show in the lists paired with it.
                lambda i: frozenset([left[i][0], *enumerate(left[i])]),
                lambda j: frozenset([right[j][0], *enumerate(right[j])]),
            )
        for i, j in order:
            for key in keys:
                item, other = expected[key][i], actual[key][j]
                self.value(f"{at(path, key)}[{i}]", item, other, key, "paired lists")

    def lists(self, path: str, expected: list[Any], actual: list[Any], key: str | None) -> None:
        """Collect where two lists differ; elements of unordered lists pair with the most alike."""
        rule = None
        order: _Pairs = list(zip_longest(range(len(expected)), range(len(actual))))
        if key not in self.rules.ordered and len(order) > 1:
            rule = "list without order"
            order = _pair_up(
                [text_of(item, self.rules, key) for item in expected],
                [text_of(item, self.rules, key) for item in actual],
                lambda i: self.parts(expected[i], key),
                lambda j: self.parts(actual[j], key),
            )
        for i, j in order:
            if j is None:
                self.differing.append(
                    Difference(f"{path}[{i}]", expected[i], None, "missing element")
                )
            elif i is None:
                self.differing.append(Difference(f"{path}[{j}]", None, actual[j], "extra element"))
            else:
                self.value(f"{path}[{i}]", expected[i], actual[j], key, rule)

    def parts(self, value: object, key: str | None) -> frozenset[object]:
        """Return the parts of a value; two values are the more alike the more parts they share."""
        value = opened(value)
        if isinstance(value, dict):
            return frozenset(item_texts(value, self.rules).items())
        if isinstance(value, list):
            return frozenset([text_of(item, self.rules, key) for item in value])
        return frozenset([type(value)])


def _scalar_rule(forms: list[str], *, as_text: bool) -> str:
    """Return the rule by which two values differ, at most one of which is an object or a list."""
    starts = {form[0] for form in forms}
    if not starts.isdisjoint("{["):
        return "different types"
    if not {"true", "false"}.isdisjoint(forms):
        return "boolean only equals boolean"
    if "null" in forms:
        return "null is no value"
    if as_text:
        return "text, not a number"
    quoted = starts & {"'", '"'}
    return "number" if not quoted else "string folded" if starts == quoted else "text is no number"


_Pairs = list[tuple[Any, Any]]  # positions (int) on both sides; None: no partner


def _pair_up(
    left: list[str],
    right: list[str],
    left_parts: Callable[[int], frozenset[Any]],
    right_parts: Callable[[int], frozenset[Any]],
) -> _Pairs:
    """Cancel equal elements and pair the remaining ones by similarity."""
    rows, columns = _remaining(left, right), _remaining(right, left)
    if not rows or not columns or not 1 < max(len(rows), len(columns)) <= _MAX_PAIRED_UP:
        return list(zip_longest(rows, columns))
    from scipy.optimize import linear_sum_assignment  # slow to import, seldom needed

    left_sets, right_sets = [left_parts(i) for i in rows], [right_parts(j) for j in columns]
    likeness = [[len(a & b) / max(len(a), len(b), 1) for b in right_sets] for a in left_sets]
    chosen = zip(*linear_sum_assignment(likeness, maximize=True), strict=True)
    partner = {rows[a]: columns[b] for a, b in chosen}
    unpaired = [(None, j) for j in columns if j not in partner.values()]
    return [(i, partner.get(i)) for i in rows] + unpaired


def _remaining(forms: list[str], others: list[str]) -> list[int]:
    """Return the positions of the texts that are not cancelled by an equal text of the others."""
    spare = Counter(others)
    positions = []
    for i, form in enumerate(forms):
        if spare[form]:
            spare[form] -= 1
        else:
            positions.append(i)
    return positions
