"""Read the rollouts that trainers log: TRL's completions_*.parquet and verl's {step}.jsonl.

TRL logs prompt and completion as messages if its dataset has messages, else as text. verl always
logs text. The chat template of --tokenizer splits a text into turns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from stages.traces import verifiers_v0
from stages.traces.fields import BadItemError, is_number
from stages.traces.formats import Notes, ReadOptions, Record
from stages.traces.stream import written

if TYPE_CHECKING:
    from stages.messages.cutter import Cutter

TRL, VERL = "trl completions", "verl dump"
_TRL = frozenset(
    {"step", "prompt", "completion", "advantage"}
)  # all other numeric columns are rewards
_VERL = frozenset({"step", "input", "output", "gts", "score"})


def accepts_trl(record: Record) -> bool:
    """Return whether a record is a row of TRL's completions."""
    keys = ("step", "prompt", "completion")
    return all(key in record for key in keys) and not verifiers_v0.accepts(record)


def accepts_verl(record: Record) -> bool:
    """Return whether a record is a line of verl's dumped rollouts."""
    texts = all(isinstance(record.get(key), str) for key in ("input", "output"))
    return texts and "score" in record


def translate_trl(record: Record, options: ReadOptions, notes: Notes) -> Iterator[Record]:
    """Yield the clean record of a row; each reward function is a score named after it."""
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        messages = [*prompt, *completion]
    else:
        messages = _cut(prompt, completion, options)
    yield _clean(record, messages, prompt, notes) | {"rewards": _numbers(record, _TRL)}


def translate_verl(record: Record, options: ReadOptions, notes: Notes) -> Iterator[Record]:
    """Yield the clean record of a line; its `score` is the outcome."""
    messages = _cut(record["input"], record["output"], options)
    clean = _clean(record, messages, record["input"], notes)
    scores = {"score": record["score"]} | _numbers(record, _VERL)
    yield clean | {"outcome": record["score"], "rewards": scores}


def _cut(prompt: Any, completion: Any, options: ReadOptions) -> list[Any]:
    if not isinstance(prompt, str) or not isinstance(completion, str):
        what = "has a prompt and a completion that are no texts, and no messages"
        raise BadItemError(what, "give the file as it was written")
    if options.tokenizer is None:
        todo = "pass --tokenizer NAME|DIR, whose chat template cuts it into turns"
        raise BadItemError("is text, not messages", todo)
    return _cutter(options.tokenizer).messages(prompt, completion)


@cache
def _cutter(tokenizer: str) -> Cutter:
    from stages.messages.cutter import Cutter  # imported here: slow, and only needed for text
    from stages.messages.tokenizer import load_tokenizer

    return Cutter(load_tokenizer(tokenizer))


def _clean(record: Record, messages: list[Any], prompt: Any, notes: Notes) -> Record:
    """Return the common fields: the prompt identifies the task, prompt and step the group."""
    told = prompt.encode(errors="replace") if isinstance(prompt, str) else written(prompt)
    task = sha256(told).hexdigest()[:12]
    notes["no task id: tasks are told by their prompts"] += 1
    step = record.get("step")
    return {"messages": messages, "task_id": task, "group_id": f"{task}@{step}"}


def _numbers(record: Record, others: frozenset[str]) -> dict[str, float]:
    """Return the reward columns; NaN and null mean that a reward was not computed."""
    return {
        key: value
        for key, value in record.items()
        if key not in others and is_number(value) and math.isfinite(value)
    }
