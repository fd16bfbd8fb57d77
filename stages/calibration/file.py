"""The calibration as a YAML file: for people, for `score --rewards`, and for `--previous`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from stages.core.payment import PAYS, Pay, Values
from stages.errors import InputError
from stages.tables.files import whole_file
from stages.tables.yamlfile import Node, read_yaml

if TYPE_CHECKING:
    from stages.calibration.estimate import Calibration

_HEADER = "# The rewards are what each tier's turns are worth: irc-cli score --rewards THIS_FILE\n"


class Previous(NamedTuple):
    """What an earlier calibration said of the tiers."""

    values: Values
    statuses: dict[str, str]


def write_calibration(
    calibration: Calibration,
    path: str,
    made_by: dict[str, Any],
    online: dict[str, Any] | None = None,
    *,
    force: bool,
) -> None:
    """Write a calibration with what made it; `online`: the gates, where it follows a policy."""
    import yaml

    document = made_by | {
        "episodes": calibration.episodes,
        "excluded": calibration.excluded,
        "tasks": calibration.tasks,
        "pass_rate": calibration.pass_rate,
        "correlation": calibration.correlation,
        "adjust": calibration.adjust,
        "pay": calibration.pay,
        "rewards": dict(calibration.values()),
        "landmark": calibration.landmark,
        "tiers": [tier._asdict() for tier in calibration.tiers],
        "strata": strata_rows(calibration),
    }
    if online:
        document["online"] = online
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    with whole_file(path, force=force) as file:
        file.write((_HEADER + text).encode())


def strata_rows(calibration: Calibration) -> list[dict[str, Any]]:
    """Return what policies and domains say of each tier, as plain values."""
    return [
        tier._asdict() | {"strata": [stratum._asdict() for stratum in tier.strata]}
        for tier in calibration.strata
    ]


def read_previous(path: str) -> Previous:
    """Read the values and statuses of a calibration.

    Raises:
        InputError: the file is no calibration.
    """
    fields = read_yaml(path).fields()
    todo = "give a calibration.yaml of irc-cli calibrate"
    if "rewards" not in fields or "tiers" not in fields:
        raise InputError(path, "has no 'rewards' and 'tiers'", todo)
    numbers = {tier: node.number() for tier, node in fields["rewards"].fields().items()}
    statuses = {}
    for node in fields["tiers"].items():
        tier = node.fields()
        if "tier" not in tier or "status" not in tier:
            raise node.error("has no 'tier' and 'status'", todo)
        statuses[tier["tier"].text()] = tier["status"].text()
    return Previous(Values(numbers, read_pay(fields)), statuses)


def read_pay(fields: Mapping[str, Node]) -> Pay:
    """Return how a calibration's values are paid; files before there was a choice pay every turn.

    Raises:
        InputError: a way that does not exist.
    """
    return cast(Pay, fields["pay"].one_of(PAYS)) if "pay" in fields else "turn"
