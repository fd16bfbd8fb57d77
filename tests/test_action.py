"""`action.yml`: its scripts run here as a runner runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.trace.generate import TRACE

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("action.yml", ".github/workflows/report.yml")  # of the repository, beside the packages

pytestmark = pytest.mark.skipif(
    not all((ROOT / name).exists() for name in NEEDED), reason="no action.yml here"
)


def action() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8")))


def run_action(folder: Path, **given: str) -> tuple[int, Path]:
    """Run the scripts that score and calibrate; return the exit code and the summary."""
    inputs = {name: of.get("default", "") for name, of in action()["inputs"].items()} | given
    summary, output = folder / "summary.md", folder / "output"
    (folder / "bin").mkdir()
    command = folder / "bin/irc-cli"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m irc_cli "$@"\n')
    command.chmod(0o755)
    env = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RUNNER_TEMP": str(folder),
        "GITHUB_OUTPUT": str(output),
        "GITHUB_STEP_SUMMARY": str(summary),
    }
    for step in action()["runs"]["steps"]:
        if step.get("name") not in ("Score", "Calibrate"):
            continue
        written = output.read_text() if output.exists() else ""
        outputs = dict(line.split("=", 1) for line in written.splitlines())
        for name, value in step["env"].items():
            value = value.removeprefix("${{ ").removesuffix(" }}")
            kind, _, of = value.rpartition(".")
            env[name] = inputs[of] if kind == "inputs" else outputs[of]
        script = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
        code = subprocess.run(script, cwd=folder, env=env, capture_output=True, timeout=120)
        if code.returncode:
            return code.returncode, summary
    return 0, summary


def test_it_passes_and_reports(tmp_path: Path) -> None:
    code, summary = run_action(tmp_path, traces=str(TRACE))
    assert code == 0
    assert summary.read_text(encoding="utf-8").startswith("### \u2705 The gate passes")
    [page] = tmp_path.glob("irc-cli.*/report.html")
    assert "The gate passes" in page.read_text(encoding="utf-8")


def test_a_no_fails_the_job_and_still_reports(tmp_path: Path) -> None:
    code, summary = run_action(tmp_path, traces=str(TRACE), options="--min-tasks 1000")
    assert code == 1
    assert "24 tasks, fewer than 1000" in summary.read_text(encoding="utf-8")
    assert len(list(tmp_path.glob("irc-cli.*/report.html"))) == 1


def test_a_no_may_be_only_shown(tmp_path: Path) -> None:
    code, _ = run_action(tmp_path, traces=str(TRACE), options="--min-tasks 1000", check="false")
    assert code == 0


def test_bad_traces_fail_the_job(tmp_path: Path) -> None:
    code, summary = run_action(tmp_path, traces="nowhere.json")
    assert (code, summary.exists()) == (2, False)


def test_no_script_holds_an_input() -> None:
    """What a caller gives reaches the scripts as variables: in their text it would be code."""
    assert not [step for step in action()["runs"]["steps"] if "${{" in step.get("run", "")]


def test_our_workflow_gives_inputs_that_exist() -> None:
    workflow = yaml.safe_load((ROOT / NEEDED[1]).read_text(encoding="utf-8"))
    [step] = [step for step in workflow["jobs"]["report"]["steps"] if step["uses"] == "./"]
    required = {name for name, of in action()["inputs"].items() if of.get("required")}
    assert required <= step["with"].keys() <= action()["inputs"].keys()
