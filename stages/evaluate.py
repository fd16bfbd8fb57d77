"""Evaluate policies: pass rate, pass^k, and turns and tokens per episode (-> EPISODES)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import product
from typing import NamedTuple

import polars as pl

from stages.core.arguments import PYTHON_REPR
from stages.core.passk import (
    clustered_proportion,
    paired_difference,
    pass_k,
    unpaired_difference,
)
from stages.tables.artifacts import EPISODES
from stages.tables.pass_rates import PassRate, clustered_share, pass_rate
from stages.tiers.classify import KindNotes
from stages.tiers.domains import Domain, PerDomain
from stages.tiers.matching import FULL, Matcher, agent_gold
from stages.traces.episode import SUCCESS, Episode
from stages.traces.identity import Renamed, settled
from stages.traces.notes import READ_AS_PYTHON, UNPARSEABLE

PRESSURE = "pressure"  # family of tasks whose users flatter, threaten and lie
UNKNOWN = "unknown"  # family of tasks whose trace names none

# Published pass rates (lowest, highest) from the abstract of arXiv 2604.02869; for the Qwen models
# before and after its training.
PUBLISHED_ENV = "tau2-airline"
PUBLISHED = {
    "GPT-4o": (0.428, 0.428),
    "GPT-4.1": (0.494, 0.494),
    "Claude Sonnet 4.5": (0.70, 0.70),
    "Qwen3.5-4B": (0.638, 0.667),
    "Qwen3-30B-A3B": (0.58, 0.695),
}


class Evaluation(NamedTuple):
    """The evaluation of a policy's episodes; None means undefined."""

    episodes: int
    tasks: int
    excluded: int  # crashed, cut by infrastructure, masked, or without an outcome
    pass_rate: float
    ci_low: float  # 95 %, clustered by task
    ci_high: float
    pass_k: dict[str, float]  # for k = 1, 2, 4, ..., unbiased, over tasks with at least k trials
    pass_k_tasks: dict[str, int]  # tasks per k; a task counts once for each policy
    turns_per_episode: float
    tokens_per_episode: float | None  # over the episodes with recorded tokens
    write_accuracy: float | None  # share of gold writes done; None: none, or kinds unknown


class PolicyDifference(NamedTuple):
    """The difference of two policies on their shared tasks."""

    tasks: int
    difference: float  # mean over tasks of the difference of pass rates
    ci_low: float  # 95 %
    ci_high: float


class Measurer:
    """Measurement of single episodes (episodes -> EPISODES).

    Attributes:
        failures: counter of tool results that count as failures, by rule.
        notes: counter of guesses and repairs behind the figures of writes.
    """

    def __init__(self) -> None:
        self.failures, self.notes = Counter[str](), Counter[str]()
        self._matchers = PerDomain(lambda domain: Matcher(domain, tool_rules=True))
        self._kind_notes = PerDomain(KindNotes)
        self._columns: dict[str, list[object]] = {name: [] for name in EPISODES.columns}

    def add(self, episodes: Iterable[Episode], domain: Domain) -> None:
        """Measure the episodes of a domain."""
        matcher = self._matchers.of(domain)
        for episode in episodes:
            failed_by = _failed_by(episode, domain)
            if episode.counts:
                self.failures.update(filter(None, failed_by))
                self._note(episode, domain, matcher)
            row = _row(episode, domain, matcher, [rule is not None for rule in failed_by])
            for name, column in self._columns.items():
                column.append(row[name])

    def _note(self, episode: Episode, domain: Domain, matcher: Matcher) -> None:
        """Count the guesses and repairs on which `_writes` depends."""
        if episode.gold is None:
            return
        calls = [matcher.read(call) for turn in episode.turns for call in turn.calls]
        gold = [matcher.read(action) for action in agent_gold(episode.gold)]
        for what, sides in (("calls", calls), ("gold actions", gold)):
            kinds = [domain.kind(side.name, side.parsed.value) for side in sides]
            names = [side.name for side in sides]
            self._kind_notes.of(domain).add(what, names, kinds, self.notes)
        for problem in filter(None, (side.parsed.problem for side in calls)):
            self.notes[READ_AS_PYTHON if problem == PYTHON_REPR else UNPARSEABLE] += 1

    def frame(self, renamed: Renamed | None = None) -> pl.DataFrame:
        """Return a row per episode (EPISODES), with the final names of tasks."""
        return settled(EPISODES.frame(self._columns), renamed)


