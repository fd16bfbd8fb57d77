"""inspect's logs: samples, scores, errors, limits, attachments, and both kinds of file."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from stages.errors import InputError
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.traces import Episode, inspect_log, open_trace
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.traces.given import Given
from tests.broken_records import broken
from tests.builders import SHARED
from tests.conftest import Cli
from tests.translated import clean, episodes, told

Json = dict[str, Any]

LOOK = {"id": "c1", "function": "look", "arguments": {"at": "a shop"}, "type": "function"}
TOOLS = [
    {
        "name": "look",
        "description": "attachment://d",
        "parameters": {"type": "object", "properties": {}},
        "options": {},
    }
]


def said(text: str = "done", *calls: Json, **more: Any) -> Json:
    message: Json = {"role": "assistant", "content": text, "source": "generate", "model": "m"}
    return message | ({"tool_calls": list(calls)} if calls else {}) | more


def result(text: str = "closed", **more: Any) -> Json:
    base = {"role": "tool", "content": text, "tool_call_id": "c1", "function": "look"}
    return base | more


def sample(*messages: Json, **more: Any) -> Json:
    opening = {"role": "user", "content": "look", "source": "input"}
    base: Json = {
        "id": "task-1",
        "epoch": 2,
        "input": "look",
        "target": "closed",
        "messages": [opening, *(messages or [said("", LOOK), result(), said()])],
        "output": {"model": "m", "choices": [{"message": said(), "stop_reason": "stop"}]},
        "scores": {"match": {"value": "C"}},
        "uuid": "u1",
    }
    return base | more


def log(*samples: Json, **more: Any) -> Json:
    spec = {"task": "shop", "model": "vendor/m", "run_id": "r"}
    return {"version": 2, "status": "success", "eval": spec, "samples": list(samples)} | more


def packed(path: Path, *samples: Any, header: str = "header.json", **kept: Any) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for place, one in enumerate(samples):
            text = one if isinstance(one, str) else json.dumps(one)
            name = (one["id"], one["epoch"]) if isinstance(one, dict) else (place, 9)
            archive.writestr(f"samples/{name[0]}_epoch_{name[1]}.json", text)
        archive.writestr("summaries.json", "[]")
        archive.writestr(
            header, json.dumps({k: v for k, v in log(**kept).items() if k != "samples"})
        )
    return path


def read(path: Path) -> list[Episode]:
    return list(open_trace(str(path)))


def test_a_sample_becomes_an_episode() -> None:
    [episode] = episodes(inspect_log, sample())
    assert (episode.task_id, episode.trial, episode.episode_id) == ("task-1", 2, "u1")
    assert (episode.outcome, episode.status, episode.stop) == (1.0, "ok", "stop")
    assert told(episode) == [
        ("", [("look", {"at": "a shop"}, "closed", None)]),
        ("done", []),
    ]


def test_events_tell_of_tools_and_tokens() -> None:
    answer = said(id="m9")
    output = {"choices": [{"message": answer}], "usage": {"output_tokens": 7}}
    event = {"event": "model", "tools": TOOLS, "output": output}
    record = sample(answer, events=[{"event": "state"}, event], attachments={"d": "Looks around."})
    [one] = clean(inspect_log, record)
    assert one["messages"][-1]["n_tokens"] == 7
    schema = {"type": "object", "properties": {}}
    function = {"name": "look", "description": "Looks around.", "parameters": schema}
    assert one["tools"] == [{"type": "function", "function": function}]


@pytest.mark.parametrize("protocol", ["attachment://", "tc://"])
def test_attachments_stand_for_their_texts(protocol: str) -> None:
    call = LOOK | {"arguments": {"at": f"{protocol}a"}}
    messages = [said(f"{protocol}b", call), result(f"{protocol}c"), said(f"{protocol}gone")]
    [episode] = episodes(inspect_log, sample(*messages, attachments={"a": "A", "b": "B", "c": "C"}))
    assert told(episode) == [
        ("B", [("look", {"at": "A"}, "C", None)]),
        (f"{protocol}gone", []),
    ]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"error": {"type": "timeout", "message": "too slow"}, "content": ""}, "too slow"),
        ({"error": {"type": "parsing", "message": "no JSON"}}, "closed"),
        ({"tool_error": "too slow", "content": ""}, "too slow"),
    ],
)
def test_an_error_of_a_tool_flags_its_call(more: Json, text: str) -> None:
    [episode] = episodes(inspect_log, sample(said("", LOOK), result(**more)))
    [call] = episode.turns[0].calls
    assert (call.result, call.flagged) == (text, True)


@pytest.mark.parametrize(
    ("value", "outcome"),
    [
        ("C", 1.0),
        ("I", 0.0),
        ("P", 0.5),
        ("N", 0.0),
        (True, 1.0),
        (False, 0.0),
        (1, 1.0),
        (0.25, 0.25),
        ("0.25", 0.25),
        ("yes", 1.0),
        ("No", 0.0),
    ],
)
def test_values_of_scores(value: Any, outcome: float) -> None:
    [episode] = episodes(inspect_log, sample(scores={"s": {"value": value}}))
    assert (episode.outcome, episode.status) == (outcome, "ok")
    [old] = episodes(inspect_log, {**sample(), "scores": None, "score": {"value": value}})
    assert old.outcome == outcome


@pytest.mark.parametrize(
    ("more", "status", "stop", "outcome"),
    [
        ({"scores": {"s": {"value": "I"}}}, "ok", "stop", 0.0),
        ({"scores": None}, "ok", "stop", None),
        ({"scores": {"s": {"value": math.nan}}}, "masked", "not scored", None),
        ({"scores": {"s": {"value": "none of these"}}}, "masked", "not scored", None),
        ({"invalidation": {"author": "a"}}, "masked", "invalidated", 1.0),
        ({"limit": {"type": "token", "limit": 5.0}}, "truncated", "token", 1.0),
        ({"output": {"choices": [{"stop_reason": "max_tokens"}]}}, "truncated", "max_tokens", 1.0),
        ({"output": {"choices": [{"stop_reason": "length"}]}}, "truncated", "length", 1.0),
        ({"error": {"message": "DockerError('gone')"}}, "error", "DockerError", 1.0),
        ({"error": {"message": ""}, "limit": {"type": "time"}}, "error", "error", 1.0),
    ],
)
def test_four_endings_stay_apart(more: Json, status: str, stop: str, outcome: float | None) -> None:
    [episode] = episodes(inspect_log, sample(**more))
    assert (episode.status, episode.stop, episode.outcome) == (status, stop, outcome)


def test_a_log_that_is_invalid_masks_its_samples(tmp_path: Path) -> None:
    path = tmp_path / "log.json"
    path.write_text(json.dumps(log(sample(), invalidated=True)))
    assert [episode.status for episode in read(path)] == ["masked"]


def test_a_folder_of_logs_is_all_of_them(run: Cli) -> None:
    Path("logs/old").mkdir(parents=True)
    Path("logs/logs.json").write_text("{}")  # what inspect writes of a folder that it shows
    packed(Path("logs/one.eval"), sample(), sample(epoch=3, uuid="b"))
    packed(Path("logs/old/two.eval"), sample(uuid="c"))
    assert run("score", "logs", "-o", "t.parquet", "--quiet").code == 0
    turns = read_table(TURNS, "t.parquet")
    assert run("score", "logs/old/two.eval", "logs/one.eval", "-o", "u.parquet").code == 0
    assert read_table(TURNS, "u.parquet").equals(turns)
    assert turns["source"].unique().sort().to_list() == ["one", "two"]


def test_the_score_that_counts_is_named(run: Cli) -> None:
    scores = {"match": {"value": "C"}, "judge": {"value": {"style": 0.5, "facts": 1}}}
    scores["late"] = {"value": math.nan}
    assert clean(inspect_log, sample(scores=scores))[0]["rewards"] == {
        "match": 1.0,
        "judge.style": 0.5,
        "judge.facts": 1.0,
        "late": None,
    }
    [chosen] = clean(inspect_log, sample(scores=scores), given=Given(score="judge.style"))
    assert (chosen["outcome"], chosen["status"]) == (0.5, "ok")
    [unknown] = clean(inspect_log, sample(scores=scores), given=Given(score="late"))
    assert ("outcome" in unknown, unknown["status"]) == (False, "masked")
    Path("log.json").write_text(json.dumps(log(sample(scores=scores))))
    code, _, err = run("score", "log.json")
    names = "'match', 'judge.style', 'judge.facts'"
    assert code == 2 and err.startswith(f"error: log.json:sample 1: has several scores: {names}")


def test_examples_in_the_input_are_no_turns() -> None:
    example = [said("", LOOK, source="input"), result("open"), said("it is open", source="input")]
    call = LOOK | {"id": "c2"}
    record = sample(*example, said("", call), result(tool_call_id="c2"))
    [episode] = episodes(inspect_log, record)
    assert told(episode) == [("", [("look", {"at": "a shop"}, "closed", None)])]


def test_thoughts_and_calls_that_the_models_server_ran() -> None:
    parts = [
        {"type": "reasoning", "reasoning": "hm"},
        {"type": "tool_use", "tool_type": "web_search", "id": "w1", "name": "web_search"}
        | {"arguments": '{"q": "shop"}', "result": "", "error": "no network"},
        {"type": "text", "text": "I see."},
    ]
    [one] = clean(inspect_log, sample(said(parts)))  # type: ignore[arg-type]
    assert one["messages"][1]["reasoning_content"] == "hm"
    [episode] = episodes(inspect_log, sample(said(parts)))  # type: ignore[arg-type]
    assert told(episode) == [("I see.", [("web_search", {"q": "shop"}, "no network", True)])]


def test_both_files_hold_the_same(tmp_path: Path) -> None:
    samples = [
        sample(id=id, epoch=epoch, uuid=f"{id}-{epoch}") for id in (2, 10) for epoch in (1, 2)
    ]
    document = tmp_path / "log.json"
    document.write_text(json.dumps(log(*samples)))
    archive = packed(tmp_path / "log.eval", *samples)
    unfinished = packed(tmp_path / "cut.eval", *samples, header="_journal/start.json")
    names = [episode.episode_id for episode in read(archive)]
    assert names == ["2-1", "10-1", "2-2", "10-2"]
    in_order = {episode.episode_id: episode for episode in read(document)}
    assert [replaced(in_order[name]) for name in names] == [replaced(e) for e in read(archive)]
    assert [e.episode_id for e in read(unfinished)] == names
    assert [e.policy for e in read(archive)] == ["vendor/m"] * 4


def replaced(episode: Episode) -> Any:
    return (
        told(episode),
        episode.task_id,
        episode.trial,
        episode.outcome,
        episode.policy,
        episode.env,
    )


def test_samples_without_their_log(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(sample(id=id, uuid=f"u{id}")) + "\n" for id in range(3)))
    assert [episode.task_id for episode in read(path)] == ["0", "1", "2"]


def test_a_broken_sample_can_be_skipped(tmp_path: Path) -> None:
    path = packed(tmp_path / "log.eval", sample(), '{"id": ')
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.where == f"{path}:samples/1_epoch_9.json"
    assert caught.value.what.endswith("at byte 7")
    bad: list[tuple[int, bytes, str]] = []
    trace = open_trace(str(path), skip_bad=lambda *one: bad.append(one))
    assert [episode.episode_id for episode in trace] == ["u1"] and bad[0][0] == 2


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("log.eval", b"PK\x03\x04 and no more", "broken zip file"),
        ("log.json", json.dumps(log()).encode(), "holds no samples"),
        ("log.json", json.dumps(log(sample(), version=3)).encode(), "is a log of version 3"),
        ("log.json", json.dumps(log(samples=3)).encode(), "'samples' is not a list"),
    ],
)
def test_what_holds_no_samples_is_refused(run: Cli, name: str, data: bytes, what: str) -> None:
    Path(name).write_bytes(data)
    code, _, err = run("score", name)
    assert code == 2 and err.startswith(f"error: {name}: {what}")


def test_a_zip_that_is_no_log_is_refused(run: Cli) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    packed(Path("empty.eval"))
    todo = "give an .eval file of inspect, or the trace itself"
    line = f"error: a.zip: is a zip file, not a log of inspect; {todo}\n"
    assert run("score", "a.zip") == (2, b"", line)
    line = "error: empty.eval: is a log without samples; give one with samples\n"
    assert run("score", "empty.eval") == (2, b"", line)


def test_a_newer_version_is_refused(run: Cli) -> None:
    packed(Path("new.eval"), sample(), version=3)
    line = "error: new.eval:header.json: is a log of version 3; give one of version 1 or 2\n"
    assert run("score", "new.eval") == (2, b"", line)


def as_zstd(path: Path, *, method: int = 93, spoil: bool = False) -> None:
    """Turn the members of a zip file into zstd frames of raw blocks (RFC 8878)."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    frames = {}
    for name, data in members.items():
        blocks = [data[at : at + 1000] for at in range(0, len(data), 1000)]
        raw = b""
        for number, block in enumerate(blocks, 1):
            head = len(block) << 3 | (number == len(blocks))
            raw += head.to_bytes(3, "little") + block
        size = bytes([0xA0]) + len(data).to_bytes(4, "little")
        frames[name] = bytes.fromhex("28b52ffd") + size + raw
    if spoil:
        frames["header.json"] = frames["header.json"][:-5]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, frame in frames.items():
            archive.writestr(name, frame)
    stored = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # the methods in both headers
        at = stored.find(mark)
        while at >= 0:
            stored[at + place : at + place + 2] = method.to_bytes(2, "little")
            at = stored.find(mark, at + 1)
    path.write_bytes(stored)


