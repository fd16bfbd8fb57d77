"""Environments by name, loaded on demand."""

from __future__ import annotations

from stages.envs.env import Env
from stages.errors import InputError
from stages.tables.yamlfile import nearest

ENVS = ("airline-mini", "tau2-airline", "tau2-retail", "tau2-telecom")


def check_env(name: str) -> None:
    """Raise InputError unless there is an environment of this name."""
    if name not in ENVS:
        raise InputError("--env", f"no environment '{name}'", nearest(name, ENVS))


def open_env(name: str) -> Env:
    """Load an environment.

    Args:
        name: one of ENVS.

    Raises:
        InputError: there is no such environment, or a package that it needs is missing.
    """
    check_env(name)
    # Imported here, so that `check_env` does not wait for an environment's modules.
    if name == "airline-mini":
        from stages.envs.airline_mini import airline_mini

        return airline_mini()
    from stages.envs.tau2.env import Tau2Env

    return Tau2Env(name)
