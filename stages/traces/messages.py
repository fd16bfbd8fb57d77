"""OpenAI-style conversations, and our own rollouts.jsonl, which adds ids and token counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Set
from difflib import get_close_matches
from typing import Any

import orjson

from stages.core.statuses import STATUSES
from stages.tables.near import WITHOUT_TURN, messages_seen
from stages.traces.episode import SUCCESS, Episode
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
from stages.traces.formats import ReadOptions
from stages.traces.turns import read_turns

NAME = "messages"
OWN = (  # what a record says beside its conversation
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
)
FIELDS = ("messages", "output", "tools", *OWN)
OUTCOMES = ("outcome", "reward", "success")  # the first that is not null counts


def accepts(item: dict[str, Any]) -> bool:
    """Whether a record is a conversation."""
    return "messages" in item


def translate(
    item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the record itself, which is clean."""
    yield item


def reader(
    source: str, notes: Counter[str], *, ignore_trial: bool = False, gaps: bool = True
) -> Callable[[dict[str, Any]], Episode]:
    """A function that reads one clean record into an episode.

    Any field may be a JSON string in place of its value, as in flat Parquet columns.

    Args:
        source: name of the trace.
        notes: counts what was repaired or skipped.
        ignore_trial: number the trials anew.
        gaps: note the fields that records lack, and those that resemble one; a translator knows
            better what its format has.
    """
    names, lacking = Names(source, notes), _Gaps(notes)

    def read(item: dict[str, Any]) -> Episode:
        messages = _messages(item)
        outcome = stated_outcome(item)
        gold = gold_of(_value(item, "gold_actions"), "gold_actions")
        tools, status = _tools(item, notes), _status(item, notes)
        domain, policy = name_in(item, "domain"), policy_in(item)
        turns, user_calls = read_turns(messages, notes, tools, played="tokens_recorded" in item)
        if gaps:
            lacking.note(item)
            if not turns:
                notes[f"{WITHOUT_TURN}: {messages_seen(messages)}"] += 1
        task_id, group_id = item.get("task_id"), item.get("group_id")
        episode_id, task, trial, group = names.give(
            task_id,
            None if ignore_trial else item.get("trial"),
            episode_id=item.get("episode_id"),
            group_id=group_id,
            kin=kin_of(policy, domain, gold),
        )
        return Episode(
            source=source,
            episode_id=episode_id,
            task_id=task,
            trial=trial,
            group_id=group,
            turns=turns,
            gold=gold,
            outcome=outcome,
            status=status,
            policy=policy or source,
            domain=domain,
            task_numbered=task_id is None and group_id is None,
            opening=opening_of(messages),
            messages=messages,
            rewards=_rewards(item),
            stop=name_in(item, "stop", "ended"),
            tools=tools,
            user_calls=user_calls,
            family=name_in(item, "family"),
            env=name_in(item, "env"),
        )

    return read


def _messages(item: dict[str, Any]) -> list[Any]:
    """The messages, and those that the policy added where they stand apart."""
    if "messages" not in item:
        raise BadItemError("has no 'messages'", "give one list of messages per record")
    messages = _value(item, "messages")
    if not isinstance(messages, list):
        raise BadItemError("'messages' is not a list", "give one list of messages per record")
    output = item.get("output")  # of the Responses API
    return [*messages, *output] if isinstance(output, list) else messages


def _tools(item: dict[str, Any], notes: Counter[str]) -> list[Any] | None:
    tools = _value(item, "tools")
    if tools is None or isinstance(tools, list):
        return tools
    notes["tools not a list"] += 1
    return None


def _status(item: dict[str, Any], notes: Counter[str]) -> str:
    status = item.get("status") or "ok"
    if isinstance(status, str) and status in STATUSES:
        return status
    notes[f"unknown status {status!r:.40}"] += 1
    return "ok"


def _rewards(item: dict[str, Any]) -> dict[str, float] | None:
    """The numbers among the components of the outcome; None where there are none."""
    parts = item.get("rewards")
    if not isinstance(parts, dict):
        return None
    numbers = {name: part for name, part in parts.items() if isinstance(part, (int, float))}
    return numbers or None


class _Gaps:
    """Notes the fields that a record should have and lacks."""

    def __init__(self, notes: Counter[str]) -> None:
        self._notes = notes
        self._first: set[str] | None = None  # fields of the first record
        self._near: dict[str, str | None] = {}  # by an unknown key: the field that it resembles
        self._last: tuple[str, ...] | None = None  # keys of the last record, and their notes
        self._of_last: list[str] = []

    def note(self, item: dict[str, Any]) -> None:
        """Note what a record lacks, and its keys that look like misspelt fields."""
        if (keys := tuple(item)) != self._last:  # most often they are the same
            self._last, self._of_last = keys, list(self._told(item.keys()))
        for text in self._of_last:
            self._notes[text] += 1

    def _told(self, keys: Set[str]) -> Iterator[str]:
        """The notes on a record with some keys."""
        if keys.isdisjoint(OUTCOMES):
            yield "no outcome, reward or success"
        if "gold_actions" not in keys:
            yield "no gold actions"
        fields = {key for key in FIELDS if key in keys}
        if self._first is None:
            self._first = fields
        for key in self._first ^ fields:
            yield f"'{key}' in some records only"
        for key in keys - fields:
            if (near := self._resembled(key)) is not None and near not in keys:
                yield f"unknown field '{key:.40}': is it '{near}'?"

    def _resembled(self, key: str) -> str | None:
        if key not in self._near:
            matches = get_close_matches(key.lower(), FIELDS, 1, cutoff=0.8)
            self._near[key] = matches[0] if matches else None
        return self._near[key]


def stated_outcome(item: dict[str, Any]) -> float | None:
    """The outcome in [0, 1] that a record states; None where it states none.

    Raises:
        BadItemError: it is no such number, or `outcome` and `success` contradict each other.
    """
    values = [outcome_of(item.get(key), key) for key in OUTCOMES]
    outcome, _, success = values
    stated = isinstance(item.get("success"), bool)
    if stated and outcome is not None and (outcome >= SUCCESS) != (success == 1):
        what = f"'success' is {item['success']!r}, but 'outcome' is {item['outcome']!r}"
        raise BadItemError(what, "fix the record, or name one by --map outcome=FIELD")
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
