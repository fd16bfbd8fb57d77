"""Reading of recorded arguments, with every digit of their numbers."""

from __future__ import annotations

import ast
import json
import warnings
from decimal import Decimal, InvalidOperation
from typing import Any, NamedTuple

import orjson

from stages.core.arguments.depth import with_frames

PYTHON_REPR = "python repr"  # the problem of arguments recorded as Python instead of JSON
_PRINTABLE_BITS = 14_000  # Python does not write an int of more than 4,300 digits
_JSON_FRAMES = 2_000  # one per level in the C scanner, some 200 bytes of C stack each

_BRACKETS = frozenset({"{}", "[]"})  # first and last character of an object's or a list's JSON

EXACT = 2**53  # from here on floats do not represent every integer


class Parsed(NamedTuple):
    """Arguments as read from a trace."""

    value: Any  # a JSON value, normally an object; None if the text is unparseable
    problem: str | None = None  # None | "python repr" | "unparseable: ..."

    @property
    def readable(self) -> bool:
        """Whether there is a value; a value of None counts, too."""
        return self.problem is None or self.problem == PYTHON_REPR


def exact_number(text: str) -> float | Decimal:
    """Read a number without rounding it beyond what a float below 2^53 does.

    Args:
        text: a JSON number.

    Returns:
        A float if its size is below 2^53, otherwise a Decimal with all digits.

    Raises:
        ValueError: the text is not a number.
    """
    value = float(text)
    try:
        return value if -EXACT < value < EXACT else Decimal(text)
    except InvalidOperation:  # an exponent beyond any Decimal
        return value


def _exact_integer(text: str) -> int | Decimal:
    return int(text) if len(text) < 4300 else Decimal(text)  # the digit limit of Python's int()


_EXACT_JSON = json.JSONDecoder(parse_float=exact_number, parse_int=_exact_integer)


def has_rounded(value: object) -> bool:
    """Return whether orjson may have rounded a number: it reads integers over 64 bits as floats.

    Args:
        value: the value that orjson read.

    Returns:
        True if the value holds a float of absolute value 2^53 or more at any depth.
    """
    queue: list[Any] = [value]
    for item in queue:  # the loop extends the queue
        kind = type(item)
        if kind is dict:
            queue.extend(item.values())
        elif kind is list:
            queue.extend(item)
        elif kind is float and not -EXACT < item < EXACT:
            return True
    return False


def opened(value: Any) -> Any:
    """Return the object or list whose JSON a string holds, or any other value unchanged.

    Args:
        value: any JSON value.

    Returns:
        The object or list, with every digit of its numbers; otherwise the value itself.
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
    """Convert a Python literal to a JSON value: tuples and sets to lists, other types to text."""
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
        with warnings.catch_warnings():  # an unknown escape such as "\d" would print a warning
            warnings.simplefilter("ignore")
            return Parsed(_as_json(ast.literal_eval(text.strip())), PYTHON_REPR)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Parsed(None, f"unparseable: {reason}")


def parse_arguments(raw: object) -> Parsed:
    """Read the arguments of a tool call as recorded. Never raises.

    Args:
        raw: JSON text (or its bytes), Python's repr of a value, JSON text holding the JSON text of
            an object, or anything else, which is taken as the value itself. None, blank text and
            `null` mean a call without arguments. The last of repeated keys counts. NaN and Infinity
            are accepted. Numbers keep all their digits; a number that fits neither int nor float
            becomes a Decimal.

    Returns:
        The value, and a problem: None, "python repr", or "unparseable: ..." (the value is None).
        Python's parser takes 200 levels of brackets, so a deeper repr is unparseable.
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
