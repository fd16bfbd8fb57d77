"""Names from outside are data: no markup, no control codes, and no line of their own."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from irc_cli import console
from stages.core.printable import printable
from stages.tables.artifacts import TURNS
from tests.conftest import Cli

NAMES = {
    "markup": "[/red]",
    "link": "[link=https://example.org]click[/link]",
    "emoji": ":smile:",
    "escape": "a\x1b[31mred\x1b]0;title\x07",
    "lines": "a\nerror: all is lost\r\nb",
    "c1": "a\x9b31mb\x85c",
    "bidi": "a\u202eb\u2066c\u200f",
    "separators": "a\u2028b\u2029c",
    "tags": "a\U000e0041\ufeff\xad",
    "formula": "$\\frac{",
    "braces": "{x} {0}",
}


@given(st.text())
def test_printable_text_is_one_line_without_controls(text: str) -> None:
    shown = printable(text)
    assert len(shown.splitlines()) <= 1 and printable(shown) == shown
    assert not any(ord(char) < 32 or 126 < ord(char) < 160 for char in shown)
    if text.isascii() and text.isprintable():
        assert shown == text


def test_what_is_printed_can_be_told() -> None:
    assert printable(NAMES["lines"]) == r"a\nerror: all is lost\r\nb"
    assert printable(NAMES["escape"]) == r"a\x1b[31mred\x1b]0;title\x07"
    assert printable(NAMES["c1"]) == r"a\x9b31mb\x85c"
    assert printable("\u202e\u2028\ud800\U000e0041") == r"\u202e\u2028\ud800\U000e0041"
    assert printable("Zürich 航空 👩‍🚀 فارسی") == "Zürich 航空 👩‍🚀 فارسی"


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_terminal_gets_no_code_from_a_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the terminal has colours: all that is left is the style that we chose."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stderr", screen)
    for variable, value in (("TERM", "xterm-256color"), ("COLUMNS", "300")):
        monkeypatch.setenv(variable, value)
    table = console.table("tier", name)
    table.add_row(name, console.styled(name, "red"))
    table.caption = name
    console.console().print(table)
    console.console().print(name)
    console.heading(name)
    console.note(name)
    list(console.progress([1], name))
    written = screen.getvalue()
    plain = Text.from_ansi(written).plain
    assert plain.count(printable(name)) == 7
    assert "\x1b]" not in written and not set("\x07\x9b\u202e\u2028\r") & set(written)
    assert len(plain.splitlines()) == 9


def test_progress_shows_a_name_with_braces(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100, 10))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    screen = Console(file=io.StringIO(), force_terminal=True, width=100, markup=False)
    monkeypatch.setattr(console, "console", lambda **_: screen)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert list(console.progress([1], "{x} [/red]")) == [1]


MARKUP = " ".join(NAMES[kind] for kind in ("markup", "link", "emoji", "formula", "braces"))
CODES = "".join(NAMES[kind] for kind in ("escape", "lines", "c1", "bidi", "separators", "tags"))


@pytest.fixture(scope="module", params=[MARKUP, CODES], ids=["markup", "codes"])
def named(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, turns: Path
) -> tuple[str, Path]:
    """A name, and turns and a trace in which all has it."""
    folder, name = tmp_path_factory.mktemp("named"), request.param
    frame = pl.read_parquet(turns)
    tier = pl.when(pl.col("tier") == "exact").then(pl.lit(name)).otherwise("tier")
    changed = frame.with_columns(
        tier.alias("tier"),
        (pl.col("task_id") + name).alias("task_id"),
        pl.when(pl.col("trial") < 4).then(pl.lit(name)).otherwise("policy").alias("policy"),
    )
    changed.select(list(TURNS.columns)).write_parquet(folder / "turns.parquet")
    (folder / "trace.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows(name)))
    return name, folder


def rows(name: str) -> list[dict[str, Any]]:
    call = {"id": "1", "type": "function", "function": {"name": name, "arguments": {"x": name}}}
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": name},
    ]
    gold = [{"name": name, "arguments": {"x": "other"}}]
    return [
        {
            "episode_id": f"{name}-{task}-{trial}",
            "task_id": f"{name}-{task}",
            "trial": trial,
            "policy": f"{name}-{trial}",
            "messages": messages,
            "gold_actions": gold,
            "outcome": float((task + trial) % 2),
        }
        for task in range(2)
        for trial in range(2)
    ]


COMMANDS = [
    "score trace.jsonl",
    "eval trace.jsonl --by-task",
    "eval trace.jsonl --against trace.jsonl",
    "compare-args trace.jsonl --explain",
    "calibrate turns.parquet",
    "calibrate turns.parquet --test turns.parquet --online state.parquet --previous c.yaml",
    "report turns.parquet -o page.html --force",
    "export sft trace.jsonl",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_prints_what_acts(
    run: Cli,
    named: tuple[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    calibration: Path,
    command: str,
) -> None:
    _, folder = named
    monkeypatch.chdir(folder)
    (folder / "c.yaml").write_bytes(calibration.read_bytes())
    (folder / "state.parquet").unlink(missing_ok=True)
    for more in ([], ["--json"]):
        (folder / "state.parquet").unlink(missing_ok=True)
        result = run(*shlex.split(command), *more)
        assert result.code in (0, 2) and "Traceback" not in result.err
        assert result.code == 0 or command.startswith(("export sft", "eval trace.jsonl --against"))
        for text in (result.out.decode(), result.err):
            assert not set("\x1b\x07\r\x9b\x85\u202e\u2066\u2028\U000e0041") & set(text)
            assert not any(line.startswith("error: all is lost") for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_an_error_names_any_file_in_one_line(run: Cli, name: str) -> None:
    path = name.replace("/", "-")
    for args in (("score", path), ("calibrate", path), ("score", "--domain", path, "x"), (path,)):
        result = run(*args)
        assert result.code == 2 and result.err.count("\n") == 1
        assert result.err.startswith("error: ") and printable(result.err[:-1]) == result.err[:-1]


def test_a_document_keeps_every_character(
    run: Cli, named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = named
    monkeypatch.chdir(folder)
    names = {
        row["task_id"]
        for row in run("eval", "trace.jsonl", "--by-task", "--json").json()["by_task"]
    }
    assert names == {f"{name}-0", f"{name}-1"}


def test_figures_and_markdown_of_any_name(
    run: Cli, named: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    _, folder = named
    monkeypatch.chdir(folder)
    command = "calibrate turns.parquet --plots plots --markdown page.md --quiet --force"
    assert run(*command.split()).err == ""
    lines = (folder / "page.md").read_text().splitlines()
    assert not any(line.startswith("error: all is lost") for line in lines)
    assert "[link=" not in "\n".join(lines) and "\x1b" not in "\n".join(lines)


def test_nothing_goes_around_the_console() -> None:
    """Markup is off, so that nobody has to remember to escape names."""
    sources = (Path(__file__).resolve().parents[1] / "irc_cli").rglob("*.py")
    texts = {path.name: path.read_text() for path in sources}
    assert not [name for name, text in texts.items() if "rich.markup" in text]
    assert not [name for name, text in texts.items() if re.search(r"\bConsole\(", text)]
