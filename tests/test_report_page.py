"""The page of `irc-cli report` in headless chromium, from its file, without a network."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.builders import Tiered, turn_frame
from tests.conftest import exit_code
from tests.report_pages import MISSING, browser, hostile_episodes, made_of, opened, write_rows

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=MISSING or "all is here"),
    # The driver's event loop is closed by the interpreter, which warns.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
DESKTOP, PHONE = 1280, 390  # pixels


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def page(turns: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's page."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    assert exit_code(["report", str(turns), "-o", str(path), "-q"]) == 0
    return path


@pytest.fixture(scope="module")
def twin(page: Path, turns: Path) -> dict[str, Any]:
    """The example's document."""
    return made_of(turns)[0]


def go(page: Any, address: str) -> None:
    """Follow a link of the page's own, and wait until it is there."""
    page.evaluate("hash => { location.hash = hash; }", address)
    page.wait_for_function("() => document.querySelector('#episode .episode-head') !== null")
    page.wait_for_timeout(150)


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_loads_quietly_and_fits(chromium: Any, page: Path, width: int, scheme: str) -> None:
    shown = opened(chromium, page, width, color_scheme=scheme)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    episode = shown.page.get_attribute("#task-table a", "href")
    for address in (episode, f"{episode}/0/beside"):
        go(shown.page, address)
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(chromium: Any, page: Path, scheme: str) -> None:
    """axe-core finds nothing serious, on the page and in two trials side by side."""
    if find_spec("axe_playwright_python") is None:
        pytest.skip("axe-playwright-python, which holds axe-core, is not installed")
    import axe_playwright_python

    axe = Path(str(axe_playwright_python.__file__)).with_name("axe.min.js").read_text("utf-8")
    shown = opened(chromium, page, DESKTOP, color_scheme=scheme, bypass_csp=True)
    shown.page.evaluate(axe)
    episode = shown.page.get_attribute("#task-table a", "href")
    for address in ("#", f"{episode}/1", f"{episode}/0/beside"):
        if address != "#":
            go(shown.page, address)
        found = shown.page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        serious = [one for one in found if one["impact"] in ("serious", "critical")]
        told = [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in serious]
        assert told == []


def test_without_javascript_it_reads_from_top_to_bottom(chromium: Any, page: Path) -> None:
    shown = opened(chromium, page, java_script_enabled=False)
    text = shown.page.inner_text("main")
    for said in (
        "The gate",
        "What each tier tells",
        "is worth",
        "Then the trials part",
        "take JavaScript",
    ):
        assert said in text
    assert not shown.page.is_visible("#filters")
    assert shown.complaints == []


def test_a_browser_that_cannot_unpack_says_so(chromium: Any, page: Path) -> None:
    shown = chromium.new_page()
    shown.add_init_script("delete globalThis.DecompressionStream")
    shown.goto(page.as_uri())
    assert shown.is_visible("#unreadable")


def test_from_a_tier_to_its_turns_to_an_episode(
    chromium: Any, page: Path, twin: dict[str, Any]
) -> None:
    shown = opened(chromium, page).page
    tier = next(row["tier"] for row in twin["tiers"] if row["value"])
    shown.click(f"#tiers a.tier[data-tier={tier}]")
    turns = [t for row in twin["episodes"] for t in row["turns"] if t["tier"] == tier]
    assert shown.inner_text("#found").startswith(f"{len(turns):,} turns in ")
    shown.click("#hits a")
    shown.wait_for_selector("#episode .turn.now")
    assert shown.inner_text("#episode .turn.now .tag") == tier


def test_the_strip_has_the_twins_numbers_and_stays_in_view(
    chromium: Any, page: Path, twin: dict[str, Any]
) -> None:
    shown = opened(chromium, page).page
    row = max(twin["episodes"], key=lambda one: len(one["turns"]))
    go(shown, f"#{row['ref']}/{len(row['turns']) - 1}")
    names = ("reward", "value", "return_part", "outcome_part", "advantage")
    for name, line in zip(names, shown.query_selector_all(".strip tbody tr")[1:], strict=True):
        cells = [cell.inner_text().split()[-1] for cell in line.query_selector_all("td")]
        rounded = [round(turn[name], 4) for turn in row["turns"]]
        assert cells == [
            f"{v:+.3f}".replace("+0.000", "0.000").replace("-0.000", "0.000") for v in rounded
        ]
    box = shown.query_selector(".strip").bounding_box()
    assert box["y"] >= 0
    clashes = [turn["turn"] for turn in row["turns"] if turn["against"]]
    assert len(shown.query_selector_all(".strip .clash")) == len(clashes)


def test_keys_and_links(chromium: Any, page: Path, twin: dict[str, Any]) -> None:
    shown = opened(chromium, page).page
    first, second = (row["ref"] for row in twin["episodes"][:2])
    go(shown, f"#{first}")
    for key, address in (
        ("j", f"{first}/0"),
        ("j", f"{first}/1"),
        ("k", f"{first}/0"),
        ("n", second),
        ("p", first),
    ):
        shown.keyboard.press(key)
        shown.wait_for_timeout(100)
        assert shown.evaluate("location.hash") == f"#{address}"
    again = chromium.new_page()
    again.goto(f"{page.as_uri()}#{first}/1")
    again.wait_for_selector("#episode .turn.now[data-turn='1']")


