"""Read recorded state again: whole and of the right types, or one clear error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NotRequired, TypedDict, TypeVar, get_type_hints

import msgspec
import orjson

from stages.errors import InputError

T = TypeVar("T")
N = TypeVar("N")  # a NamedTuple


class Summary(TypedDict, total=False):
    """The fields of a table's recorded summary that are read again."""

    measure: str
    excluded: int
    excluded_without_turns: int


class Input(TypedDict):
    """A file that something was made from."""

    path: str
    sha256: NotRequired[str | None]


class MadeBy(TypedDict, total=False):
    """The fields of an artifact's lineage that are read again."""

    irc_cli: str
    settings: dict[str, Any]
    seed: int | None
    summary: Summary


def read_state(path: str | Path, kind: type[T], todo: str) -> Any:
    """Return the value of a JSON file, including fields that `kind` does not name.

    Args:
        path: path of the file.
        kind: type that the value must have: a TypedDict, which may name only some fields.
        todo: what to do if it has another type.

    Raises:
        InputError: the file is missing, can't be read, is not JSON, or has other types.
    """
    where = str(path)
    try:
        return parsed(Path(path).read_bytes(), kind, where, todo)
    except OSError as error:
        raise InputError(where, (error.strerror or str(error)).lower(), todo) from None


def parsed(data: bytes | str, kind: type[T], where: str, todo: str) -> Any:
    """Return the value of JSON text, including fields that `kind` does not name.

    Args:
        data: the JSON text.
        kind: type that the value must have.
        where: name of the file in errors.
        todo: what to do if it has another type.

    Raises:
        InputError: it is not JSON, or has other types.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise InputError(where, f"damaged: no JSON ({error.msg})", todo) from None
    check_types(value, kind, where, todo)
    return value


def check_types(value: Any, kind: type[T], where: str, todo: str) -> T:
    """Return plain values converted to a type.

    Args:
        value: a value from JSON or YAML.
        kind: a TypedDict, NamedTuple, dataclass, or a type of these.
        where: name of the file in errors.
        todo: what to do if the types differ.

    Raises:
        InputError: something is missing, or of another type.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(where, f"damaged: {_lower(str(error))}", todo) from None


def check_rows(rows: list[dict[str, Any]], kind: type[N], where: str, todo: str) -> tuple[N, ...]:
    """Return plain rows as named tuples.

    Args:
        rows: rows from JSON or YAML, with fields by name.
        kind: the NamedTuple.
        where: name of the file in errors.
        todo: what to do if a row does not fit.

    Raises:
        InputError: a field is missing, superfluous, or of another type.
    """
    struct = msgspec.defstruct(kind.__name__, [*get_type_hints(kind).items()])
    for row in rows:
        check_types(row, struct, where, todo)
    with damaged(where, todo):
        return tuple(kind(**row) for row in rows)


@contextmanager
def damaged(where: str, todo: str) -> Iterator[None]:
    """Raise the errors of code that uses recorded values as an InputError.

    Raises:
        InputError: the code inside fails, because the values do not fit together.
    """
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(where, f"damaged: {_lower(str(error))[:100]}", todo) from None


def _lower(text: str) -> str:
    """Return an error's text for the middle of a line: no line break, lower case at the start."""
    line = " ".join(text.replace("`", "'").split())
    return line[:1].lower() + line[1:]
