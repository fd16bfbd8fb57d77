"""Reading arguments as they were recorded, with every digit of their numbers."""

from __future__ import annotations

import ast
import json
import warnings
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import orjson

from stages.core.arguments.depth import with_frames

PYTHON_REPR = "python repr"  # the problem of arguments recorded as Python, not as JSON
_PRINTABLE_BITS = 14_000  # of an int: Python writes none of more than 4,300 digits
_JSON_FRAMES = 2_000  # one a level in the C scanner, some 200 bytes of C stack each

_BRACKETS = frozenset({"{}", "[]"})  # first and last character of an object's or a list's JSON

EXACT = 2**53  # from here on a float does not hold every integer


class Parsed(NamedTuple):
    """Arguments as read from a trace."""

    value: Any  # a JSON value, normally an object; None where the text could not be read
    problem: str | None = None  # None | "python repr" | "unparseable: ..."

    @property
    def readable(self) -> bool:
        """There is a value; None is one too, as arguments that are not text are taken as given."""
        return self.problem is None or self.problem == PYTHON_REPR


def exact_number(text: str) -> float | Decimal:
    """A number as written: a float where that is faithful, else all of its digits.

    Args:
        text: a number in JSON's form.

    Returns:
        A float within 2^53 on either side; beyond, a Decimal of all digits.

    Raises:
        ValueError: the text is no number.
    """
    value = float(text)
    try:
        return value if -EXACT < value < EXACT else Decimal(text)
    except InvalidOperation:  # an exponent beyond any Decimal
        return value


def _exact_integer(text: str) -> int | Decimal:
    return int(text) if len(text) < 4300 else Decimal(text)  # Python refuses longer ones as int


_EXACT_JSON = json.JSONDecoder(parse_float=exact_number, parse_int=_exact_integer)


def has_rounded(value: object) -> bool:
    """Whether orjson may have rounded a number: it reads integers beyond 64 bits as floats.

    Args:
        value: as orjson read it.

    Returns:
        True where it holds a float of 2^53 or more, on either side, at any depth.
    """
    queue: list[Any] = [value]
    for item in queue:  # grows as it is read
        kind = type(item)
        if kind is dict:
            queue.extend(item.values())
        elif kind is list:
            queue.extend(item)
        elif kind is float and not -EXACT < item < EXACT:
            return True
    return False


def opened(value: Any) -> Any:
    """The object or list whose JSON a string holds; any other value as it is.

    Args:
        value: any JSON value.

    Returns:
        The object or list, with every digit of its numbers; else the value itself.
    """
    if type(value) is not str or not (text := value.strip()) or text[0] + text[-1] not in _BRACKETS:
        return value
    try:
        inner = orjson.loads(text)
        if not has_rounded(inner):
            return inner
    except ValueError:
        pass
    try:
        return with_frames(_JSON_FRAMES, lambda: _EXACT_JSON.decode(text))
    except (ValueError, RecursionError):
        return value


def _as_json(value: object) -> Any:
    """A Python literal as JSON would hold it: lists for tuples and sets, text for other types."""
    if isinstance(value, dict):
        return {_as_key(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_json(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return [_as_json(item) for item in sorted(value, key=repr)]
    if isinstance(value, int) and value.bit_length() > _PRINTABLE_BITS:
        return Decimal(value)
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


def _as_key(key: object) -> str:
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def _read(text: str) -> Parsed:
    try:
        value = orjson.loads(text)
        if not has_rounded(value):
            return Parsed(value)
    except ValueError:  # not JSON, or JSON only by Python's rules: NaN, lone surrogates, depth
        pass
    if not text or text.isspace():
        return Parsed({})
    try:
        return Parsed(with_frames(_JSON_FRAMES, lambda: _EXACT_JSON.decode(text)))
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
