"""What is written in a format is read back; a missing field never changes a number in silence."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tiers.failures import default_failures
from stages.traces import Call, Episode, open_trace
from tests import trace_writers
from tests.trace_writers import FLAGGED, FORMS, Json, Talk, talks

# Inside of these is what the policy or a tool wrote, not the format's own.
FREE = frozenset({"arguments", "args", "input", "kwargs", "parameters", "response"})
# Optional by their format's definition, and their default is "no error".
OPTIONAL = frozenset({"is_error", "status", "error"})

Store = Callable[[Path, list[Talk]], str]
QUICK = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],  # shrinking files takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def meaning(arguments: Any) -> Any:
    return json.loads(arguments) if isinstance(arguments, str) else arguments


def has_failed(call: Call) -> bool:
    return default_failures().rule(call.flagged, call.result) is not None


def content_of(episode: Episode) -> Any:
    """What numbers are made of."""
    return (
        [
            [
                (call.name, meaning(call.arguments), call.result, has_failed(call))
                for call in turn.calls
            ]
            for turn in episode.turns
        ],
        episode.outcome,
        [(action.name, meaning(action.arguments)) for action in episode.gold or ()],
        (episode.task_id, episode.trial),
    )


def content_of_talk(talk: Talk, *, flagged: bool) -> Any:
    turns = [
        [(call.name, call.arguments, call.result, flagged and call.failed) for call in calls]
        for _, calls in talk.turns
    ]
    return turns, talk.outcome, talk.gold, (talk.task, talk.trial)


def read(path: Path) -> tuple[list[Episode], Counter[str]]:
    trace = open_trace(str(path))
    return list(trace), trace.notes


def write_json(path: Path, document: Any) -> None:
    path.write_text(json.dumps(document), encoding="utf-8")


def write_lines(path: Path, rows: list[Json]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_folder(path: Path, document: Json) -> None:
    """Write tau2-bench results as a folder with one simulation a file."""
    (path / "simulations").mkdir(parents=True, exist_ok=True)
    write_json(path / "results.json", {k: v for k, v in document.items() if k != "simulations"})
    for place, simulation in enumerate(document.get("simulations", [])):
        write_json(path / "simulations" / f"{place}.json", simulation)


def write_parquet(path: Path, rows: list[Json]) -> None:
    import polars as pl

    lists = {key for row in rows for key, value in row.items() if isinstance(value, list)}
    texts = [{k: json.dumps(v) if k in lists else v for k, v in row.items()} for row in rows]
    pl.DataFrame(texts, infer_schema_length=None).write_parquet(path)


def results(several: list[Talk]) -> Json:
    header = trace_writers.results_header(*several)
    return header | {"simulations": [trace_writers.simulation(talk) for talk in several]}


def simulations(several: list[Talk]) -> list[Json]:
    return [trace_writers.simulation(talk) for talk in several]


def items(form: str) -> Callable[[list[Talk]], list[Json]]:
    return lambda several: [trace_writers.tau_bench(talk, FORMS[form]) for talk in several]


def conversations(form: str) -> Callable[[list[Talk]], list[Json]]:
    return lambda several: [trace_writers.conversation(talk, FORMS[form]) for talk in several]


# name: (document of talks, how it is stored, its form)
CONTAINERS: dict[str, tuple[Callable[[list[Talk]], Any], Callable[[Path, Any], None], str]] = {
    "tau-bench": (items("openai"), write_json, "openai"),
    "tau-bench react": (items("react"), write_json, "react"),
    "tau2 results": (results, write_json, "flat"),
    "tau2 list": (simulations, write_json, "flat"),
    "tau2 folder": (results, write_folder, "flat"),
    "parquet": (conversations("openai"), write_parquet, "openai"),
    "json": (conversations("openai"), write_json, "openai"),
    **{form: (conversations(form), write_lines, form) for form in FORMS},
}
every_container = pytest.mark.parametrize("container", CONTAINERS)


@every_container
@given(data=st.data())
@QUICK
def test_what_is_written_is_read_back(container: str, data: st.DataObject, tmp_path: Path) -> None:
    make, store, form = CONTAINERS[container]
    several = draw_talks(data, form)
    store(tmp_path / "t", make(several))
    episodes, notes = read(tmp_path / "t")
    expected = [content_of_talk(talk, flagged=form in FLAGGED) for talk in several]
    assert [content_of(episode) for episode in episodes] == expected
    assert len({episode.group_id for episode in episodes}) == 1
    open_calls = sum(call[2] is None for talk in expected for turn in talk[0] for call in turn)
    assert notes == ({"call without a result": open_calls} if open_calls else {})


def draw_talks(data: st.DataObject, form: str) -> list[Talk]:
    """Draw two trials of one task."""
    most = 1 if form == "react" else 3
    one, two = data.draw(talks(most)), data.draw(talks(most))
    return [one, Talk(two.turns, two.outcome, one.gold, one.task, 1)]


def without_a_field(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield (place, document) with each field dropped, and with each one renamed."""
    if isinstance(document, list):
        for place, value in enumerate(document):
            for path, changed in without_a_field(value):
                yield f"{place}.{path}", [*document[:place], changed, *document[place + 1 :]]
    elif isinstance(document, dict):
        for key, value in document.items():
            rest = {k: v for k, v in document.items() if k != key}
            yield key, rest
            yield f"{key} renamed", {**rest, f"{key}_x": value}
            if key not in FREE:
                for path, changed in without_a_field(value):
                    yield f"{key}.{path}", {**document, key: changed}


@every_container
@given(data=st.data())
@settings(QUICK, max_examples=2)
def test_a_field_less_is_the_same_or_noted_or_refused(
    container: str, data: st.DataObject, tmp_path: Path
) -> None:
    make, store, form = CONTAINERS[container]
    document = make(draw_talks(data, form))
    store(tmp_path / "t", document)
    episodes, notes = read(tmp_path / "t")
    whole = [content_of(episode) for episode in episodes]
    for place, changed in without_a_field(document):
        if place.split(".")[-1] in OPTIONAL and not container.startswith("tau2"):
            continue
        path = tmp_path / f"changed-{place.replace('.', '-')}"
        try:
            store(path, changed)
        except TypeError:  # what Parquet can't hold
            continue
        try:
            episodes, changed_notes = read(path)
        except InputError:
            continue
        if [content_of(episode) for episode in episodes] != whole:
            assert changed_notes - notes, f"without {place}: {changed}"
