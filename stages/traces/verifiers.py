"""Read traces.jsonl of `verifiers` 0.4 and later, and the traces in prime-rl's rollouts.

A line is an episode with one trace per agent, or a bare trace. A trace is a tree of messages; each
path from a root to a leaf is a conversation. Each node holds the token ids, mask and logprobs that
it adds to the sequence. The format has no flag for a failed tool result.

Layout: `verifiers.v1.{episode,trace,graph,types}` of 0.4.0.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.traces.fields import BadItemError, gold_in, is_number, list_in, name_in
from stages.traces.formats import ReadOptions

NAME = "verifiers"
DECIMALS = 4  # decimals of a recorded logprob: RECORD_FLOAT_DECIMALS
LOOKED_AT, TELLING = 32, 4  # logprobs per turn, and non-zero ones, that the rounding test uses
TRUNCATED = frozenset(
    ["max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "compaction_failed"]
)
AS_WRITTEN = "give the file as it was written"
OBJECTS = ("task", "agent", "rewards", "info")  # fields of a trace that hold an object or null
LISTS = ("nodes", "calls", "tools", "errors")  # fields that hold a list of objects or null
STREAM = "traces/stream.jsonl"  # all episodes of a prime-rl run, in its newest layout

Record = dict[str, Any]


def accepts(record: Record) -> bool:
    """Return whether a record is an episode of traces, or one trace."""
    if not isinstance(record.get("task"), dict):
        return False
    if isinstance(record.get("traces"), list):
        return all(isinstance(trace, dict) for trace in record["traces"])
    return isinstance(record.get("nodes"), list) and ("rewards" in record or "agent" in record)


def files(folder: Path, digest: Any = None, notes: Any = None) -> list[tuple[Path, Any]]:
    """Return the trace files in the folder of an eval, or of a run or a step of prime-rl.

    The `effective` rollouts of a prime-rl step are a subset of `all`, so only `all` is read.
    """
    streams = sorted(folder.rglob(STREAM)) or sorted(folder.rglob("traces.jsonl"), key=in_steps)
    whole = {path.parent.parent for path in streams if path.parent.name == "all"}
    kept = [p for p in streams if p.parent.name != "effective" or p.parent.parent not in whole]
    return [(path, None) for path in kept]


def in_steps(path: Path) -> list[tuple[str, int]]:
    """Return a sort key that puts step_10 after step_9."""
    split = [part.rpartition("_") for part in path.parts]
    return [
        (stem, int(number)) if number.isdigit() else (part, -1)
        for part, (stem, _, number) in zip(path.parts, split, strict=True)
    ]


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield a clean record for each conversation of each trace.

    Raises:
        BadItemError: a part of a trace is malformed.
    """
    if "traces" not in record:
        _check(record)
        yield from _conversations(record, record, None, notes)
        return
    traces = record["traces"]
    for trace in traces:
        _check(trace)
    if not traces:  # the episode ended before an agent began
        shared = _shared(record, record)
        failed = {"status": "error", "stop": _error(record.get("errors")) or "no trace"}
        yield {**shared, "episode_id": record.get("id"), "messages": [], **failed}
    agents = {_agent(trace) for trace in traces if _trains(trace)}
    for trace in traces:
        yield from _conversations(trace, record, _agent(trace) if len(agents) > 1 else None, notes)


def _check(trace: Record) -> None:
    """Raise BadItemError if a field of a trace does not hold an object or a list as it should."""
    parts: list[tuple[Record, str, type]] = [(trace, key, dict) for key in OBJECTS]
    parts += [(trace, key, list) for key in LISTS]
    for key in LISTS:
        several = trace.get(key)
        for part in several if isinstance(several, list) else ():
            if not isinstance(part, dict):
                raise BadItemError(f"'{key}' has an entry that is no object", AS_WRITTEN)
            parts += [(part, "semantic_parents", list)] if key == "nodes" else []
    for place, key, kind in parts:
        if place.get(key) is not None and not isinstance(place[key], kind):
            what = f"'{key}' is {place[key]!r:.40}, not {'a list' if kind is list else 'an object'}"
            raise BadItemError(what, AS_WRITTEN)