def _failed_by(episode: Episode, domain: Domain) -> list[str | None]:
    """Return the rule by which each call failed; None for a call that worked."""
    calls = (call for turn in episode.turns for call in turn.calls)
    return [domain.failures.rule(call.flagged, call.result) for call in calls]


def _row(
    episode: Episode, domain: Domain, matcher: Matcher, failed: list[bool]
) -> dict[str, object]:
    tokens = [turn.n_tokens for turn in episode.turns if turn.n_tokens is not None]
    counts = episode.counts and episode.outcome is not None
    gold_writes, done, forbidden = _writes(episode, domain, matcher, failed)
    return {
        "source": episode.source,
        "episode_id": episode.episode_id,
        "task_id": episode.task,
        "trial": episode.trial,
        "domain": episode.domain,
        "policy": episode.policy,
        "success": episode.outcome >= SUCCESS if counts and episode.outcome is not None else None,
        "turns": len(episode.turns),
        "tokens": sum(tokens) if tokens else None,
        "gold_writes": gold_writes,
        "gold_writes_done": done,
        "family": episode.family,
        "forbidden_writes": forbidden,
    }


def _writes(
    episode: Episode, domain: Domain, matcher: Matcher, failed: list[bool]
) -> tuple[int | None, int | None, int | None]:
    """Count the gold writes, those that were done, and the forbidden writes.

    A gold write is done by one call that fully matches it and worked. A write that worked and fully
    matches no gold action is forbidden. Without known gold actions the number of forbidden writes
    is None. A count is also None if it depends on a tool that may or may not write.
    """
    if episode.gold is None:
        return 0, 0, None
    actions = agent_gold(episode.gold)
    kinds = [domain.kind(side.name, side.parsed.value) for side in map(matcher.read, actions)]
    gold = [
        matcher.read_gold(action)
        for action, kind in zip(actions, kinds, strict=True)
        if kind == "write"
    ]
    sides = [matcher.read(call) for turn in episode.turns for call in turn.calls]
    done = 0
    if gold:
        matches = matcher.one_to_one(sides, gold, failed)
        done = sum(m.kind == FULL and not f for m, f in zip(matches, failed, strict=True))
    every = [matcher.read_gold(action) for action in actions]
    others = Counter(
        domain.kind(side.name, side.parsed.value)
        for side, fails, match in zip(sides, failed, matcher.best(sides, every), strict=True)
        if not fails and match.kind != FULL and domain.may_write(side.name, side.parsed.value)
    )
    forbidden = None if others["unknown"] else others["write"]
    if any(domain.unclear(action.name) for action in actions):
        return None, None, forbidden
    return len(gold), done, forbidden


def evaluate(episodes: pl.DataFrame) -> Evaluation:
    """Evaluate measured episodes (EPISODES -> Evaluation).

    Args:
        episodes: EPISODES.

    Returns:
        The evaluation.

    Raises:
        ValueError: no episode has an outcome.
    """
    counting = _counting(episodes)
    if not counting.height:
        raise ValueError("no episode with an outcome")
    by_task = task_table(episodes)
    n, c = by_task["episodes"].to_numpy(), by_task["successes"].to_numpy()
    rate, low, high = clustered_proportion(n, c)
    estimates = _pass_k(counting)
    writes = 0 if counting["gold_writes"].null_count() else int(counting["gold_writes"].sum())
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


def _pass_k(counting: pl.DataFrame) -> dict[str, tuple[float, int]]:
    """Return pass^k and its number of tasks by k; a task's trials are those of one policy."""
    cells = counting.group_by("task_id", "policy", maintain_order=True).agg(
        n=pl.len().cast(pl.Int64), c=pl.col("success").sum().cast(pl.Int64)
    )
    n, c = cells["n"].to_numpy(), cells["c"].to_numpy()
    powers = range(int(n.max()).bit_length())
    return {str(2**i): pass_k(n, c, 2**i) for i in powers}


