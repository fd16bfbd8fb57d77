"""Episodes as ATIF trajectories with Harbor's results (rows of `messages`, TURNS -> trajectories).

Data for which ATIF has no field is under `extra.irc_cli`: in the trajectory the ids of the episode,
in a step of the agent its tier, rewards and advantage. `stages.traces.atif` reads it all back.
"""

from __future__ import annotations

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from stages.exports.credits import Credits
from stages.exports.links import Links
from stages.exports.messages import openai_messages
from stages.traces.atif import FIELDS, OURS
from stages.traces.calls import says_failed
from stages.traces.episode import Turn
from stages.traces.react import is_react
from stages.traces.stream import BrokenJsonError, parse

VERSION = "ATIF-v1.7"  # the oldest version with all fields that are written

Row = dict[str, Any]


def trajectory(row: Row, turns: Sequence[Turn], credits: Credits, notes: Counter[str]) -> Row:
    """Return the trajectory of one episode, in the form of package `atif`.

    Args:
        row: row of `messages.message_rows`.
        turns: turns of the episode; calls in a turn's text are also written beside the text.
        credits: result of `credits_of`; turns that it lacks get none.
        notes: counts content that ATIF can't hold.

    Raises:
        InputError: the messages are of another form than OpenAI's.
    """
    messages = openai_messages(row, "export atif")
    policy = row.get("policy") or "unknown"
    agent = {"name": policy, "version": "unknown", "model_name": policy}
    if "tools" in row:
        agent["tool_definitions"] = row["tools"]
    kept = (*FIELDS, "outcome", "status", "stop", "gold_actions")
    extra: Row = {OURS: {key: row[key] for key in kept if key in row}}
    if row.get("outcome") is not None:
        extra["reward"] = row["outcome"]
    written = () if is_react(messages) else turns
    steps = _Steps(row["episode_id"], written, credits, notes).of(messages)
    return {
        "schema_version": VERSION,
        "session_id": row["episode_id"],
        "trajectory_id": row["episode_id"],
        "agent": agent,
        "steps": steps,
        "final_metrics": _final_metrics(steps),
        "extra": extra,
    }


def _final_metrics(steps: Sequence[Row]) -> Row:
    written = [step.get("metrics", {}).get("completion_tokens") for step in steps]
    counts = [count for count in written if count is not None]
    total = {"total_completion_tokens": sum(counts)} if counts else {}
    return total | {"total_steps": len(steps)}


def result(row: Row, trial: str) -> Row:
    """Return the content of Harbor's result.json of a trial, without times, which are unknown.

    Args:
        row: row of `messages.message_rows`.
        trial: name of the trial.
    """
    outcome, status = row.get("outcome"), row.get("status")
    rewards = row.get("rewards") or ({} if outcome is None else {"reward": outcome})
    failed = {"exception_type": row.get("stop") or "error", "exception_message": ""}
    policy = row.get("policy") or "unknown"
    return {
        "schema_version": 1,
        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"irc-cli:{row['episode_id']}")),
        "task_name": row["task_id"],
        "trial_name": trial,
        "trial_uri": "",
        "task_id": {"path": row["task_id"]},
        "task_checksum": "",
        "config": {"task": {"path": row["task_id"]}, "trial_name": trial},
        "agent_info": {"name": policy, "version": "unknown", "model_info": None},
        "agent_result": None,
        "verifier_result": {"rewards": rewards} if rewards else None,
        "exception_info": failed | {"exception_traceback": ""} if status == "error" else None,
        "step_results": None,
    }


def trial_names(episodes: Iterable[str]) -> list[str]:
    """Return a unique folder name for each episode, in order."""
    names, taken = list[str](), set[str]()
    for episode in episodes:
        base = re.sub(r"[^A-Za-z0-9._-]+", "_", episode).strip(".")[:100] or "trial"
        name, copy = base, 2
        while name.lower() in taken:  # some file systems ignore case
            name, copy = f"{base}-{copy}", copy + 1
        taken.add(name.lower())
        names.append(name)
    return names


