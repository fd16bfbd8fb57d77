"""A tiny policy and rollouts that nobody played, for tests of training."""

from __future__ import annotations

from collections.abc import Sequence as List
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import polars as pl
import torch
import yaml

from stages.tables.artifacts import TOKENS, TURNS
from stages.tables.files import digest
from stages.tables.table_file import write_table
from stages.training.config import TrainConfig
from stages.training.model import learner, packable
from stages.training.sequences import PROMPT, Example, TokenSequence
from stages.training.tiny_model import Size, make_tiny_model, tiny_model
from stages.training.trainer import Trainer
from tests.builders import Tiered, turn_frame

PIECES = ["hello", "yes", "no", "cat", " "]
VOCABULARY = 365  # of a tokenizer with these pieces
SIZE = Size(layers=2, width=32, feed_forward=64, context=512)


def small_model(seed: int = 0) -> Any:
    """Return a model with random weights that are large enough to have opinions."""
    model = tiny_model(VOCABULARY, seed, SIZE)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(3 if weights.ndim > 1 else 1)
    return model


def trainer_of(model: Any, config: TrainConfig | None = None, **more: Any) -> Trainer:
    fits = packable(model)
    made = learner(model, **more)
    return Trainer.of(made, config or TrainConfig(), packable=fits, bf16=False)


def example(
    rng: np.random.Generator,
    turns: List[tuple[int, int]],
    advantages: List[float] | None = None,
    episode: str = "e",
    temperature: float = 1.0,
) -> Example:
    """Return a sequence of turns, given as tokens of the prompt and tokens that were written."""
    turn = np.concatenate([[PROMPT] * told + [k] * wrote for k, (told, wrote) in enumerate(turns)])
    ids = rng.integers(4, VOCABULARY, len(turn))
    logprobs = np.where(turn == PROMPT, np.nan, -rng.uniform(4, 8, len(turn)))
    by_turn = rng.normal(size=len(turns)) if advantages is None else np.array(advantages)
    written = turn[turn != PROMPT]
    return Example(
        TokenSequence(episode, ids, turn.astype(np.int32), logprobs.astype(np.float32)),
        by_turn[written].astype(np.float32),
        (written % 2).astype(np.int32),
        np.ones(len(written), np.float32),
        temperature,
    )


def some_examples(seed: int = 0, count: int = 6) -> list[Example]:
    """Return sequences of many lengths; every fifth goes on with the episode before it."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        turns = [(int(a), int(b)) for a, b in rng.integers(1, 12, (int(rng.integers(1, 4)), 2))]
        episode = f"e{number - (number % 5 == 4)}"
        found.append(example(rng, turns, None, episode, [1.0, 0.7][number % 2]))
    return found


class Played(NamedTuple):
    """Files of rollouts, and the policy that would have played them."""

    model: str
    rollouts: str
    turns: str
    calibration: str

    @property
    def args(self) -> tuple[str, ...]:
        """The options of `irc-cli train` that name them."""
        files = ("--rollouts", self.rollouts, "--turns", self.turns)
        return ("train", "--model", self.model, *files, "--calibration", self.calibration)


YES, NO = 100, 101  # the first tokens of episodes that end well and badly


def played(folder: Path, groups: int = 4, size: int = 4, turns: int = 2) -> Played:
    """Write rollouts: half of each group says YES and succeeds, the others say NO and fail."""
    rng = np.random.default_rng(0)
    model = folder / "model"
    make_tiny_model(model, PIECES, 0, SIZE)
    rows, tokens, tiered = [], list[dict[str, Any]](), []
    for number in range(groups * size):
        group, good = number // size, number % size < size / 2
        name = f"e{number}"
        opening = np.random.default_rng(group).integers(4, VOCABULARY, 5).tolist()
        for turn in range(turns):
            said = [YES if good else NO, *rng.integers(4, VOCABULARY, int(rng.integers(1, 9)))]
            heard = opening if turn == 0 else rng.integers(4, VOCABULARY, 3).tolist()
            tokens.append(
                {
                    "episode_id": name,
                    "turn": turn,
                    "appended": turn > 0,
                    "prompt_ids": heard,
                    "token_ids": said,
                    "logprobs": [-5.0] * len(said),
                }
            )
        rows.append(
            {
                "episode_id": name,
                "group_id": f"g{group}",
                "policy": str(model),
                "status": "ok",
                "sampling": {"temperature": 1.0},
                "tokens_recorded": True,
                "messages": [],
            }
        )
        tiers = ["gold_write" if good else "error"] * turns
        tiered.append(Tiered(f"g{group}", float(good), tiers))
    files = Played(*(str(folder / name) for name in ("model", "r.jsonl", "t.parquet", "c.yaml")))
    write_rows(files, rows)
    write_tokens(files, tokens)
    inputs = [{"path": str(path), "sha256": digest(str(path))} for path in model.glob("*.safet*")]
    Path(folder / "r.meta.json").write_bytes(orjson.dumps({"inputs": inputs, "tools": []}))
    write_table(TURNS, turn_frame(tiered), files.turns, {}, force=True)
    values = {"rewards": {"gold_write": 1.0, "error": -0.5}, "tiers": []}
    Path(files.calibration).write_text(yaml.safe_dump(values))
    return files


def write_rows(files: Played, rows: List[dict[str, Any]]) -> None:
    Path(files.rollouts).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))


def rows_of(files: Played) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(files.rollouts).read_bytes().splitlines()]


def tokens_path(files: Played) -> str:
    return files.rollouts.removesuffix(".jsonl") + ".tokens.parquet"


def write_tokens(files: Played, rows: List[dict[str, Any]]) -> None:
    frame = TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})
    write_table(TOKENS, frame, tokens_path(files), {}, force=True)


def tokens_of(files: Played) -> list[dict[str, Any]]:
    return pl.read_parquet(tokens_path(files)).to_dicts()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]


def weights_bytes(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()
