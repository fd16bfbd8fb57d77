"""What was recorded and is damaged: each one clear line, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
import yaml

from stages.errors import InputError
from stages.loop_files import Records, check_settings
from stages.tables.state import check_rows, damaged, read_state
from tests.builders import line_of
from tests.conftest import Cli

ROLLOUT = (
    "rollout --env airline-mini --policy expert --max-tasks 2 --group-size 2 -o r.jsonl --quiet"
)


def refused(run: Cli, *args: str, may_work: bool = False) -> str:
    """The one line of a command that reads what is damaged."""
    result = run(*args)
    assert result.code in ((0, 2) if may_work else (2,)), result
    assert "Traceback" not in result.err and (result.code == 0 or result.err.count("\n") == 1)
    return result.err


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete run."""
    from tests.conftest import exit_code

    folder = tmp_path_factory.mktemp("played")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        assert exit_code(ROLLOUT.split()) == 0
    return folder


@pytest.fixture
def run_files(played: Path, tmp_path: Path) -> Path:
    shutil.copytree(played, tmp_path, dirs_exist_ok=True)
    return tmp_path


FORCE = "pass --force to start over"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("r.meta.json", b"{", f"missing or broken: what made the rollouts is unknown; {FORCE}"),
        ("r.meta.json", b"[1]", f"missing or broken: what made the rollouts is unknown; {FORCE}"),
        ("r.meta.json", b'{"settings": 3}', "missing or broken: what made the rollouts is unknown"),
        ("r.meta.json", b"\xff", f"missing or broken: what made the rollouts is unknown; {FORCE}"),
        ("r.timing.jsonl", b"{}\n", ":2: damaged: expected 'object', got 'null'; " + FORCE),
        ("r.timing.jsonl", b"[]\n", ":1: damaged: expected 'object', got 'array'; " + FORCE),
        ("r.jsonl", b"{}\n", ":1: damaged: object missing required field "),
        ("r.jsonl", b"\xff\n", ":1: damaged: no JSON (str is not valid UTF-8: "),
        ("r.jsonl", b"[" * 100_000, ":1: damaged: no JSON ("),
        ("r.tokens.parquet", b"PAR1", ": not readable as Parquet: "),
        ("r.tokens.parquet", b"", "r.tokens.parquet: empty; rerun irc-cli rollout"),
    ],
)
def test_a_run_that_is_resumed(
    run: Cli, run_files: Path, name: str, content: bytes, line: str
) -> None:
    (run_files / name).write_bytes(content)
    assert line in refused(run, *ROLLOUT.split(), "--resume")


@pytest.mark.parametrize("name", ["r.meta.json", "r.timing.jsonl", "r.tokens.parquet"])
@pytest.mark.parametrize("how", ["missing", "a folder"])
def test_a_run_whose_file_is_gone(run: Cli, run_files: Path, name: str, how: str) -> None:
    (run_files / name).unlink()
    if how == "a folder":
        (run_files / name).mkdir()
    refused(run, *ROLLOUT.split(), "--resume")


@pytest.mark.parametrize("line", [b"[]", b'{"settings": []}', b"{", b"\xff"])
def test_a_journal_of_something_else(run: Cli, tmp_path: Path, line: bytes) -> None:
    (tmp_path / "r.jsonl.partial").write_bytes(line + b"\n")
    told = refused(run, *ROLLOUT.split(), "--resume")
    assert told == "error: r.jsonl.partial: not a journal of a run; delete it\n"


RECORD = "t.parquet: its record: damaged: "


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (b"null", f"{RECORD}expected 'object', got 'null'; make it again"),
        (b"[1]", f"{RECORD}expected 'object', got 'array'; make it again"),
        (b"{", f"{RECORD}no JSON (unexpected end of data); make it again"),
        (b'{"summary": 3}', f"{RECORD}expected 'object', got 'int' - at '$.summary'; make it"),
        (b'{"summary": {"excluded_without_turns": "x"}}', f"{RECORD}expected 'int', got 'str' - "),
        (b'{"settings": null}', f"{RECORD}expected 'object', got 'null' - at '$.settings'; make"),
    ],
)
def test_what_made_a_table(run: Cli, turns: Path, tmp_path: Path, record: bytes, line: str) -> None:
    frame = pl.read_parquet(turns)
    frame.write_parquet(tmp_path / "t.parquet", metadata={"irc-cli": record.decode()})
    for command in ("calibrate", "report", "calibrate --stream"):
        name, *rest = command.split()
        assert line in refused(run, name, "t.parquet", *rest)