def test_zstd_is_read(tmp_path: Path) -> None:
    path = packed(tmp_path / "log.eval", sample(said("ein Schlüssel\n" * 500)))
    first = [replaced(episode) for episode in read(path)]
    as_zstd(path)
    assert [replaced(episode) for episode in read(path)] == first


def test_zstd_is_read_in_the_same_way_where_zipfile_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """inspect_ai has zipfile patched in the whole process; Python 3.14's reads zstd itself."""
    path = packed(tmp_path / "log.eval", sample(said("hello")))
    first = [replaced(episode) for episode in read(path)]
    as_zstd(path)
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *ignored: b"{}")
    assert [replaced(episode) for episode in read(path)] == first


@pytest.mark.parametrize(
    ("spoiled", "what"),
    [
        ({"method": 96}, "log.eval: 'header.json' is compressed by a method that is not known"),
        ({"spoil": True}, "log.eval:header.json: broken zstd data"),
    ],
)
def test_other_compression_is_refused(run: Cli, spoiled: Json, what: str) -> None:
    as_zstd(packed(Path("log.eval"), sample()), **spoiled)
    code, _, err = run("score", "log.eval")
    assert code == 2 and err.startswith(f"error: {what}")


@pytest.mark.parametrize("choices", [None, 3, "x", [], {}, {"a": 1}, [None], [3], [[]], ["x"]])
def test_a_models_event_without_an_answer_counts_no_tokens(choices: Any) -> None:
    output = {"choices": choices, "usage": {"output_tokens": 7}}
    record = sample(said(id="m9"), events=[{"event": "model", "output": output}])
    [record] = clean(inspect_log, record)
    assert "n_tokens" not in record["messages"][-1]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(broken(sample(said("", LOOK), result(error={"type": "timeout", "message": "x"}), said())))
