"""verl finds our plugin, and its trainer gets our advantages."""

from __future__ import annotations

import asyncio
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest

pytest.importorskip("verl", reason="make test-verl sets verl up")

import torch
from verl.trainer.ppo import core_algos
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import validate_config

from irc_cli.verl.agent_loop import EnginePolicy, output_of
from irc_cli.verl.reward import compute_score
from stages.core.advantages import AdvantageConfig
from stages.envs.airline_mini import airline_mini
from stages.errors import InputError
from stages.policies.policy import Sampling
from stages.rollout import Played
from stages.tables.artifacts import ADVANTAGES, TURNS
from stages.tables.table_file import read_table
from tests.conftest import exit_code
from tests.verl.batches import FILL, GROUP, TASKS, Batch, Exported

SAME = 1e-6
CHOICES = (
    {"estimator": "grpo"},
    {"estimator": "mt-grpo"},
    {"estimator": "mt-grpo", "last_turn_reward": False},
    {"estimator": "gtpo", "gamma": 0.8},
    {"estimator": "hybrid"},
    {"estimator": "rloo"},
    {"estimator": "hybrid", "normalise": "batch", "outcome_weight": 0.5},
)


def test_verl_loads_the_plugin_by_its_own_entry_point() -> None:
    found = core_algos.get_adv_estimator_fn("irc")  # nothing else here imports it
    assert (found.__module__, found.__name__) == ("irc_cli.verl.plugin", "estimate")


@pytest.mark.parametrize("choice", CHOICES, ids=lambda one: "-".join(map(str, one.values())))
def test_the_trainers_advantages_are_ours(
    batch: Batch, choice: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_base, "tq", batch.queue)
    config = deepcopy(batch.exported.config)
    config.algorithm.irc = choice
    trainer = SimpleNamespace(config=config)
    PPOTrainerSync._compute_advantage(trainer, batch.meta, {})

    ours = read_table(ADVANTAGES, str(calibrated(batch, choice, tmp_path)))
    by_turn = {(row["episode_id"], row["turn"]): row["advantage"] for row in ours.to_dicts()}
    compared = 0
    for key in batch.meta.keys:
        fields = batch.queue.rows[key]
        mask, advantage = fields["response_mask"].bool(), fields["advantages"]
        assert not advantage[~mask].any()
        for turn, (start, end) in enumerate(runs(mask.numpy())):
            expected = by_turn.pop((episode(fields), turn))
            assert (advantage[start:end].double() - expected).abs().max() <= SAME
            compared += 1
    assert not by_turn and compared == ours.height
    assert np.abs(ours["advantage"].to_numpy()).max() > 0.5


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [[0.8660] * 3, [0.8660] * 3, [-0.8660] * 3, [-0.8660] * 3]),
        (
            "mt-grpo",
            [
                [2.2235, 1.7235, 0.8660],
                [2.2235, 1.7235, 0.8660],
                [-1.0520, -1.5520, -0.8660],
                [-3.3950, -1.8950, -0.8660],
            ],
        ),
        (
            "hybrid",
            [
                [1.1118, 1.1234, 1.1258],
                [1.1118, 1.1234, 1.1258],
                [-0.8919, -1.0325, -1.1258],
                [-1.3316, -1.2144, -1.1258],
            ],
        ),
    ],
)
def test_check_values(estimator: str, expected: list[list[float]]) -> None:
    """The check values of docs/method.md, "Advantages".

    Each turn has two tokens, and a token of somebody else's behind.
    """
    rewards = [[0.3, 1.0, 0], [0.3, 1.0, 0], [0.3, 0.1, 0], [0, -0.1, 0]]
    mask = torch.tensor([[1, 1, 0] * 3 + [0]] * 4)
    tokens = torch.zeros(4, 10)
    tokens[:, 1:9:3] = torch.tensor(rewards)
    tokens[:2, 8] = 1.0  # the outcome
    config = {"irc": {"estimator": estimator, "last_turn_reward": False}}
    found, _ = core_algos.get_adv_estimator_fn("irc")(tokens, mask, np.array(["g"] * 4), config)
    assert found[:, 1::3][:, :3].numpy() == pytest.approx(np.array(expected), abs=1e-4)
    assert found[:, ::3][:, :3].equal(found[:, 1::3][:, :3])
    assert not found[mask == 0].any()


def test_rewards_of_all_tokens_of_a_turn_count() -> None:
    """As with verl's penalty for KL, which falls on each written token."""
    estimate = core_algos.get_adv_estimator_fn("irc")
    mask = torch.tensor([[1, 1, 0, 1, 0]] * 2)
    ends = torch.tensor([[0, 0.5, 0, 0.2, 1], [0, 0.1, 0, 0.4, 0]])
    spread = torch.tensor([[0.3, 0.2, 0, 0.2, 1], [0.2, -0.1, 0, 0.4, 0]])
    group = np.array(["g", "g"], dtype=object)
    assert torch.allclose(estimate(ends, mask, group)[0], estimate(spread, mask, group)[0])


