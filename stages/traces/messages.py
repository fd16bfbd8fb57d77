"""OpenAI-style conversations, and our own rollouts.jsonl, which adds ids and token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import orjson

from stages.traces.episode import Episode
from stages.traces.fields import BadItemError, Names, gold_of, outcome_of
from stages.traces.near import WITHOUT_TURN, messages_seen
from stages.traces.turns import read_turns

STATUSES = frozenset({"ok", "truncated", "error"})
OUTCOMES = ("outcome", "reward", "success")  # the first that is not null counts


def accepts(item: dict[str, Any]) -> bool:
    """Whether a record is a conversation."""
    return "messages" in item


def reader(
    source: str, notes: Counter[str], *, ignore_trial: bool = False
) -> Callable[[dict[str, Any]], Episode]:
    """A function that reads one record into an episode.

    Any field may be a JSON string in place of its value, as in flat Parquet columns.
    """
    names = Names(source, notes)

    def read(item: dict[str, Any]) -> Episode:
        messages = _value(item, "messages")
        if not isinstance(messages, list):
            raise BadItemError("'messages' is not a list", "give one list of messages per record")
        outcome = stated_outcome(item)
        gold = gold_of(_value(item, "gold_actions"), "gold_actions")
        tools = _value(item, "tools")
        if tools is not None and not isinstance(tools, list):
            notes["tools not a list"] += 1
            tools = None
        status = item.get("status") or "ok"
        if not isinstance(status, str) or status not in STATUSES:
            notes[f"unknown status {status!r:.40}"] += 1
            status = "ok"
        domain, family, env = (_name(item.get(key)) for key in ("domain", "family", "env"))
        turns, user_calls = read_turns(messages, notes, tools)
        if not turns:
            notes[f"{WITHOUT_TURN}: {messages_seen(messages)}"] += 1
        episode_id, task_id, trial, group_id = names.give(
            item.get("task_id"),
            None if ignore_trial else item.get("trial"),
            episode_id=item.get("episode_id"),
            group_id=item.get("group_id"),
        )
        return Episode(
            source=source,
            episode_id=episode_id,
            task_id=task_id,
            trial=trial,
            group_id=group_id,
            turns=turns,
            gold=gold,
            outcome=outcome,
            status=status,
            domain=domain,
            tools=tools,
            user_calls=user_calls,
            family=family,
            env=env,
        )

    return read


def stated_outcome(item: dict[str, Any]) -> float | None:
    """The outcome in [0, 1] that a record states; None where it states none.

    Raises:
        BadItemError: it is no such number.
    """
    values = (outcome_of(item.get(key), key) for key in OUTCOMES)
    return next((value for value in values if value is not None), None)


def _name(value: Any) -> str | None:
    """A name; anything but a text with letters in it says nothing."""
    return value if isinstance(value, str) and value else None


def _value(item: dict[str, Any], field: str) -> Any:
    """The value of a field, parsed where it is a JSON string."""
    value = item.get(field)
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadItemError(f"'{field}' holds broken JSON", "write it anew") from None