def test_a_broken_sample_is_read_or_refused(record: Json) -> None:
    if inspect_log.accepts(record):
        with contextlib.suppress(BadItemError):
            list(inspect_log.translate(record, ReadOptions(), Counter()))


def public(tmp_path: Path) -> Path:
    data = SHARED / "data/formats/inspect_browser.json.gz"
    if not data.exists():
        pytest.skip("the shared files are not here")
    path = tmp_path / "browser.json"
    path.write_bytes(gzip.decompress(data.read_bytes()))
    return path


def test_the_public_log(tmp_path: Path) -> None:
    [episode] = read(public(tmp_path))
    assert (len(episode.turns), sum(len(turn.calls) for turn in episode.turns)) == (5, 4)
    assert (episode.outcome, len(episode.tools or [])) == (1.0, 8)


def test_inspect_reads_the_same(tmp_path: Path) -> None:
    """Against `inspect_ai.log`, from the .eval file that it writes of a log."""
    library = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    metric = pytest.importorskip("inspect_ai.scorer")
    document = library.read_eval_log(str(public(tmp_path)), resolve_attachments="full")
    path = tmp_path / "browser.eval"
    library.write_eval_log(library.read_eval_log(str(public(tmp_path))), str(path))
    ours = read(path)
    assert len(ours) == len(document.samples) == 1
    for episode, theirs in zip(ours, document.samples, strict=True):
        spoken = [m for m in theirs.messages if m.role == "assistant"]
        results = {m.tool_call_id: m.text for m in theirs.messages if m.role == "tool"}
        assert told(episode) == [
            (m.text, [(c.function, c.arguments, results[c.id], None) for c in m.tool_calls or []])
            for m in spoken
        ]
        [score] = theirs.scores.values()
        assert episode.outcome == metric.value_to_float()(score.value)
