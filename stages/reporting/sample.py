"""Choose the episodes that a report of a large table shows, of every task and state."""

from __future__ import annotations

import polars as pl


def sampled(episodes: pl.DataFrame, most: int) -> list[str]:
    """Return the ids of at most `most` episodes: a sample stratified by task and state.

    Tasks alternate, and within a task its states alternate. So tasks show about equally many
    episodes, and no state of a task is missing while another has several.

    Args:
        episodes: result of `episode_rows`.
        most: largest number of episodes.
    """
    if episodes.height <= most:
        return episodes["episode_id"].to_list()
    of_state = pl.int_range(pl.len()).over("task_id", "state")
    ranked = episodes.with_columns(of_state=of_state)
    ranked = ranked.with_columns(row=pl.int_range(pl.len()))
    in_task = pl.col("of_state").rank("ordinal").over("task_id")
    chosen = ranked.with_columns(in_task=in_task).sort("in_task", "row")[:most]
    return chosen.sort("row")["episode_id"].to_list()
