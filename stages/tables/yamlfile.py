"""YAML in which every value knows its place, so that errors can say FILE:LINE:COL."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import InputError, few


@dataclass(frozen=True, slots=True)
class Node:
    """One value of a YAML file and where it stands.

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
        """The nodes of a mapping by key.

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
        """The nodes of a list; a single value stands for a list of one.

        Raises:
            InputError: a mapping, or null.
        """
        if isinstance(self.value, list):
            return self.value
        if self.value is None or isinstance(self.value, dict):
            raise self.error(f"expected a list, found {_described(self.value)}")
        return [self]

    def text(self) -> str:
        """A text scalar.

        Raises:
            InputError: anything else.
        """
        if not isinstance(self.value, str):
            raise self.error(f"expected text, found {_described(self.value)}", "put it in quotes")
        return self.value

    def number(self) -> float:
        """A number; also 1e-4, which YAML 1.1 takes for text as it has no dot.

        Raises:
            InputError: anything else.
        """
        if not isinstance(self.value, bool):
            try:
                return float(self.value)
            except (TypeError, ValueError):
                pass
        raise self.error(f"expected a number, found {_described(self.value)}")

    def one_of(self, allowed: Iterable[str]) -> str:
        """A text scalar that is one of a few.

        Raises:
            InputError: anything else, with the nearest allowed one.
        """
        allowed = list(allowed)
        if isinstance(self.value, str) and self.value in allowed:
            return self.value
        given = self.value if isinstance(self.value, str) else _described(self.value)
        raise self.error(f"unknown value '{given}'", nearest(given, allowed))

    def plain(self) -> Any:
        """The value without places: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def error(self, what: str, todo: str = "correct the file") -> InputError:
        """An error at this place, to be raised."""
        return InputError(self.where, what, todo)


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> InputError:
    """The error for a key that nothing reads, to be raised; `where` is the place of the key."""
    return InputError(where, f"unknown key '{key}'", nearest(key, allowed))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """What to do about a word that is none of the allowed: the nearest one, else a few of them."""
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
        text = Path(path).read_text(encoding="utf-8")
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
        where: what errors call it, normally a file name.

    Raises:
        InputError: a syntax error, a key twice in one mapping, a key that is not a scalar, a tag
            that plain YAML has not, or an alias to a value that holds it.
    """
    import yaml  # slow to import for what only some commands need

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    known: dict[int, Node | None] = {}  # by identity, as aliases share nodes; None: unfinished

    def place(node: yaml.Node) -> str:
        return f"{where}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"

    def convert(node: yaml.Node) -> Node:
        if id(node) in known:
            done = known[id(node)]
            if done is None:
                raise InputError(place(node), "a value that holds itself", "remove the alias")
            return done
        known[id(node)] = None
        keys: dict[str, str] = {}
        value: Any
        if isinstance(node, yaml.MappingNode):
            value = {}
            for key, item in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise InputError(place(key), "a key that is not text", "use a plain key")
                if key.value in keys:
                    raise InputError(
                        place(key), f"key '{key.value}' stands here twice", "remove one of them"
                    )
                keys[key.value] = place(key)
                value[key.value] = convert(item)
        elif isinstance(node, yaml.SequenceNode):
            value = [convert(item) for item in node.value]
        else:
            try:
                value = loader.construct_object(node)
            except ValueError as error:  # it looks like a date or a number, and is none
                raise InputError(
                    place(node), f"not good YAML ({error})", "put the value in quotes"
                ) from None
        known[id(node)] = result = Node(value, place(node), keys)
        return result

    try:
        root = loader.get_single_node()
        return Node(None, f"{where}:1:1", {}) if root is None else convert(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise InputError(where + at, f"not good YAML ({error.problem})", "correct it") from None
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise InputError(where, f"not good YAML ({reason})", "correct it") from None
    except RecursionError:
        raise InputError(where, "nested too deep", "flatten it") from None
    finally:
        loader.dispose()


def _described(value: Any) -> str:
    """A value in a few words, for errors."""
    if isinstance(value, dict):
        return "keys and values"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"{value!r:.40}"
