"""Read NeMo Gym's rollouts.jsonl, with its companion files of failed attempts and tasks.

A row has the request (`responses_create_params`), the response with the whole interaction as items
of OpenAI's Responses API, and `reward`. The tau2-bench agent adds its simulation as `result`.
Layout: `nemo_gym.{base_resources_server,rollout_collection,openai_utils}` of 0.7.0.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from stages.tables.inputs import keep
from stages.traces import tau2
from stages.traces.calls import UnreadableCallError, read_call
from stages.traces.envelopes import text_of
from stages.traces.episode import Episode
from stages.traces.fields import BadItemError, name_in, object_of, sampled_tokens
from stages.traces.formats import ReadOptions
from stages.traces.stream import written

if TYPE_CHECKING:
    from hashlib import _Hash

NAME = "nemo-gym"
FAILURE = "_ng_failure_class"  # why an attempt has no valid reward; only in the failures file
TASK_NAMES = ("task_id", "problem_id", "instance_id")  # task ids, in NeMo Gym's own precedence
INPUTS, FAILURES = BESIDE = ("_materialized_inputs.jsonl", "_failures.jsonl")
AS_WRITTEN = "give the rollouts.jsonl as it was written"

Record = dict[str, Any]


def accepts(record: Record) -> bool:
    """Return whether a record is a rollout or a failed attempt at one."""
    if FAILURE in record:
        return True
    response = record.get("response")
    return "responses_create_params" in record and isinstance(response, dict)


class Beside:
    """The input tasks of a run, indexed by id or content.

    A task index is a row number of the input, so it changes with the order of the input (NeMo
    Gym#2635). A row is therefore joined by its task id, else by the content of its request.
    """

    def __init__(self, path: Path, digest: _Hash | None = None) -> None:
        """Index the inputs file next to a rollouts file; only file offsets are kept in memory."""
        name = path.name.removesuffix(".jsonl")
        self.failures = path.with_name(name + FAILURES)
        self._inputs = path.with_name(name + INPUTS)
        self._places: dict[bytes, int] = {}
        keep([str(self.failures), str(self._inputs)])
        if not self._inputs.is_file():
            return
        place = 0
        with self._inputs.open("rb") as lines:
            for line in lines:
                if digest is not None:
                    digest.update(line)
                self._places.setdefault(_join_key(_object(line)), place)
                place += len(line)

    def task(self, row: Record, notes: Counter[str]) -> Record:
        """Return the task of a row; empty if it is unknown."""
        if not self._places:
            return {}
        place = self._places.get(_join_key(row))
        if place is None:
            notes["rollout whose task is not among the materialized inputs"] += 1
            return {}
        with self._inputs.open("rb") as lines:
            lines.seek(place)
            return _object(lines.readline())


def beside(path: Path, digest: _Hash | None = None, notes: Any = None) -> Beside:
    """Index the companion files of some rollouts; count the failed attempts in the notes."""
    shared = Beside(path, digest)
    if notes is not None and shared.failures.is_file():
        with shared.failures.open("rb") as lines:
            for line in lines:
                if kind := _object(line).get(FAILURE):
                    notes[f"attempt without a rollout ({kind:.40}), in {shared.failures.name}"] += 1
    return shared


def files(folder: Path, digest: _Hash | None = None, notes: Any = None) -> list[tuple[Path, Any]]:
    """Return the rollouts files below a folder, which are recognised by their companion files."""
    named = (
        path.with_name(path.name.removesuffix(ending) + ".jsonl")
        for ending in BESIDE
        for path in folder.rglob(f"*{ending}")
    )
    rollouts = sorted({path for path in named if path.is_file()})
    return [(path, beside(path, digest, notes)) for path in rollouts]


def _object(line: bytes) -> Record:
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def _join_key(row: Record) -> bytes:
    """Return the key of a task: a digest of its id, else of the model's request."""
    named = row.get("_ng_task_id")
    if named is None and isinstance(row.get("task_id"), dict):
        named = row["task_id"]
    said = named if named is not None else _asked(row.get("responses_create_params"))
    return hashlib.sha256(written(said, orjson.OPT_SORT_KEYS)).digest()[:16]


def _asked(params: Any) -> list[list[str]]:
    """Return [role or type, text] of every item in a request, so that forms compare equal."""
    params = params if isinstance(params, dict) else {}
    given = params.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
    asked = [["instructions", str(params.get("instructions") or "")]]
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict):
            kind = item.get("role") or item.get("type")
            told = item.get("content") or item.get("arguments") or item.get("output")
            asked.append([str(kind), text_of(told)])
    return asked


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean records of one rollout: one for each conversation in its response.

    Raises:
        BadItemError: the request or the response is malformed.
    """
    task = options.shared.task(record, notes) if options.shared else {}
    row = {**task, **record}
    if simulation := simulation_of(row):
        yield from _simulated(row, simulation, options, notes)
        return
    params = object_of(row, "responses_create_params")
    clean = _named(row) | _ending(row)
    if tools := _tools(params):
        clean["tools"] = tools
    if gold := _gold(row):
        clean["gold_actions"] = gold
    asked = [_given(message) for message in messages_of(_asked_items(params))]
    for number, items in enumerate(_outputs(row)):
        copy = dict(clean)
        if number and "episode_id" in clean:
            copy["episode_id"] = f"{clean['episode_id']}/{number}"
        yield copy | {"messages": [*asked, *messages_of(items)]}


def _asked_items(params: Record) -> list[Any]:
    given = params.get("input") or []
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise BadItemError("'input' is neither text nor a list of items", AS_WRITTEN)
    system = params.get("instructions")
    return [{"role": "system", "content": system}, *given] if system else given


def _outputs(row: Record) -> list[list[Any]]:
    """Return the conversations in a response, as lists of items.

    Aviary's agent records the whole conversation after each step. A list that the next one
    continues is skipped.
    """
    output = object_of(row, "response").get("output") or []
    if not isinstance(output, list):
        raise BadItemError("'output' of the response is not a list of items", AS_WRITTEN)
    if not output or not all(isinstance(items, list) for items in output):
        return [output]
    following = [*output[1:], []]
    return [
        items
        for items, more in zip(output, following, strict=True)
        if len(more) < len(items) or not _goes_on(items, more)
    ]


def _goes_on(items: list[Any], more: list[Any]) -> bool:
    """Return whether `more` continues `items`; item ids are ignored, because they may change."""
    return all(_bare(a) == _bare(b) for a, b in zip(items, more, strict=False))


def _bare(item: Any) -> Any:
    if not isinstance(item, dict):
        return item
    return {
        key: item[key]
        for key in ("type", "role", "content", "name", "arguments", "output")
        if item.get(key) is not None
    }


def messages_of(items: Sequence[Any]) -> list[Record]:
    """Convert items of the Responses API to chat messages; keep anything unknown unchanged.

    The text and the calls of one response form one message: a call joins the message or the calls
    before it, and a message joins the calls before it. Reasoning joins the item after it.
    """
    messages: list[Record] = []
    last: str | None = None  # the model's previous item, "message" or "call"
    thoughts = ""
    for item in items:
        kind = _kind(item)
        if kind == "reasoning":
            thoughts += _thoughts(item)
            continue
        if kind in ("assistant", "function_call"):
            does = "call" if kind == "function_call" else "message"
            if last is None or does == last == "message":
                messages.append({"role": "assistant", "content": None})
            _add(messages[-1], item, kind)
            if thoughts:
                before = messages[-1].get("reasoning_content", "")
                messages[-1]["reasoning_content"], thoughts = before + thoughts, ""
            last = does
            continue
        last = None
        if kind == "function_call_output":
            content = text_of(item.get("output"))
            messages.append(
                {"role": "tool", "tool_call_id": item.get("call_id"), "content": content}
            )
        elif kind in ("user", "system", "developer"):
            messages.append({"role": kind, "content": text_of(item.get("content"))})
        else:
            messages.append(item)
    return messages


def _kind(item: Any) -> str | None:
    """Return the type of an item, or the role if it is a message."""
    if not isinstance(item, dict):
        return None
    kind = item.get("type", "message")
    return item.get("role") if kind == "message" else kind


def _thoughts(item: Record) -> str:
    parts = item.get("summary") or item.get("content")
    parts = parts if isinstance(parts, list) else []
    return "".join(str(part.get("text") or "") for part in parts if isinstance(part, dict))


def _add(message: Record, item: Record, kind: str) -> None:
    """Add an item of the model to its message."""
    if kind == "assistant":
        message["content"] = (message["content"] or "") + text_of(item.get("content"))
    else:
        name = item.get("name")
        if item.get("namespace") and isinstance(name, str):
            name = f"{item['namespace']}.{name}"
        call = {"name": name, "arguments": item.get("arguments")}
        entry = {"id": item.get("call_id") or item.get("id"), "type": "function", "function": call}
        message.setdefault("tool_calls", []).append(entry)
    names = ("generation_token_ids", "prompt_token_ids", "generation_log_probs")
    message |= sampled_tokens(*map(item.get, names))


def _given(message: Any) -> Any:
    """Mark an assistant or tool message of the request as given, so that it is not a turn."""
    if isinstance(message, dict) and message.get("role") in ("assistant", "tool"):
        return {**message, "sampled": False}
    return message


def _named(row: Record) -> Record:
    """Return task, trial, episode id, model and environment of a row."""
    agent, response = row.get("agent_ref"), row.get("response")
    named = {
        "task_id": _task_name(row),
        "trial": row.get("_ng_rollout_index"),
        "episode_id": name_in(row, "_ng_rollout_id"),
        "model": name_in(response, "model") if isinstance(response, dict) else None,
        "env": name_in(agent, "name") if isinstance(agent, dict) else None,
    }
    return {key: value for key, value in named.items() if value is not None}


def _task_name(row: Record) -> str:
    """Return the id of a row's task; if it has none, its index and a digest of the request."""
    named = row.get("_ng_task_id")
    if named is None:
        named = next((row[key] for key in TASK_NAMES if row.get(key) is not None), None)
    if isinstance(named, dict):
        return f"{named.get('taskset')}/{named.get('task_id')}"
    if named is not None:
        return str(named)
    place = row.get("_ng_task_index", row.get("task_idx"))
    digest = _join_key(row).hex()[:12]
    return digest if place is None else f"{place}-{digest}"


