"""Which episodes of a large table are shown: as many of each task as fit, of every state."""

from __future__ import annotations

import polars as pl


def sampled(episodes: pl.DataFrame, most: int) -> list[str]:
    """Return the ids of at most so many episodes: a stratified sample by task and state.

    Tasks take turns, and within a task its states do, so that each task shows about equally many
    episodes and no state of a task is missing while another one has several.

    Args:
        episodes: of `episode_rows`.
        most: episodes in all.
    """
    if episodes.height <= most:
        return episodes["episode_id"].to_list()
    of_state = pl.int_range(pl.len()).over("task_id", "state")
    ranked = episodes.with_columns(of_state=of_state)
    ranked = ranked.with_columns(row=pl.int_range(pl.len()))
    in_task = pl.col("of_state").rank("ordinal").over("task_id")
    chosen = ranked.with_columns(in_task=in_task).sort("in_task", "row")[:most]
    return chosen.sort("row")["episode_id"].to_list()
