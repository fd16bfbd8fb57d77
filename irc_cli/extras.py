"""Packages that only some commands need, checked before any work."""

from __future__ import annotations

from importlib import util

from stages.errors import InputError

PLANNING = ("torch", "transformers", "safetensors")
LEARNING = (*PLANNING, "accelerate", "peft", "tensorboard")


def needs(where: str, extra: str, *packages: str) -> None:
    """Raise InputError naming the extra if one of its packages is not installed.

    Args:
        where: the command or option that needs them.
        extra: of irc-cli.
        packages: by the names that Python imports.
    """
    for name in packages:
        if util.find_spec(name) is None:
            raise InputError(
                where, f"needs the package '{name}'", f"pip install 'irc-cli[{extra}]'"
            )
