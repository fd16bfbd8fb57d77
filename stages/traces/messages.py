"""OpenAI-style conversations, and our own rollouts.jsonl, which adds ids and token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import orjson

from stages.tables.near import WITHOUT_TURN, messages_seen
from stages.traces.episode import Episode
from stages.traces.fields import (
    BadItemError,
    Names,
    gold_of,
    kin_of,
    name_in,
    opening_of,
    outcome_of,
    policy_in,
)
from stages.traces.turns import read_turns

FIELDS = [
    "messages",
    "output",
    "tools",
    "gold_actions",
    "outcome",
    "reward",
    "success",
    "status",
    "domain",
    "family",
    "env",
    "task_id",
    "trial",
    "episode_id",
    "group_id",
]
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
    names, gaps = Names(source, notes), _Gaps(notes)

    def read(item: dict[str, Any]) -> Episode:
        if "messages" not in item:
            raise BadItemError("has no 'messages'", "give one list of messages per record")
        messages = _value(item, "messages")
        if not isinstance(messages, list):
            raise BadItemError("'messages' is not a list", "give one list of messages per record")
        if isinstance(item.get("output"), list):  # of the Responses API: what the policy added
            messages = [*messages, *item["output"]]
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
        domain, family, env = (name_in(item, key) for key in ("domain", "family", "env"))
        policy = policy_in(item)
        turns, user_calls = read_turns(messages, notes, tools, played="tokens_recorded" in item)
        gaps.note(item)
        if not turns:
            notes[f"{WITHOUT_TURN}: {messages_seen(messages)}"] += 1
        episode_id, task_id, trial, group_id = names.give(
            item.get("task_id"),
            None if ignore_trial else item.get("trial"),
            episode_id=item.get("episode_id"),
            group_id=item.get("group_id"),
            kin=kin_of(policy, domain, gold),
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
            policy=policy or source,
            domain=domain,
            task_numbered=item.get("task_id") is None and group_id is None,
            opening=opening_of(messages),
            tools=tools,
            user_calls=user_calls,
            family=family,
            env=env,
        )

    return read


class _Gaps:
    """Notes the fields that a record should have and lacks."""

    def __init__(self, notes: Counter[str]) -> None:
        self._notes = notes
        self._first: set[str] | None = None  # fields of the first record
        self._near: dict[str, str | None] = {}  # by an unknown key: the field that it resembles

    def note(self, item: dict[str, Any]) -> None:
        if not any(key in item for key in OUTCOMES):
            self._notes["no outcome, reward or success"] += 1
        if "gold_actions" not in item:
            self._notes["no gold actions"] += 1
        fields = {key for key in FIELDS if key in item}
        if self._first is None:
            self._first = fields
        for key in self._first ^ fields:
            self._notes[f"'{key}' in some records only"] += 1
        for key in item.keys() - fields:
            if (near := self._resembled(key)) is not None and near not in item:
                self._notes[f"unknown field '{key:.40}': is it '{near}'?"] += 1

    def _resembled(self, key: str) -> str | None:
        if key not in self._near:
            matches = get_close_matches(key.lower(), FIELDS, 1, cutoff=0.8)
            self._near[key] = matches[0] if matches else None
        return self._near[key]


def stated_outcome(item: dict[str, Any]) -> float | None:
    """The outcome in [0, 1] that a record states; None where it states none.

    Raises:
        BadItemError: it is no such number.
    """
    values = (outcome_of(item.get(key), key) for key in OUTCOMES)
    return next((value for value in values if value is not None), None)


def _value(item: dict[str, Any], field: str) -> Any:
    """The value of a field, parsed where it is a JSON string."""
    value = item.get(field)
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadItemError(f"'{field}' holds broken JSON", "write it anew") from None
