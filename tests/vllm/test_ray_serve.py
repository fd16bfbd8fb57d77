from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

import pytest

pytest.importorskip("ray.llm", reason="make test-ray sets Ray Serve LLM up")

from tests.vllm.playing import CLOSE, worst_difference
from tests.vllm.serving import STARTS_S, free_port, recorded, report, rollout

EXAMPLE = Path(__file__).parents[2] / "examples/ray/serve.py"


class Address(NamedTuple):
    root: str


def await_models(root: str, ray: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until an engine answers: the router lists its model before."""
    end = time.monotonic() + STARTS_S
    while time.monotonic() < end and ray.poll() is None:
        if b"is ready at" in log.read_bytes():
            urllib.request.urlopen(f"{root}/v1/models", timeout=60).close()
            return
        time.sleep(1)
    pytest.fail("Ray does not serve:\n" + log.read_text()[-3000:])


def test_episodes_by_ray_serve_are_exact(checkpoint: Path, model: Any, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "ray.log"
    command = [sys.executable, "-W", "ignore", str(EXAMPLE), str(checkpoint)]
    options = ["--cpu", "--replicas", "2", "--port", str(port)]
    address = Address(f"http://127.0.0.1:{port}")
    with log.open("wb") as out:
        ray = subprocess.Popen(
            [*command, *options], stdout=out, stderr=out, env={**os.environ, "RAY_DEDUP_LOGS": "0"}
        )
    try:
        await_models(address.root, ray, log)
        found = report(rollout(tmp_path / "rollouts.jsonl", [address], model="policy"))
    finally:
        ray.send_signal(signal.SIGINT)
        ray.wait(60)
    assert found["status"]["error"] == 0
    assert found["episodes"] == 32
    actions = recorded(tmp_path / "rollouts.tokens.parquet")
    assert worst_difference(model, actions, 1.0) < CLOSE