def test_an_estimator_that_is_none_is_refused() -> None:
    tokens, group = torch.zeros(1, 2), np.array(["g"])
    with pytest.raises(ValueError, match="unknown estimator 'gae'"):
        core_algos.get_adv_estimator_fn("irc")(tokens, tokens, group, {"irc": {"estimator": "gae"}})


def test_verl_takes_the_configuration(exported: Exported) -> None:
    config = exported.config
    validate_config(config, need_reference_policy(config), need_critic(config))
    assert config.trainer.use_v1 and not need_critic(config)
    assert (config.algorithm.adv_estimator, config.algorithm.irc.estimator) == ("irc", "hybrid")
    assert config.actor_rollout_ref.rollout.n == GROUP


def test_verl_reads_the_dataset(exported: Exported) -> None:
    tasks = airline_mini().tasks("train")[:TASKS]
    assert len(exported.dataset) == TASKS
    for row, task in zip((exported.dataset[i] for i in range(TASKS)), tasks, strict=True):
        assert row["extra_info"]["task_id"] == task.task_id
        gold = orjson.loads(row["reward_model"]["ground_truth"])
        assert gold == [dict(action) for action in task.gold_actions]
        assert [message["role"] for message in row["raw_prompt"]] == ["system", "user"]


def test_the_reward_manager_calls_the_tier_scorer(batch: Batch) -> None:
    turns = read_table(TURNS, str(batch.turns))
    played = [fields for key, fields in batch.queue.rows.items() if not key.startswith("pad")]
    assert len(played) == TASKS * GROUP < len(batch.meta) == FILL
    for fields in played:
        ours = turns.filter(pl.col("episode_id") == episode(fields)).sort("turn")
        said = fields["extra_fields"]["reward_extra_info"]
        assert said["acc"] == said["score"] == ours["outcome"][0]
        assert orjson.loads(said["turn_tiers"]) == ours["tier"].to_list()
        assert orjson.loads(said["turn_rewards"]) == ours["reward"].to_list()
        assert fields["rm_scores"][-1] == ours["outcome"][0]
        assert not fields["response_mask"][-1]


def test_verl_averages_what_the_reward_function_says(batch: Batch) -> None:
    said = [
        fields["extra_fields"]["reward_extra_info"]
        for key, fields in batch.queue.rows.items()
        if not key.startswith("pad")
    ]
    columns = {name: [one[name] for one in said] for name in said[0]}
    uids = [str(i // GROUP) for i in range(len(said))]
    found = process_validation_metrics(["airline-mini"] * len(said), uids, columns)
    mean = found["airline-mini"]["acc"][f"mean@{GROUP}"]
    assert mean == pytest.approx(np.mean(columns["acc"]))


def test_an_episode_of_another_agent_loop_is_refused() -> None:
    with pytest.raises(InputError) as error:
        compute_score("airline-mini", "text", "[]", {"domain": "airline-mini"})
    assert str(error.value) == (
        "irc_cli.verl.reward: got an episode without messages and outcome; "
        "use the agent loop irc_cli.verl.agent_loop"
    )


def test_a_rewritten_history_is_refused() -> None:
    turn = {"prompt_ids": [1], "token_ids": [2], "logprobs": None, "episode_id": "e"}
    tokens = [turn | {"turn": 0, "appended": False}, turn | {"turn": 1, "appended": False}]
    row: Any = {"episode_id": "e"}
    with pytest.raises(InputError, match="episode 'e' is 2 sequences of tokens; use one that only"):
        output_of(Played(row, tokens, {}), 0, {})


def test_a_first_prompt_that_is_too_long_is_refused(exported: Exported) -> None:
    lengths = SimpleNamespace(prompt_length=10, response_length=10)
    loop: Any = SimpleNamespace(
        server_manager=None, tokenizer=exported.tokenizer, rollout_config=lengths
    )
    messages = [{"role": "user", "content": "hello, where is my flight, please?"}]
    with pytest.raises(InputError, match=r"data.max_prompt_length: a first prompt has \d+ tokens"):
        asyncio.run(EnginePolicy(loop, {}).act("e", messages, [], Sampling(), 0))


def calibrated(batch: Batch, choice: dict[str, Any], folder: Path) -> Path:
    """The advantages of the same episodes by `irc-cli calibrate`."""
    options = AdvantageConfig(**choice)
    arguments = [
        "calibrate", batch.turns, "--keep-rewards", "--advantage", options.estimator,
        "--gamma", options.gamma, "--lambda", options.outcome_weight,
        "--normalise", options.normalise,
        "--last-turn-reward" if options.last_turn_reward else "--no-last-turn-reward",
        "-o", folder / "calibration.yaml", "--quiet",
    ]  # fmt: skip
    assert exit_code([*map(str, arguments)]) == 0
    return folder / "advantages.parquet"


def episode(fields: dict[str, Any]) -> str:
    return f"{fields['uid']}/{fields['extra_info']['task_id']}/{fields['session_id']}"


def runs(mask: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Begin and end of each run of written tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
