"""The calibration file (YAML), which people, `score --rewards` and `--previous` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from stages.core.critic import FOLDS, Critic, Weights
from stages.core.payment import PAYS, Pay, Values
from stages.errors import InputError
from stages.tables.files import whole_file
from stages.tables.yamlfile import Node, read_yaml

if TYPE_CHECKING:
    from stages.calibration.estimate import Calibration
    from stages.core.advantages import AdvantageConfig

TODO = "give a calibration.yaml of irc-cli calibrate"
WITHOUT_CRITIC = (  # for example calibrations of sums, and those of earlier versions
    "has no critic for the estimator 'potential'",
    "calibrate the turns themselves: irc-cli calibrate TURNS",
)
_HEADER = "# The rewards are what each tier's turns are worth: irc-cli score --rewards THIS_FILE\n"


class Previous(NamedTuple):
    """The values and statuses of an earlier calibration."""

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
    """Write a calibration file.

    Args:
        calibration: the calibration.
        path: path of the file.
        made_by: provenance, written first.
        online: the document of an online calibration; None: calibrated once.
        force: replace an existing file.

    Raises:
        InputError: the file exists and `force` is not set, or it can't be written.
    """
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
    if calibration.critic:
        document["critic"] = critic_record(calibration.critic)
    if online:
        document["online"] = online
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    with whole_file(path, force=force) as file:
        file.write((_HEADER + text).encode())


def strata_rows(calibration: Calibration) -> list[dict[str, Any]]:
    """Return the results per policy and domain of each tier as plain values.

    Args:
        calibration: the calibration.

    Returns:
        A row per tier.
    """
    return [
        tier._asdict() | {"strata": [stratum._asdict() for stratum in tier.strata]}
        for tier in calibration.strata
    ]


def critic_record(critic: Critic) -> dict[str, Any]:
    """Return a critic as plain values: the weights of all tasks, and those without each fold.

    Args:
        critic: the critic.

    Returns:
        The record that `read_critic` reads.
    """
    every, *folds = (
        {"turn": row.turn, "first": dict(row.first), "again": dict(row.again)}
        for row in (critic.every, *critic.folds)
    )
    return every | {"folds": folds}


def read_critic(fields: Mapping[str, Node]) -> Critic | None:
    """Return the critic of a calibration; None if it has none.

    Args:
        fields: fields of the calibration file.

    Returns:
        The critic, or None.

    Raises:
        InputError: a weight is missing or not a number, or the number of folds is wrong.
    """
    if "critic" not in fields:
        return None
    node = fields["critic"]
    known = node.fields()
    folds = known["folds"].items() if "folds" in known else []
    if len(folds) != FOLDS:
        raise node.error(f"has {len(folds)} 'folds', not {FOLDS}", TODO)
    return Critic(_weights(node), tuple(map(_weights, folds)))


def check_critic(values: Values | None, calibration: str | None, config: AdvantageConfig) -> None:
    """Raise InputError if the estimator needs a critic and the values have none.

    Args:
        values: values of the calibration; None if no calibration is given.
        calibration: path of the calibration.
        config: the estimator.

    Raises:
        InputError: the critic is missing.
    """
    if config.estimator != "potential" or (values is not None and values.critic):
        return
    if values is None or calibration is None:
        what = "needs the critic of a calibration"
        raise InputError("--advantage potential", what, "give --calibration FILE")
    raise InputError(calibration, *WITHOUT_CRITIC)


def _weights(node: Node) -> Weights:
    known = node.fields()
    if missing := [name for name in Weights._fields if name not in known]:
        raise node.error(f"has no '{missing[0]}'", TODO)
    first, again = (
        {tier: weight.number() for tier, weight in known[name].fields().items()}
        for name in ("first", "again")
    )
    return Weights(known["turn"].number(), first, again)


def read_previous(path: str) -> Previous:
    """Read the values and statuses of a calibration.

    Args:
        path: path of the calibration file.

    Returns:
        The values and statuses.

    Raises:
        InputError: the file is not a calibration.
    """
    fields = read_yaml(path).fields()
    if "rewards" not in fields or "tiers" not in fields:
        raise InputError(path, "has no 'rewards' and 'tiers'", TODO)
    numbers = {tier: node.number() for tier, node in fields["rewards"].fields().items()}
    statuses = {}
    for node in fields["tiers"].items():
        tier = node.fields()
        if "tier" not in tier or "status" not in tier:
            raise node.error("has no 'tier' and 'status'", TODO)
        statuses[tier["tier"].text()] = tier["status"].text()
    return Previous(Values(numbers, read_pay(fields), read_critic(fields)), statuses)


def read_pay(fields: Mapping[str, Node]) -> Pay:
    """Return how a calibration's values are paid; older files without the field pay every turn.

    Args:
        fields: fields of the calibration file.

    Returns:
        turn | once.

    Raises:
        InputError: the value of `pay` is unknown.
    """
    return cast(Pay, fields["pay"].one_of(PAYS)) if "pay" in fields else "turn"
