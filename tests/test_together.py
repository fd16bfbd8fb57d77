"""The outputs of one command appear together, or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from stages.errors import InputError
from stages.tables.files import half_written, together, whole_file, whole_folder
from tests.conftest import Cli

OUTPUTS = {"advantages.parquet", "calibration.yaml"}


def write(path: Path, text: str = "new") -> None:
    with whole_file(str(path), force=True) as file:
        file.write(text.encode())


def test_nothing_appears_before_the_end_and_the_first_appears_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    appeared: list[str] = []
    replace = Path.replace

    def seen(self: Path, target: Path) -> Path:
        appeared.append(Path(target).name)
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", seen)
    with together():
        write(tmp_path / "first")
        write(tmp_path / "second")
        assert appeared == [] and not (tmp_path / "first").exists()
    assert appeared == ["second", "first"]
    write(tmp_path / "third")
    assert appeared[2:] == ["third"], "outside, a file appears at once"
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second", "third"}


@pytest.mark.parametrize("error", [InputError("a", "b", "c"), KeyboardInterrupt(), OSError()])
def test_a_failure_leaves_everything_as_it_was(tmp_path: Path, error: BaseException) -> None:
    (tmp_path / "old").write_text("old")
    with pytest.raises(type(error)), together():
        write(tmp_path / "old")
        write(tmp_path / "new")
        raise error
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old"}


def test_a_disk_that_is_full_for_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "old").write_text("old")

    def full(self: Path, text: str) -> None:
        self.touch()
        if "old" in self.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError) as caught, together():
        write(tmp_path / "old")
        write(tmp_path / "new")
    assert str(caught.value) == (
        f"{tmp_path}/old: can't be written: no space left on device; "
        "free space or write somewhere else"
    )
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old": "old"}


def test_what_a_killed_process_left_goes_with_the_next_run(tmp_path: Path) -> None:
    def left(name: str, age_s: float = 7200) -> Path:
        path = tmp_path / name
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    stale, others = left(".a.irc-abcd_123"), left(".ab.irc-abcd_123")
    mine, young = left(".a.settings"), left(".a.irc-ab12cd34", age_s=60)
    with whole_file(str(tmp_path / "a"), force=False) as file:
        [alive] = set(tmp_path.glob(".a.irc-*")) - {young}
        os.utime(alive, (0, 0))  # as of a process that was stopped for long
        write(tmp_path / "b")
        with whole_file(str(tmp_path / "a"), force=False) as again:
            again.write(b"second")
        file.write(b"first")
    assert not stale.exists() and all(path.exists() for path in (others, mine, young))
    assert (tmp_path / "a").read_bytes() == b"first" and not alive.exists()


def test_a_mark_without_content_is_none(tmp_path: Path) -> None:
    (tmp_path / ".a.appearing").touch()  # killed before it was written
    assert not half_written(str(tmp_path / "a")) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", ["write_calibration", "write_table", "write_figures"])
def test_a_calibration_that_fails_in_between_can_be_run_again(
    run: Cli, turns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    pytest.importorskip("matplotlib")
    command = ("calibrate", turns, "-o", "calibration.yaml", "--plots", "figures", "--quiet")
    with monkeypatch.context() as broken:
        from irc_cli import calibrate

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        broken.setattr(calibrate, fails, interrupted)
        assert run(*command).code == 130
    assert [path.name for path in tmp_path.rglob("*")] == ["figures"]
    assert run(*command).code == 0
    assert {path.name for path in tmp_path.rglob("*")} > OUTPUTS


def test_a_full_disk_at_the_second_file_leaves_neither(
    run: Cli, turns: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise pl.exceptions.ComputeError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(pl.DataFrame, "write_parquet", full)
        result = run("calibrate", turns, "-o", "calibration.yaml")
    assert result.code == 2
    assert result.err.startswith("error: advantages.parquet: can't be written: no space left")
    assert not list(tmp_path.iterdir())
    assert run("calibrate", turns, "-o", "calibration.yaml", "--quiet").code == 0


KILLED = """
import os, signal, sys
from pathlib import Path
replace, left = Path.replace, [int(sys.argv[1])]
def die(self, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    return replace(self, target)
Path.replace = die
from irc_cli.app import app
app(sys.argv[2:])
"""


@pytest.mark.parametrize("after", [0, 1])
def test_killed_while_files_appear_the_command_runs_again(
    run: Cli, turns: Path, tmp_path: Path, after: int
) -> None:
    """Killed before any file has its name, and when the advantages have theirs."""
    command = ["calibrate", str(turns), "-o", "calibration.yaml", "--quiet"]
    script = [sys.executable, "-c", KILLED, str(after), *command]
    done = subprocess.run(script, cwd=tmp_path, env=os.environ, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "calibration.yaml").exists()
    assert (tmp_path / "advantages.parquet").exists() == (after == 1)
    assert run(*command).code == 0
    assert all((tmp_path / name).exists() for name in OUTPUTS)
    assert not list(tmp_path.glob(".*.appearing"))
    other = run("calibrate", turns, "-o", "another.yaml", "--seed", "1")
    assert other.err.startswith("error: advantages.parquet: exists already")


# Commands of several outputs, the one that appears last, and how many there are.
SEVERAL = [
    ("score bad.jsonl --skip-bad -o turns", "turns", 2),
    ("compare-args bad.jsonl --skip-bad -o pairs", "pairs", 2),
    ("eval bad.jsonl --skip-bad -o eval.json", "eval.json", 2),
    ("export messages bad.jsonl --skip-bad -o m.jsonl", "m.jsonl", 3),
    ("export sft good.jsonl -o sft.jsonl", "sft.jsonl", 2),
    ("export trl good.jsonl -o trl.jsonl", "trl.jsonl", 2),
    ("export atif bad.jsonl --skip-bad -o job", "job", 2),
    (
        "export verl --env airline-mini --model m --max-tasks 8 --tasks-per-step 8 -o verl",
        "irc.yaml",
        4,
    ),
    ("calibrate {turns} -o c.yaml --markdown c.md --report c.html", "c.yaml", 4),
]


@pytest.mark.parametrize(("command", "last", "count"), SEVERAL)
def test_a_command_cut_off_at_any_name_runs_again(
    run: Cli,
    turns: Path,
    example: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    last: str,
    count: int,
) -> None:
    lines = example.read_bytes().splitlines(keepends=True)[:40]
    (tmp_path / "good.jsonl").write_bytes(b"".join(lines))
    (tmp_path / "bad.jsonl").write_bytes(b"".join([*lines, b"{\n"]))
    args = command.format(turns=turns).split()
    before = set(tmp_path.iterdir())
    replace = Path.replace
    for killed_at in range(count + 1):
        left = [killed_at]

        def counted(self: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return replace(self, target)

        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", counted)
            assert run(*args).code == (130 if killed_at < count else 0)
        made = {path for path in tmp_path.rglob("*") if path.name == last}
        assert bool(made) == (killed_at == count), "the last one says that all are there"
    assert not list(tmp_path.rglob(".*"))
    assert run(*args).err.endswith("exists already; pass --force to replace it\n")
    assert set(tmp_path.iterdir()) > before
    assert run(*args, "--force").code == 0


def test_what_one_command_writes_twice(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="given twice; name each output once"), together():
        write(tmp_path / "a")
        write(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_an_old_folder_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "job"
    for text in ("old", "new"):
        with together():
            with whole_folder(str(path)) as folder:
                (folder / text).touch()
            assert [file.name for file in path.glob("*")] == ["old"] * (text == "new")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["job"]


def test_a_mark_without_that_of_the_first_output_counts_no_more(tmp_path: Path) -> None:
    """A process was killed while it removed the marks of files that all had their names."""
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.touch()
        (tmp_path / f".{path.name}.appearing").write_text(str(tmp_path / ".first.appearing"))
    assert half_written(str(first)) and half_written(str(second))
    (tmp_path / ".first.appearing").unlink()
    assert not half_written(str(first)) and not half_written(str(second))
    assert {path.name for path in tmp_path.iterdir()} == {"first", "second"}
