"""Measure how well a policy does: pass rate, pass^k and what episodes cost (-> EPISODES)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import polars as pl

from stages.artifacts import EPISODES
from stages.core.passk import clustered_proportion, paired_difference, pass_k
from stages.domains import Domain
from stages.matching import FULL, Matcher, agent_gold
from stages.score import SUCCESS
from stages.traces.episode import Episode


class Evaluation(NamedTuple):
    """What a policy did; undefined is None."""

    episodes: int
    tasks: int
    excluded: int  # crashed, cut by infrastructure, or without an outcome
    pass_rate: float
    ci_low: float  # 95 %, clustered by task
    ci_high: float
    pass_k: dict[str, float]  # unbiased, over the tasks with at least k trials
    pass_k_tasks: dict[str, int]
    turns_per_episode: float
    tokens_per_episode: float | None  # over the episodes where they are recorded
    write_accuracy: float | None  # share of the gold writes that were done


class Difference(NamedTuple):
    """Two policies on the tasks they share."""

    tasks: int
    difference: float  # mean over tasks of the pass rates' differences
    ci_low: float  # 95 %
    ci_high: float


def measure(episodes: Iterable[Episode], domain: Domain) -> pl.DataFrame:
    """Measure single episodes (episodes -> EPISODES)."""
    matcher = Matcher(domain, tool_rules=True)
    rows = [_row(episode, domain, matcher) for episode in episodes]
    return EPISODES.frame({name: [row[name] for row in rows] for name in EPISODES.columns})


def _row(episode: Episode, domain: Domain, matcher: Matcher) -> dict[str, object]:
    tokens = [turn.n_tokens for turn in episode.turns if turn.n_tokens is not None]
    counts = episode.status != "error" and episode.outcome is not None
    gold_writes, done = _gold_writes(episode, domain, matcher)
    return {
        "source": episode.source,
        "episode_id": episode.episode_id,
        "task_id": episode.task_id,
        "trial": episode.trial,
        "success": episode.outcome >= SUCCESS if counts and episode.outcome is not None else None,
        "turns": len(episode.turns),
        "tokens": sum(tokens) if tokens else None,
        "gold_writes": gold_writes,
        "gold_writes_done": done,
    }


def _gold_writes(episode: Episode, domain: Domain, matcher: Matcher) -> tuple[int, int]:
    """Count the writes that the task expects, and those that a call did and that worked."""
    writes = [action for action in agent_gold(episode.gold) if domain.kind(action.name) == "write"]
    if not writes:
        return 0, 0
    calls = [call for turn in episode.turns for call in turn.calls]
    failed = [call.failed for call in calls]
    sides = [matcher.read(call) for call in calls]
    matches = matcher.one_to_one(sides, [matcher.read_gold(action) for action in writes], failed)
    done = sum(m.kind == FULL and not f for m, f in zip(matches, failed, strict=True))
    return len(writes), done


def evaluate(episodes: pl.DataFrame) -> Evaluation:
    """Evaluate measured episodes (EPISODES -> Evaluation).

    Raises:
        ValueError: no episode has an outcome.
    """
    counting = episodes.filter(pl.col("success").is_not_null())
    if not counting.height:
        raise ValueError("no episode with an outcome")
    by_task = task_table(episodes)
    n, c = by_task["episodes"].to_numpy(), by_task["successes"].to_numpy()
    rate, low, high = clustered_proportion(n, c)
    estimates = {str(k): pass_k(n, c, k) for k in range(1, int(n.max()) + 1)}
    writes = int(counting["gold_writes"].sum())
    return Evaluation(
        episodes=counting.height,
        tasks=by_task.height,
        excluded=episodes.height - counting.height,
        pass_rate=rate,
        ci_low=low,
        ci_high=high,
        pass_k={k: estimate for k, (estimate, _) in estimates.items()},
        pass_k_tasks={k: tasks for k, (_, tasks) in estimates.items()},
        turns_per_episode=_mean(counting["turns"]) or 0.0,
        tokens_per_episode=_mean(counting["tokens"]),
        write_accuracy=int(counting["gold_writes_done"].sum()) / writes if writes else None,
    )


def _mean(column: pl.Series) -> float | None:
    known = column.drop_nulls().to_numpy()
    return float(known.mean()) if len(known) else None


def task_table(episodes: pl.DataFrame) -> pl.DataFrame:
    """Sum up the episodes that count by task: episodes, successes, pass rate, mean turns."""
    return (
        episodes.filter(pl.col("success").is_not_null())
        .group_by("task_id", maintain_order=True)
        .agg(
            episodes=pl.len().cast(pl.Int64),
            successes=pl.col("success").sum().cast(pl.Int64),
            pass_rate=pl.col("success").mean(),
            turns_per_episode=pl.col("turns").mean(),
        )
    )


def compare(episodes: pl.DataFrame, against: pl.DataFrame) -> Difference:
    """Compare two policies on the tasks that both were given, each task counting once.

    Raises:
        ValueError: they share no task.
    """
    one, two = task_table(episodes), task_table(against)
    shared = one.join(two, on="task_id", suffix="_against")
    difference, low, high = paired_difference(
        shared["pass_rate"].to_numpy(), shared["pass_rate_against"].to_numpy()
    )
    return Difference(shared.height, difference, low, high)
