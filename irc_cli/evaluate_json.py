"""`irc-cli eval --json`: measures and comparisons as one document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from irc_cli.traces import TraceReader
from stages.errors import InputError, few
from stages.evaluate import (
    PUBLISHED,
    PUBLISHED_ENV,
    Measurer,
    PolicyDifference,
    by_family,
    by_policy,
    compare,
    compare_policies,
    evaluate,
    task_table,
    transfer,
    under_pressure,
)
from stages.replay import Replay
from stages.tables.yamlfile import nearest
from stages.traces.notes import NO_OUTCOME, why_none

PUBLISHED_SOURCE, PUBLISHED_NOTE = "arXiv 2604.02869", "published, not measured here"


class MeasuredTraces(NamedTuple):
    """Traces that were read and measured."""

    paths: list[str]
    reader: TraceReader
    measurer: Measurer

    @property
    def notes(self) -> Counter[str]:
        """Notes on reading and on measuring."""
        return self.reader.notes + self.measurer.notes

    def episodes(self) -> pl.DataFrame:
        """Return EPISODES with the final task names, known once all traces are read."""
        return self.measurer.frame(self.reader.renamed())


def document(
    this: MeasuredTraces,
    other: MeasuredTraces | None,
    trained_on: Sequence[str],
    *,
    by_task: bool,
    published: bool,
) -> dict[str, Any]:
    """Return measures and comparisons as plain values.

    Args:
        this: the measured traces.
        other: traces to compare with; None: none.
        trained_on: families that were trained on, to compare with the others; empty: none.
        by_task: include every task.
        published: include other models' published figures.

    Raises:
        InputError: no episode counts, or a comparison has nothing to compare with.
    """
    episodes = this.episodes()
    measures = _results(episodes, this.paths, this.reader.notes)
    measures |= {"failures": dict(this.measurer.failures.most_common())}
    measures["policies"] = _policies(episodes)
    if by_task:
        measures["by_task"] = task_table(episodes).to_dicts()
    if trained_on:
        measures["transfer"] = _transfer(episodes, list(trained_on))
    if published:
        check_published(this.reader.envs)
        measures["published"] = _published()
    return measures | (_comparison(episodes, other) if other else {})


def _comparison(episodes: pl.DataFrame, other: MeasuredTraces) -> dict[str, Any]:
    """Return the figures of the other traces, and how these episodes differ from theirs."""
    theirs = other.episodes()
    against = _results(theirs, other.paths, other.reader.notes)
    return {
        "against": against | {"policies": _policies(theirs)},
        "difference": _compare(episodes, theirs, other.paths)._asdict(),
        "differences": _differences(episodes, theirs),
    }


def replay_document(replayed: Replay) -> dict[str, Any]:
    """Return the results of replaying the recorded calls."""
    return {
        "replay": replayed.counts(),
        "replay_differences": replayed.differences,
        "rescored": replayed.rescored,
    }


def _results(episodes: pl.DataFrame, traces: list[str], notes: Counter[str]) -> dict[str, Any]:
    try:
        return _figures(episodes)
    except ValueError as error:
        unknown = any(text.endswith(NO_OUTCOME) for text in notes)
        todo = f"{'name it by --map outcome=PATH, or ' * unknown}give traces with finished episodes"
        raise InputError(few(traces), f"{error}{why_none(notes)}", todo) from None


def _policies(episodes: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the figures of each policy; only counts if none of its episodes counts."""
    policies = []
    for policy, part in by_policy(episodes).items():
        try:
            figures = _figures(part)
        except ValueError:
            figures = {"episodes": 0, "tasks": 0, "excluded": part.height}
        policies.append({"policy": policy} | figures)
    return policies


def _differences(episodes: pl.DataFrame, against: pl.DataFrame) -> list[dict[str, Any]]:
    """Return how each policy differs from its counterpart in the other traces."""
    none = dict.fromkeys(PolicyDifference._fields) | {"tasks": 0}
    return [
        {"policy": policy, "against": other} | (difference._asdict() if difference else none)
        for policy, other, difference in compare_policies(episodes, against)
    ]


def _figures(episodes: pl.DataFrame) -> dict[str, Any]:
    measures = evaluate(episodes)
    families = {name: rate._asdict() for name, rate in by_family(episodes).items()}
    pressed = under_pressure(episodes)
    return measures._asdict() | {
        "families": families,
        "pressure": pressed._asdict() if pressed else None,
    }


def _transfer(episodes: pl.DataFrame, trained_on: list[str]) -> dict[str, Any]:
    """Return the comparison of the trained families with the others."""
    check_families(trained_on, list(by_family(episodes)))
    try:
        transferred = transfer(episodes, trained_on)
    except ValueError:
        todo = "leave out a family, or add episodes of others"
        raise InputError("--trained-on", "names every family that is here", todo) from None
    sides = {"trained": transferred.trained._asdict(), "others": transferred.others._asdict()}
    return {"families": trained_on} | transferred._asdict() | sides


def check_families(wanted: Sequence[str], known: list[str]) -> None:
    """Raise InputError for the first family without an episode."""
    for family in wanted:
        if family not in known:
            todo = nearest(family, known) if known else "give rollouts, which name families"
            raise InputError("--trained-on", f"no episode of family '{family}'", todo)


def check_published(envs: set[str | None]) -> None:
    """Raise InputError unless the published figures are for these environments."""
    if envs != {PUBLISHED_ENV}:
        these_envs = few(sorted(env or "an unknown environment" for env in envs))
        what = f"the published figures are of {PUBLISHED_ENV}, and this is {these_envs}"
        raise InputError("--published", what, "leave it out")


def _published() -> dict[str, Any]:
    """Return other models' published pass rates."""
    rows = [{"model": model, "low": low, "high": high} for model, (low, high) in PUBLISHED.items()]
    return {
        "env": PUBLISHED_ENV,
        "source": PUBLISHED_SOURCE,
        "note": PUBLISHED_NOTE,
        "pass_rates": rows,
    }


def _compare(episodes: pl.DataFrame, theirs: pl.DataFrame, against: list[str]) -> PolicyDifference:
    try:
        return compare(episodes, theirs)
    except ValueError:
        todo = "compare traces of the same tasks"
        raise InputError(few(against), "no task is shared", todo) from None
