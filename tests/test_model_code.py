"""A model's own code never runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.errors import InputError
from stages.messages.model_code import refuse_code
from stages.policy_registry import SEED_POLICY

CODE = """\
from pathlib import Path
from transformers import Qwen3Config
Path(r"{ran}").touch()
class Own(Qwen3Config):
    model_type = "own"
"""


def with_code(folder: Path, name: str = "config.json") -> Path:
    """A copy of the seed policy, one of whose files names code that leaves a file `ran`."""
    shutil.copytree(SEED_POLICY, folder)
    (folder / "own.py").write_text(CODE.format(ran=folder.parent / "ran"))
    path = folder / name
    content: dict[str, Any] = orjson.loads(path.read_bytes())
    kind = "AutoTokenizer" if "tokenizer" in name else "AutoConfig"
    content["auto_map"] = {kind: "own.Own"}
    if name == "config.json":
        content["model_type"] = "own"
    path.write_bytes(orjson.dumps(content))
    return folder


def line(path: Path) -> str:
    what = "its 'auto_map' names Python code that loading would run"
    return (
        f"{path}: {what}; use a model that transformers knows itself, or a server (--policy openai)"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_folder_that_names_code_is_refused(tmp_path: Path, name: str) -> None:
    folder = with_code(tmp_path / "model", name)
    with pytest.raises(InputError) as error:
        refuse_code(folder)
    assert str(error.value) == line(folder / name)


def test_a_folder_without_code_passes(tmp_path: Path) -> None:
    refuse_code(SEED_POLICY)
    refuse_code("Qwen/Qwen3-4B")
    (tmp_path / "config.json").write_text("{")
    refuse_code(tmp_path)


def run(*args: str) -> subprocess.CompletedProcess[str]:
    """Run irc-cli as its own process, with an endless yes on standard input."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "irc_cli", *args]
    return subprocess.run(
        command, input="y\n" * 1000, capture_output=True, text=True, env=env, check=False
    )


PLAYS = ("rollout", "--env", "airline-mini", "--max-tasks", "1")


@pytest.mark.parametrize(
    "args",
    [
        (*PLAYS, "--policy", "transformers", "--model"),
        (*PLAYS, "--policy", "openai", "--model", "x", "--base-url", "http://x", "--tokenizer"),
        (*PLAYS, "--policy", "expert", "--user", "llm", "--user-model"),
        ("train", "--plan", "--model"),
        ("eval", "--env", "airline-mini", "--policy", "transformers", "--model"),
    ],
    ids=["transformers", "tokenizer", "user", "plan", "eval"],
)
def test_no_command_runs_it_whatever_standard_input_says(
    tmp_path: Path, args: tuple[str, ...]
) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("openai")
    folder = with_code(tmp_path / "model")
    ended = run(*args, str(folder))
    assert (ended.returncode, ended.stderr.splitlines()) == (
        2,
        [f"error: {line(folder / 'config.json')}"],
    )
    assert not (tmp_path / "ran").exists()


def test_every_loader_says_whether_code_may_run() -> None:
    """Else transformers asks on the terminal."""
    root = Path(__file__).resolve().parents[1]
    for path in [*root.glob("stages/**/*.py"), *root.glob("irc_cli/**/*.py")]:
        text = path.read_text(encoding="utf-8")
        for loader in (".from_pretrained(", ".from_config(", "AsyncEngineArgs("):
            for call in text.split(loader)[1:]:
                assert "trust_remote_code=" in call[:300], path
