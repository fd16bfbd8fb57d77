"""Definition of mode `deep`: a canonical text per value, equal for values that mean the same."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from stages.core.arguments.depth import at_any_depth
from stages.core.arguments.reading import EXACT, exact_number, opened


@dataclass(frozen=True, slots=True)
class ToolRules:
    """How the arguments of one tool are compared in mode `deep`, by key at any depth.

    The rule of a key that holds a list applies to the list's elements.
    """

    ignore: frozenset[str] = frozenset()  # free text, which is not compared
    ordered: frozenset[str] = frozenset()  # lists whose order counts
    paired: tuple[tuple[str, ...], ...] = ()  # lists that may only be reordered together
    booleans: frozenset[str] = frozenset()  # boolean by the tool's schema: "true" is true
    text: frozenset[str] = frozenset()  # text by the schema: "5" is not "5.0"; 5 is read as "5"


NO_RULES = ToolRules()

EMPTY = frozenset({"null", "''", "[]", "{}"})
OPENING = frozenset("{[")  # first characters of the JSON of an object or a list
NUMERIC = frozenset("-0123456789")
plain_decimal = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?").fullmatch


def _number(value: float | Decimal) -> str:
    """Return the same text for equal numbers: by float below 2^53, by all digits from there on."""
    if value != value:
        return "nan"
    if -EXACT < value < EXACT:
        value = float(value)
        return str(int(value)) if value.is_integer() else repr(value)
    if value in (float("inf"), float("-inf")):
        return str(float(value))
    # A float counts as its shortest repr, as below 2^53, so a round trip through JSON is neutral.
    whole = Decimal(repr(float(value)) if isinstance(value, float) else value)
    sign, digits, exponent = whole.as_tuple()
    written = "".join(map(str, digits))
    kept = written.rstrip("0")
    return f"{'-' * sign}{kept}e{int(exponent) + len(written) - len(kept)}"


def _scalar(value: object, rules: ToolRules, key: str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal)):
        if key not in rules.text:
            return _number(value)
        value = Decimal(value) if isinstance(value, int) else value  # str(int) has a size limit
    return string_text(str(value), rules, key)


def string_text(value: str, rules: ToolRules, key: str | None) -> str:
    """Return the canonical text of a string.

    Args:
        value: the string.
        rules: the tool's rules.
        key: the key whose value the string is; None for a string without a key.

    Returns:
        The text, equal for strings that mean the same.
    """
    numeric = key not in rules.text
    if numeric and value.isdigit() and len(value) < 16 and value[0] != "0" and value.isascii():
        return value  # fast path for common ids: a short integer is its own canonical text
    folded = " ".join(value.split()).casefold()
    if folded[:1] in OPENING and (inner := opened(value)) is not value:
        return text_of(inner, rules, key)
    if numeric and folded[:1] in NUMERIC and plain_decimal(folded):
        return _number(exact_number(folded))
    return folded if key in rules.booleans and folded in ("true", "false") else repr(folded)


def text_of(value: object, rules: ToolRules, key: str | None = None) -> str:
    """Return the canonical text of a value.

    Args:
        value: any JSON value.
        rules: the tool's rules.
        key: the key that holds the value; None for a value without a key.

    Returns:
        The text, equal for values that mean the same.

    Raises:
        RecursionError: the value is nested too deep; `canonical` takes deeper ones.
    """
    if type(value) is str:  # the most common type comes first
        return string_text(value, rules, key)
    if isinstance(value, dict):
        return _join(value, item_texts(value, rules), rules)
    if isinstance(value, (list, tuple)):
        forms = [text_of(item, rules, key) for item in value]
        if key not in rules.ordered:
            forms.sort()
        return f"[{','.join(forms)}]"
    return _scalar(value, rules, key)


def item_texts(value: dict[str, Any], rules: ToolRules) -> dict[str, str]:
    """Return the canonical text of each argument that is compared and not empty.

    Args:
        value: an object.
        rules: the tool's rules.

    Returns:
        The texts by key, without keys that are ignored or empty.
    """
    items = {}
    for key, item in value.items():
        if key not in rules.ignore:
            form = text_of(item, rules, key)
            if form not in EMPTY:
                items[key] = form
    return items


def _join(value: dict[str, Any], items: dict[str, str], rules: ToolRules) -> str:
    entries = [f"{key!r}:{form}" for key, form in items.items()]
    if sum(form[0] == "[" for form in items.values()) > 1:
        value = {key: opened(value[key]) for key in items}
        entries += _paired_entries(value, rules)
    entries.sort()
    return f"{{{','.join(entries)}}}"


def _paired_entries(value: dict[str, Any], rules: ToolRules) -> list[str]:
    """Return the entries of the canonical text for lists that may only be reordered together."""
    entries = []
    for keys in paired_groups(value, value, rules):
        rows = ["|".join(row) for row in paired_rows(value, keys, rules)]
        if rules.ordered.isdisjoint(keys):
            rows.sort()
        entries.append(f"{'|'.join(map(repr, keys))}:[{','.join(rows)}]")
    return entries


def paired_rows(value: dict[str, Any], keys: list[str], rules: ToolRules) -> list[list[str]]:
    """Return paired lists as rows of canonical texts, one row per position.

    Args:
        value: an object.
        keys: the keys of its paired lists, which have equal lengths.
        rules: the tool's rules.

    Returns:
        A row per position, with a text per key.
    """
    columns = [[text_of(item, rules, key) for item in value[key]] for key in keys]
    return [list(row) for row in zip(*columns, strict=True)]


def is_empty(value: object, rules: ToolRules) -> bool:
    """Return whether a value is empty, without writing its canonical text.

    Args:
        value: any JSON value.
        rules: the tool's rules.

    Returns:
        True for null, blank text, `[]`, and objects whose compared values are all empty.
    """
    queue = [value]
    for item in map(opened, queue):  # the loop extends the queue
        if isinstance(item, dict):
            queue.extend(part for key, part in item.items() if key not in rules.ignore)
        elif isinstance(item, str):
            if item and not item.isspace():
                return False
        elif item is not None and not (isinstance(item, (list, tuple)) and not item):
            return False
    return True


def paired_groups(value: dict[str, Any], keys: Iterable[str], rules: ToolRules) -> list[list[str]]:
    """Group the keys of lists that may only be reordered together.

    Lists of equal length are paired if the rules say so or if their keys are `K` and `new_K`. The
    groups depend only on what canonical texts distinguish, so equal objects have equal groups.

    Args:
        value: an object.
        keys: the keys to consider.
        rules: the tool's rules.

    Returns:
        Groups of two keys or more.
    """
    lists = [key for key in keys if isinstance(value[key], (list, tuple)) and isinstance(key, str)]
    if len(lists) < 2:
        return []
    groups: dict[tuple[str, int], list[str]] = {}
    for key in sorted(lists, key=lambda key: (len(key), key)):  # `K` before `new_K`
        groups.setdefault((_leader(key, lists, value, rules), len(value[key])), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def _leader(key: str, lists: list[str], value: dict[str, Any], rules: ToolRules) -> str:
    """Return the key that names a list's group."""
    while True:
        for group in rules.paired:
            if key in group:
                return group[0]
        base = key.removeprefix("new_")
        if base == key or base not in lists or len(value[base]) != len(value[key]):
            return key
        key = base


