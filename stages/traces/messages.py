"""OpenAI-style conversations and our own rollouts.jsonl, which adds ids and token counts."""

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
OWN = (  # the fields of a record other than its conversation
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
OUTCOMES = ("outcome", "reward", "success")  # the first that is not null is used


def accepts(item: dict[str, Any]) -> bool:
    """Return whether a record is a conversation."""
    return "messages" in item


def translate(
    item: dict[str, Any], options: ReadOptions, notes: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Yield the record itself, which is already clean."""
    yield item


def reader(
    source: str, notes: Counter[str], *, ignore_trial: bool = False, gaps: bool = True
) -> Callable[[dict[str, Any]], Episode]:
    """Return a function that reads one clean record into an episode.

    Messages, tools and gold actions may be JSON strings, as in flat Parquet columns.

    Args:
        source: name of the trace.
        notes: counts what was repaired or skipped.
        ignore_trial: ignore the recorded trials and number them anew.
        gaps: note missing and misspelt fields. False for records from a translator, which fills
            only the fields that its format has.
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
    """Return the messages, followed by the policy's output if it is recorded separately."""
    if "messages" not in item:
        raise BadItemError("has no 'messages'", "give one list of messages per record")
    messages = _value(item, "messages")
    if not isinstance(messages, list):
        raise BadItemError("'messages' is not a list", "give one list of messages per record")
    output = item.get("output")  # the Responses API's
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
    """Return the numeric components of the outcome; None if there are none."""
    parts = item.get("rewards")
    if not isinstance(parts, dict):
        return None
    numbers = {name: part for name, part in parts.items() if isinstance(part, (int, float))}
    return numbers or None


class _Gaps:
    """Notes fields that records lack or seem to misspell."""

    def __init__(self, notes: Counter[str]) -> None:
        self._notes = notes
        self._first: set[str] | None = None  # fields of the first record
        self._near: dict[str, str | None] = {}  # unknown key -> the field that it resembles
        self._last: tuple[str, ...] | None = None  # keys of the previous record
        self._of_last: list[str] = []  # notes on the previous record

    def note(self, item: dict[str, Any]) -> None:
        """Note the fields that a record lacks and its keys that look like misspelt fields."""
        if (keys := tuple(item)) != self._last:  # records mostly have the same keys
            self._last, self._of_last = keys, list(self._told(item.keys()))
        for text in self._of_last:
            self._notes[text] += 1

    def _told(self, keys: Set[str]) -> Iterator[str]:
        """Yield the notes on a record with these keys."""
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
    """Return the outcome in [0, 1] that a record states; None if it states none.

    Raises:
        BadItemError: the outcome is not such a number, or `outcome` contradicts `success`.
    """
    values = [outcome_of(item.get(key), key) for key in OUTCOMES]
    outcome, _, success = values
    stated = isinstance(item.get("success"), bool)
    if stated and outcome is not None and (outcome >= SUCCESS) != (success == 1):
        what = f"'success' is {item['success']!r}, but 'outcome' is {item['outcome']!r}"
        raise BadItemError(what, "fix the record, or name one by --map outcome=FIELD")
    return next((value for value in values if value is not None), None)


def _value(item: dict[str, Any], field: str) -> Any:
    """Return the value of a field, parsed if it is a JSON string."""
    value = item.get(field)
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        raise BadItemError(f"'{field}' holds broken JSON", "write it anew") from None
