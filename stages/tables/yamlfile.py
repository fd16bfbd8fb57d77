"""YAML with the place of every value, so that errors can name FILE:LINE:COL."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any

from stages.errors import InputError, few
from stages.tables.pipes import content

MOST_VALUES = 1_000_000  # of a document with aliases, including the values that they stand for
DEEPEST = 100  # levels of nesting
LONGEST_NUMBER = 400  # characters: a float has at most some 330


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a YAML file and its place.

    Attributes:
        value: a scalar, a list of nodes, or a dict of nodes by key. Keys are text as written, so
            that `no:` and `1:` are the keys "no" and "1".
        where: "FILE:LINE:COL" of the value, from 1.
        keys: of a mapping, the place of each key.
    """

    value: Any
    where: str
    keys: dict[str, str]

    def fields(self, allowed: Iterable[str] | None = None) -> dict[str, Node]:
        """Return the nodes of a mapping by key.

        Raises:
            InputError: not a mapping, or a key that is not allowed (None: any key is).
        """
        if not isinstance(self.value, dict):
            raise self.error(f"expected keys and values, found {_described(self.value)}")
        if allowed is not None:
            allowed = list(allowed)
            for key, where in self.keys.items():
                if key not in allowed:
                    raise unknown_key(where, key, allowed)
        return self.value

    def items(self) -> list[Node]:
        """Return the nodes of a list; a single value stands for a list of one.

        Raises:
            InputError: a mapping, or null.
        """
        if isinstance(self.value, list):
            return self.value
        if self.value is None or isinstance(self.value, dict):
            raise self.error(f"expected a list, found {_described(self.value)}")
        return [self]

    def text(self) -> str:
        """Return a text scalar.

        Raises:
            InputError: anything else.
        """
        if not isinstance(self.value, str):
            raise self.error(f"expected text, found {_described(self.value)}", "put it in quotes")
        return self.value

    def number(self) -> float:
        """Return a finite number; also 1e-4, which YAML 1.1 reads as text, since it has no dot.

        Raises:
            InputError: anything else.
        """
        if not isinstance(self.value, bool):
            try:
                number = float(self.value)
            except (TypeError, ValueError):
                pass
            except OverflowError:  # an integer of hundreds of digits
                raise self.error("expected a finite number, found a huge one") from None
            else:
                if isfinite(number):
                    return number
                raise self.error(f"expected a finite number, found {number}")
        raise self.error(f"expected a number, found {_described(self.value)}")

    def one_of(self, allowed: Iterable[str]) -> str:
        """Return a text scalar that is one of a few.

        Raises:
            InputError: anything else, with the nearest allowed one.
        """
        allowed = list(allowed)
        if isinstance(self.value, str) and self.value in allowed:
            return self.value
        given = self.value if isinstance(self.value, str) else _described(self.value)
        raise self.error(f"unknown value '{given}'", nearest(given, allowed))

    def plain(self) -> Any:
        """Return the value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def error(self, what: str, todo: str = "correct the file") -> InputError:
        """Return an error at this place."""
        return InputError(self.where, what, todo)


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> InputError:
    """Return the error for a key that nothing reads; `where` is the place of the key."""
    return InputError(where, f"unknown key '{key}'", nearest(key, allowed))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """Return advice for a word that is not allowed: the nearest allowed one, or else a few."""
    allowed = list(allowed)
    by_lower = {choice.lower(): choice for choice in reversed(allowed)}
    close = difflib.get_close_matches(word.lower(), by_lower, n=1)
    if close:
        return f"did you mean '{by_lower[close[0]]}'?"
    return "use " + few([f"'{choice}'" for choice in allowed], " or ")


def read_yaml(path: str) -> Node:
    """Read a YAML file.

    Raises:
        InputError: it can't be read, or is not good YAML.
    """
    try:
        text = content(path).decode()
    except FileNotFoundError:
        raise InputError(path, "no such file", "check the path") from None
    except UnicodeDecodeError:
        raise InputError(path, "not UTF-8 text", "give a YAML file") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(path, f"can't be read ({reason})", "check the path") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, where: str) -> Node:
    """Read YAML text.

    Args:
        text: one document; an empty one is the value None.
        where: its name in errors, normally a file name.

    Raises:
        InputError: a syntax error, a key twice in one mapping, a key that is not a scalar, a tag
            that plain YAML lacks, or an alias to a value that holds it.
    """
    import yaml  # slow to import, and only some commands need it

    loader_class = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = None
    try:
        _check_depth(yaml.parse(text, Loader=loader_class), where)
        loader = loader_class(text)
        root = loader.get_single_node()
        return Node(None, f"{where}:1:1", {}) if root is None else _Conversion(loader, where)(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(where + at, f"not good YAML ({error.problem})", "correct it") from None
    except UnicodeEncodeError:  # a lone surrogate, or an undecodable byte of the command line
        raise InputError(where, "not UTF-8 text", "give a YAML file") from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InputError(where, f"not good YAML ({reason})", "correct it") from None
    finally:
        if loader:
            loader.dispose()


def _check_depth(events: Iterable[Any], where: str) -> None:
    """Raise InputError for nesting so deep that PyYAML's composer, in C, would crash."""
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith("StartEvent") - name.endswith("EndEvent")
        if depth > DEEPEST:
            mark = event.start_mark
            place = f"{where}:{mark.line + 1}:{mark.column + 1}"
            raise InputError(place, "nested too deep", "flatten it")