@at_any_depth
def canonical(arguments: object, rules: ToolRules = NO_RULES) -> str:
    """Return the canonical text of a value: texts are equal exactly when values are `deep`-equal.

    Keys and lists are sorted. Numbers and plain decimal strings count as numbers, exact from 2^53
    on and as floats below; other strings fold case and white space. Null, "", [] and {} under a key
    are left out, and so are ignored keys. A string that holds the JSON of an object or a list, such
    as a nested call's arguments, counts as that object or list. Values of a type that JSON lacks (a
    date from YAML) compare as their text.

    Args:
        arguments: any JSON value, normally an object.
        rules: the tool's rules.

    Returns:
        The text.

    Raises:
        InputError: the value is nested too deep.

    Source: docs/method.md, "Comparison of arguments".
    """
    return text_of(arguments, rules)


class Prepared(NamedTuple):
    """Arguments prepared for comparison with many others."""

    value: object
    rules: ToolRules
    items: dict[str, str]  # canonical text of each argument, without ignored and empty ones

    @property
    @at_any_depth
    def key(self) -> str:
        """The canonical text: equal keys mean `deep`-equal arguments."""
        if isinstance(self.value, dict):
            return _join(self.value, self.items, self.rules)
        return text_of(self.value, self.rules)


@at_any_depth
def prepare(arguments: object, rules: ToolRules = NO_RULES) -> Prepared:
    """Prepare the arguments of a gold action or a call, once for all comparisons (see `canonical`).

    Args:
        arguments: any JSON value, normally an object.
        rules: the tool's rules.

    Returns:
        The prepared arguments; a value that is not an object has no arguments.

    Raises:
        InputError: the value is nested too deep.
    """
    items = item_texts(arguments, rules) if isinstance(arguments, dict) else {}
    return Prepared(arguments, rules, items)


def share(gold: Prepared, call: Prepared) -> float:
    """Return the share of the gold action's arguments that the call has equal.

    Each argument is compared alone, so a share of 1.0 does not imply a full match: the call may
    have more arguments, or paired lists in different orders. Without gold arguments the share is
    1.0 if the canonical texts are equal, else 0.0.

    Args:
        gold: arguments of the gold action.
        call: arguments of the call.

    Returns:
        The share in [0, 1], dimensionless.

    Source: docs/method.md, "Comparison of arguments".
    """
    if not gold.items:
        return float(gold.key == call.key)
    # The `items()` of two dicts intersect as sets, in C.
    return len(gold.items.items() & call.items.items()) / len(gold.items)
