"""Options: built from the settings of configs, with a help that makes sense alone."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.core import TyperArgument

from irc_cli import options
from irc_cli.app import COMMANDS, PlainCommand
from irc_cli.export import FORMATS
from stages.errors import InputError
from stages.settings import Setting, check_settings
from tests.conftest import Cli

ALL = {name: module for name, (module, _) in COMMANDS.items() if name != "export"}
ALL |= {f"export {name}": module for name, (module, _) in FORMATS.items()}


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, Setting("Share.", "Inner", low=0, below=1)] = 0.5
    cap: Annotated[float | None, Setting("Cap.", "Inner", low=0, high=math.inf, none=0)] = 2.0


@dataclass(frozen=True)
class Outer:
    word: Annotated[Literal["one", "two"], Setting("Word.", "Outer", option="which")] = "one"
    count: Annotated[int, Setting("Count.", "Outer", low=1)] = 3
    names: Annotated[tuple[str, ...], Setting("Name.", "Outer", metavar="NAME")] = ()
    loud: Annotated[bool, Setting("Loud.", "Outer", short="l")] = False
    kept: Annotated[bool, Setting("Kept.", "Outer")] = True
    inner: Inner = field(default_factory=Inner)
    hidden: int = 7


def call(*args: str) -> Outer:
    """What a command with these arguments is handed."""
    seen: list[Outer] = []

    @options.expanded(renamed={"old": "which"})
    def command(*, outer: Outer, config: options.Config = None) -> None:
        seen.append(outer)

    app = typer.Typer(add_completion=False)
    app.command(cls=PlainCommand)(command)
    app(list(args), standalone_mode=False)
    return seen[0]


def test_defaults_are_those_of_the_config() -> None:
    assert call() == Outer()


def test_options_fill_a_config_and_those_in_it() -> None:
    args = ("--which", "two", "--count", "4", "--names", "a", "--names", "b", "-l", "--no-kept")
    expected = Outer("two", 4, ("a", "b"), True, False, Inner(0.25, None))
    assert call(*args, "--share", "0.25", "--cap", "0") == expected


def test_a_config_file_fills_them_too(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("which: two\nnames: [a, b]\nkept: false\nshare: 0\n")
    expected = Outer("two", 3, ("a",), False, False, Inner(0.0))
    assert call("--config", str(path), "--names", "a") == expected


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--which", "three"), "--which: unknown value 'three'; use one | two"),
        (("--share", "1"), "--share: 1 is out of range; use a number from 0 to below 1"),
        (("--share", "nan"), "--share: nan is out of range; use a number from 0 to below 1"),
        (("--cap", "-1"), "--cap: -1 is out of range; use a number of at least 0"),
        (("--old", "two"), "--old: was renamed; use --which"),
    ],
)
def test_what_an_option_does_not_take(args: tuple[str, ...], line: str) -> None:
    with pytest.raises(InputError) as error:
        call(*args)
    assert str(error.value) == line


BOUNDS = [
    (Setting("", "", low=0, high=1), "from 0 to 1", "in [0, 1]"),
    (Setting("", "", low=0, below=1), "from 0 to below 1", "in [0, 1)"),
    (Setting("", "", low=2), "of at least 2", "finite and >= 2"),
    (Setting("", "", low=2, high=math.inf), "of at least 2", ">= 2"),
    (Setting("", "", above=1, high=math.inf), "above 1", "above 1"),
]


@pytest.mark.parametrize(("setting", "words", "interval"), BOUNDS)
def test_bounds_in_words(setting: Setting, words: str, interval: str) -> None:
    @dataclass(frozen=True)
    class Checked:
        value: Any

    Checked.__annotations__["value"] = Annotated[float, setting]
    assert setting.bounds == words
    with pytest.raises(ValueError, match=re.escape(f"value -1 is not {interval}")):
        check_settings(Checked(-1))


@given(st.floats())
def test_bounds_are_those_of_arithmetic(value: float) -> None:
    within, below, least, unlimited, above = (setting.allows(value) for setting, *_ in BOUNDS)
    assert within == (0 <= value <= 1)
    assert below == (0 <= value < 1)
    assert least == (2 <= value < math.inf)
    assert unlimited == (value >= 2)
    assert above == (value > 1)


# --- the help of every command --------------------------------------------------------------------


def parameters(name: str) -> list[Any]:
    """The options and arguments of a command that its help shows."""
    app = typer.Typer(add_completion=False)
    app.command(name, cls=PlainCommand)(import_module(ALL[name]).command)
    shown = typer.main.get_command(app).params
    return [parameter for parameter in shown if not getattr(parameter, "hidden", False)]


@pytest.mark.parametrize("name", ALL)
def test_every_option_has_a_panel_and_a_phrase(name: str) -> None:
    for parameter in parameters(name):
        text = parameter.help or ""
        where = f"{parameter.opts}: '{text}'"
        assert isinstance(parameter, TyperArgument) or parameter.rich_help_panel, where
        assert text[:1].isupper() or isinstance(parameter, TyperArgument), where
        assert text.endswith("."), where
        assert not text.startswith("Of "), where


@pytest.mark.parametrize("name", ALL)
def test_help_shows_no_types(run: Cli, name: str) -> None:
    shown = run(*name.split(), "--help").out.decode()
    assert not re.search(r"<[a-z\[\] ]+>", shown)
    assert not re.search(r"\{[A-Z]|─ Options ─", shown)
    assert re.search(rf"Usage: irc-cli {name} \[OPTIONS\]( \[?[A-Z.|]+\]?)?\s", shown)


@pytest.mark.parametrize("name", ["", "export"])
def test_help_of_groups_shows_no_types(run: Cli, name: str) -> None:
    shown = run(*name.split(), "--help").out.decode()
    assert "--help" in shown
    assert "<bool>" not in shown


def test_an_option_means_one_thing_in_all_commands() -> None:
    """As far as it shows in the kind of value that it takes."""
    kinds: dict[str, set[tuple[Any, ...]]] = defaultdict(set)
    for name in ALL:
        for parameter in parameters(name):
            if not isinstance(parameter, TyperArgument):
                metavar = str(parameter.metavar)
                kind = "choice" if "|" in metavar and metavar.islower() else metavar
                form = "file" if kind.startswith(("FILE", "DIR")) or "FILE" in kind else kind
                kinds[parameter.opts[0]].add((form.replace("NAME|DIR", "file"), parameter.multiple))
    assert len(kinds) > 100
    assert {name: kind for name, kind in kinds.items() if len(kind) > 1} == {}
