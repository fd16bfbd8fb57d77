"""Why a tier is worth what it is: how often episodes with it pass, and an example to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from stages.reporting.conversations import Conversations, Entry
from stages.reporting.siblings import parting
from stages.reporting.tasks import FAILED, MASKED, PASSED, TRUNCATED

EXAMPLES = 2  # of a tier
_SEARCHED = 400  # pairs that an example is chosen from


def tier_counts(turns: pl.DataFrame, episodes: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return for each tier how many episodes with it and without it pass.

    Args:
        turns: TURNS.
        episodes: of `episode_rows`.

    Returns:
        By tier: `with` and `without`, each episodes and passed, over all episodes that count; and
        `within`, the same over the groups in which some episodes have the tier and others lack it.
    """
    counted = episodes.filter(pl.col("state") != MASKED)
    counted = counted.select("episode_id", "group_id", won=pl.col("state") == PASSED)
    counts = {}
    for (tier,), frame in turns.group_by("tier"):
        having = counted.with_columns(
            has=pl.col("episode_id").is_in(frame["episode_id"].unique().to_list())
        )
        varies = pl.col("has").any().over("group_id") & (~pl.col("has")).any().over("group_id")
        counts[str(tier)] = _split(having) | {"within": _split(having.filter(varies))}
    return counts


def _split(having: pl.DataFrame) -> dict[str, Any]:
    sides = {"with": pl.col("has"), "without": ~pl.col("has")}
    rows = {name: having.filter(side) for name, side in sides.items()}
    return {
        name: {"episodes": row.height, "passed": int(row["won"].sum())}
        for name, row in rows.items()
    }


def examples(
    tier: str,
    value: float,
    turns: pl.DataFrame,
    episodes: pl.DataFrame,
    shown: Conversations,
    rows: Mapping[str, Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Return pairs of trials that show a tier at work.

    A tier of a value below 0 is shown where a failure has it and a passing sibling does not; one
    of a value above 0, where a passing episode has it and a failing sibling does not.
    The best pair parts right at a turn of the tier, after as many equal calls as can be.

    Args:
        tier: its name.
        value: of the tier.
        turns: TURNS.
        episodes: of `episode_rows`.
        shown: conversations of the episodes that are shown.
        rows: the same episodes as the document has them, by id.
    """
    at = _turns_of(turns, tier)
    good, bad = (PASSED,), (FAILED, TRUNCATED)
    wanted, other = (bad, good) if value < 0 else (good, bad)
    pairs: list[tuple[str, str]] = []
    for _, frame in episodes.group_by("group_id", maintain_order=True):
        trials = [r for r in frame.select("episode_id", "state").rows() if r[0] in shown.tracks]
        having = [name for name, state in trials if name in at and state in wanted]
        lacking = [name for name, state in trials if name not in at and state in other]
        pairs += [(one, two) for one in having for two in lacking][: _SEARCHED - len(pairs)]
    ranked = sorted(pairs, key=lambda pair: _rank(pair, at, shown), reverse=True)
    chosen: dict[str, tuple[str, str]] = {}  # by task
    for one, two in ranked:
        if len(chosen) < EXAMPLES:
            chosen.setdefault(rows[one]["task"], (one, two))
    return [_example(one, two, at[one], shown, rows) for one, two in chosen.values()]


def _turns_of(turns: pl.DataFrame, tier: str) -> dict[str, list[int]]:
    rows = turns.filter(pl.col("tier") == tier).group_by("episode_id").agg("turn")
    return {str(name): sorted(indices) for name, indices in rows.iter_rows()}


def _rank(
    pair: tuple[str, str], at: Mapping[str, list[int]], shown: Conversations
) -> tuple[bool, int, int]:
    """Order pairs: those that part at a turn of the tier first, then those that part late."""
    one, two = pair
    found = parting(two, shown.tracks[one], shown.tracks[two])
    right_there = found.here is not None and found.here[0] in at[one] and found.there is not None
    calls = len(shown.tracks[one]) + len(shown.tracks[two])
    return right_there, found.shared, -calls


def _example(
    one: str,
    two: str,
    at: list[int],
    shown: Conversations,
    rows: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the calls of both trials, and where they part."""
    found = parting(two, shown.tracks[one], shown.tracks[two])
    here = shown[one]
    return {
        "task": rows[one]["task"],
        "episode": _trial(rows[one], here),
        "sibling": _trial(rows[two], shown[two]),
        "turns": at,
        "shared": found.shared,
        "gold": here["gold"],
    }


def _trial(row: Mapping[str, Any], conversation: Entry) -> dict[str, Any]:
    """Return a trial with its calls in order, each with the numbers of its turn."""
    names = ("tier", "reward", "value", "advantage")
    calls = [
        {"turn": entry["turn"], "call": i}
        | call
        | {n: row["turns"][entry["turn"]][n] for n in names}
        for entry in conversation["entries"]
        for i, call in enumerate(entry.get("calls", ()))
    ]
    return {name: row[name] for name in ("id", "ref", "trial", "state")} | {"calls": calls}
