"""Per-token advantages, as any trainer's loss takes them (Example -> SEQUENCES)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.tables.artifacts import SEQUENCES
from stages.training.sequences import Example


def token_advantages(examples: Iterable[Example], groups: Mapping[str, str]) -> pl.DataFrame:
    """Return a row for each sequence (SEQUENCES).

    Args:
        examples: examples that `irc-cli train` would train on.
        groups: group of each episode.
    """
    rows, parts = [], Counter[str]()
    for example in examples:
        name, written = example.episode_id, example.sequence.written
        rows.append(
            {
                "episode_id": name,
                "group_id": groups[name],
                "part": parts[name],
                "token_ids": example.sequence.token_ids,
                "mask": written,
                "turn": example.sequence.turn,
                "logprobs": _spread(example.engine, written) if _known(example.engine) else None,
                "advantage": _spread(example.advantage, written),
                "temperature": example.temperature,
            }
        )
        parts[name] += 1
    return SEQUENCES.frame(
        {name: _column([row[name] for row in rows]) for name in SEQUENCES.columns}
    )


def _column(values: list[Any]) -> list[Any]:
    # Without Series, polars would make a matrix of arrays that happen to be equally long.
    return [pl.Series(value) if isinstance(value, np.ndarray) else value for value in values]


def _known(logprobs: npt.NDArray[np.float32]) -> bool:
    return not np.isnan(logprobs).any()


def _spread(
    values: npt.NDArray[np.float32], written: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Return the values at the written tokens, 0 elsewhere, [L]."""
    spread = np.zeros(len(written), np.float32)
    spread[written] = values
    return spread
