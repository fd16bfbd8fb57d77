"""The report on some turns as one document (TURNS + conversations -> a report).

The document consists of plain values: `irc-cli report --json` prints it, and the page shows the
same numbers under the same ids. It is built in two steps: the turns give statistics, tasks and
groups; the conversations give siblings and examples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics, chosen_r
from stages.calibration.sums import lay_out, sum_turns
from stages.check import BothChecks, Changes, CheckResult, objections
from stages.core.advantages import AdvantageConfig, Advantages
from stages.core.correlation import Floats
from stages.core.critic import gains
from stages.core.direction import DEAD
from stages.credit import Credit, both_credits
from stages.reporting import siblings, why
from stages.reporting.conversations import Conversations
from stages.reporting.groups import group_panel
from stages.reporting.sample import sampled
from stages.reporting.tasks import (
    MASKED,
    TRUNCATED,
    episode_rows,
    leverages,
    natural,
    pass_rate_of,
    refs,
    task_rows,
    with_silent,
)
from stages.tables.turn_arrays import TurnArrays

VERSION = 1  # version of the document


class ReportInputs(NamedTuple):
    """The inputs of a report, except the conversations."""

    turns: pl.DataFrame  # TURNS, including masked episodes
    arrays: TurnArrays  # of the episodes that count
    calibration: Calibration
    config: CalibrateConfig
    estimator: AdvantageConfig
    judged: BothChecks
    changes: Changes | None = None
    without_turns: int = 0  # excluded episodes without rows in the turns


def report(known: ReportInputs, next_step: str, most: int) -> dict[str, Any]:
    """Build the document from the turns (TURNS -> a report).

    Args:
        known: the turns and the results on them.
        next_step: what to do next, in a sentence.
        most: most episodes to show; tables and statistics cover all episodes.

    Returns:
        The document as plain values.
    """
    result, episodes = known.calibration, episode_rows(known.turns)
    counts = why.tier_counts(known.turns, episodes)
    before, after = known.judged.before, known.judged.after
    sides = _sides(known)
    rewards = {name: side.reward for name, side in sides.items()}
    made = {name: side.advantages for name, side in sides.items()}
    shown = sampled(episodes, most)
    return {
        "version": VERSION,
        "summary": _summary(known, episodes),
        "verdict": _verdict(known, next_step),
        "tiers": [_tier(tier, result, counts) for tier in _ranked(result)],
        "direction": {"before": _check(before), "after": _check(after)},
        "critic": _critic(known),
        "changes": _changes(known.changes),
        "tasks": task_rows(episodes, set(shown), _leverages(known)),
        "panel": group_panel(known.arrays, rewards, {n: a.advantage for n, a in made.items()}),
        "shown": {"episodes": len(shown), "of": episodes.height},
        "episodes": _episodes(known, episodes, rewards, made, shown),
        "loop": None,
        "conversations": False,
    }


def with_conversations(
    document: dict[str, Any], known: ReportInputs, conversations: Conversations
) -> dict[str, Any]:
    """Add siblings and examples, which need the conversations.

    Args:
        document: a document of `report`.
        known: its inputs.
        conversations: the conversations of the same episodes.

    Returns:
        The document with siblings and examples.
    """
    episodes = episode_rows(known.turns)
    met = siblings.partings(episodes, conversations.tracks)
    rows = [
        row | {"parting": siblings.as_row(met[row["id"]]) if row["id"] in met else None}
        for row in document["episodes"]
    ]
    examples = why.Examples(rows, conversations)
    tiers = []
    for row in document["tiers"]:
        sign = row["value"] or row["r"] or 0.0
        tiers.append(row | {"examples": examples.of(row["tier"], sign)})
    tasks = with_silent(document["tasks"], conversations.silent)
    return document | {"episodes": rows, "tiers": tiers, "tasks": tasks, "conversations": True}


def _sides(known: ReportInputs) -> dict[str, Credit]:
    """Return both sets of rewards; the checked advantages may come from another program."""
    judged = known.judged
    before, after = both_credits(known.arrays, known.calibration.values(), known.estimator)
    sides = {"before": before, "after": after}
    chosen = "before" if judged.chosen is judged.before else "after"
    return sides | {chosen: sides[chosen]._replace(advantages=judged.advantages)}


def _summary(known: ReportInputs, episodes: pl.DataFrame) -> dict[str, Any]:
    result = known.calibration
    rate = pass_rate_of(episodes) or {}
    mixed = known.arrays.frame.group_by("task_id", "group_id", maintain_order=True).agg(
        won=pl.col("success").cast(pl.Float64).mean()
    )
    mixed = mixed.filter(pl.col("won").is_between(0, 1, closed="none"))
    return {
        "sources": episodes["source"].unique().sort().to_list(),
        "policies": episodes["policy"].unique().sort().to_list(),
        "episodes": episodes.height + known.without_turns,
        "counted": rate.get("episodes", 0),
        "masked": int((episodes["state"] == MASKED).sum()) + known.without_turns,
        "truncated": int((episodes["state"] == TRUNCATED).sum()),
        "tasks": rate.get("tasks", 0),
        "mixed_tasks": mixed["task_id"].n_unique(),
        "turns": known.turns.height,
        "pass_rate": rate.get("pass_rate"),
        "ci_low": rate.get("ci_low"),
        "ci_high": rate.get("ci_high"),
        "calibrated_on": result.episodes,
        "correlation": result.correlation,
        "adjust": result.adjust,
        "measure": known.config.measure,
        "pay": result.pay,
        "landmark": result.landmark,
        "estimator": known.estimator.estimator,
        "gamma": known.estimator.gamma,
        "outcome_weight": known.estimator.outcome_weight,
        "gae_lambda": known.estimator.gae_lambda,
        "eta": known.config.eta,
    }


def _verdict(known: ReportInputs, next_step: str) -> dict[str, Any]:
    """Return the verdict of `calibrate --check`, in one sentence."""
    reasons = objections(known.calibration, known.judged.chosen, known.config)
    chosen = known.judged.chosen
    if reasons:
        # An undecided objection begins with that word.
        state = "undecided" if all(r.startswith("undecided") for r in reasons) else "fails"
        plain_reasons = [reason.removeprefix("undecided: ") for reason in reasons]
        said = "is undecided" if state == "undecided" else "says no"
        sentence = f"The gate {said}: {'; '.join(plain_reasons)}."
    else:
        r, low, high = chosen.reward_outcome_correlation, chosen.ci_low, chosen.ci_high
        state = "passes"
        sentence = (
            "The gate passes: every tier is pushed as its value intends, and "
            f"{chosen.followed} and outcome correlate by {r:.2f} [{low:.2f}, {high:.2f}]."
        )
    return {"state": state, "sentence": sentence, "objections": reasons, "next": next_step}


def _ranked(result: Calibration) -> list[TierStatistics]:
    """Return the tiers, sorted by descending correlation with success."""
    return sorted(result.tiers, key=lambda tier: (-(chosen_r(tier, result) or 0.0), tier.tier))


def _tier(tier: TierStatistics, result: Calibration, counts: dict[str, Any]) -> dict[str, Any]:
    raw = tier.r_within if result.correlation == "within" else tier.r_pooled
    evidence = {"raw": raw, "r": chosen_r(tier, result), "counts": counts.get(tier.tier)}
    return tier._asdict() | evidence | {"examples": []}


def _check(check: CheckResult) -> dict[str, Any]:
    rows = [row._asdict() for row in check.direction]
    farming = check.farmability._asdict() | {"farmable": check.farmability.farmable()}
    bias = check.length_bias._asdict()
    return check._asdict() | {"direction": rows, "farmability": farming, "length_bias": bias}


def _critic(known: ReportInputs) -> list[dict[str, Any]] | None:
    """Return what turns of each tier add to the forecast; None if the estimator has no critic."""
    critic = known.calibration.critic
    if known.estimator.estimator != "potential" or critic is None:
        return None
    return [
        {
            "tier": row.tier,
            "first": row.first[0],
            "first_error": row.first[1],
            "again": row.again[0],
            "again_error": row.again[1],
        }
        for row in gains(critic)
    ]


def _changes(changes: Changes | None) -> dict[str, Any] | None:
    if changes is None:
        return None
    return changes._asdict() | {"tiers": [row._asdict() for row in changes.tiers]}


def _leverages(known: ReportInputs) -> dict[str, dict[str, float]]:
    summed = sum_turns(known.arrays.frame.lazy(), known.config.measure, "turns")
    sums = lay_out(summed.sums, known.config.measure)
    tasks = summed.sums["task_id"].unique().sort().to_list()
    return leverages(sums, tasks, known.calibration, known.config)


def _episodes(
    known: ReportInputs,
    episodes: pl.DataFrame,
    rewards: dict[str, Floats],
    made: dict[str, Advantages],
    shown: list[str],
) -> list[dict[str, Any]]:
    """Return the shown episodes, each with its turns and their numbers."""
    names = (
        "episode_id",
        "turn",
        "tier",
        "tool_names",
        "match",
        "match_share",
        "reward",
        "n_tokens",
    )
    turns = known.turns.select(names).join(
        _numbers(known, rewards, made), on=["episode_id", "turn"], how="left", maintain_order="left"
    )
    wanted = set(shown)
    turns = turns.filter(pl.col("episode_id").is_in(wanted)).rename({"tool_names": "tools"})
    by_episode = {
        str(name): frame.drop("episode_id").to_dicts()
        for (name,), frame in turns.group_by("episode_id", maintain_order=True)
    }
    names_of = refs(episodes)
    return [
        {
            "id": row["episode_id"],
            "ref": names_of[row["episode_id"]],
            "task": row["task_id"],
            "trial": row["trial"],
            "group": row["group_id"],
            "policy": row["policy"],
            "state": row["state"],
            "outcome": row["outcome"],
            "status": row["status"],
            "turns": by_episode[row["episode_id"]],
        }
        for row in sorted(episodes.iter_rows(named=True), key=_in_order)
        if row["episode_id"] in wanted
    ]


def _in_order(row: dict[str, Any]) -> tuple[Any, ...]:
    return natural(row["task_id"]), -1 if row["trial"] is None else row["trial"]


def _numbers(
    known: ReportInputs, rewards: dict[str, Floats], made: dict[str, Advantages]
) -> pl.DataFrame:
    """Return rewards and advantages of each turn that counts, and where signs conflict."""
    before, after = made["before"], made["after"]
    values = known.calibration.values()
    intended = np.sign([values.get(tier, 0.0) for tier in known.arrays.tiers])[known.arrays.tier]
    columns = {
        "value": rewards["after"],
        "return_part": after.return_part,
        "outcome_part": after.outcome_part,
        "advantage": after.advantage,
        "advantage_before": before.advantage,
        # Advantage against the sign of the tier's value; or of opposite sign to that as scored.
        "against": intended * after.advantage < -DEAD,
        "flips": (before.advantage * after.advantage < 0)
        & (np.minimum(np.abs(before.advantage), np.abs(after.advantage)) > DEAD),
    }
    return known.arrays.frame.select("episode_id", "turn").with_columns(
        **{
            name: pl.Series(values).fill_nan(None) if values.dtype == float else pl.Series(values)
            for name, values in columns.items()
        }
    )
