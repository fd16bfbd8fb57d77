from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

from irc_cli.app import COMMANDS, app
from stages.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def command_lines(markdown: str) -> list[list[str]]:
    """The words of each command of irc-cli in a page's blocks of code."""
    found = []
    for block in re.findall(r"^```(?:sh|yaml)?\n(.*?)^```", markdown, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s[|>]\s|&&", line):
                if start := re.search(r"(?:^|\s)irc-cli (?=[a-z])", part):
                    found.append(shlex.split(part[start.end() :], comments=True))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if (ROOT / page).exists()])
def test_every_command_of_a_page_has_these_options(page: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    for words in command_lines((ROOT / page).read_text()):
        shown = [word for word in words if word != "..."]
        try:
            name, command, rest = group.resolve_command(typer.Context(group), shown)
            while isinstance(command, TyperGroup):
                name, command, rest = command.resolve_command(typer.Context(command), rest)
        except InputError:
            continue  # the command's extra is not here
        assert command is not None
        command.make_context(name, rest)


def test_commands_are_found() -> None:
    found = [words for page in PAGES for words in command_lines((ROOT / page).read_text())]
    assert {words[0] for words in found} == set(COMMANDS)
    assert all(len(words) > 1 for words in found)


def slug(heading: str) -> str:
    """The anchor that a heading gets on GitHub."""
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return "#" + plain.replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            assert f"#{anchor}" in map(slug, headings), f"{page}: {target}"