def _conversations(
    trace: Record, episode: Record, seat: str | None, notes: Counter[str]
) -> Iterator[Record]:
    """Yield the conversations of a trace; `seat` is its agent if several agents are trained."""
    nodes = trace.get("nodes") or []
    paths = _paths(nodes)
    shared = _shared(trace, episode) | _ending(trace, episode)
    if seat is not None and shared.get("group_id") is not None:
        shared["group_id"] = f"{shared['group_id']}/{seat}"
    if len(paths) > 1:
        notes["conversation that branches off in a trace"] += len(paths) - 1
    usage = _tokens_written(trace)
    turn_rewards = _turn_rewards(trace, nodes, notes)
    for number, path in enumerate(paths or [[]]):
        name = trace.get("id")
        clean = {**shared, "episode_id": f"{name}/{number}" if number and name else name}
        clean["messages"] = [_message(nodes[place], usage.get(place)) for place in path]
        if tools := _tools(nodes, path, trace):
            clean["tools"] = tools
        if turn_rewards:
            sampled = [place for place in path if nodes[place].get("sampled")]
            clean["turn_rewards"] = [turn_rewards[place] for place in sampled]
        try:
            _add_tokens(clean, [nodes[place] for place in path], notes)
        except TypeError:
            what = "the tokens of a node are no lists of numbers"
            raise BadItemError(what, AS_WRITTEN) from None
        yield clean


def _paths(nodes: list[Any]) -> list[list[int]]:
    """Return the indices of the nodes from root to leaf, one list per leaf.

    An attempt to compact the context is a separate leaf. It is skipped unless the agent continued
    from it.

    Raises:
        BadItemError: a node has no message, or its parent is not an earlier node.
    """
    parents: list[int | None] = []
    for place, node in enumerate(nodes):
        parent = node.get("parent") if isinstance(node, dict) else place
        earlier = parent is None or (type(parent) is int and 0 <= parent < place)
        if not earlier or not isinstance(node.get("message"), dict):
            raise BadItemError(f"node {place} has no message, or no earlier parent", AS_WRITTEN)
        parents.append(parent)
    inner, resumed = set(parents), _links(nodes, "compaction")
    leaves = [place for place in range(len(nodes)) if place not in inner]
    kept = [
        leaf
        for leaf in leaves
        if leaf in resumed or not _has_link(nodes[leaf], "compaction_attempt")
    ]
    return [_to_root(leaf, parents) for leaf in kept]


def _to_root(leaf: int, parents: list[int | None]) -> list[int]:
    path: list[int] = []
    place: int | None = leaf
    while place is not None:
        path.append(place)
        place = parents[place]
    return path[::-1]


def _links(nodes: list[Record], kind: str) -> set[int]:
    """Return the nodes that other nodes name as semantic parents of a kind."""
    links = (link for node in nodes for link in list_in(node, "semantic_parents"))
    of_kind = (link for link in links if isinstance(link, dict) and link.get("type") == kind)
    return {link["node"] for link in of_kind if type(link.get("node")) is int}


def _has_link(node: Record, kind: str) -> bool:
    links = node.get("semantic_parents") or ()
    return any(isinstance(link, dict) and link.get("type") == kind for link in links)


def _shared(trace: Record, episode: Record) -> Record:
    """Return the fields shared by all conversations of a trace, e.g. task, group and policy."""
    task = trace.get("task") or episode["task"]
    group, env = episode.get("group"), episode.get("env")
    shared = {
        "task_id": _task_id(task),
        "group_id": group.get("id") if isinstance(group, dict) else episode.get("group_id"),
        "model": _model(trace),
        "env": name_in(env, "name", "id") if isinstance(env, dict) else episode.get("env_name"),
        "gold_actions": _gold(task, trace),
        "tokens_recorded": False if _is_ours(trace) else None,  # text is not parsed for calls
    }
    return {key: value for key, value in shared.items() if value is not None}


