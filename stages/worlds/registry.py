"""Worlds by name, each loaded only when it is asked for."""

from __future__ import annotations

from stages.errors import InputError
from stages.worlds.world import World

WORLDS = ("airline-mini", "tau2-airline", "tau2-retail", "tau2-telecom")


def open_world(name: str) -> World:
    """Load a world.

    Args:
        name: one of WORLDS.

    Raises:
        InputError: there is no such world, or a package that it needs is missing.
    """
    if name not in WORLDS:
        raise InputError("--env", f"no environment '{name}'", "give one of " + ", ".join(WORLDS))
    # Only here, since whoever asks for a world's name should not wait for its modules.
    if name == "airline-mini":
        from stages.worlds.airline_mini import airline_mini

        return airline_mini()
    from stages.worlds.tau2.world import Tau2World

    return Tau2World(name)
