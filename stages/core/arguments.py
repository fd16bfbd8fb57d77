"""Comparison of tool-call arguments: read them as recorded, judge them, explain the verdict.

Four modes. `exact`: equal as parsed. `tau2`: tau2-bench's own rule. `bfcl`: after the checker of
the Berkeley Function-Calling Leaderboard. `deep`, the default, is defined by `canonical`, which
writes a value as text so that two values mean the same exactly when their texts are equal. So
`deep` is an equivalence relation by construction, and a call is held against many gold actions by
comparing texts, which sort, hash once, and need no recursion.

`_same` reaches the verdict of `deep` without writing the texts of the parts that are plainly equal,
which is several times faster for a single pair; tests hold the two to each other.

Objects have string keys, as in JSON. Values may be nested some 2,000 levels deep; beyond that
`parse_arguments` reports a problem and the comparisons raise `InputError`.
"""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import zip_longest
from typing import Any, Literal, NamedTuple, ParamSpec, TypeVar

import orjson

from stages.errors import InputError

Mode = Literal["exact", "deep", "tau2", "bfcl"]
MODES: tuple[Mode, ...] = ("exact", "deep", "tau2", "bfcl")

PYTHON_REPR = "python repr"  # the problem of arguments recorded as Python, not as JSON

_P = ParamSpec("_P")
_T = TypeVar("_T")


# --- depth ----------------------------------------------------------------------------------------

_JSON_FRAMES = 2_000  # one a level in the C scanner, some 200 bytes of C stack each
_FRAMES = 10_000  # at most four a level in the functions below, so that they take what was parsed
_limit_lock = threading.RLock()


def _with_frames(frames: int, call: Callable[[], _T]) -> _T:
    """Call with room for more frames: calls between Python functions take no C stack."""
    with _limit_lock:
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(limit + frames)
        try:
            return call()
        finally:
            sys.setrecursionlimit(limit)


