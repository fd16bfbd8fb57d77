"""A file that is not the table or the trace that was asked for: what it is, and what to do."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from stages.tables.artifacts import SUMS, TURNS
from stages.tables.recognise import TABLES, of_columns, of_json, of_record
from tests.conftest import Cli


def test_every_table_is_told_by_its_columns() -> None:
    for table in TABLES:
        found = of_columns([*table.columns, "another"])
        assert found is not None and found.key == table.name
    assert of_columns(["a"]) is None
    assert of_columns(list(TURNS.columns)[1:]) is None


def test_traces_and_formats_are_told_by_a_record() -> None:
    for key in ("messages", "traj", "simulations"):
        documents: list[Any] = [{key: []}, [{key: []}]]
        for document in documents:
            found = of_record(document)
            assert found == ("a trace", "trace")
            assert of_json(orjson.dumps(document, option=orjson.OPT_INDENT_2)) == found
            assert of_json(gzip.compress(orjson.dumps(document))) == found
    assert of_record({"run_type": "llm", "inputs": {}}) == ("a LangSmith run", "trace")
    assert of_record({"a": 1}) is of_record([]) is of_record(None) is of_json(b"prose") is None
    assert of_json(b"\x1f\x8b broken") is None


MAKE = "make one with 'irc-cli score {} -o turns.parquet'"


@pytest.mark.parametrize("ending", ["jsonl", "json", "json.gz"])
def test_calibrate_says_that_a_trace_is_one(run: Cli, example: Path, ending: str) -> None:
    rows = [orjson.loads(line) for line in example.read_bytes().splitlines()[:3]]
    data = b"\n".join(map(orjson.dumps, rows)) if ending == "jsonl" else orjson.dumps(rows)
    path = f"t.{ending}"
    Path(path).write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    line = f"error: {path}: not a turns table but a trace; {MAKE.format(path)}\n"
    assert run("calibrate", path) == (2, b"", line)
    assert run("calibrate", path, "--stream") == (2, b"", line)


def test_a_trace_in_parquet_is_one_too(run: Cli, example: Path) -> None:
    row = orjson.loads(example.read_bytes().splitlines()[0])
    pl.DataFrame({"messages": [orjson.dumps(row["messages"]).decode()]}).write_parquet("t.parquet")
    line = f"error: t.parquet: not a turns table but a trace; {MAKE.format('t.parquet')}\n"
    assert run("calibrate", "t.parquet") == (2, b"", line)
    assert run("calibrate", "t.parquet", "--stream") == (2, b"", line)


def test_our_tables_are_told_from_each_other(run: Cli, turns: Path, calibration: Path) -> None:
    beside = calibration.with_name("advantages.parquet")
    given = "give what irc-cli score writes"
    assert run("calibrate", beside) == (
        2,
        b"",
        f"error: {beside}: not a turns table but an advantages table; {given}\n",
    )
    SUMS.empty().write_parquet("sums.parquet")
    line = f"error: sums.parquet: not a turns table but a sums table; {given}\n"
    assert run("calibrate", "sums.parquet") == (2, b"", line)
    pl.read_parquet(turns).head(3).write_ndjson("turns.jsonl")
    for path in (str(turns), "turns.jsonl"):
        line = f"error: {path}: not a trace but a turns table; give the traces themselves\n"
        for command in ("score", "eval", "compare-args"):
            assert run(command, path) == (2, b"", line)


def test_another_format_is_named(run: Cli) -> None:
    Path("run.json").write_bytes(orjson.dumps({"run_type": "llm", "inputs": {}, "outputs": {}}))
    line = (
        "error: run.json: not a turns table but a LangSmith run; "
        "make one with 'irc-cli score run.json -o turns.parquet'"
    )
    assert run("calibrate", "run.json") == (2, b"", line + "\n")


def test_rollouts_are_no_parquet(run: Cli, turns: Path) -> None:
    for command in ("preferences", "tokens"):
        assert run("export", command, turns, "--turns", turns) == (
            2,
            b"",
            f"error: {turns}: is Parquet, not JSON lines; give a rollouts.jsonl, or 'messages'\n",
        )
