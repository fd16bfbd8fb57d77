"""The page of `irc-cli report` as a file, its Markdown, and the command's errors."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.trace.generate import TRACE
from irc_cli.page.markdown import plain, render_markdown
from irc_cli.page.render import Packing, packed, render_page
from irc_cli.page.visible import visible
from irc_cli.report import PAGE
from tests.builders import Tiered, turn_frame
from tests.conftest import Cli
from tests.report_pages import ATTACKS, hostile_episodes, made_of, write_rows


class Page(HTMLParser):
    """What a page holds: the text of cells by `data-of`, its tags, and the parts of its script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[str, str] = {}
        self.attributes: list[tuple[str, str, str | None]] = []
        self.texts: dict[str, list[str]] = {"script": [], "style": []}
        self._within: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "link", "input", "line", "circle", "rect", "path"):
            self._within.append((tag, dict(attrs).get("data-of")))

    def handle_endtag(self, tag: str) -> None:
        while self._within and self._within.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not self._within:
            return
        tag, of = self._within[-1]
        if of:
            self.cells[of] = self.cells.get(of, "") + data.strip()
        if tag in self.texts:
            self.texts[tag].append(data)


def signed(value: float | None) -> str:
    """A number as the page has it, written in another way than the page writes it."""
    if value is None:
        return "\u2013"
    text = format(value, "+.3f")
    return "0.000" if text in ("+0.000", "-0.000") else text


@pytest.fixture(scope="module")
def page(turns: Path) -> tuple[dict[str, Any], str]:
    """The example's document and its page."""
    document, conversations = made_of(turns)
    return document, "".join(render_page(document, conversations))


def test_every_number_of_the_page_is_the_twins(page: tuple[dict[str, Any], str]) -> None:
    document, text = page
    cells, expected = Page(text).cells, dict[str, str]()
    for tier in document["tiers"]:
        name = tier["tier"]
        expected |= {f"{name} {of}": signed(tier[of]) for of in ("raw", "explained", "excess")}
        expected[f"{name} value"] = signed(tier["value"]) if tier["value"] else "0"
        expected |= {f"{name} {of}": f"{tier[of]:,}" for of in ("turns", "episodes")}
    for side in ("before", "after"):
        check = document["direction"][side]
        for row in check["direction"]:
            expected[f"{row['tier']} {side} mean_advantage"] = signed(row["mean_advantage"])
        for tier, mass in check["gradient_mass"].items():
            expected[f"{tier} {side} mass"] = f"{mass:.1%}"
        for row in document["panel"]["by_turn"]:
            expected[f"turn {row['turn']} {side}"] = signed(row[side])
    for row in document["tasks"]:
        expected[f"{row['task']} passed"] = f"{row['passed']} / {row['counted']}"
    expected["summary pass_rate"] = f"{document['summary']['pass_rate']:.1%}"
    assert {name: cells.get(name) for name in expected} == expected