def test_what_turns_were_scored_from(run: Cli, turns: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(turns)
    for record, line in (
        (b'{"inputs": {}}', "its record: damaged: expected 'array', got 'object'; make it again"),
        (b'{"inputs": [{}]}', "object missing required field 'path' - at '$[0]'; make it again"),
        (b'{"settings": {"tiers": 3}}', "expected 'str | null', got 'int' - at '$.tiers'; score"),
    ):
        frame.write_parquet(tmp_path / "t.parquet", metadata={"irc-cli": record.decode()})
        assert line in refused(run, "report", "t.parquet", "-o", "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda state: state.clear(), "damaged: object missing required field 'measure'"),
        (
            lambda state: state.update(measure="x"),
            "damaged: invalid enum value 'x' - at '$.measure'",
        ),
        (lambda state: state.update(half_life=-1), "damaged: a half-life of -1; begin another one"),
        (lambda state: state.update(half_life="x"), "damaged: expected 'float', got 'str' - at "),
        (lambda state: state.update(signs={"x": 7}), "damaged: invalid enum value 7 - at '$.signs"),
        (lambda state: state.update(additions=[{}]), "damaged: object missing required field "),
        (lambda state: state.update(additions=[3]), "damaged: expected 'object', got 'int' - at "),
        (lambda state: state["additions"][0].update(more=1), "damaged: "),
        (lambda state: state.update(events={}), "damaged: expected 'array', got 'object' - at "),
        (lambda state: state.update(known=3), "its record of episodes is damaged; rerun irc-cli "),
    ],
)
def test_an_online_state(
    run: Cli, turns: Path, tmp_path: Path, change: Callable[[Any], None], line: str
) -> None:
    assert run("calibrate", turns, "--online", "s.parquet", "--quiet").code == 0
    frame = pl.read_parquet(tmp_path / "s.parquet")
    record = orjson.loads(pl.read_parquet_metadata(tmp_path / "s.parquet")["irc-cli"])
    change(record["online"])
    metadata = {"irc-cli": orjson.dumps(record).decode()}
    frame.write_parquet(tmp_path / "s.parquet", metadata=metadata)
    err = refused(run, "calibrate", str(turns), "--online", "s.parquet")
    assert err.startswith("error: s.parquet") and line in err


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("loop.yaml", b"[1, 2]", "loop.yaml:1:1: expected keys and values, found a list; correct"),
        ("loop.yaml", b"a: &a [*a]", "loop.yaml:1:4: a value that holds itself; remove the alias"),
        ("loop.yaml", b"\xff", "loop.yaml: not UTF-8 text; give a YAML file"),
        ("loop.yaml", None, "loop.yaml: can't be read (is a directory); check the path"),
        (
            "steps.json",
            b"{",
            "steps.json: damaged: no JSON (unexpected end of data); delete it: the ",
        ),
        (
            "steps.json",
            b"[]",
            "steps.json: damaged: expected 'object', got 'array'; delete it: the",
        ),
        (
            "steps.json",
            b'{"a": 3}',
            "steps.json: damaged: expected 'object', got 'int' - at '$[...]",
        ),
        ("steps.json", None, "steps.json: is a directory; delete it: the steps of this iteration"),
    ],
)
def test_what_a_loop_has_done(tmp_path: Path, name: str, content: bytes | None, line: str) -> None:
    path = tmp_path / name
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        check_settings(tmp_path, {}) if name == "loop.yaml" else Records(tmp_path)
    assert line_of(caught).startswith(f"{tmp_path}/{line}")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c.update(episodes="x"), "damaged: expected 'int', got 'str' - at '$.episodes'"),
        (lambda c: c.update(pass_rate=None), "damaged: expected 'float', got 'null' - at '$.pass"),
        (lambda c: c.update(correlation="x"), "damaged: invalid enum value 'x' - at '$.correlati"),
        (lambda c: c.update(inputs=3), "damaged: expected 'array | null', got 'int' - at '$.inpu"),
        (lambda c: c["settings"].update(calibrate=[1]), "expected keys and values, found a list"),
        (
            lambda c: c["settings"]["calibrate"].update(eta="x"),
            "damaged: expected 'float', got 'st",
        ),
        (
            lambda c: c["tiers"][0].update(turns="x"),
            "damaged: expected 'int', got 'str' - at '$.tu",
        ),
        (lambda c: c["tiers"][0].update(value=float("nan")), "'value' is nan; give a calibration"),
        (lambda c: c["tiers"].insert(0, 3), "expected keys and values, found 3; correct the file"),
        (lambda c: c["rewards"].update(exact=float("inf")), "expected a finite number, found inf"),
    ],
)
def test_a_calibration(
    run: Cli,
    turns: Path,
    calibration: Path,
    tmp_path: Path,
    change: Callable[[Any], None],
    line: str,
) -> None:
    document = yaml.safe_load(calibration.read_bytes())
    change(document)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    command = ("report", str(turns), "--calibration", "c.yaml")
    if "rewards" in line or "finite" in line:
        command = ("calibrate", str(turns), "--previous", "c.yaml")
    err = refused(run, *command)
    assert err.startswith("error: c.yaml") and line in err


def test_a_state_that_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught, damaged("s.json", "delete it"):
        [][0]
    assert line_of(caught) == "s.json: damaged: list index out of range; delete it"
    with pytest.raises(InputError) as caught:
        read_state(tmp_path / "none.json", dict[str, Any], "make it")
    assert line_of(caught) == f"{tmp_path}/none.json: no such file or directory; make it"
    from stages.calibration.online import Event

    row = {"iteration": 1, "tier": "a", "event": "opened", "r": None, "p": 1}
    assert check_rows([row], Event, "s", "x") == (Event(1, "a", "opened", None, 1),)
