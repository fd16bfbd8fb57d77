"""`examples/gpu_check.sh` with stand-ins for the GPU and for what it calls."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Cli

SCRIPT = Path(__file__).parents[1] / "examples/gpu_check.sh"
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> {log}
case "$*" in
  *-m\\ venv*) mkdir -p "$3/bin"; for name in pip python irc-cli; do cp "$0" "$3/bin/$name"; done;;
  *{fails}*) exit 1;;
esac
"""


def check(tmp_path: Path, fails: str = "nothing") -> tuple[subprocess.CompletedProcess[str], str]:
    """Run the script in a copy of its folders; return what it said, and what it called."""
    programs, log, copy = tmp_path / "bin", tmp_path / "log", tmp_path / "examples" / SCRIPT.name
    programs.mkdir(exist_ok=True)
    for name in ("nvidia-smi", "python3"):
        (programs / name).write_text(STUB.format(log=log, fails=fails))
        (programs / name).chmod(0o755)
    copy.parent.mkdir(exist_ok=True)
    copy.write_bytes(SCRIPT.read_bytes())
    path = {"PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", copy], env=path, capture_output=True, text=True, check=False)
    return done, log.read_text()


def test_its_commands_have_only_options_that_exist(tmp_path: Path, run: Cli) -> None:
    done, called = check(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "all checks passed: out/gpu" in done.stdout
    lines = [line.split() for line in called.splitlines() if line.startswith("irc-cli ")]
    assert [words[1] for words in lines] == [
        *("rollout", "score", "calibrate", "train", "eval", "export")
    ]
    for words in lines:
        names = words[1:3] if words[1] == "export" else words[1:2]
        known = set(re.findall(r"--[a-z0-9-]+", run(*names, "--help").out.decode()))
        assert {word for word in words if word.startswith("--")} <= known


def test_a_check_that_failed_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    done, _ = check(tmp_path, fails="tests.bench")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "failed: beside-trl; see out/gpu/NAME.log"
    again, called = check(tmp_path, fails="tests.bench")
    assert again.stdout.count("done before: ") == 9
    assert called.count("tests.bench gpu") == 2


def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    path = {"PATH": "/usr/bin:/bin"}
    if any(Path(folder, "nvidia-smi").exists() for folder in path["PATH"].split(":")):
        pytest.skip("there is a GPU")
    done = subprocess.run(["bash", SCRIPT], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "gpu_check.sh: nvidia-smi finds no GPU; run it on a machine that has one"
    )
