"""A model's folder of which a file is damaged, missing or odd: each one clear line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

pytest.importorskip("torch")

from safetensors.torch import load_file, save_file

from stages.policy_registry import SEED_POLICY
from tests.conftest import Cli

WEIGHTS = "model.safetensors"
PLAYS = "rollout --env airline-mini --policy transformers --max-tasks 1 -o r.jsonl --model m"
PLANS = "train --plan --model m"
MODEL, WHOLE = "give a folder that holds a model", "use a complete checkpoint"


def without_norm(path: Path) -> None:
    weights = load_file(path)
    del weights["model.norm.weight"]
    save_file(weights, path, metadata={"format": "pt"})


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def given(*keys: str, value: Any) -> Callable[[Path], None]:
    """Change one value of a JSON file."""

    def change(path: Path) -> None:
        document = orjson.loads(path.read_bytes())
        holder = document
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = value
        path.write_bytes(orjson.dumps(document))

    return change


DAMAGED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "weights that lack a layer": (
        WEIGHTS,
        without_norm,
        f"m: its weights lack 'model.norm.weight' of the shape that config.json says; {WHOLE}",
    ),
    "weights cut short": (
        WEIGHTS,
        cut,
        "m: Error while deserializing header: incomplete metadata, file not fully covered; "
        f"{MODEL}",
    ),
    "a config of odd types": (
        "config.json",
        given("num_hidden_layers", value="x"),
        "m: can't be loaded (StrictDataclassFieldValidationError: Validation error for field "
        f"'num_hidden_layers': TypeError: Field 'num_hidden_layers' expected int, got str (value: "
        f"'x')); {MODEL}",
    ),
    "a huge token id": (
        "tokenizer.json",
        given("model", "vocab", "a", value=2**31),
        f"m/tokenizer.json: damaged: token id 2,147,483,648; {WHOLE}",
    ),
    "a token id that is none": (
        "tokenizer.json",
        given("model", "vocab", "a", value=[]),
        "m: can't be loaded (Exception: invalid type: sequence, expected u32 at line 1 column ",
    ),
    "a tokenizer of odd types": (
        "tokenizer_config.json",
        given("model_max_length", value="x"),
        "m: can't be loaded (TypeError: '>' not supported between instances of 'int' and 'str'); "
        f"{MODEL}",
    ),
    "an end that is no token": (
        "generation_config.json",
        given("eos_token_id", value={"a": 1}),
        "model 'm': 'eos_token_id' of its generation_config.json is no token id; "
        "give the id of the token that ends a message",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_policy_of_a_damaged_folder(run: Cli, name: str) -> None:
    shutil.copytree(SEED_POLICY, "m")
    file, change, line = DAMAGED[name]
    change(Path("m", file))
    result = run(*PLAYS.split())
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith(f"error: {line}"), result.err
    assert not list(Path().glob("r.*"))


@pytest.mark.parametrize("file", ["config.json", WEIGHTS, "tokenizer.json"])
def test_a_file_that_is_missing_or_a_folder(run: Cli, file: str) -> None:
    shutil.copytree(SEED_POLICY, "m")
    Path("m", file).unlink()
    for _ in ("missing", "a folder"):
        result = run(*PLAYS.split())
        assert (result.code, result.err.count("\n")) == (2, 1), result.err
        Path("m", file).mkdir(exist_ok=True)


def test_a_plan_of_a_config_that_makes_no_sense(run: Cli) -> None:
    shutil.copytree(SEED_POLICY, "m")
    given("num_key_value_heads", value=3)(Path("m", "config.json"))
    result = run(*PLANS.split())
    assert result.code == 2
    assert result.err.startswith("error: m: can't be loaded (RuntimeError: The size of tensor ")
    assert result.err.endswith("; give a folder that holds the config.json\n")
