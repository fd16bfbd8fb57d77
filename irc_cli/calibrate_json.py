"""`irc-cli calibrate --json`: a calibration and its checks as one document."""

from __future__ import annotations

from typing import Any

from stages.calibration.estimate import CalibrateConfig, Calibration
from stages.calibration.file import critic_record, strata_rows
from stages.carry_over import Elsewhere
from stages.check import BothChecks, Changes, CheckResult


def document(
    calibration: Calibration,
    checks: BothChecks | None,
    changes: Changes | None,
    config: CalibrateConfig,
    objections: list[str],
) -> dict[str, Any]:
    """Return everything that is known, as plain values.

    Args:
        calibration: what the tiers tell.
        checks: of the rewards; None: no turns were there to judge by.
        changes: since an earlier calibration; None: none was given.
        config: how it was calibrated.
        objections: why a check says no.
    """
    plain = calibration._asdict() | {"tiers": [tier._asdict() for tier in calibration.tiers]}
    plain["strata"] = strata_rows(calibration)
    plain["critic"] = critic_record(calibration.critic) if calibration.critic else None
    plain |= {"before": None, "after": None, "converged": None}
    if checks:
        plain |= {
            "before": _check(checks.before),
            "after": _check(checks.after),
            "converged": checks.chosen.converged(config.eta),
            "objections": objections,
        }
    if changes:
        rows = [row._asdict() for row in changes.tiers]
        plain["previous"] = changes._asdict() | {"tiers": rows}
    return plain


def tested(elsewhere: Elsewhere) -> dict[str, Any]:
    """Return what the values are worth on other turns, as plain values."""
    rows = [row._asdict() for row in elsewhere.tiers]
    farmability = elsewhere.farmability._asdict()
    return elsewhere._asdict() | {"tiers": rows, "farmability": farmability}


def _check(check: CheckResult) -> dict[str, Any]:
    rows = [row._asdict() for row in check.direction]
    return check._asdict() | {
        "direction": rows,
        "farmability": check.farmability._asdict(),
        "length_bias": check.length_bias._asdict(),
    }