def test_the_page_loads_nothing_and_lets_nothing_in(page: tuple[dict[str, Any], str]) -> None:
    parsed = Page(page[1])
    policy = next(v for t, n, v in parsed.attributes if t == "meta" and v and "default-src" in v)
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for part, text in (("style", parsed.texts["style"][0]), ("script", parsed.texts["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{part}-src 'sha256-{digest}'" in policy
    links = [value for _, name, value in parsed.attributes if name in ("src", "href", "action")]
    assert all(value and value.startswith(("#", "data:,")) for value in links)
    assert not [
        name for _, name, _ in parsed.attributes if name.startswith("on") or name == "style"
    ]


def unpacked(text: str) -> Any:
    return orjson.loads(zlib.decompress(base64.b64decode(text), -15))


def test_chunks_hold_every_conversation(page: tuple[dict[str, Any], str]) -> None:
    document, text = page
    parts = re.findall(r'<script type="text/plain" class="chunk">(.*?)</script>', text)
    index = unpacked(re.findall(r'id="index">(.*?)</script>', text)[0])
    chunks = [unpacked(part) for part in parts]
    assert len(index["episodes"]) == len(document["episodes"]) == 192
    for row, shown in zip(index["episodes"], document["episodes"], strict=True):
        found = chunks[row["chunk"]]["episodes"][row["id"]]
        said = [entry for entry in found["entries"] if "turn" in entry]
        assert [entry["turn"] for entry in said] == list(range(len(shown["turns"])))
        assert row["turns"]["advantage"] == [
            None if turn["advantage"] is None else round(turn["advantage"], 4)
            for turn in shown["turns"]
        ]


@given(st.text())
def test_nothing_hides(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert not re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", shown
    )


def test_what_hides_is_spelled_out() -> None:
    assert visible("a\u202eb\x00") == "a\u27e8U+202E\u27e9b\u27e8U+0000\u27e9"
    assert visible("line\r\nend\ttab e\u0301") == "line\r\nend\ttab e\u0301"
    assert visible("o" + "\u0301" * 300) == "o" + "\u0301" * 4 + "\u27e8296 marks more\u27e9"


def test_hostile_traces_stay_text(run: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "traces.jsonl", hostile_episodes())
    assert run("score", "traces.jsonl", "-o", "turns.parquet").code == 0
    assert run("report", "turns.parquet").code == 0
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    parsed = Page(text)
    tags = {tag for tag, _, _ in parsed.attributes}
    assert not tags & {"img", "iframe", "object", "base", "form:action"}
    assert text.count("<script") == text.count("</script>") == len(parsed.texts["script"])
    for attack in ATTACKS[:3]:
        assert attack not in text.replace(parsed.texts["script"][-1], "")


def test_a_thousand_tiers(run: Cli, tmp_path: Path) -> None:
    tiers = [f"tier {i} <b>|`{{{{ 7*7 }}}}" for i in range(1000)]
    rows = [Tiered(f"t{i // 2}", i % 2, tiers[i * 50 : i * 50 + 50]) for i in range(20)]
    turn_frame(rows).write_parquet(tmp_path / "turns.parquet")
    few = ("--resamples", "100", "--fdr", "1", "-q")
    assert run("calibrate", "turns.parquet", "-o", "calibration.yaml", *few).code == 0
    assert run("report", "turns.parquet", "--calibration", "calibration.yaml").code == 0
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "tier 999 &lt;b&gt;" in text
    assert "<b>|" not in text


# The command


def test_the_default_page(run: Cli, turns: Path, tmp_path: Path) -> None:
    result = run("report", turns)
    assert result.code == 0
    assert result.out.startswith(b"report.html: The gate ")
    again = run("report", turns)
    assert (again.code, again.err) == (
        2,
        "error: report.html: exists already; pass --force to replace it\n",
    )


def test_equal_inputs_make_equal_pages(run: Cli, turns: Path, tmp_path: Path) -> None:
    for name in ("one.html", "two.html"):
        assert run("report", turns, "-o", name, "-q").code == 0
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_a_sample_is_said_on_the_page(run: Cli, turns: Path, tmp_path: Path) -> None:
    assert run("report", turns, "--max-episodes", "30").code == 0
    text = " ".join((tmp_path / PAGE).read_text(encoding="utf-8").split())
    assert "Conversations are of 30 of 192 episodes, a sample of each task and outcome" in text


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nowhere.parquet"], "nowhere.parquet: no such file; check the path"),
        (
            ["TURNS", "--calibration", "TURNS"],
            "TURNS: not UTF-8 text; give a YAML file",
        ),
        (
            ["TURNS", "--calibration", "some.yaml"],
            "some.yaml: has no 'settings'; give a calibration.yaml of irc-cli calibrate",
        ),
        (
            ["TURNS", "--traces", "other.jsonl"],
            "other.jsonl: lacks episode 'bags-0/0' of the turns (192 of 192); "
            "give the traces that the turns were scored from",
        ),
        (["loop"], "loop: no iteration has turns yet; let the loop finish one"),
        (["loop", "TURNS"], "loop: is a loop, beside other inputs; report it alone"),
        (
            ["open.parquet"],
            "open.parquet: no episode with an outcome; "
            "rerun irc-cli score with --map outcome=PATH, or collect episodes that have one",
        ),
        (
            ["failures.parquet"],
            "failures.parquet: all 2 episodes are failures; collect both successes and failures",
        ),
    ],
)
def test_errors(
    arguments: Sequence[str], error: str, run: Cli, turns: Path, tmp_path: Path
) -> None:
    (tmp_path / "some.yaml").write_text("a: 1\n")
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop/loop.yaml").write_text("env: airline-mini\n")
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hi"}]
    row = {"task_id": "1", "outcome": 1, "messages": messages, "gold_actions": []}
    (tmp_path / "other.jsonl").write_bytes(orjson.dumps(row))
    failing = turn_frame([Tiered("t", 0, ["a"]), Tiered("t", 0, ["b"])])
    failing.write_parquet(tmp_path / "failures.parquet")
    unknown = failing.with_columns(
        outcome=pl.lit(None, pl.Float64), success=pl.lit(None, pl.Boolean)
    )
    unknown.write_parquet(tmp_path / "open.parquet")
    result = run("report", *(str(turns) if a == "TURNS" else a for a in arguments))
    assert result.code == 2
    assert result.err == f"error: {error}\n".replace("TURNS", str(turns))
    assert not (tmp_path / PAGE).exists()


@pytest.fixture
def loop(turns: Path, calibration: Path, tmp_path: Path) -> Path:
    """A folder of a loop with two iterations, of which the second one set a tier to 0."""
    folder = tmp_path / "loop"
    frame, rates = pl.read_parquet(turns), {"pass_rate": 0.25, "ci_low": 0.125, "ci_high": 0.5}
    for name in ("start", "iter-00", "iter-01/round-1"):
        (folder / name).mkdir(parents=True)
    (folder / "loop.yaml").write_text("env: airline-mini\nmodel: seed\nseed: 3\n")
    for number in range(2):
        at = folder / f"iter-0{number}"
        frame.filter(pl.col("trial") % 2 == number).write_parquet(at / "turns.parquet")
        shutil.copy(calibration, at / "calibration.yaml")
    of_round = calibration.read_text().replace("value: 1.0", "value: 0.5")
    (folder / "iter-01/round-1/calibration.yaml").write_text(of_round)
    evaluation = orjson.dumps(rates | {"episodes": 8, "tasks": 4})
    for place in ("start", "iter-01"):
        (folder / place / "eval.json").write_bytes(evaluation)
    lines = [
        {"iteration": 0, "misaligned": ["soft"], "gates": None, "restored": False, "verdicts": {}},
        {"iteration": 1, "misaligned": [], "gates": None, "restored": True, "verdicts": {}},
    ]
    (folder / "loop.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    (folder / "iter-01/rollouts.jsonl").symlink_to(TRACE)
    return folder


def test_a_loop(run: Cli, loop: Path) -> None:
    assert run("report", loop, "-q").code == 0
    twin = run("report", loop, "--json").json()
    text = (loop / PAGE).read_text(encoding="utf-8")
    cells = Page(text).cells
    assert cells["start held_out"] == cells["1 held_out"] == "25.0%"
    for row in twin["loop"]["iterations"]:
        number = row["iteration"]
        assert cells[f"{number} played"] == f"{row['played']['pass_rate']:.1%}"
        for tier, found in row["values"].items():
            value = signed(found["value"]) if found["value"] else "0"
            assert cells[f"{number} {tier}"] == value
    top = max(twin["loop"]["iterations"][0]["values"].items(), key=lambda item: item[1]["value"])
    assert twin["loop"]["iterations"][1]["values"][top[0]]["value"] == 0.5  # of its last round
    assert "restored the best policy" in text
    assert twin["conversations"]
    assert twin["loop"]["shown"] == "iter-01"
    assert twin["loop"]["settings"] == {"env": "airline-mini", "model": "seed", "seed": 3}


def test_an_iteration_that_only_fails_gives_way(run: Cli, loop: Path) -> None:
    """The pass rates tell of it; tiers are told apart where there is something to tell."""
    at = loop / "iter-01/turns.parquet"
    failed = [pl.lit(0.0).alias("outcome"), pl.lit(False).alias("success")]
    pl.read_parquet(at).with_columns(failed).write_parquet(at)
    twin = run("report", loop, "--traces", TRACE, "--json").json()
    assert twin["loop"]["shown"] == "iter-00"
    assert [row["played"]["pass_rate"] for row in twin["loop"]["iterations"]][1] == 0
    assert twin["summary"]["pass_rate"] > 0


@pytest.mark.parametrize(
    ("name", "text", "error"),
    [
        ("iter-01/eval.json", "{}", "is no output of irc-cli eval; run the loop again"),
        ("loop.jsonl", "[]", "is no log of a loop; run the loop again"),
    ],
)
def test_a_broken_loop(run: Cli, loop: Path, name: str, text: str, error: str) -> None:
    (loop / name).write_text(text)
    result = run("report", loop)
    assert (result.code, result.err) == (2, f"error: {loop / name}: {error}\n")


# Markdown


def test_markdown(run: Cli, turns: Path) -> None:
    twin = run("report", turns, "--json").json()
    lines = render_markdown(twin).splitlines()
    assert lines[0].startswith("### ")
    assert lines[2].startswith("**Next:** ")
    at = lines.index(next(line for line in lines if line.startswith("| tier |")))
    assert lines[at + 1] == "| --- | --: | --: | --: | --: | --: | --- | --- | --- |"
    for tier, line in zip(twin["tiers"], lines[at + 2 :], strict=False):
        cells = line.strip("| ").split(" | ")
        assert cells[0].replace("\\", "") == tier["tier"]
        assert cells[1:3] == [f"{tier['episodes']:,}", signed(tier["r"])]


@pytest.mark.parametrize("attack", ["a|b", "<img src=x>", "@team", "![x](http://y)", "a\nb", "`c`"])
def test_markdown_shows_names_as_they_are(attack: str) -> None:
    shown = plain(attack)
    assert "\n" not in shown
    for character in "|<@![`":
        assert not re.search(rf"(?<!\\){re.escape(character)}", shown)


def test_calibrate_writes_both(run: Cli, turns: Path, calibration: Path, tmp_path: Path) -> None:
    pages = ("--report", "page.html", "--markdown", "page.md")
    assert run("calibrate", turns, "-q", *pages, "--previous", calibration).code == 0
    assert run("report", turns, "-o", "other.html", "-q").code == 0
    twin = run("report", turns, "--json").json()
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert text.startswith(render_markdown(twin).rstrip("\n"))
    assert text.endswith(
        "No tier changed since the earlier calibration; 0 of 887 advantages change sign.\n"
    )
    page, other = ((tmp_path / name).read_text() for name in ("page.html", "other.html"))
    assert "Since the earlier calibration" in page
    assert Page(page).cells == Page(other).cells
    again = run("calibrate", turns, "-q", *pages)
    assert again.err == "error: page.html: exists already; pass --force to replace it\n"


@pytest.mark.parametrize("option", ["--report", "--markdown"])
def test_sums_make_no_report(run: Cli, turns: Path, option: str, tmp_path: Path) -> None:
    result = run("calibrate", turns, "--stream", option, "page")
    assert result.code == 2
    assert result.err == (
        f"error: --stream: sums hold no turns for {option}; "
        "calibrate the turns themselves for that\n"
    )
    assert not (tmp_path / "page").exists()


def test_packing_is_lazy_about_what_is_not_there() -> None:
    assert list(Packing({"episodes": []}, None).chunks()) == []
    assert unpacked(packed({"a": [1, "\u00e9"]})) == {"a": [1, "\u00e9"]}
