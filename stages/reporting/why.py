"""The evidence for a tier's value: how often episodes with it pass, and examples of trials."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, product
from typing import Any, TypeAlias

import polars as pl

from stages.reporting.conversations import Conversations, Entry
from stages.reporting.siblings import parting
from stages.reporting.tasks import FAILED, MASKED, PASSED, TRUNCATED

EXAMPLES = 2  # per tier
_SEARCHED = 64  # pairs per group from which an example is chosen

Row: TypeAlias = Mapping[str, Any]


def tier_counts(turns: pl.DataFrame, episodes: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """Return for each tier how many episodes with it and without it pass.

    Args:
        turns: turns (TURNS).
        episodes: result of `episode_rows`.

    Returns:
        By tier: `with` and `without`, each episodes and passed, over all episodes that count; and
        `within`, the same over the groups in which some episodes have the tier and others lack it.
    """
    counted = episodes.filter(pl.col("state") != MASKED)
    counted = counted.select("episode_id", "group_id", won=pl.col("state") == PASSED)
    counts = {}
    for (tier,), frame in turns.group_by("tier", maintain_order=True):
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


class Examples:
    """Finds pairs of trials that illustrate a tier."""

    def __init__(self, rows: Iterable[Row], shown: Conversations) -> None:
        """Index the trials of each group.

        Args:
            rows: shown episodes, as rows of the document.
            shown: their conversations.
        """
        self._shown = shown
        self._rows = {row["id"]: row for row in rows}
        self._groups: dict[str, list[Row]] = {}
        self._turns: dict[str, dict[str, list[int]]] = {}  # of each tier, by episode
        for row in self._rows.values():
            self._groups.setdefault(row["group"], []).append(row)
            turns = self._turns.setdefault(row["id"], {})
            for turn in row["turns"]:
                turns.setdefault(turn["tier"], []).append(turn["turn"])

    def of(self, tier: str, value: float) -> list[dict[str, Any]]:
        """Return the best pairs for a tier, each of a different task.

        If the value is below 0, a failed episode has the tier and a passing sibling lacks it;
        otherwise a passing episode has it and a failed sibling lacks it. The best pair parts at a
        turn of the tier, after as many equal calls as possible.
        """
        ranked = sorted(self._pairs(tier, value), key=lambda pair: self._rank(tier, *pair))
        chosen: dict[str, tuple[str, str]] = {}  # by task
        for having, lacking in reversed(ranked):
            if len(chosen) < EXAMPLES:
                chosen.setdefault(self._rows[having]["task"], (having, lacking))
        return [self._example(tier, *pair) for pair in chosen.values()]

    def _pairs(self, tier: str, value: float) -> Iterator[tuple[str, str]]:
        good, bad = (PASSED,), (FAILED, TRUNCATED)
        wanted, other = (bad, good) if value < 0 else (good, bad)
        for trials in self._groups.values():
            having = [row["id"] for row in trials if row["state"] in wanted]
            lacking = [row["id"] for row in trials if row["state"] in other]
            pairs = product(
                (name for name in having if tier in self._turns[name]),
                (name for name in lacking if tier not in self._turns[name]),
            )
            yield from islice(pairs, _SEARCHED)

    def _rank(self, tier: str, having: str, lacking: str) -> tuple[bool, int, int]:
        """Return a sort key: pairs that part at a turn of the tier, and late, come last."""
        tracks = self._shown.tracks[having], self._shown.tracks[lacking]
        where = parting(lacking, *tracks)
        here, there = where.here, where.there
        right_there = bool(here and there and here[0] in self._turns[having][tier])
        return right_there, where.shared, -len(tracks[0]) - len(tracks[1])

    def _example(self, tier: str, having: str, lacking: str) -> dict[str, Any]:
        """Return the calls of both trials, and where they part."""
        conversation = self._shown[having]
        return {
            "task": self._rows[having]["task"],
            "episode": _trial(self._rows[having], conversation),
            "sibling": _trial(self._rows[lacking], self._shown[lacking]),
            "turns": self._turns[having][tier],
            "shared": parting(
                lacking, self._shown.tracks[having], self._shown.tracks[lacking]
            ).shared,
            "gold": conversation["gold"],
        }


def _trial(row: Row, conversation: Entry) -> dict[str, Any]:
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