def _task_id(task: Record) -> str:
    """Return the key of a task; for older records without one, an id or a digest of its data."""
    if key := name_in(task, "key", "hash"):
        return key
    data = task["data"] if isinstance(task.get("data"), dict) else task
    given = next((data[key] for key in ("id", "name", "idx") if data.get(key) is not None), None)
    if given is not None:
        return str(given)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _gold(task: Record, trace: Record) -> Any:
    """Return the gold actions in the task, where our environment puts them, or in `info`."""
    data = task["data"] if isinstance(task.get("data"), dict) else task
    return gold_in(data, data.get("info"), trace.get("info"))


def _is_ours(trace: Record) -> bool:
    """Return whether our environment package recorded the trace; it executes no calls in text."""
    ours = (trace.get("info") or {}).get("irc_cli")
    return isinstance(ours, dict) and "outcome" in ours


def _agent(trace: Record) -> str:
    return name_in(trace["agent"], "name") or "agent" if trace.get("agent") else "agent"


def _trains(trace: Record) -> bool:
    return (trace.get("agent") or {}).get("trainable", True) is not False


def _model(trace: Record) -> str | None:
    """Return the model that was called, else the one in the agent's config."""
    for call in trace.get("calls") or ():
        if model := name_in(call, "model"):
            return model
    config = (trace.get("agent") or {}).get("config")
    return name_in(config, "model") if isinstance(config, dict) else None


def _ending(trace: Record, episode: Record) -> Record:
    """Return status, outcome, rewards and stop of a trace; a null reward was never computed."""
    rewards = trace.get("rewards") or {}
    stop = name_in(trace, "stop_condition")
    ending: Record = {"stop": stop} if stop else {}
    if _failed(trace) or _failed(episode, of_all=True):
        why = _error(trace.get("errors")) or _error(episode.get("errors"))
        return {"stop": why or stop or "error", "status": "error"}
    values = {name: _value(reward, name) for name, reward in rewards.items()}
    if not _trains(trace) or not values or None in values.values():
        return {**ending, "status": "masked"}
    parts = {name: value for name, value in values.items() if value is not None}
    ending |= {"outcome": sum(parts.values()), "rewards": parts}
    return {**ending, "status": "truncated" if _is_truncated(trace, stop) else "ok"}


def _failed(record: Record, *, of_all: bool = False) -> bool:
    """Return whether a trace or an episode crashed.

    Args:
        record: the trace or the episode.
        of_all: the record is an episode. Its `ok` is also false if another of its traces crashed,
            so only its own errors are checked.
    """
    if "ok" in record and not of_all:
        return record["ok"] is False
    return bool(record.get("errors")) and record.get("ok") is not True


def _error(errors: Any) -> str | None:
    """Return the type of the last error; None if there is none."""
    last = errors[-1] if isinstance(errors, list) and errors else None
    return name_in(last, "type") if isinstance(last, dict) else None


def _value(reward: Any, name: str) -> float | None:
    if reward is None:
        return None
    score = reward.get("score") if isinstance(reward, dict) else reward
    weight = reward.get("weight") if isinstance(reward, dict) else None
    if score is None:
        return None
    if not is_number(score) or not (weight is None or is_number(weight)):
        raise BadItemError(f"reward '{name:.40}' is {reward!r:.40}, not a number", AS_WRITTEN)
    return float(score) * (1.0 if weight is None else float(weight))


def _is_truncated(trace: Record, stop: str | None) -> bool:
    """Return whether a limit of the episode, or the length of the last answer, cut it off."""
    if trace.get("is_truncated") is True or trace.get("is_timeout") is True or stop in TRUNCATED:
        return True
    done = [call for call in trace.get("calls") or () if call.get("error") is None]
    return bool(done) and done[-1].get("finish_reason") == "length"


def _tokens_written(trace: Record) -> dict[Any, int]:
    """Return the number of tokens that the model wrote, by index of the answer's node."""
    counts = {}
    for call in trace.get("calls") or ():
        usage = call.get("usage")
        counted = isinstance(usage, dict) and type(usage.get("completion_tokens")) is int
        if counted and type(call.get("node")) is int:
            counts[call["node"]] = usage["completion_tokens"]
    return counts


