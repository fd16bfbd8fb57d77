"""Episodes of any trace format as our own records (Episode -> rows of JSON lines)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from stages.core.arguments import parse_arguments
from stages.errors import InputError
from stages.traces.clean import clean_messages
from stages.traces.episode import Episode, GoldAction, Turn
from stages.traces.fields import BadItemError
from stages.traces.identity import Renamed
from stages.traces.turns import read_turns

ROLES = ("system", "user", "assistant", "tool")
# Keys of messages in OpenAI's form, including those that `rollout` and readers add.
KEYS = frozenset(
    [
        "role",
        "content",
        "reasoning_content",
        "tool_calls",
        "tool_call_id",
        "name",
        "error",
        "requestor",
        "sampled",
        "n_tokens",
        "finish",
        "prompt_ids",
        "appended",
        "token_ids",
        "logprobs",
    ]
)
CALL_KEYS = {"id", "type", "function"}

Message = dict[str, Any]
Row = dict[str, Any]


def message_rows(episodes: Iterable[Episode], notes: Counter[str]) -> list[Row]:
    """Return a row per episode, with the fields that it has (see `traces.messages.FIELDS`).

    Reading a row back gives the same turns with the same calls, results, outcome and status.

    Args:
        episodes: episodes of any trace format.
        notes: counts what was skipped.
    """
    return [row_of(episode, notes) for episode in episodes]


def row_of(episode: Episode, notes: Counter[str]) -> Row:
    """Return the row of one episode; see `message_rows`."""
    messages, played = plain_messages(episode, notes)
    row: Row = {"episode_id": episode.episode_id, "task_id": _within_domain(episode)}
    row["trial"] = episode.trial
    stated = {
        "group_id": episode.group_id,
        "domain": episode.domain,
        "family": episode.family,
        "env": episode.env,
        "policy": episode.policy,
        "outcome": episode.outcome,
        "status": episode.status,
        "stop": episode.stop,
        "rewards": episode.rewards if episode.outcome is not None else None,
        "gold_actions": None
        if episode.gold is None
        else [_action(action) for action in episode.gold],
        "required_info": None if episode.required_info is None else list(episode.required_info),
        "tools": episode.tools,
    }
    row |= {key: value for key, value in stated.items() if value is not None}
    if played:
        row["tokens_recorded"] = False  # readers then take text that looks like a call as text
    return row | {"messages": messages}


def openai_messages(row: Row, where: str) -> list[Message]:
    """Return the messages of a row, which must be in OpenAI's form.

    Args:
        row: row of `message_rows`.
        where: name of the command in errors.

    Raises:
        InputError: some messages are in the form of their trace.
    """
    messages: list[Message] = row["messages"]
    if not all(isinstance(message, dict) and "role" in message for message in messages):
        what = f"episode '{row['episode_id']}' has messages in another form than OpenAI's"
        raise InputError(where, what, "export its messages")
    return messages


def arguments_text(recorded: Any) -> str:
    """Return a call's arguments as JSON text; arguments that are text stay as written.

    Args:
        recorded: arguments of a call in OpenAI's form; None: there are none.
    """
    if isinstance(recorded, str):
        return recorded
    return json.dumps({} if recorded is None else recorded, ensure_ascii=False)


def _within_domain(episode: Episode) -> str:
    """Return the task's name in tables, without the domain that readers prepend."""
    return episode.task.removeprefix(f"{episode.domain}/") if episode.domain else episode.task


def settle(rows: Iterable[Row], sources: Iterable[str], renamed: Renamed) -> None:
    """Give rows the final names of their tasks, known once all traces are read, as in tables.

    Args:
        rows: rows of `message_rows`.
        sources: source of each row.
        renamed: see `Identities.renamed`.
    """
    for row, source in zip(rows, sources, strict=True):
        domain = f"{row['domain']}/" if "domain" in row else ""
        had = domain + row["task_id"]
        if name := renamed.get((source, had)):
            group = row.get("group_id", f"{row['policy']}:{had}")
            row |= {"task_id": name.removeprefix(domain), "group_id": f"{source}/{group}"}


def _action(action: GoldAction) -> Row:
    row: Row = {"name": action.name, "arguments": action.arguments}
    if action.compare_args is not None:
        row["compare_args"] = list(action.compare_args)
    return row | ({"requestor": "user"} if action.requestor == "user" else {})


def plain_messages(episode: Episode, notes: Counter[str]) -> tuple[list[Message], bool]:
    """Return an episode's messages in OpenAI's form, and whether text in them is never a call.

    Messages that are all in that form, without other keys, stay unchanged.
    """
    messages = episode.messages
    if not all(_is_plain(message) for message in messages):
        try:
            messages = clean_messages(messages, notes)
        except BadItemError:  # only the trace's own reader understands them, now and later
            notes["messages kept in the form of their trace"] += 1
    rows = [dict(message) if isinstance(message, dict) else message for message in messages]
    return rows, _is_played(rows, episode)


def _is_plain(message: Any) -> bool:
    if not isinstance(message, dict) or not KEYS.issuperset(message):
        return False
    content, calls = message.get("content"), message.get("tool_calls")
    is_text = content is None or isinstance(content, str)
    return is_text and message.get("role") in ROLES and (not calls or _are_plain(calls))


def _are_plain(calls: Any) -> bool:
    return isinstance(calls, list) and all(
        isinstance(call, dict)
        and set(call) == CALL_KEYS
        and isinstance(call["function"], dict)
        and set(call["function"]) == {"name", "arguments"}
        for call in calls
    )


def _is_played(messages: list[Message], episode: Episode) -> bool:
    """Return whether calls in text were not read as calls, as in episodes that we played."""
    try:
        turns, _ = read_turns(messages, Counter(), episode.tools)
    except BadItemError:
        return True
    return _meaning(turns) != _meaning(episode.turns)


def _meaning(turns: Iterable[Turn]) -> list[Any]:
    """Return the calls of turns with their results; arguments are parsed values."""
    return [
        [(c.name, parse_arguments(c.arguments).value, c.result, c.flagged) for c in turn.calls]
        for turn in turns
    ]
