"""Prompts for TRL's GRPOTrainer, with what its reward function needs (conversations -> rows)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from stages.exports.conversations import Conversation, as_told, opening


def trl(talks: Iterable[Conversation]) -> list[dict[str, Any]]:
    """Return a row for each opening of a task; GRPO samples a group from each.

    `prompt` holds the messages before the first answer. `messages` and `outcome` are those of the
    best conversation with this opening, of equals the first. Conversations without an answer are
    left out.
    """
    best: dict[bytes, Conversation] = {}
    for talk in talks:
        begins = opening(talk.messages)
        if begins == len(talk.messages):
            continue
        key = orjson.dumps([*_task(talk), talk.messages[:begins]])
        if key not in best or _known(talk.outcome) > _known(best[key].outcome):
            best[key] = talk
    return [_row(talk) for talk in best.values()]


def _row(talk: Conversation) -> dict[str, Any]:
    begins = opening(talk.messages)
    prompt, tools = as_told(talk.messages[:begins], talk.tools, talk.prompt)
    return {
        "prompt": prompt,
        "messages": talk.messages,
        "tools": tools,
        "gold_actions": talk.gold_actions,
        "outcome": talk.outcome,
        "task_id": talk.task_id,
        "domain": talk.domain,
    }


def _task(talk: Conversation) -> tuple[str | None, str | None, str]:
    """Return what identifies a task: domain, id and, since an id may be reused, gold actions."""
    gold = orjson.dumps(talk.gold_actions, option=orjson.OPT_SORT_KEYS)
    return talk.domain, talk.task_id, gold.decode()


def _known(outcome: float | None) -> float:
    return -1.0 if outcome is None else outcome
