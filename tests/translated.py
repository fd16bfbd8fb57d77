"""Reading of records by the module of one format, as `open_trace` does it."""

from __future__ import annotations

import copy
from collections import Counter
from types import ModuleType
from typing import Any

from stages.core.arguments import parse_arguments
from stages.traces import messages
from stages.traces.detect import FORMATS
from stages.traces.episode import Episode
from stages.traces.formats import ReadOptions
from stages.traces.given import Given


def clean(
    module: ModuleType, *records: Any, notes: Counter[str] | None = None, given: Given | None = None
) -> list[Any]:
    """The clean records of a file's records; each record must be of this module's format."""
    notes = Counter() if notes is None else notes
    assert all(module.accepts(record) for record in records)
    before = copy.deepcopy(records)
    gather = getattr(module, "gather", None)
    whole = gather(records) if gather else records
    result = [
        given.apply(record, item) if given else item
        for record in whole
        for item in module.translate(record, ReadOptions(), notes)
    ]
    assert before == records  # what was given stays as it was
    return result


def episodes(module: ModuleType, *records: Any, notes: Counter[str] | None = None) -> list[Episode]:
    """The episodes of a file's records."""
    notes = Counter() if notes is None else notes
    read = messages.reader("t", notes, gaps=False)
    return [read(record) for record in clean(module, *records, notes=notes, given=Given())]


def told(episode: Episode) -> list[Any]:
    """Per turn its text and its calls as (name, arguments, result, flag)."""
    return [
        (
            turn.text or "",
            [
                (call.name, parse_arguments(call.arguments).value, call.result, call.flagged)
                for call in turn.calls
            ],
        )
        for turn in episode.turns
    ]


def takers(record: Any) -> list[str]:
    """The formats that take a record, but for the last, which takes whatever has messages."""
    return [format.name for format in FORMATS[:-1] if format.accepts(record)]
