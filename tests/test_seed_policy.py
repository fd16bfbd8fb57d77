"""The policy that is shipped: small, copies what was said, and plays so-so."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from stages.envs.airline_mini import airline_mini
from stages.policy_registry import SEED_POLICY
from tests.conftest import Cli

FOLDER = Path(SEED_POLICY)


def test_it_is_small_and_says_how_it_was_made() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) <= 10_000_000
    made = orjson.loads((FOLDER / "made.json").read_bytes())
    assert made["command"] == "make seed-policy"
    assert made["parameters"] < 2_000_000


def test_it_copies_every_kind_of_entity() -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    from examples.seed_policy.make import Copied, copy_accuracy, expert_episodes
    from stages.messages.renderer import Renderer
    from stages.training.examples import supervised
    from stages.training.model import learner, load_model

    model, tokenizer = load_model(SEED_POLICY)
    learner(model)
    # Tasks and random choices that its making did not look at.
    episodes = expert_episodes(airline_mini().tasks("test"), 0.0, seed=1)
    examples = supervised(episodes, Renderer(tokenizer))
    found = copy_accuracy(model.eval(), examples, Copied(tokenizer))
    assert {kind: share for kind, share in found.items() if share < 0.9} == {}


@pytest.mark.parametrize(
    "tasks", [("--split", "test"), ("--fresh", "--sample-tasks", "400", "--seed", "500000")]
)
def test_it_passes_about_half_of_the_test_tasks_and_of_fresh_ones(
    run: Cli, tasks: tuple[str, ...]
) -> None:
    pytest.importorskip("accelerate", reason="needs irc-cli[train]")
    options = (*tasks, "--group-size", "1", "--max-turns", "20", "--max-tokens", "60")
    policy = ("--policy", "transformers", "--concurrency", "128")
    result = run("eval", "--env", "airline-mini", *policy, *options, "--json")
    assert result.code == 0, result.err
    found = result.json()
    assert found["episodes"] == 400
    assert 0.4 <= found["pass_rate"] <= 0.6
