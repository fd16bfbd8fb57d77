"""Which estimator's gradient agrees with that of the pass rate: the study's own comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("accelerate", reason="needs irc-cli[train]")

from examples.study import gradients as study_gradients
from examples.study.gradients import (
    RLOO,
    PlayedBatches,
    compared,
    gradients,
    measured,
    reinforce,
    table,
    weights_of,
)
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.train import accumulate
from stages.training.config import TrainConfig
from stages.training.inputs import read_rollouts
from stages.training.sequences import sequences
from tests.builders import Tiered, turn_frame
from tests.learning import played, small_model, some_examples, trainer_of

STUDY: dict[str, Any] = yaml.safe_load(
    (Path(study_gradients.__file__).parent / "gradients.yaml").read_bytes()
)
MIXED = turn_frame(
    [
        Tiered("a", 1.0, ["message", "gold_write", "message"]),
        Tiered("a", 0.0, ["message", "error"]),
        Tiered("a", 0.0, ["error", "error", "error", "message"]),
        Tiered("b", 1.0, ["gold_write"]),
        Tiered("b", 1.0, ["message", "message"]),
        Tiered("b", 0.0, ["message", "error"]),
    ]
)


def test_reinforce_holds_an_outcome_against_the_others_of_its_group() -> None:
    found = reinforce(MIXED)
    assert found["e0", 0] == found["e0", 2] == 1.0
    assert found["e1", 1] == -0.5 and found["e3", 0] == 0.5 and found["e5", 0] == -1.0
    assert len(found) == MIXED.height


@pytest.mark.parametrize("name", STUDY["estimators"])
def test_every_estimator_gives_each_turn_a_finite_advantage(name: str) -> None:
    found = weights_of(MIXED, STUDY["estimators"][name])
    assert len(found) == MIXED.height and np.isfinite(list(found.values())).all()


def test_a_gradient_is_that_of_training() -> None:
    examples = [one for one in some_examples() if one.temperature == 1.0]
    trainer = trainer_of(small_model())
    weights = {
        (one.sequence.episode_id, int(turn)): float(value)
        for one in examples
        for turn, value in zip(one.sequence.turn[one.sequence.written], one.advantage, strict=True)
    }
    twice = {key: 2 * value for key, value in weights.items()}
    mine, double = gradients(trainer.model, examples, [weights, twice])
    assert np.allclose(double, 2 * mine, atol=1e-6)
    accumulate(trainer, examples, None, 1.0, TrainConfig())
    supervised = np.concatenate([one.grad.flatten() for one in trainer.model.parameters()])
    (ones,) = gradients(trainer.model, examples, [dict.fromkeys(weights, 1.0)])
    assert np.allclose(ones, -supervised, atol=1e-5)


def test_agreement_is_the_cosine_whatever_noise_the_reference_has() -> None:
    rng = np.random.default_rng(0)
    n, size = 64, 400
    truth = np.zeros(size)
    truth[0] = 1.0
    s = truth + 0.3 * rng.normal(size=(n, size))
    aside = np.zeros(size)
    aside[1] = 1.0
    known = {
        RLOO: s,
        "true": np.tile(truth, (n, 1)) + 0.0,
        "half": np.tile(truth + np.sqrt(3) * aside, (n, 1)),  # 60 degrees off
        "against": np.tile(-truth, (n, 1)),
    }
    rows = {
        row["estimator"]: row for row in compared({k: v.astype("f4") for k, v in known.items()})
    }
    for name, cosine in (("true", 1.0), ("half", 0.5), ("against", -1.0)):
        assert rows[name]["agreement"] == pytest.approx(cosine, abs=0.05)
        assert rows[name]["sgd"] == pytest.approx(cosine, abs=0.1)
    assert rows["true"]["sgd"] == rows["true"]["adamw"] == 1.0
    # Of length sqrt(1 + 400 * 0.3^2), of which 1 is along the truth.
    assert rows[RLOO]["agreement"] == pytest.approx(1 / np.sqrt(37), abs=0.03)
    assert table([rows["true"]]).endswith("| 100 +- 0 | 100 +- 0 |\n")


def test_gradients_on_disk_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = played(tmp_path)
    turns = read_table(TURNS, files.turns)
    episodes: dict[str, list[Any]] = {}
    for one in some_sequences(files.rollouts):
        episodes.setdefault(one.sequence.episode_id, []).append(one)
    groups = turns["group_id"].unique(maintain_order=True).to_list()
    told = PlayedBatches(files.model, episodes, {"extended": turns}, [groups[:2], groups[2:]])
    study = {"estimators": {"sparse": {"rewards": "none", "advantage": "grpo"}}}
    found = measured(study, told, tmp_path)
    assert set(found) == {RLOO, "sparse"} and found[RLOO].shape == found["sparse"].shape
    # In groups that are half good, the two differ by one factor.
    assert np.allclose(
        found["sparse"] / np.abs(found["sparse"]).max(),
        found[RLOO] / np.abs(found[RLOO]).max(),
        atol=1e-5,
    )

    def never(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr(study_gradients, "gradients", never)
    again = measured(study, told, tmp_path)
    assert all(np.array_equal(again[name], found[name]) for name in found)


def some_sequences(rollouts: str) -> list[Any]:
    return [study_gradients.example_of(one) for one in sequences(read_rollouts(rollouts).tokens)]
