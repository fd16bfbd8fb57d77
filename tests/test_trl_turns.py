"""TRL trains with our advantages per turn: the gradients are those of `irc-cli train`."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import orjson
import pytest

pytest.importorskip("trl", reason="needs trl")

import torch
import yaml
from datasets import Dataset
from transformers import AutoTokenizer
from trl import GRPOConfig

from irc_cli.trl import TurnAdvantages, TurnGRPOTrainer, environment, task_rows
from irc_cli.trl.trainer import per_token
from irc_cli.trl.turns import Completion
from stages.core.advantages import AdvantageConfig, Estimator
from stages.errors import InputError
from stages.lesson import Lesson, lesson_of
from stages.messages.message import Message
from stages.policy_registry import SEED_POLICY
from stages.tables.artifacts import TOKENS
from stages.tables.table_file import write_table
from stages.train import accumulate, known_logprobs
from stages.training.config import TrainConfig
from stages.training.material import TrainFiles, Uses, read_material
from stages.training.model import load_model
from tests.conftest import exit_code
from tests.learning import trainer_of

VALUES = {"gold_write": 0.6, "gold_read": 0.2, "read_only": -0.1, "error": -0.3, "message": 0.05}
GROUP, TASKS = 4, 3
SETTINGS = TrainConfig(batch_size=GROUP * TASKS)  # clips 0.2 and 0.28, token mean, no KL


os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"


def calibration(folder: Path) -> str:
    path = folder / "calibration.yaml"
    path.write_text(yaml.safe_dump({"rewards": VALUES, "tiers": []}))
    return str(path)


def config(folder: Path, **more: Any) -> GRPOConfig:
    settings = {
        "output_dir": str(folder),
        "per_device_train_batch_size": GROUP * TASKS,
        "num_generations": GROUP,
        "max_completion_length": 300,
        "max_tool_calling_iterations": 11,
        "loss_type": "dapo",  # each token counts the same
        "epsilon": 0.2,
        "epsilon_high": 0.28,
        "beta": 0.0,
        "learning_rate": 1e-3,
        "top_k": 0,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "seed": 1,
    }
    return GRPOConfig(**(settings | more))


class Watched(TurnGRPOTrainer):
    """Keeps what each step played, the weights that played it, and the gradients."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []

    def _calculate_rewards(self, *given: Any) -> torch.Tensor:
        inputs, prompts, completions, _ = given
        rewards: torch.Tensor = super()._calculate_rewards(*given)
        talks = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        weights = {name: w.clone() for name, w in self.model.state_dict().items()}
        outcomes = rewards[:, 0].tolist()
        self.steps.append(
            {"rows": inputs, "talks": talks, "outcomes": outcomes, "weights": weights}
        )
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        self.steps[-1] |= output
        return output

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(model, inputs, num_items_in_batch)
        named = model.named_parameters()
        self.steps[-1]["gradient"] = {name: weight.grad.clone() for name, weight in named}
        return loss


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two steps of TRL with the hybrid estimator played, and the files of `irc-cli train`."""
    folder = tmp_path_factory.mktemp("trl")
    trainer = Watched(
        SEED_POLICY,
        args=config(folder, max_steps=2),
        processing_class=AutoTokenizer.from_pretrained(SEED_POLICY),
        train_dataset=Dataset.from_list(task_rows("airline-mini", count=24)),
        environment_factory=environment("airline-mini", seed=2),
        calibration=calibration(folder),
    )
    trainer.train()
    for number, step in enumerate(trainer.steps):
        step["files"] = written(folder / str(number), step, calibration(folder))
    return trainer.steps


def test_gradients_of_two_steps_are_those_of_train(steps: list[dict[str, Any]]) -> None:
    assert len(steps) == 2
    for step in steps:
        expected = gradient_of_train(step)
        assert max(tensor.abs().max() for tensor in expected.values()) > 1e-3
        for name, tensor in expected.items():
            torch.testing.assert_close(step["gradient"][name], tensor, atol=1e-5, rtol=0)


@pytest.mark.parametrize("estimator", get_args(Estimator))
def test_advantages_of_every_estimator_are_those_of_train(
    steps: list[dict[str, Any]], estimator: Any
) -> None:
    advantage = AdvantageConfig(estimator=estimator)
    for step in steps:
        files = step["files"]
        if estimator == "potential":
            files = replace(files, calibration=with_critic(files))
        made = TurnAdvantages(files.calibration, advantage=advantage)(batch_of(step))
        for example in lesson(files, advantage).examples:
            turns = made[int(example.episode_id.removeprefix("e"))]
            by_token = turns[example.sequence.turn[example.at]]
            np.testing.assert_allclose(example.advantage, by_token, rtol=1e-6, atol=1e-6)


def with_critic(files: TrainFiles) -> str:
    path = str(Path(str(files.turns)).with_name("critic.yaml"))
    command = ["calibrate", str(files.turns), "-o", path, "--quiet", "--force"]
    assert exit_code(command) == 0
    return path


def batch_of(step: dict[str, Any]) -> list[Completion]:
    return [
        Completion(
            messages, sum(m["role"] == "assistant" for m in messages), outcome, k // GROUP, row
        )
        for k, (messages, outcome, row) in enumerate(
            zip(step["talks"], step["outcomes"], step["rows"], strict=True)
        )
    ]


def written(folder: Path, step: dict[str, Any], calibration: str) -> TrainFiles:
    """Write what TRL played as `irc-cli rollout` would, and score it."""
    folder.mkdir()
    path = folder / "r.jsonl"
    rows, tokens = [], list[dict[str, Any]]()
    for place, (row, messages) in enumerate(zip(step["rows"], step["talks"], strict=True)):
        episode = {
            "episode_id": f"e{place}",
            "task_id": row["task_id"],
            "group_id": f"g{place // GROUP}",
            "domain": row["domain"],
            "policy": "seed",
            "status": "ok",
            "outcome": step["outcomes"][place],
            "sampling": {"temperature": 1.0},
            "tokens_recorded": True,
            "messages": messages,
            "gold_actions": row["gold_actions"],
        }
        rows.append(orjson.dumps(episode))
        tokens += token_rows(step, place)
    path.write_bytes(b"\n".join(rows) + b"\n")
    frame = TOKENS.frame({name: [row[name] for row in tokens] for name in TOKENS.columns})
    write_table(TOKENS, frame, str(folder / "r.tokens.parquet"), {}, force=True)
    turns = str(folder / "turns.parquet")
    assert exit_code(["score", str(path), "-o", turns, "--quiet"]) == 0
    return TrainFiles(SEED_POLICY, str(path), turns, calibration)


def token_rows(step: dict[str, Any], place: int) -> list[dict[str, Any]]:
    prompt = step["prompt_ids"][place][step["prompt_mask"][place].bool()].tolist()
    ids, mask = step["completion_ids"][place], step["completion_mask"][place].bool()
    wrote = step["tool_mask"][place][mask].tolist()
    rows: list[dict[str, Any]] = []
    heard = prompt
    for before, token, mine in zip([0, *wrote], ids[mask].tolist(), wrote, strict=False):
        if mine and not before:
            rows.append(
                {
                    "episode_id": f"e{place}",
                    "turn": len(rows),
                    "appended": bool(rows),
                    "prompt_ids": heard,
                    "token_ids": [],
                    "logprobs": None,
                }
            )
            heard = []
        (rows[-1]["token_ids"] if mine else heard).append(token)
    return rows


def lesson(files: TrainFiles, advantage: AdvantageConfig) -> Lesson:
    uses = Uses(off_policy=True)
    material = read_material(files, uses, SETTINGS, advantage)
    return lesson_of(material, files, uses, advantage, None, list)


def gradient_of_train(step: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the gradient of a step of `irc-cli train` on what TRL played, with its weights."""
    examples = lesson(step["files"], AdvantageConfig()).examples
    model, _ = load_model(SEED_POLICY)
    model.load_state_dict(step["weights"])
    trainer = trainer_of(model, SETTINGS)
    known = known_logprobs(trainer, examples, None, SETTINGS)
    # TRL's mean is over all tokens; train leaves out the groups in which no turn is better.
    tokens = (step["completion_mask"] * step["tool_mask"]).sum().item()
    share = sum(len(example.at) for example in examples) / tokens
    accumulate(trainer, examples, known, share, SETTINGS)
    return {name: weight.grad for name, weight in trainer.bare.named_parameters()}