class _Conversion:
    """Converts the nodes of PyYAML to nodes with places."""

    def __init__(self, loader: Any, where: str) -> None:
        self._loader, self._where = loader, where
        # By identity, because aliases share nodes; None: unfinished.
        self._known: dict[int, Node | None] = {}
        self._sizes: dict[int, int] = {}  # values in a node, counting those of aliases each time
        self._aliases = False

    def __call__(self, node: Any) -> Node:
        """Convert a node, with all that is in it."""
        if id(node) in self._known:
            return self._shared(node)
        self._known[id(node)] = None
        inner: list[Any] = []
        if node.id == "mapping":
            inner = [item for _, item in node.value]
        elif node.id == "sequence":
            inner = node.value
        nodes = [self(item) for item in inner]
        self._sizes[id(node)] = size = 1 + sum(self._sizes[id(item)] for item in inner)
        if self._aliases and size > MOST_VALUES:  # aliases of aliases, on which readers would hang
            what = f"aliases that stand for more than {MOST_VALUES:,} values"
            raise InputError(self._place(node), what, "write out what is needed")
        keys: dict[str, str] = {}
        value: Any = nodes
        if node.id == "mapping":
            keys = self._keys(node)
            value = dict(zip(keys, nodes, strict=True))
        elif node.id == "scalar":
            value = self._scalar(node)
        self._known[id(node)] = result = Node(value, self._place(node), keys)
        return result

    def _shared(self, node: Any) -> Node:
        """Return the node of an alias."""
        known = self._known[id(node)]
        if known is None:
            raise InputError(self._place(node), "a value that holds itself", "remove the alias")
        self._aliases = True
        return known

    def _keys(self, node: Any) -> dict[str, str]:
        """Return the keys of a mapping with their places."""
        keys: dict[str, str] = {}
        for key, _ in node.value:
            if key.id != "scalar":
                raise InputError(self._place(key), "a key that is not text", "use a plain key")
            if key.value in keys:
                what = f"key '{key.value:.60}' occurs twice"
                raise InputError(self._place(key), what, "remove one of them")
            keys[key.value] = self._place(key)
        return keys

    def _scalar(self, node: Any) -> Any:
        """Return a text, number, date, truth value or null."""
        kind = node.tag.rpartition(":")[2]
        if kind in ("int", "float") and len(node.value) > LONGEST_NUMBER:
            raise self._bad(node, f"a number of {len(node.value):,} characters")
        if kind == "binary":
            raise self._bad(node, "a value that is no text")
        try:
            value = self._loader.construct_object(node)
        except ValueError as error:  # it looks like a date or a number, but is not one
            raise self._bad(node, str(error)) from None
        except (ArithmeticError, AttributeError, LookupError, TypeError):  # PyYAML trusts tags
            raise self._bad(node, f"'{node.value:.40}' is no {kind}") from None
        return value

    def _bad(self, node: Any, what: str) -> InputError:
        return InputError(self._place(node), f"not good YAML ({what})", "put the value in quotes")

    def _place(self, node: Any) -> str:
        mark = node.start_mark
        return f"{self._where}:{mark.line + 1}:{mark.column + 1}"


def _described(value: Any) -> str:
    """Describe a value in a few words, for errors."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r:.40}"
