"""Notes of a command on what it repaired, guessed or left out."""

from __future__ import annotations

from collections.abc import Mapping

from irc_cli.console import note
from stages.errors import InputError, few
from stages.traces.notes import serious


def check_notes(notes: Mapping[str, int], *, strict: bool) -> None:
    """Check, before anything is written, that no note is an error under --strict.

    Args:
        notes: count of each note by its text.
        strict: whether notes are errors, except those that only inform.

    Raises:
        InputError: with `strict`, if anything was repaired, guessed or left out.
    """
    if strict and (refused := serious(notes)):
        what = few(f"'{text}': {count:,}" for text, count in refused.items())
        raise InputError("--strict", what, "fix the input, or drop --strict")


def show_notes(notes: Mapping[str, int]) -> None:
    """Print notes on standard error, one per line."""
    for text, count in notes.items():
        note(f"{text}: {count:,}")
