"""No command writes over what it reads, whatever names lead there."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer

from irc_cli.app import _is_read, app
from stages.errors import InputError
from stages.tables.files import refuse_existing, whole_file, whole_folder
from stages.tables.inputs import keep, keeping
from tests.builders import line_of
from tests.conftest import Cli

READ = "is read by this command; write to another file"
ROLLOUT = "rollout --env airline-mini --max-tasks 1 --group-size 2"

# A command with {out}, in a folder with a file of each kind, and what it must not write over.
COMMANDS = [
    ("score r.jsonl -o {out}", "r.jsonl"),
    ("score r.jsonl -o {out}", "r.meta.json"),
    ("score r.jsonl -o {out} --tiers tiers.yaml", "tiers.yaml"),
    ("score r.jsonl -o {out} --rewards calibration.yaml", "calibration.yaml"),
    ("score r.jsonl -o {out} --domain domain.yaml", "domain.yaml"),
    ("score r.jsonl -o {out} --config config.yaml", "config.yaml"),
    ("score r.jsonl -o {out} --gold gold.json", "gold.json"),
    ("calibrate turns.parquet -o {out} --previous calibration.yaml", "calibration.yaml"),
    ("calibrate turns.parquet -o {out} --test other.parquet", "other.parquet"),
    ("calibrate turns.parquet --report {out}", "turns.parquet"),
    ("calibrate turns.parquet --markdown {out} --config config.yaml", "config.yaml"),
    ("calibrate tables --markdown {out}", "tables/turns.parquet"),
    ("calibrate tables/*.parquet --markdown {out}", "tables/turns.parquet"),
    ("report turns.parquet -o {out} --traces r.jsonl", "r.jsonl"),
    ("report turns.parquet -o {out} --calibration calibration.yaml", "calibration.yaml"),
    ("eval r.jsonl -o {out}", "r.jsonl"),
    ("eval r.jsonl -o {out} --against other.jsonl", "other.jsonl"),
    ("compare-args r.jsonl -o {out}", "r.jsonl"),
    (f"{ROLLOUT} --policy replay --recording r.jsonl -o {{out}}", "r.jsonl"),
    (f"{ROLLOUT} --policy replay --recording r.jsonl -o {{out}}", "r.tokens.parquet"),
    ("export sft r.jsonl -o {out}", "r.jsonl"),
    ("export trl r.jsonl -o {out} --gold gold.json", "gold.json"),
    ("export messages r.jsonl -o {out}", "r.jsonl"),
    ("export preferences r.jsonl --turns turns.parquet -o {out}", "turns.parquet"),
    ("export tokens r.jsonl --turns turns.parquet -o {out}", "turns.parquet"),
    ("export tokens r.jsonl --turns turns.parquet -o {out}", "r.tokens.parquet"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, turns: Path, calibration: Path) -> Path:
    """A file of each kind that commands read."""
    folder = tmp_path_factory.mktemp("inputs")
    for name in ("r.jsonl", "r.meta.json", "r.tokens.parquet", "other.jsonl", "gold.json"):
        (folder / name).write_text("{}\n")
    for name in ("tiers.yaml", "domain.yaml"):
        (folder / name).write_text("rank: []\n")
    (folder / "config.yaml").write_text("quiet: true\n")
    (folder / "tables").mkdir()
    for name in ("turns.parquet", "other.parquet", "tables/turns.parquet"):
        shutil.copy(turns, folder / name)
    shutil.copy(calibration, folder / "calibration.yaml")
    return folder


@pytest.fixture
def here(files: Path, tmp_path: Path) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


LINKED = [COMMANDS[i] for i in (0, 7, 11, 16, 18)]  # tried by the names of links, too


@pytest.mark.parametrize(
    ("command", "lost", "link"),
    [(*command, "itself") for command in COMMANDS]
    + [(*command, link) for command in LINKED for link in ("symlink", "hard link")],
)
def test_a_command_keeps_what_it_reads(
    run: Cli, here: Path, command: str, lost: str, link: str
) -> None:
    out, before = lost, (here / lost).read_bytes()
    if link != "itself":
        out = "link"
        (os.symlink if link == "symlink" else os.link)(here / lost, here / out)
    names = sorted(path.name for path in here.rglob("*"))
    result = run(*command.format(out=out).split(), "--force")
    assert result.code == 2
    of_folder = f"is of '{lost.split('/')[0]}', which is read; write to another folder"
    assert result.err in (f"error: {out}: {READ}\n", f"error: {out}: {of_folder}\n")
    assert (here / lost).read_bytes() == before
    assert sorted(path.name for path in here.rglob("*")) == names


def test_a_file_that_comes_along_is_no_input_either(run: Cli, here: Path) -> None:
    """advantages.parquet beside a calibration, OUT.bad.jsonl, what made JSON lines, the lock."""
    shutil.copy(here / "turns.parquet", here / "advantages.parquet")
    result = run("calibrate", "advantages.parquet", "-o", "new.yaml", "--force")
    assert result.err == f"error: advantages.parquet: {READ}\n"
    shutil.copy(here / "r.jsonl", here / "x.bad.jsonl")
    result = run("score", "x.bad.jsonl", "-o", "x", "--skip-bad", "--force")
    assert result.err == f"error: x.bad.jsonl: {READ}\n"
    result = run("export", "sft", "r.meta.json", "-o", "r.jsonl", "--force")
    assert result.err == f"error: r.meta.json: {READ}\n"
    (here / "r.lock").write_text("{}")
    command = f"{ROLLOUT} --policy replay --recording r.lock -o r --force"
    result = run(*command.split())
    assert result.code == 2 and (here / "r.lock").read_text() == "{}"


def test_standard_input_that_is_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("{}")
    with path.open() as file, keeping(["-"]), monkeypatch.context() as patched:
        patched.setattr("sys.stdin", file)
        with pytest.raises(InputError) as caught:
            refuse_existing(str(path), force=True)
    assert line_of(caught) == f"{path}: {READ}"


def test_a_folder_that_is_replaced_holds_no_input(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "turns.parquet").touch()
    (tmp_path / "link").symlink_to(tmp_path / "job")
    read = str(tmp_path / "job" / "turns.parquet")
    for name in ("job", "link"):
        with (
            keeping([read]),
            pytest.raises(InputError) as caught,
            whole_folder(str(tmp_path / name)),
        ):
            pass
        assert line_of(caught) == (
            f"{tmp_path / name}: holds '{read}', which is read; name another folder"
        )
    with whole_folder(str(tmp_path / "link")) as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "job").iterdir()] == ["new"]
    assert (tmp_path / "link").is_symlink() and len(list(tmp_path.iterdir())) == 2


def test_a_link_is_followed(tmp_path: Path) -> None:
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)
    for text in ("new", "again"):
        with whole_file(str(link), force=True) as file:
            file.write(text.encode())
        assert real.read_text() == text and link.is_symlink()
    with pytest.raises(InputError, match=r"link: exists already; pass --force to replace it"):
        refuse_existing(str(link), force=False)


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "none" / "b")
    for name, what in (
        ("a", "is a link to itself; name a file to write"),
        ("b", f"no directory '{tmp_path / 'none'}'; create it first"),
    ):
        with pytest.raises(InputError) as caught:
            refuse_existing(str(tmp_path / name), force=True)
        assert line_of(caught) == f"{tmp_path / name}: {what}"


def test_a_command_in_a_command_keeps_its_own(tmp_path: Path) -> None:
    """As in a loop, whose steps read what earlier ones wrote."""
    path = tmp_path / "a"
    path.touch()
    with keeping([str(path)]):
        with keeping([]):
            refuse_existing(str(path), force=True)
            keep([str(tmp_path / "b")])
        with pytest.raises(InputError):
            refuse_existing(str(path), force=True)


def commands(command: Any, name: str) -> list[tuple[str, Any]]:
    if not hasattr(command, "modules"):
        return [(name, command)]
    inner = (command.resolve_command(None, [part])[1] for part in command.modules)
    named = zip(inner, command.modules, strict=True)
    return [known for part, of in named for known in commands(part, f"{name} {of}")]


def test_every_parameter_that_names_a_file_is_read_or_written() -> None:
    """A new option takes part: its metavar, or its panel Output, says what it is."""
    written = {"out", "plots", "report", "markdown", "keep_rollouts", "online"}
    values = {"expected", "actual", "stage_settings", "fields", "user_price"}
    for name, command in commands(typer.main.get_command(app), "irc-cli"):
        for parameter in command.params:
            text = str(parameter.metavar)
            is_path = any(part in text for part in ("FILE", "DIR", "LOOP", "TURNS", "TRACES"))
            if is_path and parameter.name not in written | values:
                assert _is_read(parameter), f"{name}: {parameter.name}"
            if parameter.name in written:
                assert not _is_read(parameter), f"{name}: {parameter.name}"
