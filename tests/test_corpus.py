"""What fuzzing found once is read, or refused in one line, for ever: see `make fuzz`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz import CORPUS, failure, mutated, targets

KEPT = sorted(CORPUS.glob("*-*"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
def test_a_past_failure(path: Path) -> None:
    target = targets().get(path.name.rpartition("-")[0])
    if target is None:
        pytest.skip("model folders need torch")
    assert failure(target, path.read_bytes()) is None


def test_every_seed_is_read() -> None:
    for name, target in targets().items():
        for seed in target.seeds:
            assert failure(target, seed) is None, name


def test_a_seed_repeats_its_inputs() -> None:
    seeds = targets()["traces"].seeds
    first, again = (
        [mutated(draw.choice(seeds), draw) for _ in range(50)]
        for draw in (random.Random(1), random.Random(1))
    )
    assert first == again and len(set(first)) > 40


def test_a_hang_and_a_traceback_are_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    from tests import fuzz

    monkeypatch.setattr(fuzz, "TIMEOUT_S", 0.05)
    slow = fuzz.Target(lambda *_: time.sleep(5), [])
    broken = fuzz.Target(lambda *_: dict[str, int]()["x"], [])
    assert "Hang" in str(failure(slow, b"")) and "KeyError" in str(failure(broken, b""))
