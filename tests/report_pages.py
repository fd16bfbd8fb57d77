"""Traces for reports, large ones and hostile ones, and the browser that opens the pages."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any, NamedTuple

import orjson

from irc_cli.report import Asked, known_of, read_conversations, scored_from
from stages.report import report, with_conversations
from stages.reporting.conversations import Conversations

CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
MISSING = (
    "no chromium to open pages with"
    if CHROMIUM is None
    else "playwright, which drives chromium, is not installed"
    if find_spec("playwright") is None
    else ""
)
POLICY = "Confirm with the user before you write; refuse what the policy forbids. " * 85  # 6 kB


class Opened(NamedTuple):
    """A page in a browser, and what it did that it should not."""

    page: Any  # of playwright
    complaints: list[str]  # console errors, errors of scripts, requests, dialogs


@contextmanager
def browser() -> Iterator[Any]:
    """Run headless chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A container's root has no sandbox to give.
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield chromium
        finally:
            chromium.close()


def opened(
    chromium: Any, path: Path, width: int = 1280, height: int = 900, **options: Any
) -> Opened:
    """Open a page from its file, and wait until its script is done."""
    viewport = {"width": width, "height": height}
    page = chromium.new_page(viewport=viewport, **options)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(f"error: {error}"))
    page.on("dialog", lambda dialog: _dismiss(dialog, complaints))
    page.on("request", lambda request: _note(request.url, path, complaints))
    page.goto(path.as_uri())
    if options.get("java_script_enabled", True):
        page.wait_for_selector("html[data-ready]", timeout=60_000)
    return Opened(page, complaints)


def _dismiss(dialog: Any, complaints: list[str]) -> None:
    complaints.append("dialog")
    dialog.dismiss()


def _note(url: str, path: Path, complaints: list[str]) -> None:
    if not url.startswith((path.as_uri(), "data:")):
        complaints.append(f"request: {url}")


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """Write episodes as a line each."""
    with path.open("wb") as file:
        file.writelines(orjson.dumps(row) + b"\n" for row in rows)
    return path


def many_episodes(tasks: int, trials: int, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield episodes of about 12 turns and 15 kB, beside the policy of 6 kB, of random words."""
    draw = random.Random(seed)
    words = [
        "".join(draw.choices("abcdefghijklmnoprstuvwy", k=draw.randint(3, 9))) for _ in range(3000)
    ]

    def text(count: int) -> str:
        return " ".join(draw.choices(words, k=count))

    for task in range(tasks):
        results = [orjson.dumps({"id": f"R{task}", "note": text(80)}).decode() for _ in range(4)]
        gold = {"name": "cancel_reservation", "arguments": {"reservation_id": f"R{task}"}}
        for trial in range(trials):
            good = draw.random() < 0.5
            calls = [
                ("get_reservation_details", {"reservation_id": f"R{task + i}"}) for i in range(4)
            ]
            calls.append(("cancel_reservation", {"reservation_id": f"R{task}" if good else "R-1"}))
            messages: list[dict[str, Any]] = [{"role": "system", "content": POLICY}]
            for i, (name, arguments) in enumerate(calls):
                messages += _exchange(f"c{i}", name, arguments, results[i % 4], text)
            messages += [
                {"role": "user", "content": text(30)},
                {"role": "assistant", "content": text(60)},
            ]
            yield {
                "episode_id": f"run/{task}/{trial}",
                "task_id": str(task),
                "trial": trial,
                "outcome": float(good if draw.random() < 0.9 else not good),
                "messages": messages,
                "gold_actions": [gold],
            }


def _exchange(
    call_id: str, name: str, arguments: dict[str, Any], result: str, text: Any
) -> list[dict[str, Any]]:
    """A question, its answer, and a call."""
    function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "user", "content": text(40)},
        {"role": "assistant", "content": text(70)},
        {"role": "user", "content": text(20)},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call_id, "content": result},
    ]


ATTACKS = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"'><svg onload=alert(1)>",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "<!--<script>",
    "]]></style><style>*{display:none}</style>",
    "\u202e\u2066 reversed \u2069\u202c \u200f\u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f",
    "a" * 5000,
    "\u0301" * 300 + "zalgo",
)


def hostile_episodes() -> Iterator[dict[str, Any]]:
    """Yield episodes with an attack in every field, and one with a message of 10 MB."""
    for number, attack in enumerate(ATTACKS):
        for trial in range(3):
            name = f"tool{attack}"[:60]
            wrong = {"key": attack, attack[:50]: attack, "n": trial}
            call = {
                "id": "c",
                "type": "function",
                "function": {"name": name, "arguments": orjson.dumps(wrong).decode()},
            }
            big = attack * (10_000_000 // len(attack)) if number == 9 and trial == 0 else attack
            yield {
                "episode_id": f"{attack[:80]}/{number}/{trial}",
                "task_id": f"{number}{attack}"[:90],
                "trial": trial,
                "policy": attack,
                "outcome": float(trial == 0),
                "messages": [
                    {"role": "system", "content": attack},
                    {"role": "user", "content": attack},
                    {
                        "role": "assistant",
                        "content": big,
                        "reasoning_content": attack,
                        "tool_calls": [call],
                    },
                    {"role": "tool", "tool_call_id": "c", "content": f"Error: {attack}"},
                    {"role": "assistant", "content": attack},
                ],
                "gold_actions": [{"name": name, "arguments": {"key": attack, "n": 0}}],
            }


def made_of(turns: Path) -> tuple[dict[str, Any], Conversations]:
    """The document of some turns whose traces are at hand, and its conversations."""
    known, _ = known_of([str(turns)], None, 0)
    document = report(known, "train.", 1000)
    asked = Asked(None, None, skip_bad=False, quiet=True, named={})
    conversations, _ = read_conversations(document, scored_from([str(turns)]), asked)
    assert conversations
    return with_conversations(document, known, conversations), conversations
