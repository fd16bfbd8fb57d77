"""Detection of failed calls from tool results, by ordered rules from YAML."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import orjson

from stages.core.arguments import parse_arguments
from stages.tables.yamlfile import Node, parse_yaml

_BESIDE = 2  # data fields that a failure may have beside the key that indicates it
_REMEMBERED = 100_000  # most cached verdicts
_LAYERS = 3  # levels of wrapping that are inspected

# Fields, in lower case and without "_", that describe how the call went; all others are data.
_ENVELOPE = frozenset(
    {"code", "detail", "details", "err", "errcode", "errmsg", "error", "errorcode", "errordetails"}
    | {"errormessage", "errors", "errortype", "exception", "exceptiontype", "failed", "hint"}
    | {
        "httpstatus",
        "instance",
        "iserror",
        "message",
        "msg",
        "ok",
        "outcome",
        "path",
        "reason",
        "requestid",
    }
    | {"retryable", "stack", "stacktrace", "state", "status", "statuscode", "success", "succeeded"}
    | {"suggestion", "timestamp", "traceback", "type"}
)
_WRAPPERS = ("result", "output", "response", "data", "body", "content", "text", "toolresult")
_MESSAGES = ("message", "msg", "detail")
# Placeholders in an error field for "no error".
_NOTHING = re.compile(
    r"\s*(?:-+|0|false|n/?a|nil|no(?:ne|ne found)?|(?:no|0) (?:errors?|issues?)(?: found)?"
    r"|null|ok|success|undefined)?\s*\.?\s*",
    re.IGNORECASE,
)
_DECORATION = r"[\s\[(<*_`\"'❌⚠️🚫✗✖!]*"
_PYTHON_MAY_FAIL = re.compile("error|fail|exception|false|success|ok|status|traceback", re.I)

Layer = str | dict[str, Any]  # a text, or an object with keys in lower case and without "_"


@dataclass(frozen=True)
class FailureRule:
    """A rule that decides whether a result means a failed call.

    Attributes:
        name: name under which its results are counted.
        test: whether the rule applies to a text or an object; None: the record's own flag decides.
        worked: whether the results it applies to count as successful calls.
        beside: most data fields, beside the tested key, of an object to which the rule applies.
    """

    name: str
    test: Callable[[Layer], bool] | None
    worked: bool = False
    beside: int = 0


class Failures:
    """Ordered rules; the first one that applies to a result decides."""

    def __init__(self, rules: tuple[FailureRule, ...]) -> None:
        self._rules = rules
        self._beside = max((rule.beside for rule in rules), default=0)
        self._known: dict[tuple[bool | None, str], str | None] = {}

    def rule(self, flagged: bool | None, result: str | None) -> str | None:
        """Return the name of the rule by which a call failed, or None if it worked.

        Args:
            flagged: whether the result's own flag says failed; None if it has no flag.
            result: text of the tool's answer; None if no answer was recorded.

        Returns:
            The name of the rule, or None.
        """
        case = flagged, result or ""
        try:
            return self._known[case]
        except KeyError:
            name = self._decide(*case)
        if len(self._known) < _REMEMBERED:
            self._known[case] = name
        return name

    def _decide(self, flagged: bool | None, text: str) -> str | None:
        # No rule applies to an object with more data than all rules allow; most results are such.
        layers = [
            layer
            for layer in _layers(text)
            if isinstance(layer, str) or len(_data(layer)) <= self._beside + 1
        ]
        if flagged is None and not layers:
            return None
        for rule in self._rules:
            if rule.test is None:
                if flagged is not None:
                    return rule.name if flagged else None
            elif any(map(rule.test, layers)):
                return None if rule.worked else rule.name
        return None


@functools.cache
def default_failures() -> Failures:
    """Return the shipped rules."""
    return Failures(_shipped())


def own_failures(node: Node) -> Failures:
    """Return a domain's own rules followed by the shipped ones.

    Args:
        node: the domain's rules.

    Returns:
        The rules of both.

    Raises:
        InputError: a rule is malformed; see `failure_rules`.
    """
    return Failures(failure_rules(node) + _shipped())


@functools.cache
def _shipped() -> tuple[FailureRule, ...]:
    file = files("data") / "failures.yaml"
    return failure_rules(parse_yaml(file.read_text(encoding="utf-8"), "data/failures.yaml"))


def failure_rules(node: Node) -> tuple[FailureRule, ...]:
    """Read rules from YAML; `data/failures.yaml` documents their form.

    Args:
        node: a list of rules.

    Returns:
        The rules, in order.

    Raises:
        InputError: a rule has no name, not exactly one test, or a bad regular expression.
    """
    return tuple(_rule(item) for item in node.items())


def _rule(node: Node) -> FailureRule:
    fields = node.fields(("rule", "flag", "text", "key", "values", "with", "beside", "worked"))
    if "rule" not in fields:
        raise node.error("rule without a name", "give it one under 'rule'")
    if len(fields.keys() & {"flag", "text", "key"}) != 1:
        raise node.error("a rule has one of 'flag', 'text' and 'key'", "give exactly one")
    if stray := [] if "key" in fields else [k for k in ("values", "with", "beside") if k in fields]:
        raise fields[stray[0]].error(f"'{stray[0]}' belongs to a 'key'", "remove it")
    worked = "worked" in fields and _is_true(fields["worked"])
    if "flag" in fields:
        if not _is_true(fields["flag"]) or worked:
            raise node.error("a flag says by itself what happened", "write 'flag: true' alone")
        return FailureRule(fields["rule"].text(), None)
    if "text" in fields:
        return FailureRule(fields["rule"].text(), _text_test(fields["text"]), worked)
    beside = int(fields["beside"].number()) if "beside" in fields else _BESIDE
    return FailureRule(fields["rule"].text(), _key_test(fields, beside), worked, beside)


def _is_true(node: Node) -> bool:
    if not isinstance(node.value, bool):
        raise node.error(f"expected true or false, found '{node.plain()}'")
    return node.value


def _text_test(node: Node) -> Callable[[Layer], bool]:
    """Return a test of the start of a text."""
    try:
        starts = re.compile(f"{_DECORATION}(?:{node.text()})").match
    except re.error as error:
        raise node.error(f"bad regular expression ({error})") from None
    return lambda layer: type(layer) is str and starts(layer) is not None


def _key_test(fields: dict[str, Node], beside: int) -> Callable[[Layer], bool]:
    """Return a test of the values that an object has under given keys."""
    keys = [_plain_key(item.text()) for item in fields["key"].items()]
    values = None
    if "values" in fields:
        values = frozenset(_plain_value(item.value) for item in fields["values"].items())
    others = (
        [_plain_key(item.text()) for item in fields["with"].items()] if "with" in fields else []
    )

    def test(layer: Layer) -> bool:
        return type(layer) is dict and any(
            (_states(layer[key]) if values is None else _plain_value(layer[key]) in values)
            and len(_data(layer, key)) <= beside
            and (not others or any(_states(layer.get(other)) for other in others))
            for key in keys
            if key in layer
        )

    return test


def _plain_key(key: str) -> str:
    return key.lower().replace("_", "").replace("-", "")


def _plain_value(value: Any) -> str | None:
    """Return a text, boolean or integer as text in lower case; None for anything else."""
    return str(value).strip().lower() if isinstance(value, (str, bool, int)) else None


def _states(value: Any) -> bool:
    """Return whether a value states an error. A number does not: it may be a margin of error."""
    if isinstance(value, str):
        return _NOTHING.fullmatch(value) is None
    if isinstance(value, dict):
        return any(part not in (None, 0) and _filled(part) for part in value.values())
    if isinstance(value, list):
        return any(map(_filled, value))
    return value is True


def _filled(value: Any) -> bool:
    return value not in (None, False, "", [], {})


def _data(layer: dict[str, Any], aside: str = "") -> list[str]:
    """Return the fields that hold data, except `aside`."""
    return [
        key
        for key, value in layer.items()
        if key != aside and key not in _ENVELOPE and _filled(value)
    ]


def _layers(text: str) -> list[Layer]:
    """Return a result and what it wraps, layer by layer."""
    layers: list[Layer] = []
    inside: Any = text
    for _ in range(_LAYERS):
        value = _parsed(inside) if isinstance(inside, str) else inside
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
            part = value[0].get("text")  # a list of content parts
            value = _parsed(part) if isinstance(part, str) else _if_envelope(value[0])
        if isinstance(value, str):
            return [*layers, value]
        if not isinstance(value, dict):
            break
        layer = {_plain_key(str(key)): part for key, part in value.items()}
        layers.append(layer)
        inside = _inside(layer)
    return layers


def _if_envelope(value: dict[str, Any]) -> dict[str, Any] | None:
    """Return the single object of a list if it only says how the call went; else None."""
    return value if all(_plain_key(str(key)) in _ENVELOPE for key in value) else None


def _inside(layer: dict[str, Any]) -> Any:
    """Return what an object wraps: its only data field, or its message if it has no data."""
    data = _data(layer)
    if not data:
        return next((layer[key] for key in _MESSAGES if key in layer), None)
    return layer[data[0]] if len(data) == 1 and data[0] in _WRAPPERS else None


def _parsed(text: str) -> Any:
    """Return the object or list that a text holds, or the text itself."""
    if text[:1] not in ("{", "[") and not text[:1].isspace():
        return text
    text = text.strip()
    if not text.startswith(("{", "[")):
        return text
    try:
        return orjson.loads(text)
    except ValueError:
        pass
    if text[-1] not in "}]" or not _PYTHON_MAY_FAIL.search(text):
        return text
    value = parse_arguments(text).value
    return value if isinstance(value, (dict, list)) else text