def _ending(row: Record) -> Record:
    """Return status, reward, its components and the stop reason of a row.

    The reward of a masked sample is not valid, and a null reward was never computed.
    """
    response = object_of(row, "response") if FAILURE not in row else row.get("response") or {}
    why = name_in(row, FAILURE, "failure_kind")
    if FAILURE in row:
        return {"status": "error", "stop": why or "failed"}
    if response.get("error") or response.get("status") in ("failed", "cancelled"):
        return {"status": "error", "stop": why or str(response.get("status") or "error")}
    if row.get("mask_sample") is True or row.get("reward") is None:
        return {"status": "masked"} | ({"stop": why} if why else {})
    ending: Record = {"reward": row["reward"], "status": "ok"}
    details = response.get("incomplete_details")
    cut = name_in(details, "reason") if isinstance(details, dict) else None
    if cut or response.get("status") == "incomplete" or row.get("truncated") is True:
        ending["status"] = "truncated"
    if stop := cut or why:
        ending["stop"] = stop
    if isinstance(row.get("reward_components"), dict):
        ending["rewards"] = row["reward_components"]
    if isinstance(row.get("step_rewards"), list):
        ending["turn_rewards"] = row["step_rewards"]
    return ending


def _tools(params: Record) -> list[Record]:
    keys = ("name", "description", "parameters", "strict")
    tools = params.get("tools")
    return [
        {"type": "function", "function": {key: tool[key] for key in keys if key in tool}}
        for tool in (tools if isinstance(tools, list) else ())
        if isinstance(tool, dict) and isinstance(tool.get("name"), str)
    ]


