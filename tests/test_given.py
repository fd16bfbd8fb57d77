"""What the user says of records: where fields are, gold actions by task, the score that counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from stages.errors import InputError
from stages.tables.table_file import made_by
from stages.traces import open_trace
from stages.traces.fields import BadItemError
from stages.traces.given import NOTHING, Given, at, read_gold, read_map
from tests.conftest import Cli

FORMS = "give {task_id: [actions]}, or records with 'task_id' and 'gold_actions'"
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
RECORD: dict[str, Any] = {
    "dialog": {"turns": TALK},
    "info": {"reward": 0.5, "a.b": {"c": 1}},
    "task": {"key": "k7"},
    "parts": [{"x": 1}, {"x": 2}],
    "text": '{"judge": [0.25]}',
    "broken": '{"judge": ',
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
        ("text.judge.0", 0.25),  # JSON text, as in flat columns
        ("broken.judge", NOTHING),
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
    given.check([str(file)])


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
    elsewhere = {"messages": TALK, "judges": {"right": 1.0, "polite": 0.0, "why": "x"}}
    given = Given({"rewards": "judges"}, score="polite")
    assert given.apply(elsewhere, elsewhere)["outcome"] == 0.0
    crashed = clean | {"reward": None, "status": "error"}
    assert "outcome" not in Given().apply(crashed, crashed)  # nobody needs to say which


@pytest.mark.parametrize(
    ("record", "given", "line"),
    [
        (
            {"rewards": {"right": 1, "polite": 0}},
            Given(),
            "has several scores: 'right', 'polite'; name the outcome by --score NAME",
        ),
        (
            {"rewards": {"right": 5}},
            Given(score="right"),
            "'right' is 5, outside [0, 1]; rescale it so that 1 is a full success, "
            "or name another field by --map outcome=FIELD",
        ),
        (
            {"task_id": ["a"]},
            Given({"task_id": "task_id"}),
            "'task_id' is ['a'], no value for 'task_id'; "
            "name a text or a number by --map task_id=PATH",
        ),
    ],
)
def test_records_that_do_not_fit(record: dict[str, Any], given: Given, line: str) -> None:
    clean = {"messages": TALK} | record
    with pytest.raises(BadItemError) as error:
        given.apply(clean, clean)
    assert f"{error.value.what}; {error.value.todo}" == line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[1]", "gold.json:task 1: has no gold actions; " + FORMS),
        ('"text"', "gold.json:task 1: has no gold actions; " + FORMS),
        ("{}", "gold.json: holds no gold actions; " + FORMS),
        ('{"a": 1}', "gold.json: 'a' has no list of actions; " + FORMS),
        (
            '{"a": [{"nme": "x"}]}',
            "gold.json:task 1: an entry of 'gold_actions' is a call without a name: "
            "{'nme': 'x'}; give {name, arguments}",
        ),
        (
            '[{"id": "1", "evaluation_criteria": 3}]',
            "gold.json:task 1: 'gold_actions' is not a list; give a list of {name, arguments}",
        ),
        ('{"a": ', "gold.json:byte 6: the JSON is cut off; give JSON, JSON lines or YAML"),
    ],
)
def test_files_without_gold_actions_are_refused(
    text: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gold.json").write_text(text)
    with pytest.raises(InputError) as error:
        read_gold("gold.json")
    assert str(error.value) == line


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
    with pytest.raises(InputError, match="task '7' occurs twice"):
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


@pytest.fixture
def bare(example: Path, tmp_path: Path) -> list[str]:
    """The example with its outcomes elsewhere and its gold actions in a file; how to read it."""
    records = [json.loads(line) for line in example.read_text().splitlines()]
    gold = {record["task_id"]: record.pop("gold_actions") for record in records}
    for record in records:
        record |= {"info": {"won": record.pop("outcome")}}
    (tmp_path / example.name).write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    return [example.name, "--map", "outcome=info.won", "--gold", "gold.json"]


def test_every_command_takes_what_is_named(run: Cli, example: Path, bare: list[str]) -> None:
    for command in (["eval"], ["compare-args"], ["export", "sft"], ["export", "trl"]):
        named, whole = run(*command, *bare, "--json"), run(*command, example, "--json")
        assert (named.code, named.err) == (0, "")
        told = {key: value for key, value in named.json().items() if key != "notes"}
        assert told.items() <= whole.json().items(), command


def test_artifacts_record_what_is_named(run: Cli, bare: list[str]) -> None:
    for command in ("eval", "compare-args", "score"):
        assert run(command, *bare, "-o", f"{command}.out", "-q").code == 0
    written = [json.loads(Path("eval.out").read_text())["made_by"]]
    written += [made_by(f"{command}.out") for command in ("compare-args", "score")]
    for made in written:
        assert {"outcome=info.won"} == {*made["settings"]["map"]}
        assert [row["path"] for row in made["inputs"]][::-1] == [bare[0], "gold.json"]


def test_a_report_reads_traces_as_they_were_scored(run: Cli, bare: list[str]) -> None:
    assert run("score", *bare, "-o", "turns.parquet", "-q").code == 0
    told = [
        run("report", "turns.parquet", *options, "-o", f"{number}.html", "-q")
        for number, options in enumerate(([], ["--traces", *bare]))
    ]
    assert [result.code for result in told] == [0, 0]
    pages = [Path(f"{number}.html").read_text() for number in range(2)]
    assert pages[0] == pages[1]
    Path("gold.json").unlink()  # the conversations have gold actions no more, so none are shown
    told = [
        run("report", "turns.parquet", "--json"),
        run("report", "turns.parquet", "--traces", bare[0]),
    ]
    assert "no conversations, as their traces are not at hand (--traces)" in told[0].json()["notes"]
    assert told[1][::2] == (2, "error: gold.json: no such file; check the path\n")


def test_a_config_names_fields_too(run: Cli, bare: list[str]) -> None:
    Path("score.yaml").write_text("map: [outcome=info.won]\ngold: gold.json\n")
    told = [
        run("score", bare[0], "--config", "score.yaml", "--json"),
        run("score", *bare, "--json"),
    ]
    assert told[0].json() == told[1].json()


@pytest.mark.parametrize("option", [["--map", "outcome=a"], ["--gold", "g.json"], ["--score", "a"]])
def test_played_episodes_need_no_naming(run: Cli, option: list[str]) -> None:
    result = run("eval", "--env", "airline-mini", "--policy", "expert", *option)
    line = f"error: {option[0]}: does nothing for played episodes; leave it out\n"
    assert result[::2] == (2, line)


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
    # The calibration goes back into `score`, which takes its tiers again.
    assert run("calibrate", "turns.parquet", "-o", "calibration.yaml", "-q").code == 0
    again = run("score", str(bare), "--rewards", "calibration.yaml", "--json").json()
    assert again["tiers"] == told["tiers"]
    # Tiers that are named stay, without those that need gold actions.
    code, out, _ = run("score", str(bare), "--tiers", "extended", "--json")
    assert "state_change" in json.loads(out)["tiers"]
    assert Counter(json.loads(out)["tiers"])["gold_write"] == 0
