"""`irc-cli report`: the document, which `--json` prints and the page shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irc_cli.report import known_of
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.sums import lay_out, sum_turns
from stages.report import report
from stages.reporting.conversations import Conversations, written
from stages.reporting.sample import sampled
from stages.reporting.siblings import Parting, parting, partings
from stages.reporting.tasks import STATES, episode_rows, leverages, natural, refs, task_rows
from stages.tiers.file import load_tiers
from tests.builders import FEW, SHOP, Tiered, calibrated, call, episode, gold, turn_frame
from tests.conftest import Cli

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
