from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from examples.trace.generate import TRACE
from stages.compare_args import Comparison
from stages.core.arguments import MODES, ToolRules
from stages.tables.artifacts import PAIRS
from stages.tables.table_file import read_table, write_table
from stages.tiers.domains import Domain, find_domain
from stages.traces import Call, Episode, GoldAction, open_trace
from tests.builders import SHARED, SHOP, call, episode, gold, needs_shared, written


def compared(*episodes: Episode, tool_rules: bool = False, domain: Domain = SHOP) -> Comparison:
    comparison = Comparison(tool_rules=tool_rules)
    comparison.add(episodes, domain)
    return comparison


def traced(path: Path) -> Comparison:
    episodes = list(open_trace(str(path)))
    names = {one.name for e in episodes for turn in e.turns for one in turn.calls}
    return compared(*episodes, domain=find_domain(None, names, None))


def test_every_call_stands_beside_its_best_gold_action(tmp_path: Path) -> None:
    one = episode(
        [call("look", id=1)],
        [],
        [written("buy", '{"id": "A",  "n": 2}'), call("ship", id=1)],
        expected=[gold("ship", id=9), gold("buy", id="a", n=3), gold("buy", id="a", n=2.0)],
    )
    frame = compared(one).frame()
    assert frame.schema == PAIRS.columns
    assert frame.select("turn", "call", "name", "arguments", "gold", "gold_arguments").rows() == [
        (0, 0, "look", '{"id":1}', None, None),
        (2, 0, "buy", '{"id": "A",  "n": 2}', 2, '{"id":"a","n":2.0}'),
        (2, 1, "ship", '{"id":1}', 0, '{"id":9}'),
    ]
    assert frame.select(*MODES, "match_share").rows() == [
        (False, False, False, False, 0.0),
        (False, True, False, True, 1.0),
        (False, False, False, False, 0.0),
    ]
    path = str(tmp_path / "pairs.parquet")
    write_table(PAIRS, frame, path, {}, force=False)
    assert read_table(PAIRS, path).equals(frame)


def test_the_summary_counts_calls() -> None:
    one = episode(
        [call("buy", id=1), written("buy", "{'id': 1}"), written("buy", '{"id": '), call("look")],
        [call("buy", id="1"), call("buy", id=1, note="x")],
        expected=[gold("buy", id=1)],
    )
    left_out = episode([call("buy", id=1)], task="u", status="error", expected=[gold("buy", id=1)])
    summary = compared(one, left_out).summary()
    changed = summary.pop("changed")
    assert summary == {
        "episodes": 1,
        "calls": 6,
        "same_name_calls": 5,
        "unparseable": 1,
        "python_repr": 1,
        "matches": {"exact": 2, "deep": 3, "tau2": 2, "bfcl": 2},
    }
    assert changed == [
        {
            "from": "exact none",
            "to": "deep full",
            "calls": 1,
            "examples": [{"name": "buy", "arguments": '{"id":"1"}', "gold": '{"id":1}'}],
        }
    ]


def test_changes_keep_three_short_examples() -> None:
    long = "x" * 1000
    one = episode(
        [call("buy", note=long.upper()) for _ in range(5)], expected=[gold("buy", note=long)]
    )
    changes = {(c["from"], c["to"]): c for c in compared(one).summary()["changed"]}
    deep = changes["exact none", "deep full"]
    assert deep["calls"] == 5
    assert len(deep["examples"]) == 3
    assert {len(text) for text in deep["examples"][0].values()} == {len("buy"), 300}


def test_rules_of_the_tools_are_only_used_where_asked_for() -> None:
    domain = Domain("d", SHOP.kinds, {"buy": ToolRules(ignore=frozenset({"note"}))}, False)
    one = episode([call("buy", id=1, note="x")], expected=[gold("buy", id=1, note="y")])
    matches = [
        compared(one, tool_rules=rules, domain=domain).summary()["matches"]["deep"]
        for rules in (False, True)
    ]
    assert matches == [0, 1]


def test_gold_actions_of_the_user_are_not_compared() -> None:
    one = episode([call("buy", id=1)], expected=[gold("buy", requestor="user", id=1)])
    assert compared(one).summary()["same_name_calls"] == 0
    assert compared(episode([call("buy", id=1)], expected=None)).frame()["gold"].to_list() == [None]


def test_traces_add_up() -> None:
    one = episode([call("buy", id=1)], expected=[gold("buy", id=1)])
    both = compared(one)
    both.add([episode([call("buy", id=1)], expected=[gold("buy", id=2)], task="u")], SHOP)
    assert both.summary()["calls"] == both.frame().height == 2
    assert both.frame()["exact"].to_list() == [True, False]


@pytest.mark.parametrize("depth", [100, 400, 900])
def test_arguments_that_orjson_does_not_write(depth: int) -> None:
    nested: Any = {}
    for _ in range(depth):
        nested = {"a": nested}
    one = episode([Call("buy", nested)], expected=[GoldAction("buy", nested)])
    assert compared(one).summary()["matches"] == dict.fromkeys(MODES, 1)
    big = episode([call("buy", n=2**70)], expected=[gold("buy", n=2**70 + 1)])
    assert compared(big).summary()["matches"] == dict.fromkeys(MODES, 0)


# --- verdicts that tau2-bench recorded ------------------------------------------------------------


def test_recorded_verdicts_are_checked_against_the_calls_of_both() -> None:
    one = episode([call("buy", id=1)], [call("ship", id=2)])
    one.user_calls = [call("look", id=3)]
    named = GoldAction("buy", {"id": 1, "note": "x"}, compare_args=("id",))
    one.checks = [
        (gold("buy", id=1), True),
        (gold("buy", id="1"), False),
        (gold("look", id=3, requestor="user"), True),
        (gold("ship", id=1), True),  # wrongly recorded
        (named, True),
        (gold("leave"), False),
    ]
    assert compared(one).summary()["recorded"] == {"agree": 5, "disagree": 1}
    one.checks = []
    assert "recorded" not in compared(one).summary()


@needs_shared
@pytest.mark.parametrize("name", ["airline-grok-4", "retail-gpt-4.1", "telecom-grok-3"])
def test_the_tau2_mode_agrees_with_every_recorded_verdict(name: str) -> None:
    path = SHARED / f"data/tau2-traces/{name}.json.gz"
    simulations = orjson.loads(gzip.decompress(path.read_bytes()))["simulations"]
    checks = sum(len(one["reward_info"]["action_checks"] or ()) for one in simulations)
    assert checks >= 10
    assert traced(path).summary()["recorded"] == {"agree": checks, "disagree": 0}


@needs_shared
def test_deep_adds_nothing_on_the_reference_trace() -> None:
    # docs/method.md, "Reference figures": 397 of 1,164 calls are gold, and `deep` finds no more.
    summary = traced(SHARED / "data/tau-bench/gpt-4o-airline.json").summary()
    assert (summary["calls"], summary["unparseable"]) == (1164, 0)
    assert summary["matches"] == dict.fromkeys(MODES, 397)
    assert summary["changed"] == []


def test_the_example_has_calls_that_only_deep_finds() -> None:
    comparison = traced(TRACE)
    summary = comparison.summary()
    calls = sum(
        len(message.get("tool_calls", ()))
        for line in TRACE.read_bytes().splitlines()
        for message in orjson.loads(line)["messages"]
    )
    assert summary["calls"] == calls
    assert summary["python_repr"] >= 1
    assert summary["matches"]["deep"] > summary["matches"]["exact"]
    frame = comparison.frame()
    for mode in MODES:
        assert int(frame[mode].sum()) == summary["matches"][mode]
