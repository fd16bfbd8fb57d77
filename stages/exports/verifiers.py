"""Episodes as traces of verifiers with the rewards of turns that prime-rl reads.

prime-rl#3282 (`turn_credit`) takes `info.turn_rewards` as scores of the state after each turn and
trains on their differences. Therefore the cumulative rewards are written. It measures progress from
the first score, so that the first turn's reward has no effect.

Layout: `verifiers.v1.{episode,trace,graph,types}` of 0.4.0, which `stages.traces.verifiers` reads.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from itertools import accumulate, pairwise
from typing import Any

from stages.exports.credits import Earned, check_sum, check_turn_count
from stages.exports.links import Links
from stages.exports.messages import arguments_text, openai_messages
from stages.traces.verifiers import TRUNCATED

OURS = "irc_cli"  # key of `info` for the tiers, the rewards and the raw rewards
TASK, AGENT = "Task", "agent"

Row = dict[str, Any]


def traced(row: Row, gains: Earned | None, notes: Counter[str]) -> Row:
    """Return the episode of one conversation, with one trace.

    Args:
        row: row of `messages.message_rows`.
        gains: rewards of its turns; None: it does not count, or has no outcome.
        notes: counts content that a trace can't hold.

    Returns:
        A line of traces.jsonl.

    Raises:
        InputError: the messages are of another form than OpenAI's, or the rewards do not fit them.
    """
    messages = openai_messages(row, "export verifiers")
    links = Links()
    nodes = [_node(message, place, links, notes) for place, message in enumerate(messages)]
    _add_tokens(nodes, messages, notes)
    tools = [_tool(tool) for tool in row.get("tools", [])]
    if nodes and tools:
        nodes[0]["tools"] = tools
    task, status = _task(row), row.get("status", "ok")
    errors = [{"type": row.get("stop") or "error", "message": ""}] if status == "error" else []
    trace = {
        "version": 1,
        "id": row["episode_id"],
        "task": task,
        "agent": {"config": {"model": row.get("policy") or "unknown"}, "name": AGENT},
        "tools": tools,
        "nodes": nodes,
        "rewards": _rewards(row),
        "metrics": {},
        "info": {} if gains is None else _info(row["episode_id"], nodes, gains),
        "is_completed": True,
        "ok": status != "error",
        "errors": errors,
        "stop_condition": _stop(row),
    }
    group = {"group": {"id": row["group_id"]}} if "group_id" in row else {}
    env = row.get("env") or row.get("domain") or ""
    return {
        "id": row["episode_id"],
        "env": {"id": env},
        "task": task,
        **group,
        "ok": status != "error",
        "errors": [],
        "traces": [trace],
    }


def _task(row: Row) -> Row:
    data = {"name": row["task_id"]}
    if "gold_actions" in row:
        data["gold_actions"] = row["gold_actions"]
    digest = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    return {"type": TASK, "data": data, "key": row["task_id"], "hash": digest}


def _info(episode: str, nodes: list[Row], gains: Earned) -> Row:
    """Return the cumulative rewards after each turn, and the rewards themselves."""
    turns = sum(node["sampled"] for node in nodes)
    check_turn_count(turns, gains, episode, "a trace")
    scores = list(accumulate(gains.shaped))
    check_sum([b - a for a, b in pairwise([0.0, *scores])], gains.total, episode)
    earned = {"tiers": gains.tiers, "rewards": gains.shaped, "raw_rewards": gains.raw}
    return {"turn_rewards": scores, OURS: earned | {"total": gains.total}}


def _rewards(row: Row) -> Row:
    """Return the parts of the outcome if they add up to it, else the outcome; null: unknown."""
    outcome = row.get("outcome")
    if outcome is None or row.get("status") == "masked":
        return {"outcome": None}
    parts = row.get("rewards") or {}
    if not parts or abs(sum(parts.values()) - outcome) > 1e-9:
        parts = {"outcome": outcome}
    return {name: {"score": score, "weight": 1.0} for name, score in parts.items()}


def _stop(row: Row) -> str | None:
    """Return why an episode ended; for a truncated one, a limit that verifiers knows."""
    stop: str | None = row.get("stop")
    return "max_turns" if row.get("status") == "truncated" and stop not in TRUNCATED else stop


def _node(message: Row, place: int, links: Links, notes: Counter[str]) -> Row:
    keys = ("role", "content", "reasoning_content", "name")
    fields = {key: message[key] for key in keys if message.get(key) is not None}
    if message["role"] == "tool":
        call_id, _ = links.answered(message) or (message.get("tool_call_id") or "", None)
        fields = {"content": "", "tool_call_id": call_id} | fields
        if message.get("error") is not None:
            notes["flag of a tool result, which a trace has no field for"] += 1
    elif message["role"] != "assistant":
        fields = {"role": message["role"], "content": message.get("content") or ""}
        if message.get("tool_calls"):
            notes["calls of the user, which a trace has no field for"] += 1
    if message["role"] == "assistant" and message.get("tool_calls"):
        calls = message["tool_calls"]
        named = zip(calls, links.ids(calls, message), strict=True)
        fields["tool_calls"] = [_tool_call(call, call_id) for call, call_id in named]
    node: Row = {"parent": place - 1 if place else None, "message": fields}
    node["sampled"] = message["role"] == "assistant" and message.get("sampled") is not False
    return node


def _add_tokens(nodes: list[Row], messages: list[Row], notes: Counter[str]) -> None:
    """Add tokens to each turn: those that its prompt adds to the turn before, then its own."""
    turns = [(n, m) for n, m in zip(nodes, messages, strict=True) if n["sampled"]]
    if not any("token_ids" in message for _, message in turns):
        return
    if not all("token_ids" in m and "prompt_ids" in m for _, m in turns) or not all(
        m.get("appended") for _, m in turns[1:]
    ):
        notes["tokens that are not one sequence, which a trace can't hold: left out"] += 1
        return
    for node, message in turns:
        given, ids = message["prompt_ids"], message["token_ids"]
        node["token_ids"] = [*given, *ids]
        node["mask"] = [False] * len(given) + [True] * len(ids)
        if message.get("logprobs") is not None:
            node["logprobs"] = message["logprobs"]


def _tool_call(call: Row, call_id: str) -> Row:
    function = call["function"]
    arguments = arguments_text(function["arguments"])
    return {"id": call_id, "name": function["name"], "arguments": arguments}


def _tool(tool: Row) -> Row:
    function = tool.get("function", tool)
    return {key: function[key] for key in ("name", "description", "parameters") if key in function}
