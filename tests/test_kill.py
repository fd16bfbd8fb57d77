"""`make kill`, with a few kills: what was killed is completed as if nothing had happened."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.kill import Killer, difference, left_in, verdicts
from tests.killed import WORKLOADS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 and fork are of POSIX")
TRAINS = ("train", "loop")
needs_training = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs irc-cli[train]")


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=needs_training if name in TRAINS else ()) for name in WORKLOADS],
)
def test_killed_at_random_moments(command: str, tmp_path: Path) -> None:
    [verdict] = verdicts([command], 3, 0, tmp_path)
    assert (verdict.kills, verdict.difference) == (3, "")
    assert verdict.equal == verdict.runs > 0


def test_killed_before_each_change(tmp_path: Path) -> None:
    """Files are made, marked, and get their names: each of these moments leaves something else."""
    killer = Killer("calibrate", tmp_path, 0, get_context("forkserver"))
    verdict = killer.kill_before_each_change()
    assert verdict.difference == ""
    assert verdict.equal == verdict.runs == verdict.kills > 6


def test_only_the_clock_may_differ(tmp_path: Path) -> None:
    for number, name in enumerate(("whole", "left")):
        folder = tmp_path / name
        (folder / "tensorboard").mkdir(parents=True)
        (folder / "tensorboard" / f"events.{number}").write_text("")
        (folder / "a.jsonl").write_text(f'{{"step": 1, "of": {{"seconds": {number}}}}}\n')
        (folder / "b.parquet").write_bytes(b"b")
    (tmp_path / "left" / ".b.parquet.irc-abcd_123").write_bytes(b"")
    whole = left_in(tmp_path / "whole")
    assert difference(whole, left_in(tmp_path / "left")) == ""
    (tmp_path / "left" / "a.jsonl").write_text('{"step": 2, "of": {"seconds": 0}}\n')
    assert difference(whole, left_in(tmp_path / "left")) == "a.jsonl is another"
    (tmp_path / "left" / "a.jsonl").unlink()
    assert difference(whole, left_in(tmp_path / "left")) == "a.jsonl is missing"
    (tmp_path / "whole" / "a.jsonl").unlink()
    (tmp_path / "left" / "a").mkdir()
    assert difference(left_in(tmp_path / "whole"), left_in(tmp_path / "left")) == "a is too many"
