"""The tiny model of the tests: random weights, airline-mini's vocabulary."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from stages.envs.airline_mini.vocabulary import vocabulary
from stages.training.tiny_model import make_tiny_model, split_pattern

PIECES = [piece for group in vocabulary().values() for piece in group]


def cut(text: str) -> list[str]:
    """The pieces of a text, which they add up to; what is in none is single characters."""
    return re.findall(split_pattern(PIECES), text)


def tiny_checkpoint(folder: Path) -> Path:
    """Make the model in a folder."""
    make_tiny_model(folder, PIECES, seed=0)
    return folder


def untied(tied: Path, folder: Path, *, factor: float) -> Path:
    """Copy a model, its weights times a factor, with an output layer of its own."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tied)
    weights = {name: weight * factor for name, weight in model.state_dict().items()}
    model.config.tie_word_embeddings = False
    copy = type(model)(model.config)
    copy.load_state_dict(weights)
    shutil.copytree(tied, folder, dirs_exist_ok=True)
    copy.save_pretrained(folder)
    return folder
