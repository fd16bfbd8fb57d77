"""Traces scored by several processes: everything is as with one."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import orjson
import pytest

from irc_cli import jobs
from stages import score
from stages.errors import InputError
from tests.builders import line_of
from tests.conftest import Cli
from tests.test_cli import IN_SUBPROCESS, IRC_CLI


def record(task: int, trial: int, tool: str, **more: Any) -> dict[str, Any]:
    """An episode with one call of a tool that nothing tells of."""
    call = {"id": "1", "function": {"name": tool, "arguments": f'{{"id": {trial}}}'}}
    messages = [
        {"role": "user", "content": f"task {task}"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Error: none" if trial % 3 else "{}"},
        {"role": "assistant", "content": "done"},
    ]
    return {"task_id": task, "trial": trial, "reward": trial % 2, "messages": messages} | more


def write(path: str, records: Sequence[dict[str, Any]], *lines: bytes) -> str:
    Path(path).write_bytes(b"\n".join([*map(orjson.dumps, records), *lines]))
    return path


def traces(example: Path) -> list[str]:
    """Files that share task ids and groups, lack outcomes, have crashed, and name many tools."""
    a = [record(t, i, f"buscar_{t}", group_id=f"g{t}", model="m") for t in range(7) for i in (0, 1)]
    b = [record(t, i, f"tramitar_{t}", group_id=f"g{t}") for t in range(7) for i in (0, 1)]
    gold = [{"name": "tramitar_0", "arguments": {"id": 1}}]
    c = [record(0, i, "tramitar_0", gold_actions=gold) for i in range(4)]
    c += [record(1, 0, "buscar", status="error"), record(2, 0, "buscar", reward=None)]
    c += [{"task_id": 3, "messages": [], "reward": 1}]
    broken = b'{"task_id": 9, "messages": 5}'
    return [
        write("a.jsonl", a),
        write("b.jsonl", b, broken),
        str(example),
        write("c.jsonl", c, broken),
    ]


@pytest.mark.parametrize("chunk", [score.CHUNK, 100])
def test_merged_parts_equal_one_process_byte_by_byte(
    run: Cli, monkeypatch: pytest.MonkeyPatch, example: Path, chunk: int
) -> None:
    monkeypatch.setattr(score, "CHUNK", chunk)
    monkeypatch.setattr(jobs, "BATCH", 3)
    # In this process, yet in parts that come as from others.
    monkeypatch.setattr(jobs, "_regular", lambda path: False)
    files, results = traces(example), []
    for number in ("1", "3"):
        out = f"turns{number}.parquet"
        result = run("score", *files, "--skip-bad", "--jobs", number, "-o", out)
        bad = Path(f"{out}.bad.jsonl").read_bytes()
        told = result.err.replace(out, "OUT"), result.out.replace(out.encode(), b"OUT")
        results.append((result.code, *told, bad, Path(out).read_bytes()))
    assert results[0][0] == 0
    assert results[0] == results[1]


def test_processes_score_as_one_does(run: Cli, example: Path) -> None:
    files = [*traces(example)[::2], write("d.jsonl", [record(5, 7, "buscar_5")])]
    Path("gold.yaml").write_text("5: [{name: buscar_5, arguments: {id: 7}}]")
    options = ("--gold", "gold.yaml", "--map", "trial=trial", "--json")
    results = [
        run("score", *files, *options, "--jobs", number, "-o", f"{number}.parquet")
        for number in ("1", "2")
    ]
    assert results[0].code == 0, results[0].err
    assert results[0] == results[1]
    assert Path("1.parquet").read_bytes() == Path("2.parquet").read_bytes()


def test_the_first_trace_at_fault_is_named(run: Cli) -> None:
    ok = write("ok.jsonl", [record(1, 0, "get")])
    broken = write("broken.jsonl", [record(2, 0, "get")], b'{"task_id": 3')
    copy = write("copy.jsonl", [record(1, 0, "get", episode_id="e")], b"{")
    other = write("other.jsonl", [record(1, 0, "get", episode_id="e")])
    for files in ([ok, broken, "missing.json"], [other, copy], [ok, "-"]):
        results = [
            run("score", *files, "-o", "turns.parquet", "--jobs", number) for number in ("1", "2")
        ]
        assert results[0] == results[1]
        assert results[0].code == 2 and results[0].err.count("\n") == 1
        assert not Path("turns.parquet").exists()


def test_a_process_that_was_killed_is_one_line() -> None:
    killed = Future[None]()
    killed.set_exception(BrokenProcessPool())
    with pytest.raises(InputError) as caught:
        jobs._result(killed, "a.jsonl")
    assert line_of(caught) == (
        "a.jsonl: a process that reads traces was killed, possibly for lack of memory; "
        "pass fewer --jobs"
    )


def test_an_error_keeps_its_parts_between_processes() -> None:
    error = pickle.loads(pickle.dumps(InputError("where", "what", "todo")))
    assert str(error) == "where: what; todo"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc here")
def test_ctrl_c_ends_all_processes(tmp_path: Path) -> None:
    ok = write(str(tmp_path / "ok.jsonl"), [record(1, 0, "get")])
    fifo = tmp_path / "pipe.jsonl"
    os.mkfifo(fifo)
    writer = os.open(fifo, os.O_RDWR)  # writes nothing, so that a job waits for it
    out = str(tmp_path / "turns.parquet")
    with subprocess.Popen(
        [*IRC_CLI, "score", ok, str(fifo), "-o", out, "--jobs", "2"],
        env=IN_SUBPROCESS,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        while len(workers := children(process.pid)) < 2:  # one tracks their resources
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        result = process.communicate(timeout=60)
    os.close(writer)
    assert (process.returncode, *result) == (130, b"", b"")
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not Path(out).exists()
