"""`irc-cli report`: the document, and the page as a file, without a browser."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irc_cli.page.markdown import plain, render_markdown
from irc_cli.page.render import Packing, packed, render_page
from irc_cli.page.visible import visible
from irc_cli.report import PAGE, Asked, known_of, read_conversations, scored_from
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.sums import lay_out, sum_turns
from stages.report import report, with_conversations
from stages.reporting.conversations import Conversations, written
from stages.reporting.sample import sampled
from stages.reporting.siblings import Parting, parting, partings
from stages.reporting.tasks import STATES, episode_rows, leverages, natural, refs, task_rows
from stages.tiers.file import load_tiers
from tests.builders import FEW, SHOP, Tiered, calibrated, call, episode, gold, turn_frame
from tests.conftest import Cli
from tests.report_pages import ATTACKS, hostile_episodes, write_rows

MIXED = [
    Tiered("t1", 1, ["read", "buy"]),
    Tiered("t1", 0, ["read", "slip", "slip"]),
    Tiered("t2", 1, ["read"]),
    Tiered("t2", 0, ["slip", "buy"]),
    Tiered("t3", 0, ["read", "slip"]),
    Tiered("t3", 0, ["read"]),
    Tiered("t4", 1, ["buy"]),
    Tiered("t4", None, ["read"], status="error"),
]


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


# The document


def test_numbers_are_those_of_calibrate(run: Cli, turns: Path) -> None:
    twin, other = run("report", turns, "--json").json(), run("calibrate", turns, "--json").json()
    by_tier = {tier["tier"]: tier for tier in other["tiers"]}
    assert {tier["tier"] for tier in twin["tiers"]} == set(by_tier)
    for tier in twin["tiers"]:
        assert {name: tier[name] for name in by_tier[tier["tier"]]} == by_tier[tier["tier"]]
    for side in ("before", "after"):
        assert twin["direction"][side]["direction"] == other[side]["direction"]
        assert twin["direction"][side]["gradient_mass"] == other[side]["gradient_mass"]
    assert twin["verdict"]["objections"] == other["objections"]
    assert twin["summary"]["pass_rate"] == other["pass_rate"]
    assert twin["summary"]["mixed_tasks"] == other["mixed_tasks"]
    assert twin["summary"]["masked"] == 3  # the example's episodes that a time-out ended
    masked = [
        row["task"] for row in twin["tasks"] for one in row["episodes"] if one["state"] == "masked"
    ]
    assert masked == ["airline/bags-1", "airline/change-2", "airline/refuse-2"]


def test_turns_have_the_advantages_of_the_table(run: Cli, turns: Path, calibration: Path) -> None:
    twin = run("report", turns, "--calibration", calibration, "--json").json()
    table = pl.read_parquet(calibration.with_name("advantages.parquet"))
    names = ("advantage", "return_part", "outcome_part")
    expected = {
        (row["episode_id"], row["turn"]): [row["reward"], *(row[name] for name in names)]
        for row in table.iter_rows(named=True)
    }
    shown = {
        (row["id"], turn["turn"]): [turn["value"], *(turn[name] for name in names)]
        for row in twin["episodes"]
        for turn in row["turns"]
        if row["state"] != "masked"
    }
    assert shown == expected


def test_a_recorded_calibration_is_read_whole(run: Cli, turns: Path, calibration: Path) -> None:
    """The page of a calibration's file is that of the calibration made anew."""
    made, read = (
        run("report", turns, "--json", *given).json()
        for given in ((), ("--calibration", calibration))
    )
    assert read == made


def test_other_turns_than_the_calibrations_are_noted(
    run: Cli, turns: Path, calibration: Path, tmp_path: Path
) -> None:
    frame = pl.read_parquet(turns)
    frame.filter(pl.col("trial") < 4).write_parquet(tmp_path / "half.parquet")
    twin = run("report", "half.parquet", "--calibration", calibration, "--json").json()
    assert next(iter(twin["notes"])) == "turns that the calibration was not made from"
    assert (twin["summary"]["calibrated_on"], twin["summary"]["counted"]) == (192, 96)
    assert not twin["conversations"]


def test_states_of_episodes() -> None:
    rows = [
        Tiered("t", 1, ["a"]),
        Tiered("t", 0, ["a"]),
        Tiered("t", 0, ["a"], status="truncated"),
        Tiered("t", 1, ["a"], status="truncated"),
        Tiered("t", 0, ["a"], status="error"),
        Tiered("t", None, ["a"]),
    ]
    states = episode_rows(turn_frame(rows))["state"].to_list()
    assert states == ["passed", "failed", "truncated", "passed", "masked", "masked"]
    assert set(states) == set(STATES)