class _Steps:
    """Writes messages as steps."""

    def __init__(
        self, episode: str, turns: Sequence[Turn], credits: Credits, notes: Counter[str]
    ) -> None:
        self._episode, self._turns, self._credits, self._notes = episode, turns, credits, notes
        self._steps: list[Row] = []
        self._links = Links()
        self._turn = 0
        self._tokens: list[int] = []  # of the sequence so far

    def of(self, messages: Iterable[Row]) -> list[Row]:
        """Return the steps of an episode."""
        for message in messages:
            if message["role"] == "assistant":
                self._act(message)
            elif message["role"] == "tool":
                self._answer(message)
            else:
                self._hear(message)
        return self._steps

    def _add(self, source: str, message: Row) -> Row:
        text = message.get("content")
        step = {"step_id": len(self._steps) + 1, "source": source, "message": text or ""}
        self._steps.append(step)
        return step

    def _hear(self, message: Row) -> None:
        """Write a message of the user or the system; ATIF has no calls of a user."""
        step = self._add("system" if message["role"] == "system" else "user", message)
        if calls := message.get("tool_calls"):
            self._notes["calls of the user, which ATIF has no field for: in 'extra'"] += len(calls)
            step["extra"] = {OURS: {"tool_calls": calls}}
            self._calls(calls, step)

    def _act(self, message: Row) -> None:
        step = self._add("agent", message)
        if thoughts := message.get("reasoning_content"):
            step["reasoning_content"] = thoughts
        if calls := message.get("tool_calls") or self._in_text(message):
            step["tool_calls"] = self._calls(calls, step)
        if message.get("sampled") is False:
            step["is_copied_context"] = True
            return
        if metrics := self._metrics(message):
            step["metrics"] = metrics
        credit = dict(self._credits.get((self._episode, self._turn), {}))
        if "finish" in message:
            credit["finish"] = message["finish"]
        if credit:
            step["extra"] = {OURS: credit}
        self._turn += 1

    def _in_text(self, message: Row) -> list[Row]:
        """Return the calls that were read from the text of a turn."""
        if message.get("sampled") is False or self._turn >= len(self._turns):
            return []
        calls = self._turns[self._turn].calls
        return [{"function": {"name": c.name, "arguments": c.arguments}} for c in calls]

    def _calls(self, calls: Sequence[Row], step: Row) -> list[Row]:
        """Return the calls of a step with ids, and remember them until they are answered."""
        written = []
        for call, call_id in zip(calls, self._links.ids(calls, step), strict=True):
            function = call["function"]
            arguments = _arguments(function["arguments"])
            entry = {"tool_call_id": call_id, "function_name": function["name"]}
            entry |= {"arguments": {} if arguments is None else arguments}
            if arguments is None:
                entry["extra"] = {OURS: {"arguments": function["arguments"]}}
            written.append(entry)
        return written

    def _answer(self, message: Row) -> None:
        """Write a result to the step of its call."""
        call_id, step = self._links.answered(message) or (None, None)
        if step is None:
            self._notes["result without a call, which ATIF takes for no call's"] += 1
            step = self._steps[-1] if self._steps else self._add("user", {})
        content = message.get("content") or ""
        entry: Row = {"content": content}
        if call_id is not None:
            entry["source_call_id"] = call_id
        if message.get("error") is not None:
            entry["extra"] = {"is_error": says_failed(message["error"])}
        step.setdefault("observation", {"results": []})["results"].append(entry)

    def _metrics(self, message: Row) -> Row:
        """Return the tokens of a turn; a prompt that continues the turn before is written whole."""
        metrics: Row = {}
        if message.get("n_tokens") is not None:
            metrics["completion_tokens"] = message["n_tokens"]
        ids, prompt = message.get("token_ids"), message.get("prompt_ids")
        if ids is None:
            return metrics
        metrics["completion_token_ids"] = ids
        if prompt is not None:
            whole = [*self._tokens, *prompt] if message.get("appended") else list(prompt)
            metrics |= {"prompt_token_ids": whole, "prompt_tokens": len(whole)}
            self._tokens = [*whole, *ids]
        if message.get("logprobs") is not None:
            metrics["logprobs"] = message["logprobs"]
        return metrics


def _arguments(recorded: Any) -> Row | None:
    """Return arguments as an object; None if they are not one, or not standard JSON."""
    try:
        value, standard = recorded, True
        if isinstance(recorded, str):
            value, standard = parse(recorded.encode())
        orjson.dumps(value)  # fails for whole numbers beyond 64 bits
    except (BrokenJsonError, UnicodeEncodeError, TypeError):
        return None
    return value if isinstance(value, dict) and standard else None
