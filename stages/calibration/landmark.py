"""What a tier tells early: its r within the first k turns, among episodes of k turns or more.

All of these episodes are seen for the same k turns, so their lengths explain nothing. What tells
only at the end of an episode, as a write does that ends it well, has no landmark r.

Source: docs/method.md, "Landmark".
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from stages.calibration.sums import lay_out, sum_turns
from stages.core.correlation import Which, correlation
from stages.core.lengths import stratum_terms


class Landmark(NamedTuple):
    """The raw r of each tier at turn k; None: undefined."""

    k: int
    episodes: int  # that have k turns or more
    r: dict[str, float | None]


def landmark(turns: pl.DataFrame, measure: str, which: Which, k: int | None) -> Landmark:
    """Correlate the tiers of the first k turns with the outcome (TURNS -> Landmark).

    Args:
        turns: those of the episodes that count, an episode's together and in order.
        measure: presence | count | share.
        which: within | pooled, each stratum around its own means.
        k: turns; None: the median length of an episode.
    """
    length = pl.len().over(pl.col("episode_id").rle_id())
    if k is None:
        lengths = turns.select("turn", length=length).filter(pl.col("turn") == 0)["length"]
        k = int(lengths.median())  # type: ignore[arg-type]  # there is an episode
    early = turns.filter(length >= k, pl.col("turn") < k)
    if early.is_empty():
        return Landmark(k, 0, {})
    sums = lay_out(sum_turns(early.lazy(), measure, "turns").sums, measure)
    terms = stratum_terms(sums.cells, sums.stratum, which, measure, adjust=False)
    r = correlation(terms.sum(axis=0))
    by_tier = {tier: None if r[c] != r[c] else float(r[c]) for c, tier in enumerate(sums.tiers)}
    return Landmark(k, early["episode_id"].n_unique(), by_tier)