def _gold(row: Record) -> list[Record] | None:
    """Return the calls that a task expects; None if its ground truth is not a list of calls."""
    truth = row.get("ground_truth")
    if not isinstance(truth, list) or not all(isinstance(call, dict) for call in truth):
        return None
    try:
        calls = [read_call(call) for call in truth]
    except UnreadableCallError:
        return None
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def simulation_of(row: Record) -> Record | None:
    """Return the tau2-bench simulation in a row's `result`; None if there is none."""
    result = row.get("result")
    return result if isinstance(result, dict) and tau2.accepts(result) else None


def _simulated(
    row: Record, simulation: Record, options: ReadOptions, notes: Counter[str]
) -> Iterator[Record]:
    """Yield the clean record of a simulation, with the trial, model and environment of its row."""
    task = object_of(row, "task")
    domain = _domain(task)
    gold = tau2.gold_of_tasks({"tasks": [task]}, notes) if "id" in task else {}
    header = tau2.Header(domain=domain, gold=gold)
    named = {key: value for key, value in _named(row).items() if key in ("trial", "model", "env")}
    for clean in tau2.translate(simulation, options._replace(shared=header), notes):
        status = {"status": "masked"} if row.get("mask_sample") is True else {}
        yield clean | named | {"policy": clean.get("policy") or named.get("model")} | status


def complete(episode: Episode, record: Record, options: ReadOptions, notes: Counter[str]) -> None:
    """Add what a tau2-bench simulation records in addition to its messages."""
    if simulation := simulation_of(record):
        tau2.complete(episode, simulation, options._replace(shared=None), notes)


def _domain(task: Record) -> str | None:
    instructions = object_of(task, "user_scenario").get("instructions")
    return name_in(instructions, "domain") if isinstance(instructions, dict) else None