class Till:
    """A user's own environment: TRL's plain kind, in which nobody speaks."""

    def reset(self, **_: Any) -> str:
        self.total = 0
        return " 2"

    def add(self, price: int) -> str:
        """Add a price.

        Args:
            price: in cents.
        """
        self.total += price
        return str(self.total)

    def get_reward(self) -> float:
        return float(self.total == 5)


PRICES = [
    {
        "prompt": [{"role": "user", "content": "add"}],
        "gold_actions": [{"name": "add", "arguments": {"price": 5}}],
    }
]


def test_a_users_own_environment_is_played_by_trls_own_loop(tmp_path: Path) -> None:
    trainer = Watched(
        SEED_POLICY,
        args=config(tmp_path, max_steps=1, max_completion_length=60, max_tool_calling_iterations=1),
        processing_class=AutoTokenizer.from_pretrained(SEED_POLICY),
        train_dataset=Dataset.from_list(PRICES * 8),
        environment_factory=Till,
        calibration="online",
    )
    said = ['<tool_call>\n{"name": "add", "arguments": {"price": 5}}\n</tool_call>', "yes", "no"]
    turns = [
        [trainer._tokenizer.encode(said[k % 3 if k < 6 else 1] + "<|im_end|>") for k in range(12)]
    ]
    trainer._generate_single_turn = lambda ids, *_, **__: (
        (turns.pop(), None)
        if turns
        else ([trainer._tokenizer.encode("yes<|im_end|>")] * len(ids), None)
    )
    trainer.train()
    [step] = trainer.steps
    assert step["outcomes"][:4] == [1, 0, 0, 1]
    assert [message["role"] for message in step["talks"][0]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    runs = [len(set(row[row != 0].tolist())) for row in step["advantages"][:4]]
    assert step["advantages"].shape == step["completion_ids"].shape
    assert trainer.turns.values is not None and runs[0] >= 1


def test_a_token_has_the_advantage_of_its_turn() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1, 0], [1, 0, 1, 0, 1, 1], [0, 0, 0, 0, 0, 0]])
    made = per_token(mask, [np.array([0.5, -1.0]), np.array([1.0, 2.0, 3.0]), np.array([9.0])])
    assert made.tolist() == [[0.5, 0.5, 0, 0, -1, 0], [1, 0, 2, 0, 3, 3], [0] * 6]
    with pytest.raises(ValueError, match="2 runs of tokens, but 1 turns"):
        per_token(mask[:1], [np.array([0.5])])


