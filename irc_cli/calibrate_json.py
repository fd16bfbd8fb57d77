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
    """Return a calibration and its checks as plain values.

    Args:
        calibration: statistics and values of the tiers.
        checks: checks of the advantages; None: there were no turns to check.
        changes: changes since an earlier calibration; None: none was given.
        config: settings of the calibration.
        objections: reasons why the check fails.
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
    """Return the test of the values on other turns as plain values."""
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
