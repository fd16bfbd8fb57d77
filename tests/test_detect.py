"""Which format a record is of: never of two, and never of another than its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.traces import open_trace
from stages.traces.detect import FORMATS, MESSAGES
from stages.traces.formats import ReadOptions

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]

# Records of each format as small as they come, and with all that may stand in them: a new format
# adds its own here.
EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "tau-bench": [
        {"task_id": 0, "reward": 1.0, "info": {"task": {"actions": []}}, "traj": TALK, "trial": 0},
        {"task_id": 0, "reward": 0.0, "info": {"error": "timeout"}, "traj": [], "trial": 0},
        {"task_id": 0, "traj": TALK, "messages": TALK},
    ],
    "tau2": [
        {
            "id": "s",
            "task_id": "0",
            "trial": 0,
            "termination_reason": "user_stop",
            "reward_info": {"reward": 1.0, "action_checks": []},
            "messages": TALK,
        },
        {"task_id": "0", "termination_reason": "max_steps", "messages": None},
        {"task_id": "0", "reward_info": {"reward": 1.0}, "messages": TALK},
    ],
    "messages": [
        {"messages": TALK},
        {"messages": TALK, "task_id": "t", "trial": 0, "outcome": 1, "gold_actions": []},
        {"messages": TALK, "tools": [], "reward": 0.5, "info": {}, "status": "masked"},
    ],
}
PAIRS = [
    (name, record, format)
    for name, records in EXAMPLES.items()
    for record in records
    for format in FORMATS
]


def test_every_format_has_examples() -> None:
    assert [format.name for format in FORMATS] == list(EXAMPLES)


@pytest.mark.parametrize(("name", "record", "format"), PAIRS)
def test_no_format_takes_anothers_record(name: str, record: dict[str, Any], format: Any) -> None:
    if format is MESSAGES and name != "messages":
        return  # asked last: whatever else has messages is its
    assert format.accepts(record) == (format.name == name)


@pytest.mark.parametrize("name", list(EXAMPLES))
@pytest.mark.parametrize("indented", [False, True])
def test_files_are_told_by_their_records(tmp_path: Path, name: str, indented: bool) -> None:
    for record in EXAMPLES[name]:
        path = tmp_path / "trace"
        path.write_text(json.dumps(record, indent=2 if indented else None))
        trace = open_trace(str(path))
        assert trace.format == name
        for episode in trace:
            assert episode.messages or not episode.counts


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_clean_records_are_of_no_other_format(format: Any) -> None:
    for record in EXAMPLES[format.name]:
        for clean in format.translate(record, ReadOptions(), Counter()):
            assert clean["messages"] is not None
            told: Iterator[str] = (each.name for each in FORMATS if each.accepts(clean))
            assert next(told) == "messages"
