"""Worlds by name, each loaded only when it is asked for."""

from __future__ import annotations

from stages.errors import InputError
from stages.worlds.world import World
from stages.yamlfile import nearest

WORLDS = ("airline-mini", "tau2-airline", "tau2-retail", "tau2-telecom")


def check_world(name: str) -> None:
    """Raise InputError unless there is a world of this name."""
    if name not in WORLDS:
        raise InputError("--env", f"no environment '{name}'", nearest(name, WORLDS))


def open_world(name: str) -> World:
    """Load a world.

    Args:
        name: one of WORLDS.

    Raises:
        InputError: there is no such world, or a package that it needs is missing.
    """
    check_world(name)
    # Only here, since whoever asks for a world's name should not wait for its modules.
    if name == "airline-mini":
        from stages.worlds.airline_mini import airline_mini

        return airline_mini()
    from stages.worlds.tau2.world import Tau2World

    return Tau2World(name)
