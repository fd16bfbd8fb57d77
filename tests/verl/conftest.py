"""Tests with verl itself, which `make test-verl` runs in an environment of its own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1")  # before transformers is imported


@pytest.fixture(scope="session")
def exported(calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What `irc-cli export verl` writes, as verl reads it."""
    from tests.verl.batches import export

    return export(calibration, tmp_path_factory.mktemp("verl") / "out")


@pytest.fixture(scope="session")
def batch(exported: Any, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Episodes of all exported tasks, in verl and without it."""
    from tests.verl.batches import play

    return play(exported, calibration, tmp_path_factory.mktemp("ours"))
