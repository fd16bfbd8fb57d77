"""The command line in this process: starting Python anew for every command would take minutes."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
import pytest

from examples.trace.generate import TRACE
from irc_cli.app import app
from stages.tables import files

# Tests use no network, and no telemetry: libraries read this once, when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"


class Result(NamedTuple):
    """What a command left behind."""

    code: int
    out: bytes
    err: str

    def json(self) -> Any:
        """The one JSON document on standard output."""
        return orjson.loads(self.out)


class Cli(Protocol):
    def __call__(self, *args: str | Path, stdin: bytes = ...) -> Result: ...


def exit_code(args: list[str]) -> int:
    """Run `irc-cli` with these arguments in this process."""
    files.standard_input.cache_clear()
    with pytest.raises(SystemExit) as ended:
        app(args, prog_name="irc-cli")
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> Cli:
    """Run a command in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run_command(*args: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = exit_code([os.fspath(arg) for arg in args])
        out, err = capsysbinary.readouterr()
        return Result(code, out, err.decode())

    return run_command


@pytest.fixture(scope="session")
def example() -> Path:
    """The example trace: 24 tasks with 8 trials each."""
    return TRACE


@pytest.fixture(scope="session")
def turns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's turns."""
    path = tmp_path_factory.mktemp("score") / "turns.parquet"
    assert exit_code(["score", str(TRACE), "-o", str(path), "--quiet"]) == 0
    return path


@pytest.fixture(scope="session")
def calibration(turns: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's calibration; its advantages lie beside it."""
    path = tmp_path_factory.mktemp("calibrate") / "calibration.yaml"
    assert exit_code(["calibrate", str(turns), "-o", str(path), "--quiet"]) == 0
    return path
