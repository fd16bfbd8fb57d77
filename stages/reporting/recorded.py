"""A calibration as it was written: its statistics, and the settings that made it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any, NamedTuple, TypeVar

from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics
from stages.calibration.file import TODO, read_critic, read_pay
from stages.core.advantages import AdvantageConfig
from stages.errors import InputError
from stages.tables.yamlfile import Node, read_yaml

_Config = TypeVar("_Config", CalibrateConfig, AdvantageConfig)


class Recorded(NamedTuple):
    """What a calibration's file holds."""

    calibration: Calibration
    config: CalibrateConfig
    estimator: AdvantageConfig
    seed: int
    inputs: dict[str, str | None]  # sha256 of each file that it was made from


def read_calibration(path: str) -> Recorded:
    """Read a calibration with all its statistics.

    Raises:
        InputError: the file is no calibration.
    """
    root = read_yaml(path)
    nodes = root.fields()
    if missing := [
        n for n in ("settings", "tiers", "rewards", "episodes", "tasks") if n not in nodes
    ]:
        raise InputError(path, f"has no '{missing[0]}'", TODO)
    settings = nodes["settings"].fields()
    try:
        config = _config(CalibrateConfig, settings.get("calibrate"))
        estimator = _config(AdvantageConfig, settings.get("advantage"))
        plain = root.plain()
        calibration = Calibration(
            episodes=int(plain["episodes"]),
            excluded=int(plain.get("excluded") or 0),
            tasks=int(plain["tasks"]),
            mixed_tasks=int(plain.get("mixed_tasks") or 0),
            pass_rate=float(plain["pass_rate"]),
            correlation=plain["correlation"],
            adjust=plain["adjust"],
            tiers=[_tier(node) for node in nodes["tiers"].items()],
            pay=read_pay(nodes),
            landmark=plain.get("landmark"),
            critic=read_critic(nodes),
        )
        seed = int(plain.get("seed") or 0)
        inputs = {row["path"]: row.get("sha256") for row in plain.get("inputs") or []}
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(path, f"is no calibration that can be read ({error})", TODO) from None
    return Recorded(calibration, config, estimator, seed, inputs)


def _config(kind: type[_Config], node: Node | None) -> _Config:
    """Return settings as recorded; what an older file lacks has its default."""
    given = node.plain() if node else {}
    known = _known((field.name for field in fields(kind)), given)
    if "zero" in known:
        known["zero"] = tuple(known["zero"])
    return kind(**known)


def _tier(node: Node) -> TierStatistics:
    """Return the statistics of one tier; what an older file lacks is undefined."""
    given: dict[str, Any] = dict.fromkeys(TierStatistics._fields)
    given |= {"sign_reversed": False, "held_back": False, "necessary": False}
    given |= _known(TierStatistics._fields, node.plain())
    for name in ("tier", "value", "status"):
        if given[name] is None:
            raise node.error(f"has no '{name}'", TODO)
    return TierStatistics(**given)


def _known(names: Iterable[str], given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in names if name in given}
