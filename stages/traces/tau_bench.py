"""Read tau-bench result files: a list of {task_id, reward, info, traj, trial}."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from stages.traces.episode import Episode
from stages.traces.fields import BadItemError, name_in, object_of, policy_in
from stages.traces.formats import ReadOptions

NAME = "tau-bench"


def accepts(item: dict[str, Any]) -> bool:
    """Return whether a record is a tau-bench item."""
    return "traj" in item


def translate(
    item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield an item as a clean record.

    An item crashed if its `traj` is empty or `info` has an error or a traceback. It then has the
    status "error" and no outcome, although tau-bench records a reward of 0.

    Raises:
        BadItemError: the item has no list of messages.
    """
    if "traj" not in item:
        raise BadItemError("has no 'traj'", "give the file as it was written")
    messages = item["traj"] or []
    if not isinstance(messages, list):
        raise BadItemError("'traj' is not a list of messages", "give a tau-bench result file")
    info, task = object_of(item, "info"), _task(item)
    crashed = not messages or "error" in info or "traceback" in info
    if crashed:
        notes["crashed item"] += 1
    else:
        if item.get("reward") is None:
            notes["no reward"] += 1
        if task.get("actions") is None:
            notes["no gold actions"] += 1
    yield {
        "messages": messages,
        "gold_actions": task.get("actions"),
        "reward": None if crashed else item.get("reward"),
        "status": "error" if crashed else "ok",
        "task_id": item.get("task_id"),
        "trial": item.get("trial"),
        "domain": name_in(item, "domain"),
        "policy": policy_in(item),
    }


def complete(
    episode: Episode, item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> None:
    """Add the facts that the agent must tell the user, if the task lists them."""
    outputs = _task(item).get("outputs")
    if isinstance(outputs, list):
        episode.required_info = tuple(map(str, outputs))


def _task(item: dict[str, Any]) -> dict[str, Any]:
    info = object_of(item, "info")
    return object_of(info, "task") or object_of(info, "reward_info")
