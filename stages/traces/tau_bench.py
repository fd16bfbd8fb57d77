"""tau-bench result files: a list of {task_id, reward, info, traj, trial}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from stages.traces.episode import Episode
from stages.traces.fields import (
    BadItemError,
    Names,
    gold_of,
    kin_of,
    name_in,
    object_of,
    opening_of,
    outcome_of,
    policy_in,
)
from stages.traces.turns import read_turns


def accepts(item: dict[str, Any]) -> bool:
    """Whether a record is a tau-bench item."""
    return "traj" in item


def reader(
    source: str, notes: Counter[str], *, ignore_trial: bool = False
) -> Callable[[dict[str, Any]], Episode]:
    """A function that reads one item into an episode.

    An item with an empty `traj`, or with `info.error`, crashed: it has no outcome and its status
    is "error", although tau-bench records a reward of 0 for it.
    """
    names = Names(source, notes)

    def read(item: dict[str, Any]) -> Episode:
        if "traj" not in item:
            raise BadItemError("has no 'traj'", "give the file as it was written")
        messages = item["traj"] or []
        if not isinstance(messages, list):
            raise BadItemError("'traj' is not a list of messages", "give a tau-bench result file")
        info = object_of(item, "info")
        task = object_of(info, "task") or object_of(info, "reward_info")
        crashed = not messages or "error" in info or "traceback" in info
        outcome = outcome_of(item.get("reward"), "reward")
        if outcome is None and not crashed:
            notes["no reward"] += 1
        if not crashed and task.get("actions") is None:
            notes["no gold actions"] += 1
        gold = gold_of(task.get("actions"), "actions")
        turns, user_calls = read_turns(messages, notes)
        domain, policy = name_in(item, "domain"), policy_in(item)
        episode_id, task_id, trial, group_id = names.give(
            item.get("task_id"),
            None if ignore_trial else item.get("trial"),
            kin=kin_of(policy, domain, gold),
        )
        if crashed:
            notes["crashed item"] += 1
        return Episode(
            source=source,
            episode_id=episode_id,
            task_id=task_id,
            trial=trial,
            group_id=group_id,
            turns=turns,
            gold=gold,
            outcome=None if crashed else outcome,
            status="error" if crashed else "ok",
            policy=policy or source,
            domain=domain,
            task_numbered=item.get("task_id") is None,
            opening=opening_of(messages),
            user_calls=user_calls,
            required_info=_outputs(task),
        )

    return read


def _outputs(task: dict[str, Any]) -> tuple[str, ...] | None:
    """What the agent had to tell the user, where the task says so."""
    outputs = task.get("outputs")
    return tuple(map(str, outputs)) if isinstance(outputs, list) else None
