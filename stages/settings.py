"""Declarations of config fields: help, bounds and option of a field, in a single place.

    lr: Annotated[float, Setting("Learning rate of AdamW.", "Optimisation", low=0)] = 1e-6

The config checks itself against these declarations (`check_settings`), and the command line derives
its options from them (`irc_cli/options.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Setting:
    """The declaration of one field.

    Attributes:
        help: help text; it makes sense alone.
        panel: panel of the option in --help.
        low: least value; None: no limit.
        high: greatest value; None: any finite value.
        above: exclusive lower bound.
        below: exclusive upper bound.
        choices: allowed words; not needed for a field of type Literal.
        option: name of the option, if it differs from the field's name.
        short: letter of the short option.
        metavar: placeholder of the value in --help.
        shown: text shown instead of the default in --help.
        none: number that means None on the command line.
    """

    help: str
    panel: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    option: str | None = None
    short: str | None = None
    metavar: str | None = None
    shown: str | None = None
    none: float | None = None

    @property
    def bounded(self) -> bool:
        """Whether there is a bound of any kind."""
        return any(bound is not None for bound in (self.low, self.high, self.above, self.below))

    def allows(self, value: float) -> bool:
        """Return whether a number is within the bounds; NaN never is."""
        return (
            (self.low is None or value >= self.low)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
            and (value <= self.high if self.high is not None else math.isfinite(value))
        )

    @property
    def bounds(self) -> str:
        """The bounds in words, for use after 'a number'."""
        top = None if self.high is None or math.isinf(self.high) else f"{self.high:g}"
        if self.below is not None:
            top = f"below {self.below:g}"
        if self.above is not None:
            return f"above {self.above:g}" + (f" and up to {top}" if top else "")
        return f"from {self.low:g} to {top}" if top else f"of at least {self.low:g}"


class Declared(NamedTuple):
    """A config field that has a setting."""

    name: str
    kind: Any  # type of the field, without None
    default: Any  # MISSING if there is none
    setting: Setting

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words; () if the field is not restricted to words."""
        return self.setting.choices or _words(self.kind)


def declared(config: Any) -> tuple[Declared, ...]:
    """Return the fields of a dataclass that are settings, in order."""
    hints = get_type_hints(config, include_extras=True)
    rows = []
    for field in fields(config):
        settings = [item for item in _metadata(hints[field.name]) if isinstance(item, Setting)]
        if settings:
            kind = _without_none(get_args(hints[field.name])[0])
            rows.append(Declared(field.name, kind, field.default, settings[0]))
    return tuple(rows)


def parts(config: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that are dataclasses, by name."""
    hints = get_type_hints(config)
    kinds = {field.name: hints[field.name] for field in fields(config)}
    return {name: kind for name, kind in kinds.items() if is_dataclass(kind)}


def check_settings(config: Any) -> None:
    """Check the fields of a config against their declarations.

    Raises:
        ValueError: a word that is not allowed, or a number out of bounds.
    """
    for field in declared(type(config)):
        value, setting = getattr(config, field.name), field.setting
        if field.choices and value not in field.choices:
            raise ValueError(f"unknown {field.name} '{value}'")
        if value is not None and setting.bounded and not setting.allows(value):
            raise ValueError(f"{field.name} {value} is not {_interval(setting)}")


def _interval(setting: Setting) -> str:
    """Return the bounds as an interval."""
    if setting.above is not None:
        return f"above {setting.above:g}"
    if setting.below is not None:
        return f"in [{setting.low:g}, {setting.below:g})"
    if setting.high is None:
        return f"finite and >= {setting.low:g}"
    if math.isinf(setting.high):
        return f">= {setting.low:g}"
    return f"in [{setting.low:g}, {setting.high:g}]"


def _metadata(hint: Any) -> tuple[Any, ...]:
    return tuple(getattr(hint, "__metadata__", ()))


def _without_none(kind: Any) -> Any:
    """Return a type without None; a union of Literals becomes one Literal."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    kinds = [part for part in get_args(kind) if part is not NoneType]
    if len(kinds) > 1:
        return Literal[tuple(word for part in kinds for word in _words(part))]
    return kinds[0]


def _words(kind: Any) -> tuple[str, ...]:
    """Return the words of a Literal type; () for any other type."""
    return tuple(get_args(kind)) if get_origin(kind) is Literal else ()