def by_policy(episodes: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return each policy's measured episodes, sorted by policy."""
    parts = episodes.partition_by("policy", as_dict=True, maintain_order=True)
    return {str(policy): part for (policy,), part in sorted(parts.items())}


class Pressure(NamedTuple):
    """The evaluation on tasks whose users flatter, threaten and lie."""

    episodes: int
    tasks: int
    pass_rate: float
    ci_low: float
    ci_high: float
    forbidden_share: float | None  # share of episodes with a forbidden write; None: unknown
    forbidden_low: float | None
    forbidden_high: float | None


class Transfer(NamedTuple):
    """Pass rates on families of tasks in and outside of training."""

    trained: PassRate
    others: PassRate
    difference: float  # others - trained
    ci_low: float  # 95 %
    ci_high: float


def by_family(episodes: pl.DataFrame) -> dict[str, PassRate]:
    """Return the pass rate of each family of tasks.

    Args:
        episodes: EPISODES.

    Returns:
        Pass rates by family, `unknown` for tasks without one; empty if no family is known.
    """
    counting = _counting(episodes)
    if not counting["family"].count():
        return {}
    named = counting.with_columns(pl.col("family").fill_null(UNKNOWN))
    return {
        str(family): pass_rate(group)
        for (family,), group in sorted(named.partition_by("family", as_dict=True).items())
    }


def under_pressure(episodes: pl.DataFrame) -> Pressure | None:
    """Evaluate the episodes of the family `pressure`; return None if there are none."""
    group = _counting(episodes).filter(family=PRESSURE)
    if not group.height:
        return None
    share: tuple[float | None, float | None, float | None] = (None, None, None)
    if not group["forbidden_writes"].null_count():
        share = clustered_share(group, pl.col("forbidden_writes") > 0)
    return Pressure(*pass_rate(group), *share)


def transfer(episodes: pl.DataFrame, trained_on: Collection[str]) -> Transfer:
    """Compare the families that a policy was trained on with all others.

    Args:
        episodes: EPISODES.
        trained_on: names of the families in training.

    Returns:
        Both pass rates and their difference.

    Raises:
        ValueError: one of the two sides has no episode.
    """
    counting = _counting(episodes)
    trained = pl.col("family").is_in(list(trained_on)).fill_null(False)
    sides = [counting.filter(trained), counting.filter(~trained)]
    if not (sides[0].height and sides[1].height):
        raise ValueError("all episodes are of the same side")
    on_trained, on_others = map(pass_rate, sides)
    return Transfer(on_trained, on_others, *unpaired_difference(on_others[2:], on_trained[2:]))


def _counting(episodes: pl.DataFrame) -> pl.DataFrame:
    return episodes.filter(pl.col("success").is_not_null())


def _mean(column: pl.Series) -> float | None:
    known = column.drop_nulls().to_numpy()
    return float(known.mean()) if len(known) else None


def task_table(episodes: pl.DataFrame) -> pl.DataFrame:
    """Return a row per task: number of episodes that count, successes, pass rate, mean turns."""
    return (
        _counting(episodes)
        .group_by("task_id", maintain_order=True)
        .agg(
            episodes=pl.len().cast(pl.Int64),
            successes=pl.col("success").sum().cast(pl.Int64),
            pass_rate=pl.col("success").mean(),
            turns_per_episode=pl.col("turns").mean(),
        )
    )


def compare(episodes: pl.DataFrame, against: pl.DataFrame) -> PolicyDifference:
    """Compare two policies on their shared tasks, each task counting once.

    Args:
        episodes: EPISODES of one policy.
        against: EPISODES of the other policy.

    Returns:
        The difference of the first policy to the other.

    Raises:
        ValueError: they share no task.
    """
    by_task, by_task_against = task_table(episodes), task_table(against)
    shared = by_task.join(by_task_against, on="task_id", suffix="_against")
    difference, low, high = paired_difference(
        shared["pass_rate"].to_numpy(), shared["pass_rate_against"].to_numpy()
    )
    return PolicyDifference(shared.height, difference, low, high)


def compare_policies(
    episodes: pl.DataFrame, against: pl.DataFrame
) -> list[tuple[str, str, PolicyDifference | None]]:
    """Compare the policies of two runs: policies of the same name, or all with a single policy.

    Args:
        episodes: EPISODES of one run.
        against: EPISODES of the other run.

    Returns:
        Pairs of policies with their difference; None if they share no task.
    """
    these, those = by_policy(_counting(episodes)), by_policy(_counting(against))
    differences = []
    for name, other in product(these, those):
        if name == other or min(len(these), len(those)) == 1:
            try:
                difference = compare(these[name], those[other])
            except ValueError:
                difference = None
            differences.append((name, other, difference))
    return differences
