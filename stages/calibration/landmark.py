"""Landmark analysis: r of a tier within the first k turns, among episodes of k turns or more.

All these episodes are observed for the same k turns, so length explains nothing. A tier that occurs
only near the end of an episode, like a final write, has no landmark r.

Source: docs/method.md, "Landmark".
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from stages.calibration.sums import lay_out, sum_turns
from stages.core.correlation import Which, correlation
from stages.core.lengths import stratum_terms


class Landmark(NamedTuple):
    """The raw r of each tier within the first k turns."""

    k: int
    episodes: int  # episodes of k turns or more
    r: dict[str, float | None]  # None: undefined


def landmark(turns: pl.DataFrame, measure: str, which: Which, k: int | None) -> Landmark:
    """Correlate the tiers of the first k turns with the outcome (TURNS -> Landmark).

    Args:
        turns: turns of the episodes that count, each episode contiguous and in order.
        measure: presence | count | share.
        which: within | pooled, each stratum centred on its own means.
        k: number of turns; None: the median episode length.

    Returns:
        k, the number of episodes that reach it, and r by tier.
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