def test_what_tasks_teach() -> None:
    episodes = episode_rows(
        turn_frame(
            [
                *MIXED,
                Tiered("t5", None, ["a"]),
                Tiered("t6", 1, ["a"], group="one"),
                Tiered("t6", 0, ["a"], group="two"),
            ]
        )
    )
    rows = task_rows(episodes, {"e0"}, {})
    assert {row["task"]: row["teaches"] for row in rows} == {
        "t1": "mixed",
        "t2": "mixed",
        "t3": "all fail",
        "t4": "all pass",
        "t5": "nothing counts",
        "t6": "no group is mixed",
    }
    assert [row["shown"] for row in rows[0]["episodes"]] == [True, False]
    assert (rows[3]["counted"], rows[3]["passed"], rows[4]["pass_rate"]) == (1, 1, None)


def test_natural_order() -> None:
    names = ["a/10", "a/9", "a/9b", "b", "10", "9"]
    assert sorted(names, key=natural) == ["9", "10", "a/9", "a/9b", "a/10", "b"]


def test_refs_are_unique_and_can_stand_in_links() -> None:
    episodes = pl.DataFrame(
        {
            "episode_id": ["e1", "e2", "e3"],
            "task_id": ["air/5 #2", "air/5 #2", "x"],
            "trial": [1, 1, None],
        }
    )
    assert refs(episodes) == {"e1": "air%2F5%20%232/1", "e2": "air%2F5%20%232/1~2", "e3": "x/0"}


@pytest.mark.parametrize("config", [FEW, CalibrateConfig(resamples=200, adjust="none")])
def test_leverage_is_what_calibration_without_the_task_loses(config: CalibrateConfig) -> None:
    rng = np.random.default_rng(0)
    episodes = [
        Tiered(f"t{i % 6}", int(rng.random() < 0.5), rng.choice(["a", "b", "c"], 4).tolist())
        for i in range(48)
    ]
    frame = turn_frame(episodes)
    result = calibrated(frame, config)
    summed = sum_turns(frame.lazy(), config.measure, "turns")
    names = summed.sums["task_id"].unique().sort().to_list()
    moved = leverages(lay_out(summed.sums, config.measure), names, result, config)
    for task in names:
        without = calibrated(frame.filter(pl.col("task_id") != task), config)
        for tier, less in zip(result.tiers, without.tiers, strict=True):
            r, r_without = (
                row.excess if config.adjust == "length" else row.r_within for row in (tier, less)
            )
            assert r is not None
            assert r_without is not None
            assert moved[task].get(tier.tier, 0.0) == pytest.approx(r - r_without, abs=5e-4)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=40),
    st.integers(1, 40),
)
def test_a_sample_is_of_each_task_and_state(rows: list[tuple[int, bool]], most: int) -> None:
    frame = turn_frame([Tiered(f"t{task}", float(won), ["a"]) for task, won in rows])
    episodes = episode_rows(frame)
    chosen = sampled(episodes, most)
    assert len(chosen) == min(most, len(rows))
    assert chosen == [name for name in episodes["episode_id"] if name in set(chosen)]
    shown = episodes.filter(pl.col("episode_id").is_in(chosen))
    sizes = dict(episodes["task_id"].value_counts().iter_rows())
    taken = dict.fromkeys(sizes, 0) | dict(shown["task_id"].value_counts().iter_rows())
    # No task shows two more than another that still has episodes to show.
    spare = [taken[task] for task in sizes if taken[task] < sizes[task]]
    assert not spare or max(taken.values()) <= min(spare) + 1
    if most >= 2 * len(sizes):
        pairs = set(episodes.select("task_id", "state").iter_rows())
        assert set(shown.select("task_id", "state").iter_rows()) == pairs


def track(*keys: str) -> tuple[tuple[int, int, str], ...]:
    return tuple((i, 0, key) for i, key in enumerate(keys))


def test_where_trials_part() -> None:
    assert parting("s", track("a", "b", "c"), track("a", "x")) == Parting("s", 1, (1, 0), (1, 0))
    assert parting("s", track("a"), track("a", "b")) == Parting("s", 1, None, (1, 0))
    assert parting("s", (), ()) == Parting("s", 0, None, None)


def test_a_sibling_has_the_other_outcome_and_goes_furthest() -> None:
    episodes = episode_rows(turn_frame([Tiered("t", won, ["a"]) for won in (0, 1, 1, 0)]))
    tracks = {
        "e0": track("a", "b", "c"),
        "e1": track("a", "x"),
        "e2": track("a", "b", "y"),
        "e3": track("a", "b", "c"),
    }
    met = partings(episodes, tracks)
    assert {name: found.sibling for name, found in met.items()} == {
        "e0": "e2",
        "e1": "e0",
        "e2": "e0",
        "e3": "e2",
    }


