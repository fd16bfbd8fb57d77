from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

from tests.vllm.playing import CLOSE, worst_difference
from tests.vllm.serving import await_episodes, recorded, report, rollout, servers

EPISODES = 32


def test_a_killed_server_leaves_errors_that_resume_completes(
    checkpoint: Path, model: Any, tmp_path: Path
) -> None:
    out = tmp_path / "rollouts.jsonl"
    with servers(checkpoint, tmp_path) as pool:
        running = rollout(out, pool, "--retries", "0", concurrency=2)
        await_episodes(4, out, running)
        pool[0].kill()
        status = report(running)["status"]
    assert status["error"] > 0
    assert status["error"] + status["ok"] + status["truncated"] == EPISODES
    assert status["error"] < EPISODES

    with servers(checkpoint, tmp_path) as pool:
        status = report(rollout(out, pool, "--resume"))["status"]
        exact = tmp_path / "exact.jsonl"
        by_ids = report(rollout(exact, pool, "--tokenizer", str(checkpoint)))["status"]
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
