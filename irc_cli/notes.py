"""What commands say of what they repaired, guessed or left out."""

from __future__ import annotations

from collections.abc import Mapping

from irc_cli.console import note
from stages.errors import InputError, few
from stages.traces.notes import serious


def check_notes(notes: Mapping[str, int], *, strict: bool) -> None:
    """Refuse, before anything is written, what is more than information.

    Args:
        notes: how often by text.
        strict: whether to refuse at all.

    Raises:
        InputError: with `strict`, if anything was repaired, guessed or left out.
    """
    if strict and (refused := serious(notes)):
        what = few(f"'{text}': {count:,}" for text, count in refused.items())
        raise InputError("--strict", what, "fix the input, or drop --strict")


def show_notes(notes: Mapping[str, int]) -> None:
    """Print notes on standard error, a line each."""
    for text, count in notes.items():
        note(f"{text}: {count:,}")