def _message(node: Record, n_tokens: int | None) -> Record:
    """Return a node's message in OpenAI's form; mark it if the policy did not sample it."""
    message: Record = node["message"]
    keys = ("role", "content", "reasoning_content")
    clean: Record = {key: message[key] for key in keys if key in message}
    clean.setdefault("content", None)
    if message.get("role") == "assistant":
        if calls := message.get("tool_calls"):
            if not isinstance(calls, list):
                raise BadItemError(f"'tool_calls' is {calls!r:.40}, not a list", AS_WRITTEN)
            clean["tool_calls"] = [_call(call) for call in calls]
        if not node.get("sampled"):
            clean["sampled"] = False
        elif n_tokens is not None:
            clean["n_tokens"] = n_tokens
    elif message.get("role") == "tool":
        clean |= {key: message[key] for key in ("tool_call_id", "name") if message.get(key)}
    return clean


def _call(call: Any) -> Record:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise BadItemError(f"has an invalid call: {call!r:.60}", AS_WRITTEN)
    function = {"name": _full_name(call), "arguments": call.get("arguments")}
    return {"id": call.get("id"), "type": "function", "function": function}


def _full_name(tool: Record) -> str:
    return f"{tool['namespace']}.{tool['name']}" if tool.get("namespace") else tool["name"]


def _tools(nodes: list[Record], path: list[int], trace: Record) -> list[Record]:
    """Return the tools on the root of a conversation, else all tools of the trace."""
    told = (nodes[path[0]].get("tools") if path else None) or trace.get("tools") or []
    keys = ("description", "parameters", "strict")
    return [
        {
            "type": "function",
            "function": {"name": _full_name(tool)} | {k: tool[k] for k in keys if k in tool},
        }
        for tool in told
        if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    ]


def _turn_rewards(trace: Record, nodes: list[Record], notes: Counter[str]) -> dict[int, Any]:
    """Return `info.turn_rewards` by node index: one per sampled node, in order (prime-rl#3282)."""
    given = (trace.get("info") or {}).get("turn_rewards")
    if given is None:
        return {}
    places = [place for place, node in enumerate(nodes) if node.get("sampled")]
    if not isinstance(given, list) or len(given) != len(places):
        notes["turn_rewards that are not one per turn: left out"] += 1
        return {}
    return dict(zip(places, given, strict=True))


def _add_tokens(clean: Record, nodes: list[Record], notes: Counter[str]) -> None:
    """Add to each turn its sampled token ids, the tokens added to the prompt, and the logprobs.

    The form is that of `irc-cli rollout`: a turn's prompt ids continue the tokens of the previous
    turn.
    """
    if not any(node.get("token_ids") for node in nodes):
        return
    prompt: list[int] = []
    added, appended, rounded = [], False, None
    for message, node in zip(clean["messages"], nodes, strict=True):
        if not node.get("sampled"):
            prompt += node.get("token_ids") or []
            continue
        span = _span(node)
        if span is None:
            notes["sampled tokens that are not one span at the end: tokens left out"] += 1
            return
        given, written = span
        prompt += given
        row = {"prompt_ids": prompt, "token_ids": written, "appended": appended}
        logprobs = node.get("logprobs") or []
        if len(logprobs) == len(written):
            row["logprobs"] = logprobs
            rounded = _are_rounded(logprobs) if rounded is None else rounded
        elif logprobs:
            notes["logprobs that are not one per sampled token: left out"] += 1
        added.append((message, row | {"n_tokens": len(written)}))
        prompt, appended = [], True
    for message, row in added:
        message.update(row)
    if any("logprobs" in row for _, row in added):
        clean["logprobs_rounded"] = rounded is not False


def _span(node: Record) -> tuple[list[int], list[int]] | None:
    """Split a node's token ids into (given, sampled); return None if the two are interleaved."""
    token_ids, mask = node.get("token_ids") or [], node.get("mask") or []
    start = list.count(mask, False) if mask else len(token_ids)
    if mask and (len(mask) != len(token_ids) or not all(mask[start:])):
        return None
    return token_ids[:start], token_ids[start:]


def _are_rounded(logprobs: list[float]) -> bool | None:
    """Return whether the first logprobs are rounded to `DECIMALS`; None if they are all 0."""
    first = [value for value in logprobs[:LOOKED_AT] if value][:TELLING]
    return [round(value, DECIMALS) for value in first] == first if first else None