def talk(tier: str) -> list[Message]:
    words = {"error": "Error: no such user", "read_only": "found"}
    call = {"id": "c", "type": "function", "function": {"name": "get_user", "arguments": "{}"}}
    return [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": words[tier]},
        {"role": "assistant", "content": "done"},
    ]


def test_online_values_come_from_the_batches() -> None:
    turns = TurnAdvantages("online")
    row = {"domain": "airline-mini", "gold_actions": []}
    batch = [
        Completion(talk("read_only" if k % 2 else "error"), 2, float(k % 2), k // 4, row)
        for k in range(16)
    ]
    *_, made = [turns(batch) for _ in range(8)]
    assert turns.values is not None and turns.values["error"] < 0 < turns.values["read_only"]
    assert made[0][0] < 0 < made[1][0]


def test_an_episode_whose_user_failed_moves_nothing() -> None:
    row = {"domain": "airline-mini", "gold_actions": []}
    batch = [Completion(talk("error"), 2, outcome, 0, row) for outcome in (1.0, 0.0, None)]
    made = TurnAdvantages()(batch)
    assert made[2].tolist() == [0, 0] and made[0][1] > 0
    assert [values.tolist() for values in TurnAdvantages()(batch[2:])] == [[0, 0]]


def test_an_outcome_beyond_1_is_refused(tmp_path: Path) -> None:
    trainer = Watched(
        SEED_POLICY,
        lambda completions, **_: [7.0] * len(completions),
        config(tmp_path, max_steps=1, max_completion_length=4),
        processing_class=AutoTokenizer.from_pretrained(SEED_POLICY),
        train_dataset=Dataset.from_list(PRICES * 8),
    )
    with pytest.raises(InputError) as refused:
        trainer.train()
    assert str(refused.value) == (
        "reward_funcs: an outcome of 7: TRL's weighted rewards add up to it; "
        "give reward_funcs and weights that make one in [0, 1]"
    )


def test_a_task_that_is_not_of_the_environment_is_refused() -> None:
    with pytest.raises(InputError) as refused:
        environment("airline-mini")().reset(task_id="nothing", split="dev")
    assert str(refused.value) == "task_id: no task 'nothing' in 'dev'; use task_rows"