def _at_any_depth(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a recursive function take values nested deeper than Python's recursion limit."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return function(*args, **kwargs)
        except RecursionError:
            pass
        try:
            return _with_frames(_FRAMES, lambda: function(*args, **kwargs))
        except RecursionError:
            pass
        raise InputError("arguments", "nested too deep to compare", "flatten them to 2,000 levels")

    return wrapped


# --- reading --------------------------------------------------------------------------------------

_EXACT = 2**53  # from here on a float does not hold every integer


class Parsed(NamedTuple):
    """Arguments as read from a trace."""

    value: Any  # a JSON value, normally an object; None where the text could not be read
    problem: str | None = None  # None | "python repr" | "unparseable: ..."

    @property
    def readable(self) -> bool:
        """There is a value; None is one too, as arguments that are not text are taken as given."""
        return self.problem is None or self.problem == PYTHON_REPR


def _exact_number(text: str) -> float | Decimal:
    """A number as written: a float where that is faithful, else all of its digits."""
    value = float(text)
    try:
        return value if -_EXACT < value < _EXACT else Decimal(text)
    except InvalidOperation:  # an exponent beyond any Decimal
        return value


def _exact_integer(text: str) -> int | Decimal:
    return int(text) if len(text) < 4300 else Decimal(text)  # Python refuses longer ones as int


_EXACT_JSON = json.JSONDecoder(parse_float=_exact_number, parse_int=_exact_integer)


def _has_rounded(value: object) -> bool:
    """Whether orjson may have rounded a number: it reads integers beyond 64 bits as floats."""
    queue: list[Any] = [value]
    for item in queue:  # grows as it is read
        kind = type(item)
        if kind is dict:
            queue.extend(item.values())
        elif kind is list:
            queue.extend(item)
        elif kind is float and not -_EXACT < item < _EXACT:
            return True
    return False


def _as_json(value: object) -> Any:
    """A Python literal as JSON would hold it: lists for tuples and sets, text for other types."""
    if isinstance(value, dict):
        return {_as_key(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_as_json(item) for item in sorted(value, key=repr)]
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _as_key(key: object) -> str:
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def _read(text: str) -> Parsed:
    try:
        value = orjson.loads(text)
        if not _has_rounded(value):
            return Parsed(value)
    except ValueError:  # not JSON, or JSON only by Python's rules: NaN, lone surrogates, depth
        pass
    if not text or text.isspace():
        return Parsed({})
    try:
        return Parsed(_with_frames(_JSON_FRAMES, lambda: _EXACT_JSON.decode(text)))
    except RecursionError:
        return Parsed(None, "unparseable: nested too deep")
    except ValueError as error:
        reason = str(error)
    try:
        with warnings.catch_warnings():  # an unknown escape such as "\d" would print one
            warnings.simplefilter("ignore")
            return Parsed(_as_json(ast.literal_eval(text.strip())), PYTHON_REPR)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Parsed(None, f"unparseable: {reason}")


def parse_arguments(raw: object) -> Parsed:
    """Read the arguments of a tool call as recorded. Never raises.

    Args:
        raw: JSON text (also as bytes), Python's repr of a value, JSON text holding the JSON text of
            an object, or anything else, which is taken as the value itself. None, blank text and
            `null` are a call without arguments. Of repeated keys the last one counts. NaN and
            Infinity are read. Numbers keep all their digits: one that neither int nor float holds
            is a Decimal.

    Returns:
        The value, and a problem: None, "python repr", or "unparseable: ..." (the value is None).
        Python's own parser takes 200 levels of brackets, so a deeper repr is unparseable.
    """
    if isinstance(raw, (bytes, bytearray)):
        try:
            raw = raw.decode()
        except UnicodeDecodeError:
            return Parsed(None, "unparseable: not UTF-8")
    if raw is None:
        return Parsed({})
    if not isinstance(raw, str):
        return Parsed(raw)
    parsed = _read(raw)
    if isinstance(parsed.value, str):
        inner = _read(parsed.value)
        return inner if isinstance(inner.value, dict) else parsed
    return Parsed({}) if parsed == (None, None) else parsed


# --- deep: the canonical text ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ToolRules:
    """How the arguments of one tool are compared, by key at any depth; for `deep` only.

    A rule for a key that holds a list is a rule for the list's elements.
    """

    ignore: frozenset[str] = frozenset()  # free text: not compared
    ordered: frozenset[str] = frozenset()  # lists whose order counts
    paired: tuple[tuple[str, ...], ...] = ()  # lists that may only be reordered together
    booleans: frozenset[str] = frozenset()  # boolean by the tool's schema: "true" is true
    text: frozenset[str] = frozenset()  # text by the schema: "5" is not "5.0"; 5 is read as "5"


NO_RULES = ToolRules()

_EMPTY = frozenset({"null", "''", "[]", "{}"})
_NUMERIC = frozenset("-0123456789")
_plain_decimal = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?").fullmatch


def _number(value: float | Decimal) -> str:
    """The same text for equal numbers: up to 2^53 as the float, from there on by all digits."""
    if value != value:
        return "nan"
    if -_EXACT < value < _EXACT:
        value = float(value)
        return str(int(value)) if value.is_integer() else repr(value)
    if value in (float("inf"), float("-inf")):
        return str(float(value))
    # A float is what its shortest text says, as below 2^53: writing it as JSON changes nothing.
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
    return _text(str(value), rules, key)


def _text(value: str, rules: ToolRules, key: str | None) -> str:
    numeric = key not in rules.text
    if numeric and value.isdigit() and len(value) < 16 and value[0] != "0" and value.isascii():
        return value  # the common id: short whole numbers are their own canonical text
    folded = " ".join(value.split()).casefold()
    if numeric and folded[:1] in _NUMERIC and _plain_decimal(folded):
        return _number(_exact_number(folded))
    return folded if key in rules.booleans and folded in ("true", "false") else repr(folded)


def _form(value: object, rules: ToolRules, key: str | None = None) -> str:
    """The canonical text of a value that stands under a key."""
    if type(value) is str:  # most values are: first, and without a further call
        return _text(value, rules, key)
    if isinstance(value, dict):
        return _join(value, _items(value, rules), rules)
    if isinstance(value, (list, tuple)):
        forms = [_form(item, rules, key) for item in value]
        if key not in rules.ordered:
            forms.sort()
        return f"[{','.join(forms)}]"
    return _scalar(value, rules, key)


def _items(value: dict[str, Any], rules: ToolRules) -> dict[str, str]:
    """The canonical text of each argument that is compared and not empty."""
    items = {}
    for key, item in value.items():
        if key not in rules.ignore:
            form = _form(item, rules, key)
            if form not in _EMPTY:
                items[key] = form
    return items


def _join(value: dict[str, Any], items: dict[str, str], rules: ToolRules) -> str:
    entries = [f"{key!r}:{form}" for key, form in items.items()]
    for keys in _groups(value, items, rules):
        rows = ["|".join(row) for row in _rows(value, keys, rules)]
        if rules.ordered.isdisjoint(keys):
            rows.sort()
        entries.append(f"{'|'.join(map(repr, keys))}:[{','.join(rows)}]")
    entries.sort()
    return f"{{{','.join(entries)}}}"


def _rows(value: dict[str, Any], keys: list[str], rules: ToolRules) -> list[list[str]]:
    """Paired lists as rows, one for each position, of canonical texts."""
    columns = [[_form(item, rules, key) for item in value[key]] for key in keys]
    return [list(row) for row in zip(*columns, strict=True)]


def _is_empty(value: object, rules: ToolRules) -> bool:
    """Whether the canonical text is that of an empty value; stops at the first part that is not."""
    queue = [value]
    for item in queue:  # grows as it is read
        if isinstance(item, dict):
            queue.extend(part for key, part in item.items() if key not in rules.ignore)
        elif isinstance(item, str):
            if item and not item.isspace():
                return False
        elif item is not None and not (isinstance(item, (list, tuple)) and not item):
            return False
    return True


def _groups(value: dict[str, Any], keys: Iterable[str], rules: ToolRules) -> list[list[str]]:
    """The keys, of these, of lists that may only be reordered together.

    Lists of equal length are paired where the rules say so, or where they stand under `K` and
    `new_K`. Depends only on what canonical texts tell apart, so equal objects have equal groups.
    """
    lists = [key for key in keys if isinstance(value[key], (list, tuple)) and isinstance(key, str)]
    if len(lists) < 2:
        return []
    groups: dict[tuple[str, int], list[str]] = {}
    for key in sorted(lists, key=lambda key: (len(key), key)):  # `K` before `new_K`
        groups.setdefault((_leader(key, value, rules), len(value[key])), []).append(key)
    return [keys for keys in groups.values() if len(keys) > 1]


def _leader(key: str, value: dict[str, Any], rules: ToolRules) -> str:
    """The key that stands for a list's group."""
    while True:
        for group in rules.paired:
            if key in group:
                return group[0]
        base = key.removeprefix("new_")
        partner = value.get(base)
        if base == key or not isinstance(partner, (list, tuple)) or len(partner) != len(value[key]):
            return key
        key = base


@_at_any_depth
def canonical(arguments: object, rules: ToolRules = NO_RULES) -> str:
    """Write a value as text, such that texts are equal exactly when the values are `deep`-equal.

    Keys come sorted and lists as sorted multisets; numbers and plain decimal strings read as
    numbers, exactly from 2^53 on and as floats below; other strings fold case and white space.
    Null, "", [] and {} under a key, and ignored keys, are left out. Values of a type that JSON
    lacks (a date from YAML) compare as their text.

    Raises:
        InputError: the value is nested too deep.
    """
    return _form(arguments, rules)


class Prepared(NamedTuple):
    """Arguments made ready to be compared with many others."""

    key: str  # the canonical text: equal keys mean `deep`-equal arguments
    items: dict[str, str]  # canonical text of each argument, without ignored and empty ones


@_at_any_depth
def prepare(arguments: object, rules: ToolRules = NO_RULES) -> Prepared:
    """Prepare a gold action's or a call's arguments, once for all comparisons (see `canonical`)."""
    if not isinstance(arguments, dict):
        return Prepared(_form(arguments, rules), {})
    items = _items(arguments, rules)
    return Prepared(_join(arguments, items, rules), items)


def share(gold: Prepared, call: Prepared) -> float:
    """Share of the gold action's arguments that the call has equal, in [0, 1].

    Each argument is judged by itself, so 1.0 is no full match: the call may have more arguments, or
    paired lists reordered apart. Without any gold argument it is 1.0 for equal keys, else 0.0.
    """
    if gold.key == call.key:
        return 1.0
    # `items()` of a dict of texts is a set of pairs, intersected in C.
    return len(gold.items.items() & call.items.items()) / len(gold.items) if gold.items else 0.0


# --- deep: a single pair --------------------------------------------------------------------------


class _RoundedError(Exception):
    """A float that may have been rounded while reading: compare the texts by their digits."""


def _form_as_read(value: object) -> str:
    """The canonical text, without rules, of what orjson read, unless a number may be rounded."""
    if _has_rounded(value):
        raise _RoundedError
    return _form(value, NO_RULES)


def _same(one: Any, two: Any) -> bool:
    """Whether two values are `deep`-equal without rules; canonical texts decide what differs."""
    kind, other = type(one), type(two)
    if kind is other:
        if kind is str:
            return _same_text(one, two)
        if kind is dict:
            return _same_objects(one, two)
        if kind is list:
            return len(one) == len(two) and _same_bags(_out_of_place(one, two))
        if kind is int or kind is bool or one is None:
            return bool(one == two)
    elif kind is int and other is str and -_EXACT < one < _EXACT:
        if str(one) == two:
            return True
    elif kind is str and other is int and -_EXACT < two < _EXACT and one == str(two):
        return True
    return _form_as_read(one) == _form_as_read(two)


def _same_text(one: str, two: str) -> bool:
    if one.isdigit() and two.isdigit():
        return one == two  # distinct digits: distinct numbers, or with leading zeros distinct ids
    one, two = one.casefold(), two.casefold()
    if one == two:
        return True
    left, right = one.split(), two.split()
    if left == right:
        return True
    if len(left) != 1 or len(right) != 1 or left[0][0] not in _NUMERIC:
        return False
    if not _plain_decimal(left[0]) or not _plain_decimal(right[0]):
        return False
    return _text(one, NO_RULES, None) == _text(two, NO_RULES, None)


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


def _same_objects(one: dict[str, Any], two: dict[str, Any]) -> bool:
    may_miss = len(one) != len(two)  # `two` may have keys that `one` lacks
    reordered = False  # lists that may only be reordered together
    for key, item in one.items():
        other: Any = two.get(key)  # a missing key is null
        kind = type(item)
        if (kind is str and item == other) or (item is other is not None):
            continue
        if kind is list and type(other) is list:
            if len(item) != len(other):
                return False
            pairs = _out_of_place(item, other)
            if len(pairs) > 1 and (str(key)[:4] == "new_" or f"new_{key}" in one):
                reordered = True
            elif not _same_bags(pairs):
                return False
        elif not _same(item, other) and (
            kind is type(other) or not (_is_empty(item, NO_RULES) and _is_empty(other, NO_RULES))
        ):
            return False
        may_miss |= other is None
    if may_miss:
        for key, other in two.items():
            if key not in one and not _is_empty(other, NO_RULES):
                return False
    return not reordered or _same_lists(_lists(one), _lists(two))


def _lists(value: dict[str, Any]) -> dict[str, list[Any]]:
    return {key: item for key, item in value.items() if type(item) is list}


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
            return one is two or _same_objects(one, two)
    except (ValueError, RecursionError, _RoundedError):
        pass
    left, right = parse_arguments(expected), parse_arguments(actual)
    return left.readable and right.readable and canonical(left.value) == canonical(right.value)


# --- every mode -----------------------------------------------------------------------------------


@_at_any_depth
def equal(
    expected: object,
    actual: object,
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
    compare_args: Sequence[str] | None = None,
) -> bool:
    """Whether a call's arguments equal the expected ones, both as parsed.

    Args:
        expected: the gold action's arguments; for `bfcl` a list of allowed values for each
            parameter (`bfcl_answer` makes that of plain arguments).
        actual: the call's arguments.
        mode: `exact`, where 1 is 1.0 but not true, and lists have an order; `deep`; `tau2`; `bfcl`.
        rules: the tool's own rules; `deep` only.
        compare_args: the only keys to compare; `tau2` only. None: those of the call, [] none.

    Raises:
        InputError: a value is nested too deep.
        ValueError: there is no such mode.

    Source: tau2: `Action.compare_with_tool_call` of sierra-research/tau2-bench, by which a call
        without arguments matches any; bfcl: `ast_checker.py` of ShishirPatil/gorilla.
    """
    if mode == "deep":
        if rules == NO_RULES and type(expected) is dict and type(actual) is dict:
            try:
                return _same_objects(expected, actual)
            except _RoundedError:  # nothing can be read again: the floats count as they are
                pass
        return _form(expected, rules) == _form(actual, rules)
    if mode == "exact":
        return _exactly_equal(expected, actual)
    if mode == "tau2":
        return _plainly_equal(*_tau2_sides(expected, actual, compare_args))
    if mode == "bfcl":
        return not _bfcl_differences(expected, actual)
    raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")


def matched_arguments(
    expected: Mapping[str, object],
    actual: Mapping[str, object],
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
) -> int:
    """Number of the expected arguments, without ignored and empty ones, that the call has equal.

    In mode `deep` `share` of prepared arguments is this over their number, and faster.
    """
    return sum(
        key in actual and equal({key: expected[key]}, {key: actual[key]}, mode, rules=rules)
        for key in prepare(expected, rules).items
    )


def _exactly_equal(one: object, two: object) -> bool:
    queue: list[tuple[Any, Any]] = [(one, two)]
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


def _plainly_equal(one: object, two: object) -> bool:
    return one is two or bool(one == two)  # as containers compare what they hold


def _tau2_sides(
    expected: object, actual: object, compare_args: Sequence[str] | None
) -> tuple[object, object]:
    """What tau2-bench holds against each other with plain `==`."""
    if compare_args is not None and not compare_args:
        return {}, {}
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        return expected, actual
    keys = actual if compare_args is None else frozenset(compare_args)
    return (
        {key: item for key, item in expected.items() if key in keys},
        {key: item for key, item in actual.items() if key in keys},
    )


# --- bfcl -----------------------------------------------------------------------------------------


def bfcl_answer(arguments: Mapping[str, object]) -> dict[str, list[Any]]:
    """Plain arguments as the leaderboard writes an answer: a list of allowed values each.

    The keys of an object, and of the objects in a list of objects, get lists of their own; objects
    inside those are plain values, as the leaderboard's checker compares them.
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
    """Strings as the leaderboard compares them; other values as they are."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[ ,./\-_*^]", "", value).lower().replace("'", '"')


def _bfcl_differences(expected: object, actual: object) -> list[Difference]:
    """Without the tool's schema a parameter has the types of its allowed values."""
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        equal = _exactly_equal(expected, actual)
        return [] if equal else [Difference("$", expected, actual, "different types")]
    found = []
    for key in {**expected, **actual}:
        allowed = expected.get(key)
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if key not in expected:
            found.append(Difference(_at("$", key), None, actual[key], "extra key"))
        elif key not in actual:
            if "" not in allowed:  # "" marks the parameter as optional
                found.append(Difference(_at("$", key), allowed, None, "missing key"))
        elif not _bfcl_allows(allowed, actual[key]):
            found.append(Difference(_at("$", key), allowed, actual[key], "allowed values"))
    return found


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
    """The leaderboard compares the values inside an object by plain equality, without types."""
    for key in {**answer, **value}:
        allowed = answer.get(key)
        allowed = allowed if isinstance(allowed, list) else [allowed]
        if key not in answer or (key not in value and "" not in allowed):
            return False
        if key in value and _standardise(value[key]) not in map(_standardise, allowed):
            return False
    return True


# --- explanation ----------------------------------------------------------------------------------

_MAX_PAIRED_UP = 64  # longer remainders of lists are paired in order: the assignment is cubic


class Difference(NamedTuple):
    """One place where arguments differ."""

    path: str  # "$.flights[0].date", by the expected side's indices
    expected: Any  # None where the rule is "extra key" or "extra element"
    actual: Any  # None where the rule is "missing key" or "missing element"
    rule: str  # what decided


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if str(key).isidentifier() else f"{path}[{key!r}]"


@_at_any_depth
def differences(
    expected: object,
    actual: object,
    mode: Mode = "deep",
    *,
    rules: ToolRules = NO_RULES,
    compare_args: Sequence[str] | None = None,
) -> list[Difference]:
    """Where two values differ, and by which rule; empty exactly when `equal` with the same options.

    Elements of lists without order are paired up so that the differences shown are few.

    Raises:
        InputError: a value is nested too deep.
        ValueError: there is no such mode.
    """
    if mode == "deep":
        explanation = _Explanation(rules)
        explanation.value("$", expected, actual)
        return explanation.found
    if mode == "exact":
        return _plain_differences(expected, actual, _exactly_equal, "exact value")
    if mode == "tau2":
        sides = _tau2_sides(expected, actual, compare_args)
        return _plain_differences(*sides, _plainly_equal, "plain equality")
    if mode == "bfcl":
        return _bfcl_differences(expected, actual)
    raise ValueError(f"unknown mode {mode!r}; one of {', '.join(MODES)}")


def _plain_differences(
    expected: object, actual: object, same: Callable[[Any, Any], bool], rule: str
) -> list[Difference]:
    """Differences position by position, where containers are equal when all they hold is."""
    found: list[Difference] = []

    def explain(path: str, one: Any, two: Any) -> None:
        if isinstance(one, dict) and isinstance(two, dict):
            for key in {**one, **two}:
                if key not in two:
                    found.append(Difference(_at(path, key), one[key], None, "missing key"))
                elif key not in one:
                    found.append(Difference(_at(path, key), None, two[key], "extra key"))
                else:
                    explain(_at(path, key), one[key], two[key])
        elif isinstance(one, list) and isinstance(two, list):
            for i in range(max(len(one), len(two))):
                if i >= len(two):
                    found.append(Difference(f"{path}[{i}]", one[i], None, "missing element"))
                elif i >= len(one):
                    found.append(Difference(f"{path}[{i}]", None, two[i], "extra element"))
                else:
                    explain(f"{path}[{i}]", one[i], two[i])
        elif not same(one, two):
            found.append(Difference(path, one, two, rule))

    explain("$", expected, actual)
    return found


class _Explanation:
    """The differences between two values in mode `deep`, collected on a walk through both."""

    def __init__(self, rules: ToolRules) -> None:
        self.rules = rules
        self.found: list[Difference] = []

    def value(
        self, path: str, one: Any, two: Any, key: str | None = None, rule: str | None = None
    ) -> None:
        if isinstance(one, dict) and isinstance(two, dict):
            self.objects(path, one, two)
        elif isinstance(one, list) and isinstance(two, list):
            self.lists(path, one, two, key)
        else:
            forms = [_form(side, self.rules, key) for side in (one, two)]
            if forms[0] != forms[1]:
                rule = rule or _scalar_rule(forms, as_text=key in self.rules.text)
                self.found.append(Difference(path, one, two, rule))

    def objects(self, path: str, one: dict[str, Any], two: dict[str, Any]) -> None:
        left, right = self.kept(one), self.kept(two)
        # Where only one side pairs its lists their lengths differ, which each list shows by itself.
        others = _groups(two, right, self.rules)
        groups = [
            keys
            for keys in _groups(one, left, self.rules)
            if keys in others and len(one[keys[0]]) == len(two[keys[0]])
        ]
        for key in dict.fromkeys([*left, *right]):
            if key not in right:
                self.found.append(Difference(_at(path, key), one[key], None, "missing key"))
            elif key not in left:
                self.found.append(Difference(_at(path, key), None, two[key], "extra key"))
            elif not any(key in keys for keys in groups):
                self.value(_at(path, key), one[key], two[key], key)
        for keys in groups:
            self.paired(path, one, two, keys)

    def kept(self, value: dict[str, Any]) -> list[str]:
        """The keys that are compared and not empty."""
        rules = self.rules
        return [k for k in value if k not in rules.ignore and not _is_empty(value[k], rules)]

    def paired(self, path: str, one: dict[str, Any], two: dict[str, Any], keys: list[str]) -> None:
        left, right = _rows(one, keys, self.rules), _rows(two, keys, self.rules)
        order: _Pairs = [(i, i) for i in range(len(left))]
        if self.rules.ordered.isdisjoint(keys):
            order = _pair_up(
                ["|".join(row) for row in left],
                ["|".join(row) for row in right],
                # The first list counts twice, so that differences show in those paired with it.
                lambda i: frozenset([left[i][0], *enumerate(left[i])]),
                lambda j: frozenset([right[j][0], *enumerate(right[j])]),
            )
        for i, j in order:
            for key in keys:
                item, other = one[key][i], two[key][j]
                self.value(f"{_at(path, key)}[{i}]", item, other, key, "paired lists")

    def lists(self, path: str, one: list[Any], two: list[Any], key: str | None) -> None:
        rule = None
        order: _Pairs = list(zip_longest(range(len(one)), range(len(two))))
        if key not in self.rules.ordered and len(order) > 1:
            rule = "list without order"
            order = _pair_up(
                [_form(item, self.rules, key) for item in one],
                [_form(item, self.rules, key) for item in two],
                lambda i: self.parts(one[i], key),
                lambda j: self.parts(two[j], key),
            )
        for i, j in order:
            if j is None:
                self.found.append(Difference(f"{path}[{i}]", one[i], None, "missing element"))
            elif i is None:
                self.found.append(Difference(f"{path}[{j}]", None, two[j], "extra element"))
            else:
                self.value(f"{path}[{i}]", one[i], two[j], key, rule)

    def parts(self, value: object, key: str | None) -> frozenset[object]:
        """What a value is made of: the more two values share the more alike they are."""
        if isinstance(value, dict):
            return frozenset(_items(value, self.rules).items())
        if isinstance(value, list):
            return frozenset([_form(item, self.rules, key) for item in value])
        return frozenset([type(value)])


def _scalar_rule(forms: list[str], *, as_text: bool) -> str:
    """The rule that tells apart two values, at most one of them an object or a list."""
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


_Pairs = list[tuple[Any, Any]]  # positions (int) on both sides; None: nothing to pair with


def _pair_up(
    left: list[str],
    right: list[str],
    left_parts: Callable[[int], frozenset[Any]],
    right_parts: Callable[[int], frozenset[Any]],
) -> _Pairs:
    """Pair the elements that remain once equal ones are cancelled, the most alike together."""
    rows, columns = _remaining(left, right), _remaining(right, left)
    if not rows or not columns or not 1 < max(len(rows), len(columns)) <= _MAX_PAIRED_UP:
        return list(zip_longest(rows, columns))
    from scipy.optimize import linear_sum_assignment  # slow to import, seldom needed

    ones, twos = [left_parts(i) for i in rows], [right_parts(j) for j in columns]
    alike = [[len(a & b) / max(len(a), len(b), 1) for b in twos] for a in ones]
    chosen = zip(*linear_sum_assignment(alike, maximize=True), strict=True)
    partner = {rows[a]: columns[b] for a, b in chosen}
    unpaired = [(None, j) for j in columns if j not in partner.values()]
    return [(i, partner.get(i)) for i in rows] + unpaired


def _remaining(forms: list[str], others: list[str]) -> list[int]:
    """Positions of the texts that no equal one of the others cancels."""
    spare = Counter(others)
    positions = []
    for i, form in enumerate(forms):
        if spare[form]:
            spare[form] -= 1
        else:
            positions.append(i)
    return positions
