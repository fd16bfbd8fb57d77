"""The tiny model of the tests: random weights, airline-mini's vocabulary."""

from __future__ import annotations

from pathlib import Path

from stages.tiny_model import make_tiny_model
from stages.worlds.airline_mini.vocabulary import vocabulary

PIECES = [piece for group in vocabulary().values() for piece in group]


def tiny_checkpoint(folder: Path) -> Path:
    """Make the model in a folder."""
    make_tiny_model(folder, PIECES, seed=0)
    return folder
