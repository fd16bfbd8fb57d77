"""Pipes are read once, and what is small and unzips to much is refused in time."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.errors import InputError
from stages.tables import pipes
from stages.traces import stream
from tests.builders import line_of
from tests.conftest import Cli


@contextmanager
def pipe_of(path: Path, data: bytes) -> Iterator[Path]:
    """A named pipe to which somebody writes once."""
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb") as file:
            file.write(data)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield path
    writer.join(10)
    assert not writer.is_alive()


COMMANDS = [
    "calibrate {} --json",
    "calibrate {} --json --stream",
    "report {} --json",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_turns_from_a_pipe(run: Cli, turns: Path, tmp_path: Path, command: str, kind: str) -> None:
    import polars as pl

    data = turns.read_bytes()
    if kind == "jsonl":
        data = pl.read_parquet(turns).write_ndjson().encode()
    (tmp_path / "file").write_bytes(data)
    whole = run(*command.format("file").split())
    with pipe_of(tmp_path / "pipe", data) as path:
        piped = run(*command.format(path.name).split())
    assert piped.code == whole.code == 0
    assert piped.out.replace(b"pipe", b"file") == whole.out


@pytest.mark.parametrize("command", ["score {} --json", "eval {} --json", "export sft {} --json"])
def test_a_trace_from_a_pipe(run: Cli, example: Path, tmp_path: Path, command: str) -> None:
    with pipe_of(tmp_path / "pipe", example.read_bytes()) as path:
        assert run(*command.format(path.name).split()).code == 0


@pytest.mark.parametrize("option", ["--config", "--tiers", "--domain", "--rewards", "--gold"])
def test_a_pipe_as_an_option(
    run: Cli, example: Path, tmp_path: Path, calibration: Path, option: str
) -> None:
    root = Path(__file__).resolve().parents[1] / "data"
    content = {
        "--config": b"json: true",
        "--tiers": (root / "tiers" / "flat.yaml").read_bytes(),
        "--domain": (root / "domains" / "airline.yaml").read_bytes(),
        "--rewards": calibration.read_bytes(),
        "--gold": b'{"none": []}',
    }
    with pipe_of(tmp_path / "pipe", content[option]):
        result = run("score", example, option, "pipe", "-o", "turns.parquet")
    assert result.code == 0 or "names no task" in result.err


def test_process_substitution(example: Path, turns: Path, tmp_path: Path) -> None:
    cli = f"{sys.executable} -m irc_cli"
    for command in (f"score <(cat {example})", f"calibrate <(cat {turns}) -o <(cat) --json"):
        line = f"{cli} {command} --json".replace(" -o <(cat)", "")
        env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, capture_output=True, timeout=60, env=env
        )
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["calibrate", "score", "eval", "report", "compare-args"])
def test_a_pipe_without_a_writer(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr(pipes, "PATIENCE_S", 0.1)
    os.mkfifo(tmp_path / "pipe")
    assert run(command, "pipe").err == (
        "error: pipe: is a pipe to which nothing was written in 0.1 s; "
        "start its writer first, or give a file\n"
    )


@pytest.mark.parametrize("command", ["calibrate", "score", "eval", "report", "score x --config"])
def test_a_device_is_no_file(run: Cli, command: str) -> None:
    assert run(*command.split(), "/dev/zero").err == (
        "error: /dev/zero: is no file; give a file, a pipe, or '-' for standard input\n"
    )


def zipped(size: int, ending: bytes) -> bytes:
    data = io.BytesIO()
    with gzip.GzipFile(fileobj=data, mode="wb", compresslevel=9) as file:
        file.write(b'{"messages": "')
        for _ in range(size >> 20):
            file.write(b"a" * (1 << 20))
        file.write(ending)
    return data.getvalue()


@pytest.mark.parametrize("ending", [b'"}', b'"}\n{}\n', b""])
def test_a_little_gzip_that_unzips_to_much(
    run: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: bytes
) -> None:
    monkeypatch.setattr(stream, "MOST_UNZIPPED", 1 << 22)
    for name, first in (("a.json.gz", b"{"), ("a.jsonl.gz", b"{"), ("list.json.gz", b"[{")):
        data = gzip.compress(first) if first == b"[{" else b""
        (tmp_path / name).write_bytes(data + zipped(1 << 25, ending))
        result = run("score", name)
        assert result.err.startswith(f"error: {name}: unzips to more than 4 MiB, 100 times its ")
        assert result.err.endswith(" size; gunzip it first, if memory holds it\n")


def test_gzip_of_many_lines_is_read_whatever_its_ratio(
    run: Cli, example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "MOST_UNZIPPED", 1 << 16)
    monkeypatch.setattr(stream, "MOST_RATIO", 1)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(example.read_bytes()))
    (tmp_path / "a.jsonl").write_bytes(example.read_bytes())
    zipped_run, plain_run = run("score", "a.jsonl.gz", "--json"), run("score", "a.jsonl", "--json")
    assert zipped_run.code == plain_run.code == 0
    assert zipped_run.json()["tiers"] == plain_run.json()["tiers"]


def test_a_line_that_ends_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MOST_UNZIPPED", 4)
    lines = [b"abc\n", b"abcd\n", b"abcdefgh\n", b"ab\n", b"abcdefghijk"]
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"".join(lines)))
    assert [line for _, line in stream.Stream(str(tmp_path / "a.gz")).lines()] == lines


def test_a_log_whose_member_unzips_to_much(run: Cli, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.eval", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("header.json", b'{"eval": "' + b"a" * (1 << 28) + b'"}')
    assert run("score", "a.eval").err == (
        "error: a.eval: its member 'header.json' unzips to 100 times its size and more; "
        "write the log as .json, if memory holds it\n"
    )


def test_a_silent_writer_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "PATIENCE_S", 0.2)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    go = threading.Event()

    def write() -> None:
        with path.open("wb", buffering=0) as file:
            go.wait(5)
            file.write(b"late")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    threading.Timer(0.6, go.set).start()
    assert pipes.content(str(path)) == b"late"
    assert pipes.content(str(path)) == b"late", "what was read is kept"
    writer.join(5)
    with pytest.raises(InputError) as caught:
        os.mkfifo(tmp_path / "none")
        pipes.content(str(tmp_path / "none"))
    assert line_of(caught).startswith(f"{tmp_path}/none: is a pipe to which nothing was written")
