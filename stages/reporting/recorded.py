"""A recorded calibration: its statistics, and the settings that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from math import isfinite
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, TypeVar

from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics
from stages.calibration.file import TODO, read_critic, read_pay
from stages.core.advantages import AdvantageConfig
from stages.core.correlation import Which
from stages.errors import InputError
from stages.tables.state import Input, check_rows, check_types
from stages.tables.yamlfile import Node, read_yaml

_Config = TypeVar("_Config", CalibrateConfig, AdvantageConfig)


class _Document(TypedDict):
    """Fields of a calibration's file, other than tiers, values and settings."""

    episodes: int
    tasks: int
    pass_rate: float
    correlation: Which
    adjust: Literal["length", "none"]
    excluded: NotRequired[int | None]
    mixed_tasks: NotRequired[int | None]
    landmark: NotRequired[int | None]
    seed: NotRequired[int | None]
    inputs: NotRequired[list[Input] | None]


class Recorded(NamedTuple):
    """The content of a calibration's file."""

    calibration: Calibration
    config: CalibrateConfig
    estimator: AdvantageConfig
    seed: int
    inputs: dict[str, str | None]  # sha256 of each file that it was made from


def read_calibration(path: str) -> Recorded:
    """Read a calibration with all its statistics.

    Raises:
        InputError: the file is not a calibration.
    """
    root = read_yaml(path)
    nodes = root.fields()
    if missing := [
        n for n in ("settings", "tiers", "rewards", "episodes", "tasks") if n not in nodes
    ]:
        raise InputError(path, f"has no '{missing[0]}'", TODO)
    settings = nodes["settings"].fields()
    config = _config(CalibrateConfig, settings.get("calibrate"), path)
    estimator = _config(AdvantageConfig, settings.get("advantage"), path)
    document = check_types(root.plain(), _Document, path, TODO)
    calibration = Calibration(
        episodes=document["episodes"],
        excluded=document.get("excluded") or 0,
        tasks=document["tasks"],
        mixed_tasks=document.get("mixed_tasks") or 0,
        pass_rate=document["pass_rate"],
        correlation=document["correlation"],
        adjust=document["adjust"],
        tiers=[_tier(node) for node in nodes["tiers"].items()],
        pay=read_pay(nodes),
        landmark=document.get("landmark"),
        critic=read_critic(nodes),
    )
    inputs = {row["path"]: row.get("sha256") for row in document.get("inputs") or []}
    return Recorded(calibration, config, estimator, document.get("seed") or 0, inputs)


def _config(kind: type[_Config], node: Node | None, where: str) -> _Config:
    """Return the recorded settings; fields that an older file lacks get their defaults."""
    given = {name: field.plain() for name, field in node.fields().items()} if node else {}
    known = _known((field.name for field in fields(kind)), given)
    return check_types(known, kind, where, TODO)


def _tier(node: Node) -> TierStatistics:
    """Return the statistics of one tier; fields that an older file lacks are undefined."""
    given: dict[str, Any] = dict.fromkeys(TierStatistics._fields)
    given |= {"sign_reversed": False, "held_back": False, "necessary": False}
    plain = {name: field.plain() for name, field in node.fields().items()}
    given |= _known(TierStatistics._fields, plain)
    for name in ("tier", "value", "status"):
        if given[name] is None:
            raise node.error(f"has no '{name}'", TODO)
    for name, number in given.items():
        if isinstance(number, float) and not isfinite(number):
            raise node.error(f"'{name}' is {number}", TODO)
    return check_rows([given], TierStatistics, node.where, TODO)[0]


def _known(names: Iterable[str], given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
