"""TRL reads the exports: its own datasets, tokenization, rewards and trainers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest

pytest.importorskip("trl", reason="needs trl")

import torch
from datasets import Dataset, load_dataset
from datasets.utils.logging import disable_progress_bar
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from irc_cli.scorer import score
from irc_cli.trl_reward import reward_function
from stages.messages.renderer import Renderer
from stages.tables.artifacts import SEQUENCES
from stages.tables.table_file import read_table
from stages.traces import open_trace
from stages.training.sequences import retokenised
from tests.conftest import exit_code
from tests.learning import played
from tests.tiny import tiny_checkpoint

FEW = 4  # rows that a trainer sees


class Exported(NamedTuple):
    """The exports of a few episodes, and a tiny model of their domain."""

    folder: Path
    model: str

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the rows as they were written."""
        return [orjson.loads(line) for line in (self.folder / name).read_bytes().splitlines()]

    def dataset(self, name: str) -> Dataset:
        """Return the rows as `datasets` reads them."""
        cache, path = str(self.folder / "cache"), str(self.folder / name)
        format = "parquet" if name.endswith(".parquet") else "json"
        return load_dataset(format, data_files=path, split="train", cache_dir=cache)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    rollouts, turns = str(folder / "rollouts.jsonl"), str(folder / "turns.parquet")
    play = ("rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.24", "--quiet")
    assert exit_code([*play, "--max-tasks", "2", "--group-size", "4", "-o", rollouts]) == 0
    assert exit_code(["score", rollouts, "-o", turns, "--quiet"]) == 0
    given = (rollouts, "--turns", turns, "--prefix", "calls")
    for name, words in {"sft": (rollouts,), "trl": (rollouts,), "preferences": given}.items():
        out = ("-o", str(folder / f"{name}.jsonl"), "--quiet")
        assert exit_code(["export", name, *words, *out]) == 0
    return Exported(folder, str(tiny_checkpoint(folder / "model")))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    disable_progress_bar()
    yield


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


@pytest.mark.parametrize("name", ["sft.jsonl", "trl.jsonl", "preferences.jsonl"])
def test_datasets_reads_what_was_written(exported: Exported, name: str) -> None:
    rows, found = exported.lines(name), exported.dataset(name).to_list()
    assert [_rounded(row) for row in found] == [_rounded(row) for row in rows]


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """The reader of `datasets` keeps ten digits of a number."""
    return {key: round(v, 9) if isinstance(v, float) else v for key, v in row.items()}


def test_sft_tokenizes_whole_conversations_with_their_tools(
    exported: Exported, tmp_path: Path
) -> None:
    rows = exported.lines("sft.jsonl")[:FEW]
    trainer = SFTTrainer(
        exported.model,
        SFTConfig(**settings(tmp_path), max_length=None),
        train_dataset=exported.dataset("sft.jsonl").select(range(len(rows))),
    )
    tokenizer = AutoTokenizer.from_pretrained(exported.model)
    expected = [
        tokenizer.apply_chat_template(row["messages"], tools=row["tools"], return_dict=False)
        for row in rows
    ]
    assert trainer.train_dataset["input_ids"][:] == expected
    assert trainer.train().training_loss > 0


def test_our_own_sft_makes_the_same_tokens_of_the_export(exported: Exported) -> None:
    tokenizer = AutoTokenizer.from_pretrained(exported.model)
    passed = [row for row in exported.lines("rollouts.jsonl") if row["outcome"] == 1]
    rows = exported.lines("sft.jsonl")
    assert len(rows) == len(passed) > 0
    for one, other in zip(passed, rows, strict=True):
        made = [
            list(retokenised("e", messages, other["tools"], Renderer(tokenizer)))
            for messages in (one["messages"], other["messages"])
        ]
        assert made[0] == made[1] != []


def test_dpo_splits_prompt_chosen_and_rejected(exported: Exported, tmp_path: Path) -> None:
    rows = exported.lines("preferences.jsonl")[:FEW]
    trainer = DPOTrainer(
        exported.model,
        args=DPOConfig(**settings(tmp_path), max_length=None),
        train_dataset=exported.dataset("preferences.jsonl").select(range(len(rows))),
    )
    tokenizer = AutoTokenizer.from_pretrained(exported.model)
    for row, ids in zip(rows, trainer.train_dataset, strict=True):
        shown = {"tools": row["tools"], "tokenize": False}
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, **shown)
        assert tokenizer.decode(ids["prompt_ids"]) == prompt, "no part of the prompt is cut off"
        for side in ("chosen", "rejected"):
            whole = tokenizer.apply_chat_template(row["prompt"] + row[side], **shown)
            assert prompt + tokenizer.decode(ids[f"{side}_ids"]) == whole
    assert trainer.train().training_loss > 0


def test_grpo_calls_the_reward_function(exported: Exported, tmp_path: Path) -> None:
    seen = []
    rewarded = reward_function()

    def turn_reward(**given: Any) -> list[float | None]:
        seen.append(given)
        return rewarded(**given)

    trainer = GRPOTrainer(
        exported.model,
        turn_reward,
        GRPOConfig(
            **settings(tmp_path),
            num_generations=2,
            max_completion_length=4,
            log_completions=True,
            num_completions_to_print=0,
        ),
        train_dataset=exported.dataset("trl.jsonl"),
    )
    trainer.train()
    [given] = seen
    assert [list(message) for message in given["completions"][0]] == [["role", "content"]]
    assert trainer.state.log_history[0]["rewards/turn_reward/mean"] == 0, "what a message is worth"

    # What it logs is read as a trace, a group of two.
    episodes = list(open_trace(str(tmp_path / "completions/completions_00001.parquet")))
    assert [len(episode.turns) for episode in episodes] == [1, 1]
    assert [episode.messages for episode in episodes] == [
        [*prompt, *completion]
        for prompt, completion in zip(given["prompts"], given["completions"], strict=True)
    ]
    assert [episode.outcome for episode in episodes] == [0, 0]
    assert len({episode.group for episode in episodes}) == 1

    # The same way in, with the conversations that were recorded.
    inputs = exported.dataset("trl.jsonl").to_list()
    prompts = [row["prompt"] for row in inputs]
    completions = [row["messages"][len(row["prompt"]) :] for row in inputs]
    rewards = trainer._calculate_rewards(inputs, prompts, completions, [[] for _ in inputs])
    expected = []
    for row in exported.lines("trl.jsonl"):
        turns = score(row["messages"], None, row["gold_actions"], domain=row["domain"]).turn_rewards
        expected.append(sum(turns) / len(turns))
    assert rewards[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert len(set(expected)) > 1


def test_datasets_reads_tokens_as_tensors(tmp_path: Path) -> None:
    files = played(tmp_path)
    given = ("--turns", files.turns, "--calibration", files.calibration)
    out = str(tmp_path / "tokens.parquet")
    assert exit_code(["export", "tokens", files.rollouts, *given, "-o", out, "--quiet"]) == 0
    rows = Exported(tmp_path, files.model).dataset("tokens.parquet").with_format("torch")
    table = read_table(SEQUENCES, out)
    assert len(rows) == table.height == 16
    for row, expected in zip(rows, table.iter_rows(named=True), strict=True):
        assert row["mask"].dtype == torch.bool and row["advantage"].dtype == torch.float32
        assert row["token_ids"].tolist() == expected["token_ids"]
        assert row["mask"].tolist() == expected["mask"]
        assert torch.isfinite(row["logprobs"] * row["mask"] * row["advantage"]).all()
        assert row["advantage"][row["mask"]].abs().min() > 0
        assert not row["advantage"][~row["mask"]].any()