def test_differences_name_the_rule_that_decided() -> None:
    shown = Conversations(load_tiers("extended"))
    calls = [call("buy", item="hat", n=2), call("buy", item="cap"), call("look")]
    shown.add(episode(calls, expected=[gold("buy", item="hat", n="2.0")], outcome=0.0), SHOP)
    conversation = shown["t:0"]
    first, second, third = conversation["entries"][-1]["calls"]
    assert (first["match"], first["gold"]) == ("full", 0)
    assert second["differences"] == [
        ["$.item", "hat", "cap", "string folded"],
        ["$.n", "2.0", "null", "missing key"],
    ]
    assert "differences" not in third
    assert conversation["gold"] == [
        {"name": "buy", "arguments": '{\n  "item": "hat",\n  "n": "2.0"\n}', "met": [0, 0, "full"]}
    ]
    assert [key for *_, key in shown.tracks["t:0"]] == [
        row["key"] for row in (first, second, third)
    ]


def test_an_example_parts_at_the_tier(run: Cli, turns: Path) -> None:
    """Of a tier with a value, the example shows an episode with it beside one without."""
    twin = run("report", turns, "--json").json()
    rows = {row["id"]: row for row in twin["episodes"]}
    told = [tier for tier in twin["tiers"] if tier["value"]]
    assert told
    for tier in told:
        for pair in tier["examples"]:
            one, two = rows[pair["episode"]["id"]], rows[pair["sibling"]["id"]]
            assert one["group"] == two["group"]
            assert one["state"] == ("passed" if tier["value"] > 0 else "failed")
            assert tier["tier"] in [turn["tier"] for turn in one["turns"]]
            assert tier["tier"] not in [turn["tier"] for turn in two["turns"]]
            calls = [[c["key"] for c in pair[side]["calls"]] for side in ("episode", "sibling")]
            shared = pair["shared"]
            assert calls[0][:shared] == calls[1][:shared]
            assert calls[0][shared : shared + 1] != calls[1][shared : shared + 1]
    assert any(tier["examples"] for tier in told)


def test_counts_of_a_tier(tmp_path: Path, run: Cli) -> None:
    turn_frame(MIXED).write_parquet(tmp_path / "turns.parquet")
    tiers = {row["tier"]: row for row in run("report", "turns.parquet", "--json").json()["tiers"]}
    assert tiers["slip"]["counts"] == {
        "with": {"episodes": 3, "passed": 0},
        "without": {"episodes": 4, "passed": 3},
        "within": {
            "with": {"episodes": 3, "passed": 0},
            "without": {"episodes": 3, "passed": 2},
        },
    }


def test_panel_counts_groups(tmp_path: Path) -> None:
    turn_frame(MIXED).write_parquet(tmp_path / "turns.parquet")
    known, _ = known_of([str(tmp_path / "turns.parquet")], None, 0)
    panel = report(known, "", 100)["panel"]
    groups = {"groups": 4, "single": 1, "all_pass": 0, "all_fail": 1, "mixed": 2}
    assert {name: panel["groups"][name] for name in groups} == groups
    assert sum(row["episodes"] for row in panel["by_length"]) == 7
    assert [row["turns"] for row in panel["by_turn"]] == [7, 4, 1]


@pytest.mark.parametrize(
    ("value", "text"),
    [('{"a":1}', '{\n  "a": 1\n}'), ("not json", "not json"), ({"b": None}, '{\n  "b": null\n}')],
)
def test_arguments_as_a_person_reads_them(value: Any, text: str) -> None:
    assert written(value) == text


# The page


def made_of(turns: Path) -> tuple[dict[str, Any], Conversations]:
    """The document of some turns whose traces are at hand, and its conversations."""
    known, _ = known_of([str(turns)], None, 0)
    document = report(known, "train.", 1000)
    asked = Asked(None, None, skip_bad=False, quiet=True)
    conversations, _ = read_conversations(document, scored_from([str(turns)]), asked)
    assert conversations
    return with_conversations(document, known, conversations), conversations


def document_of(turns: Path) -> dict[str, Any]:
    """The document of some turns whose traces are at hand."""
    return made_of(turns)[0]


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
            ["failures.parquet"],
            "failures.parquet: all episodes are failures; collect episodes of both kinds: "
            "nothing tells them apart yet",
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
    result = run("report", *(str(turns) if a == "TURNS" else a for a in arguments))
    assert result.code == 2
    assert result.err == f"error: {error}\n".replace("TURNS", str(turns))
    assert not (tmp_path / PAGE).exists()


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