def test_filters_and_search(chromium: Any, page: Path, twin: dict[str, Any]) -> None:
    shown = opened(chromium, page).page
    rows = twin["episodes"]

    def count() -> int:
        found = re.search(r"([\d,]+) of", shown.inner_text("#found"))
        assert found
        return int(found[1].replace(",", ""))

    assert count() == len(rows)
    shown.select_option("#f-state", "failed")
    assert count() == sum(row["state"] == "failed" for row in rows)
    shown.select_option("#f-sign", "flips")
    flips = [
        row for row in rows if row["state"] == "failed" and any(t["flips"] for t in row["turns"])
    ]
    assert count() == len(flips)
    shown.click("#f-clear")
    task = rows[0]["task"]
    shown.fill("#f-task", task)
    assert count() == sum(task in row["task"] for row in rows)
    shown.click("#f-clear")
    shown.fill("#f-text", "no such words anywhere")
    shown.wait_for_function("() => document.getElementById('found').textContent.startsWith('0 of')")
    shown.fill("#f-text", "RESERVATION")
    shown.wait_for_function(
        "() => !document.getElementById('found').textContent.startsWith('0 of')"
    )
    assert 0 < count() <= len(rows)


def test_tasks_are_sorted(chromium: Any, page: Path, twin: dict[str, Any]) -> None:
    shown = opened(chromium, page).page

    def tasks() -> list[str]:
        return [
            row.get_attribute("data-task")
            for row in shown.query_selector_all("#task-table tbody tr")
        ]

    by_name = [row["task"] for row in twin["tasks"]]
    assert tasks() == by_name
    rates = {row["task"]: row["pass_rate"] for row in twin["tasks"]}
    shown.select_option("#task-sort", "hard")
    assert [rates[task] for task in tasks()] == sorted(rates.values())
    tier = twin["tiers"][0]["tier"]
    shown.select_option("#task-tier", tier)
    shown.select_option("#task-sort", "leverage")
    moved = {row["task"]: abs(row["leverage"].get(tier, 0.0)) for row in twin["tasks"]}
    assert [moved[task] for task in tasks()] == sorted(moved.values(), reverse=True)


def test_siblings_are_aligned_where_they_part(
    chromium: Any, page: Path, twin: dict[str, Any]
) -> None:
    shown = opened(chromium, page, DESKTOP, 2000).page
    row = next(
        r
        for r in twin["episodes"]
        if r["parting"] and r["parting"]["here"] and r["parting"]["there"]
    )
    go(shown, f"#{row['ref']}/0/beside")
    one, two = shown.query_selector_all(".turn.split-here")
    places = [int(turn.get_attribute("data-turn")) for turn in (one, two)]
    assert places == [row["parting"]["here"][0], row["parting"]["there"][0]]
    assert one.bounding_box()["y"] == two.bounding_box()["y"]


def test_hostile_traces(chromium: Any, tmp_path: Path) -> None:
    """Nothing of them executes, and nothing breaks the layout."""
    traces = write_rows(tmp_path / "traces.jsonl", hostile_episodes())
    turns, path = tmp_path / "turns.parquet", tmp_path / "report.html"
    assert exit_code(["score", str(traces), "-o", str(turns), "-q"]) == 0
    assert exit_code(["report", str(turns), "--traces", str(traces), "-o", str(path), "-q"]) == 0
    for width in (DESKTOP, PHONE):
        shown = opened(chromium, path, width)
        links = [
            link.get_attribute("href") for link in shown.page.query_selector_all("#task-table a")
        ]
        assert len(links) == 33
        for link in links[::3]:
            for address in (link, f"{link}/0/beside"):
                go(shown.page, address)
                assert shown.page.evaluate("document.documentElement.scrollWidth") <= width, link
        assert (
            shown.page.query_selector_all("main img, main script, main iframe, #episode style")
            == []
        )
        assert shown.complaints == []


def test_a_thousand_tiers(chromium: Any, tmp_path: Path) -> None:
    tiers = [f"tier {i} <img src=x onerror=alert(1)> {'w' * (i % 90)}" for i in range(1000)]
    tiers[:2] = ["constructor", "__proto__"]  # which every object of JavaScript has
    rows = [Tiered(f"t{i // 2}", i % 2, tiers[i * 50 : i * 50 + 50]) for i in range(20)]
    turns, calibration = tmp_path / "turns.parquet", tmp_path / "calibration.yaml"
    turn_frame(rows).write_parquet(turns)
    few = ["--resamples", "100", "--fdr", "1", "-q"]
    assert exit_code(["calibrate", str(turns), "-o", str(calibration), *few]) == 0
    path = tmp_path / "report.html"
    assert (
        exit_code(["report", str(turns), "--calibration", str(calibration), "-o", str(path), "-q"])
        == 0
    )
    for width in (DESKTOP, PHONE):
        shown = opened(chromium, path, width)
        assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
        shown.page.select_option("#task-tier", "constructor")
        shown.page.select_option("#task-sort", "leverage")
        shown.page.click("#tiers a.tier[data-tier=__proto__]")
        assert shown.page.inner_text("#found") == "1 turn in 1 of 20 episodes"
        assert shown.complaints == []
