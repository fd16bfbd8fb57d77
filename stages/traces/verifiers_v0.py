"""Read the old results.jsonl of verifiers (`vf-eval` up to 0.1) and prime-rl's rollouts of then.

A line is one rollout: `prompt` and `completion` as messages or text, `reward`, `task`, `info`, and
the reward functions and metrics as columns. There are no token ids and no flag for a failed result.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.tables.inputs import keep
from stages.traces.calls import object_in
from stages.traces.definitions import tool_definitions
from stages.traces.fields import BadItemError, gold_in, name_in
from stages.traces.formats import ReadOptions
from stages.traces.verifiers import in_steps

if TYPE_CHECKING:
    from hashlib import _Hash

NAME = "verifiers-v0"
METADATA = "metadata.json"  # file next to the results: the model and the environment
NO_TASK = frozenset({None, "default"})

Record = dict[str, Any]


def accepts(record: Record) -> bool:
    """Return whether a record is a rollout of verifiers; TRL's and others' have no `task` and id.

    The last versions wrote neither, but they always wrote `is_completed` and `metrics`.
    """
    named = "task" in record and ("example_id" in record or "id" in record)
    return (
        all(key in record for key in ("prompt", "completion", "reward"))
        and (named or all(key in record for key in ("is_completed", "metrics")))
        and "messages" not in record
    )


def beside(path: Path, digest: _Hash | None = None, notes: Any = None) -> Record:
    """Return the metadata that `vf-eval` writes next to its results; empty if there is none."""
    try:
        data = (path.parent / METADATA).read_bytes()
        record = json.loads(data)
    except (OSError, ValueError):
        return {}
    keep([str(path.parent / METADATA)])
    if digest is not None:
        digest.update(data)
    return record if isinstance(record, dict) else {}


def files(folder: Path, digest: _Hash | None = None, notes: Any = None) -> list[tuple[Path, Any]]:
    """Return the results files below a folder, and prime-rl's rollouts of each step."""
    results = [*folder.rglob("results.jsonl"), *folder.rglob("step_*/*_rollouts*.jsonl")]
    return [(path, beside(path, digest)) for path in sorted(results, key=in_steps)]


def translate(record: Record, options: ReadOptions, notes: Counter[str]) -> Iterator[Record]:
    """Yield the clean record of a rollout.

    Raises:
        BadItemError: the prompt or the completion is neither text nor messages.
    """
    given = [_given(message) for message in _messages(record, "prompt", "user")]
    written = _messages(record, "completion", "assistant")
    info = object_in(record.get("info"))
    metadata = options.shared or {}
    example = record.get("example_id", record.get("id"))
    name = name_in(record, "task")
    clean: Record = {
        "task_id": example if name in NO_TASK else f"{name}/{example}",
        "messages": [*given, *written],
        "model": name_in(record, "model") or name_in(metadata, "model"),
        "env": name_in(metadata, "env_id", "env") or (None if name in NO_TASK else name),
        "stop": name_in(record, "stop_condition"),
        **_ending(record, written),
    }
    if (gold := gold_in(info)) is not None:
        clean["gold_actions"] = gold
    places = (record, info if isinstance(info, dict) else {})
    told = (place.get(key) for place in places for key in ("oai_tools", "tool_defs"))
    if tools := tool_definitions(next(filter(None, told), None)):
        clean["tools"] = tools
    yield {key: value for key, value in clean.items() if value is not None}


def _ending(record: Record, written: list[Record]) -> Record:
    """Return status, reward and metrics; the reward 0 of a crashed rollout was never computed."""
    if record.get("error") not in (None, "", False) or not written:
        error = record.get("error")
        kind = name_in(error, "error") if isinstance(error, dict) else None
        return {"status": "error", "stop": kind or name_in(record, "stop_condition") or "error"}
    reward = record["reward"]
    if reward is None:
        return {"status": "masked"}
    metrics = record.get("metrics")
    ending: Record = {
        "reward": reward,
        "status": "truncated" if record.get("is_truncated") else "ok",
    }
    if isinstance(metrics, dict):
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float))}
        ending["rewards"] = numbers
    return ending


def _messages(record: Record, field: str, role: str) -> list[Record]:
    """Return the messages of a field; plain text is one message with the given role."""
    value = record[field]
    if isinstance(value, str):
        opened = object_in(value)
        if not isinstance(opened, list):
            return [{"role": role, "content": value}]
        value = opened
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        what = f"'{field}' is neither text nor a list of messages"
        raise BadItemError(what, "give the file as it was written")
    return [_clean(message) for message in value]


def _clean(message: Record) -> Record:
    """Drop the null fields that a table adds to a message, and parse calls stored as JSON text."""
    kept = {key: value for key, value in message.items() if value is not None}
    kept.setdefault("content", None)
    if isinstance(calls := kept.get("tool_calls"), list):
        kept["tool_calls"] = [object_in(call) for call in calls]
    return kept


def _given(message: Record) -> Record:
    """Mark an assistant or tool message of the prompt as an example, so that it is not a turn."""
    if message.get("role") in ("assistant", "tool"):
        return {**message, "sampled": False}
    return message
