from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="make test-vllm sets vLLM up")

from tests.tiny import untied
from tests.vllm.playing import CLOSE, worst_difference
from tests.vllm.serving import await_episodes, recorded, report, rollout, servers

EPISODES = 32
EVEN = 0.2


@pytest.fixture(scope="module")
def untied_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its output layer can be replaced on a CPU."""
    return untied(checkpoint, tmp_path_factory.mktemp("untied"), factor=1.0)


@pytest.fixture(scope="module")
def trained(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights for the same model, as an iteration of training makes them."""
    return untied(checkpoint, tmp_path_factory.mktemp("trained"), factor=1.5)


def test_two_servers(
    checkpoint: Path, untied_checkpoint: Path, trained: Path, tmp_path: Path
) -> None:
    """They share the work; then both get new weights, one is killed, and nothing is lost."""
    from transformers import AutoModelForCausalLM

    before, after = map(AutoModelForCausalLM.from_pretrained, (untied_checkpoint, trained))
    with servers(untied_checkpoint, tmp_path, count=2) as pool:
        first = tmp_path / "first.jsonl"
        # All at once: an episode that begins later goes where more have ended, which is even in
        # time but not in number where one server gets more of the machine.
        found = report(rollout(first, pool, concurrency=EPISODES))
        assert found["status"]["error"] == found["restarts"] == 0
        counts = [server.answered() for server in pool]
        assert sum(counts) == found["turns"]
        mean = sum(counts) / len(counts)
        assert all(abs(count - mean) <= EVEN * mean for count in counts), counts

        served = ("--served-model-name", "tiny", "--load-weights")
        tied = rollout(tmp_path / "tied.jsonl", pool, *served, model=str(checkpoint))
        tied.communicate(timeout=300)
        assert tied.returncode == 2

        second = tmp_path / "second.jsonl"
        running = rollout(second, pool, *served, model=str(trained))
        await_episodes(EPISODES // 2, second, running)
        assert pool[0].answered() > counts[0]
        pool[0].kill()
        found = report(running)
    assert found["status"]["error"] == 0
    assert found["episodes"] == EPISODES
    assert found["restarts"] > 0

    actions = recorded(tmp_path / "first.tokens.parquet")
    assert worst_difference(before, actions, 1.0) < CLOSE
    actions = recorded(tmp_path / "second.tokens.parquet")
    assert worst_difference(after, actions, 1.0) < CLOSE
    assert worst_difference(before, actions, 1.0) > CLOSE
