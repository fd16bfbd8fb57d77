"""Checks for optional packages, made before any work."""

from __future__ import annotations

from importlib import util

from stages.errors import InputError

PLANNING = ("torch", "transformers", "safetensors")
LEARNING = (*PLANNING, "accelerate", "peft", "tensorboard")


def needs(where: str, extra: str, *packages: str) -> None:
    """Raise InputError naming the extra if one of its packages is not installed.

    Args:
        where: the command or option that needs them.
        extra: irc-cli's extra that installs them.
        packages: import names of the packages.
    """
    for name in packages:
        if util.find_spec(name) is None:
            raise InputError(
                where, f"needs the package '{name}'", f"pip install 'irc-cli[{extra}]'"
            )
