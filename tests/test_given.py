"""What the user says of records: where fields are, gold actions by task, the score that counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.errors import InputError
from stages.traces import open_trace
from stages.traces.given import NOTHING, Given, at, read_gold, read_map
from tests.conftest import Cli

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
RECORD: dict[str, Any] = {
    "dialog": {"turns": TALK},
    "info": {"reward": 0.5, "a.b": {"c": 1}},
    "task": {"key": "k7"},
    "parts": [{"x": 1}, {"x": 2}],
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("info.reward", 0.5),
        ("info.a.b.c", 1),  # a key may hold dots
        ("parts.1.x", 2),
        ("parts.-1.x", 2),
        ("parts.2.x", NOTHING),
        ("parts.x", NOTHING),
        ("info.reward.more", NOTHING),
        ("none", NOTHING),
    ],
)
def test_a_path_leads_to_a_value(path: str, value: Any) -> None:
    assert at(RECORD, path) == value


def test_fields_are_where_the_user_says(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    file.write_text(json.dumps(RECORD) + "\n")
    fields = read_map(["messages=dialog.turns,outcome=info.reward", "task_id = task.key"])
    given = Given(fields)
    [episode] = open_trace(str(file), given=given)
    assert (episode.task_id, episode.outcome, len(episode.turns)) == ("k7", 0.5, 1)
    given.check([str(file)], None)


def test_what_is_named_and_missing_is_unknown() -> None:
    clean = {"messages": TALK, "outcome": 1.0, "reward": 1.0, "success": True}
    given = Given({"outcome": "judge.score"}).apply(clean, clean)
    assert given["outcome"] is None
    assert not {"reward", "success"} & given.keys()


def test_one_of_several_scores_is_the_outcome() -> None:
    clean = {"messages": TALK, "rewards": {"right": 1.0, "polite": 0.0}, "reward": 0.7}
    assert Given(score="polite").apply(clean, clean)["outcome"] == 0.0
    assert Given().apply(clean, clean)["reward"] == 0.7  # the format says itself which counts
    only = {"messages": TALK, "rewards": {"right": 1.0}}
    assert Given().apply(only, only)["outcome"] == 1.0


ACTIONS = [{"name": "look", "arguments": {"at": 1}}]
GOLD: dict[str, Any] = {
    "by id": {"7": ACTIONS},
    "records": [{"task_id": 7, "gold_actions": ACTIONS}],
    "tau-bench": [{"instruction": "x", "actions": ACTIONS, "id": 7}],
    "tau2": [{"id": "7", "evaluation_criteria": {"actions": ACTIONS}}],
    "tau2 results": {"tasks": [{"id": "7", "evaluation_criteria": {"actions": ACTIONS}}]},
}


@pytest.mark.parametrize("form", list(GOLD))
@pytest.mark.parametrize("suffix", ["json", "yaml", "jsonl"])
def test_gold_actions_are_read_in_every_form(tmp_path: Path, form: str, suffix: str) -> None:
    document, file = GOLD[form], tmp_path / f"gold.{suffix}"
    lines = document if isinstance(document, list) else [document]
    whole = json.dumps(document)
    file.write_text("\n".join(map(json.dumps, lines)) if suffix == "jsonl" else whole)
    gold = read_gold(str(file))
    assert [(task, action.name) for task, actions in gold.items() for action in actions] == [
        ("7", "look")
    ]
    clean = {"messages": TALK, "task_id": 7.0}
    assert Given(gold=gold).apply(clean, clean)["gold_actions"] == gold["7"]


def test_a_task_with_two_golds_is_refused(tmp_path: Path) -> None:
    other = [{"name": "look", "arguments": {}}]
    file = tmp_path / "gold.json"
    records = [{"task_id": 7, "gold_actions": gold} for gold in (ACTIONS, other)]
    file.write_text(json.dumps(records))
    with pytest.raises(InputError, match="task '7' stands there twice"):
        read_gold(str(file))


def test_gold_by_file_gives_the_tiers_of_gold_in_the_trace(
    run: Cli, example: Path, tmp_path: Path
) -> None:
    """Taken out of the records and given back by --map and --gold, nothing changes."""
    records = [json.loads(line) for line in example.read_text().splitlines()]
    gold = {record["task_id"]: record["gold_actions"] for record in records}
    for record in records:
        record |= {"info": {"won": record.pop("outcome")}}
        del record["gold_actions"]
    bare, file = tmp_path / f"bare-{example.name}", tmp_path / "gold.json"
    bare.write_text("\n".join(map(json.dumps, records)))
    file.write_text(json.dumps(gold))
    named = ["--map", "outcome=info.won", "--gold", str(file)]
    assert run("score", str(bare), *named, "-o", "named.parquet", "-q")[0] == 0
    assert run("score", str(example), "-o", "whole.parquet", "-q")[0] == 0
    columns = pl.exclude("source", "policy", "group_id")
    both = [pl.read_parquet(name).select(columns) for name in ("named.parquet", "whole.parquet")]
    assert both[0].equals(both[1])


def test_without_gold_actions_tiers_need_none(run: Cli, example: Path, tmp_path: Path) -> None:
    records = [json.loads(line) for line in example.read_text().splitlines()]
    for record in records:
        del record["gold_actions"]
    bare = tmp_path / "bare.jsonl"
    bare.write_text("\n".join(map(json.dumps, records)))
    code, out, _ = run("score", str(bare), "-o", "turns.parquet", "--json")
    told = json.loads(out)
    assert code == 0
    assert set(told["tiers"]) <= {
        *["write", "handoff", "read", "error", "duplicate", "unknown_tool", "message"]
    }
    lacking = "gold_write, gold_read, gold_other, soft"
    assert told["notes"][f"without gold actions (--gold FILE) no turn is of: {lacking}"] > 0
    rewards = pl.read_parquet("turns.parquet").group_by("tier").agg(pl.col("reward").unique())
    assert dict(rewards.iter_rows())["read"] == [0.3]
    assert run("calibrate", "turns.parquet")[0] == 0
    # Tiers that are named stay, without those that need gold actions.
    code, out, _ = run("score", str(bare), "--tiers", "extended", "--json")
    assert "state_change" in json.loads(out)["tiers"]
    assert Counter(json.loads(out)["tiers"])["gold_write"] == 0
