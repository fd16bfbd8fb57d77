"""What `irc-cli export` writes; test_exports_trl.py has other libraries read it."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import polars as pl
import pytest

from irc_cli.export import FORMATS
from irc_cli.scorer import score
from irc_cli.trl_reward import reward_function
from stages.core.payment import PAYS
from stages.exports.preferences import preferences
from stages.messages.message import without_kind
from stages.tables.artifacts import ADVANTAGES, SEQUENCES, TOKENS, TURNS
from stages.tables.files import digest
from stages.tables.table_file import read_table, write_table
from tests.builders import Tiered, turn_frame
from tests.conftest import Cli, exit_code

LOOK: dict[str, Any] = {"name": "look", "parameters": {"type": "object"}}
TOOL = {"type": "function", "function": LOOK}


class Files(NamedTuple):
    rollouts: Path
    turns: Path

    @property
    def export(self) -> tuple[str | Path, ...]:
        """The command that exports their tokens."""
        return ("export", "tokens", self.rollouts, "--turns", self.turns)


@pytest.fixture(scope="module")
def airline(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Episodes of a slipping expert, without tokens."""
    folder = tmp_path_factory.mktemp("airline")
    rollouts, turns = folder / "rollouts.jsonl", folder / "turns.parquet"
    play = ("rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.24")
    assert exit_code([*play, "--max-tasks", "3", "--group-size", "8", "-o", str(rollouts)]) == 0
    assert exit_code(["score", str(rollouts), "-o", str(turns), "--quiet"]) == 0
    return Files(rollouts, turns)


def lines(path: Path | str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text, "n_tokens": 3}


def asks(call_id: str = "call_1", arguments: str = '{"id": 7}') -> dict[str, Any]:
    function = {"name": "look", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def answers(call_id: str = "call_1", text: str = "seven") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": text}


def write(rows: Sequence[dict[str, Any]], path: str = "talks.jsonl") -> str:
    Path(path).write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


# --- every format ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_has_the_shared_options(run: Cli, name: str) -> None:
    shown = run("export", name, "--help").out.decode()
    for option in ("--out", "--json", "--quiet", "--force", "--seed", "--config", "Example:"):
        assert option in shown


def test_formats_are_named_where_none_is_given(run: Cli) -> None:
    ended = run("export")
    assert ended.code == 2
    assert all(f" {name} ".encode() in ended.out for name in FORMATS)


def test_formats_complete(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_IRC_CLI_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "irc-cli export t")
    monkeypatch.setenv("COMP_CWORD", "2")
    assert run().out.decode().split() == ["trl", "tokens"]


def test_lines_have_their_lineage_beside_them(run: Cli, airline: Files) -> None:
    assert run("export", "sft", airline.rollouts, "-o", "sft.jsonl", "--seed", "5").code == 0
    made = orjson.loads(Path("sft.meta.json").read_bytes())
    assert (made["command"], made["seed"]) == ("export sft", 5)
    unnamed = dict.fromkeys(["map", "gold", "score"])
    assert made["settings"] == {"min_outcome": 1.0} | unnamed
    sha256 = digest(str(airline.rollouts))
    assert made["inputs"] == [{"path": str(airline.rollouts), "sha256": sha256}]


def test_standard_input_has_its_lineage_too(run: Cli, example: Path) -> None:
    stored = gzip.compress(example.read_bytes())
    assert run("export", "sft", "-", "-o", "sft.jsonl", stdin=stored).code == 0
    [source] = orjson.loads(Path("sft.meta.json").read_bytes())["inputs"]
    assert source == {"path": "-", "sha256": hashlib.sha256(stored).hexdigest()}


@pytest.mark.parametrize("taken", ["sft.jsonl", "sft.meta.json"])
def test_nothing_is_replaced_without_force(run: Cli, example: Path, taken: str) -> None:
    Path(taken).touch()
    ended = run("export", "sft", example, "-o", "sft.jsonl")
    assert (ended.code, ended.err) == (
        2,
        f"error: {taken}: exists already; pass --force to replace it\n",
    )
    assert run("export", "sft", example, "-o", "sft.jsonl", "--force").code == 0


def test_lines_go_to_standard_output(run: Cli, example: Path) -> None:
    piped = run("export", "sft", example, "-o", "-")
    assert run("export", "sft", example, "-o", "sft.jsonl").code == 0
    assert piped.out == Path("sft.jsonl").read_bytes()
    assert not Path("-.meta.json").exists()


# --- sft ------------------------------------------------------------------------------------------


def test_sft_has_the_conversations_that_succeeded(run: Cli, example: Path) -> None:
    ended = run("export", "sft", example, "-o", "sft.jsonl", "--json")
    passed = [row for row in lines(example) if row["status"] == "ok" and row["outcome"] == 1]
    assert ended.json() == {
        "rows": len(passed),
        "conversations": 192,
        "notes": {"left out, crashed or cut by infrastructure": 3},
    }
    made = lines("sft.jsonl")
    assert [[m["role"] for m in row["messages"]] for row in made] == [
        [m["role"] for m in row["messages"]] for row in passed
    ]


def test_sft_writes_messages_as_chat_templates_take_them(run: Cli) -> None:
    cut = {**says("done"), "finish": "length"}
    talk = [user("hi"), asks(), answers(), asks(arguments="{broken"), cut]
    tool = {**TOOL, "function": {**LOOK, "x-kind": "read"}}
    Path("talks.meta.json").write_bytes(orjson.dumps({"tools": [tool]}))
    talks = write([{"messages": talk, "outcome": 1}])
    assert run("export", "sft", talks, "-o", "s.jsonl").code == 0
    [row] = lines("s.jsonl")
    assert row["tools"] == [TOOL]
    written = [m["tool_calls"][0]["function"] for m in row["messages"] if "tool_calls" in m]
    assert [function["arguments"] for function in written] == [{"id": 7}, "{broken"]
    assert row["messages"][-1] == {"role": "assistant", "content": "done"}


def test_sft_takes_flat_calls_in_openais_form(run: Cli) -> None:
    flat = {"id": "call_1", "name": "look", "arguments": '{"id": 7}'}
    other = {"id": "call_2", "type": "function", "function": {"name": "look", "args": {"id": 8}}}
    bare = {"function": {"name": "look", "arguments": None}}
    talk = [user("hi"), asks() | {"tool_calls": [flat, other, bare]}, answers(), says("done")]
    ended = run("export", "sft", write([{"messages": talk, "outcome": 1}]), "-o", "s.jsonl")
    assert (ended.code, ended.err) == (0, "call without arguments, read as {}: 1\n")
    function = {"name": "look", "arguments": {"id": 7}}
    assert lines("s.jsonl")[0]["messages"][1]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": function},
        {"id": "call_2", "type": "function", "function": function | {"arguments": {"id": 8}}},
        {"function": {"name": "look", "arguments": {}}},
    ]


USE = {"type": "tool_use", "id": "x", "name": "look", "input": {"id": 7}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": [{"type": "text", "text": "hm"}, USE]},
        {"role": "assistant", "function_call": {"name": "look", "arguments": "{}"}},
        {"role": "assistant", "parts": [{"functionCall": {"name": "look", "args": {}}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "7"}]},
        {"role": "tool", "content": [{"type": "tool_result", "content": c} for c in "ab"]},
        {"role": "helper", "tool_call_id": "x", "content": "7"},
    ],
)
@pytest.mark.parametrize("format", ["sft", "trl"])
def test_calls_and_results_that_no_template_would_show_are_refused(
    run: Cli, format: str, message: dict[str, Any]
) -> None:
    ended = run("export", format, write([{"messages": [user("hi"), message], "outcome": 1}]))
    line = (
        "error: talks.jsonl:1: message 2 holds a call or a result in another form than OpenAI's; "
        "give calls as 'tool_calls', and each result as a message of role 'tool'\n"
    )
    assert (ended.code, ended.err) == (2, line)


@pytest.mark.parametrize("format", ["sft", "trl"])
@pytest.mark.parametrize(
    ("message", "line"),
    [
        ({"content": "hm"}, "message 2 has no 'role'; give each message a role"),
        (
            {"role": "assistant", "tool_calls": [{"id": "x"}]},
            "message 2 has an invalid call: [{'id': 'x'}]; give {id, function: {name, arguments}}",
        ),
        (
            {"role": "assistant", "tool_calls": ["look"]},
            "message 2 has an invalid call: ['look']; give {id, function: {name, arguments}}",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "look"}}]},
            "message 2 has an invalid call: [{'function': {'name': 'look'}}]; "
            "give {id, function: {name, arguments}}",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": 3}}]},
            "message 2 has an invalid call: [{'function': {'name': 3}}]; "
            "give {id, function: {name, arguments}}",
        ),
    ],
)
def test_the_line_of_a_bad_message_is_named(
    run: Cli, format: str, message: dict[str, Any], line: str
) -> None:
    rows = [{"messages": [user("hi"), one], "outcome": 1} for one in (says("hello"), message)]
    ended = run("export", format, write(rows))
    assert (ended.code, ended.err) == (2, f"error: talks.jsonl:2: {line}\n")


def test_sft_takes_a_lower_outcome_and_never_an_unknown_one(run: Cli) -> None:
    talk = [user("hi"), says("hello")]
    rows: list[dict[str, Any]] = [{"messages": talk, "outcome": o} for o in (1, 0.5, 0.4, None)]
    assert run("export", "sft", write(rows), "--min-outcome", "0.5", "--json").json() == {
        "notes": {"left out, no outcome": 1},
        "rows": 2,
        "conversations": 4,
    }


def test_sft_without_a_success_is_refused(run: Cli) -> None:
    ended = run("export", "sft", write([{"messages": [user("hi")], "outcome": 0.5}]))
    assert (ended.code, ended.err) == (
        2,
        "error: talks.jsonl: none of 1 conversations has an outcome of 1 or more; "
        "lower --min-outcome or give other files\n",
    )


def test_sft_without_an_outcome_is_refused(run: Cli) -> None:
    ended = run("export", "sft", write([{"messages": [user("hi")], "won": 1}]))
    assert (ended.code, ended.err) == (
        2,
        "error: talks.jsonl: none of 1 conversations has an outcome of 1 or more; "
        "name the field of the outcome by --map outcome=PATH\n",
    )


def test_sft_names_the_line_of_a_bad_outcome(run: Cli) -> None:
    rows: list[dict[str, Any]] = [{"messages": [], "outcome": 1}, {"messages": [], "outcome": "no"}]
    ended = run("export", "sft", write(rows))
    assert (ended.code, ended.err) == (
        2,
        "error: talks.jsonl:2: 'outcome' is 'no', not a number; give 'outcome' in [0, 1]\n",
    )


# --- trl ------------------------------------------------------------------------------------------


def test_trl_has_a_row_for_each_opening_of_a_task(run: Cli) -> None:
    def talk(task: str, first: str, outcome: float, last: str = "done") -> dict[str, Any]:
        messages = [says("welcome"), user(first), says(last)]
        return {"task_id": task, "messages": messages, "outcome": outcome, "gold_actions": []}

    rows = [talk("a", "hi", 0.0), talk("a", "hi", 1.0, "best"), talk("a", "hi", 1.0)]
    rows += [talk("a", "hello", 0.0), talk("b", "hi", 1.0), {"messages": [user("hi")]}]
    ended = run("export", "trl", write(rows), "-o", "trl.jsonl", "--json")
    assert ended.json() == {
        "rows": 3,
        "conversations": 6,
        "tasks": 2,
        "notes": {"left out, no answer of the assistant": 1},
    }
    made = lines("trl.jsonl")
    assert [(row["task_id"], row["prompt"][-1]["content"]) for row in made] == [
        ("a", "hi"),
        ("a", "hello"),
        ("b", "hi"),
    ]
    assert made[0]["messages"][-1]["content"] == "best", "of equals the first"
    roles = [message["role"] for message in made[0]["prompt"]]
    assert roles == ["assistant", "user"], "a greeting is no answer"


def test_trl_tells_tasks_by_domain_id_and_gold_actions(run: Cli) -> None:
    buy, ship = [{"name": "buy", "arguments": {}}], [{"name": "ship", "arguments": {}}]
    talk = {"messages": [user("hi"), says("hello")], "task_id": "5", "outcome": 1}
    tasks = [("a", buy), ("b", buy), (None, buy), (None, ship), ("a", buy)]
    rows = [talk | {"domain": domain, "gold_actions": gold} for domain, gold in tasks]
    ended = run("export", "trl", write(rows), "-o", "t.jsonl", "--json")
    assert ended.json() == {"rows": 4, "conversations": 5, "tasks": 4, "notes": {}}
    assert [(row["domain"], row["gold_actions"]) for row in lines("t.jsonl")] == tasks[:4]


def test_trl_without_gold_actions_is_refused(run: Cli) -> None:
    ended = run("export", "trl", write([{"messages": [user("hi"), says("hello")]}]))
    assert (ended.code, ended.err) == (
        2,
        "error: talks.jsonl: no gold actions anywhere; give them by --gold FILE, "
        "or name their field by --map gold_actions=PATH\n",
    )


def test_the_reward_is_the_mean_over_the_turns_of_the_completion(run: Cli, example: Path) -> None:
    assert run("export", "trl", example, "-o", "trl.jsonl").code == 0
    rows = lines("trl.jsonl")
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    prompts = columns.pop("prompt")
    completions = [
        messages[len(prompt) :]
        for prompt, messages in zip(prompts, columns["messages"], strict=True)
    ]
    found = reward_function()(prompts=prompts, completions=completions, **columns)
    whole = [score(row["messages"], None, row["gold_actions"], domain="airline") for row in rows]
    assert found == [sum(one.turn_rewards) / len(one.turn_rewards) for one in whole]
    assert len(set(found)) > 5


def test_the_reward_leaves_out_turns_of_the_prompt_but_remembers_them() -> None:
    tool = {**TOOL, "x-kind": "read"}
    prompt = [user("hi"), asks(), answers()]
    given: dict[str, Any] = {"prompts": [prompt], "tools": [[tool]], "gold_actions": [[]]}
    rewarded = reward_function()
    assert rewarded(completions=[[asks("again")]], **given) == [-0.2], "a repetition"
    assert rewarded(completions=[[]], **given) == [None]


def test_the_reward_follows_a_calibration(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text("rewards: {message: 0.25}\ntiers: []\n")
    rewarded = reward_function(str(path))
    assert rewarded(prompts=[[user("hi")]], completions=[[says("a"), says("b")]]) == [0.25]


def test_the_reward_is_the_sum_of_values_that_are_paid_once(tmp_path: Path) -> None:
    path = tmp_path / "calibration.yaml"
    path.write_text("rewards: {message: 0.25, error: -1}\ntiers: []\npay: once\n")
    rewarded = reward_function(str(path))
    talk = [says("a"), says("b"), says("c")]
    assert rewarded(prompts=[[user("hi")]] * 3, completions=[talk[:1], talk, []]) == [
        *(0.25, 0.25, None)
    ]
    # The prompt's own message has earned the value.
    assert rewarded(prompts=[[user("hi"), says("yes?")]], completions=[talk]) == [0.0]


# --- preferences ----------------------------------------------------------------------------------


def rollout(name: str, *messages: dict[str, Any], group: str = "g") -> Any:
    return {"episode_id": name, "group_id": group, "messages": list(messages)}


def advantages(*rows: tuple[str, int, str, float, float]) -> pl.DataFrame:
    """Episode, turn, tier, reward and advantage; the rest is not looked at."""
    named = [
        dict(zip(("episode_id", "turn", "tier", "reward", "advantage"), row, strict=True))
        for row in rows
    ]
    return ADVANTAGES.frame({n: [row.get(n) for row in named] for n in ADVANTAGES.columns})


HI, LOOKED = user("hi"), [asks("x"), answers("x")]


def test_a_pair_is_two_turns_after_the_same_messages() -> None:
    episodes = [
        rollout("good", HI, *LOOKED, says("seven")),
        rollout("bad", HI, says("no idea"), HI, says("bye")),
        rollout("other", user("hello"), says("what?")),
        rollout("elsewhere", HI, says("what?"), group="h"),
    ]
    table = advantages(
        ("good", 0, "gold_read", 1.0, 0.9),
        ("good", 1, "message", 0.0, 0.9),
        ("bad", 0, "message", 0.0, -0.9),
        ("bad", 1, "message", -1.0, -0.9),
        ("other", 0, "message", -1.0, -2.0),
        ("elsewhere", 0, "message", -1.0, -2.0),
    )
    [pair] = preferences(episodes, table, [TOOL])
    [chosen] = pair.pop("chosen")
    assert chosen["tool_calls"][0]["function"] == {"name": "look", "arguments": {"id": 7}}
    assert pair == {
        "prompt": [HI],
        "rejected": [{"role": "assistant", "content": "no idea"}],
        "tools": [TOOL],
        "group_id": "g",
        "turn": 0,
        "chosen_tier": "gold_read",
        "rejected_tier": "message",
        "chosen_advantage": 0.9,
        "rejected_advantage": -0.9,
    }


@pytest.mark.parametrize(
    ("better", "worse", "pairs"),
    [
        ((1.0, 0.5), (0.0, -0.5), 1),
        ((1.0, -0.5), (0.0, 0.5), 0),  # worth more, but nothing came of it
        ((0.0, 0.5), (0.0, -0.5), 0),  # luck: what they did is worth the same
        ((1.0, 0.5), (0.0, 0.2), 0),  # less than the gap
    ],
)
def test_reward_and_advantage_must_agree(
    better: tuple[float, float], worse: tuple[float, float], pairs: int
) -> None:
    episodes = [rollout("a", HI, says("yes")), rollout("b", HI, says("no"))]
    table = advantages(("a", 0, "gold_read", *better), ("b", 0, "message", *worse))
    assert len(list(preferences(episodes, table, [], min_gap=0.5))) == pairs


def test_equal_advantages_make_no_pair() -> None:
    episodes = [rollout("a", HI, says("yes")), rollout("b", HI, says("no"))]
    table = advantages(("a", 0, "gold_read", 1.0, 0.5), ("b", 0, "message", 0.0, 0.5))
    assert list(preferences(episodes, table, [])) == []


def test_equal_turns_count_once_with_their_mean() -> None:
    episodes = [
        rollout("a", HI, asks("x")),
        rollout("b", HI, asks("y")),  # the same, but for the id
        rollout("c", HI, says("no")),
    ]
    table = advantages(
        ("a", 0, "gold_read", 1.0, 1.0), ("b", 0, "gold_read", 1.0, -0.5), ("c", 0, "message", 0, 0)
    )
    [pair] = preferences(episodes, table, [])
    assert pair["chosen_advantage"] == 0.25


def test_the_same_calls_may_do_for_the_same_messages() -> None:
    episodes = [
        rollout("a", user("hi there"), *LOOKED, asks("z", '{"id": 8}')),
        rollout("b", user("hello"), asks("y"), answers("y"), says("bye")),
        rollout("c", user("hello"), asks("y"), answers("y", "eight"), says("bye")),
    ]
    table = advantages(
        *((name, 0, "gold_read", 1.0, 0.0) for name in "abc"),
        ("a", 1, "gold_read", 1.0, 1.0),
        ("b", 1, "message", 0.0, -1.0),
        ("c", 1, "message", 0.0, -2.0),
    )
    assert list(preferences(episodes, table, [])) == []
    [pair] = preferences(episodes, table, [], "calls")
    assert pair["prompt"][0] == user("hi there"), "the chosen turn's own"
    assert (pair["turn"], pair["rejected_advantage"]) == (1, -1.0)


def test_pairs_tell_the_tools_as_the_policy_was_told() -> None:
    episodes = [rollout("a", HI, *LOOKED, says("yes")), rollout("b", HI, *LOOKED, *LOOKED)]
    table = advantages(
        *(("a", 0, "read", 0.0, 0.0), ("a", 1, "message", 1.0, 1.0)),
        *(("b", 0, "read", 0.0, 0.0), ("b", 1, "read", 0.0, 0.0)),
    )
    told = {"tools": "messages", "system": "user"}
    [pair] = preferences(episodes, table, [TOOL], told=told)
    assert pair["tools"] == []
    assert [message["role"] for message in pair["prompt"]] == ["user", "assistant", "user"]
    assert pair["prompt"][0]["content"].startswith("# Tools\n")
    assert pair["prompt"][0]["content"].endswith("\n\nhi")
    assert pair["prompt"][2]["content"] == "<tool_response>\nseven\n</tool_response>"
    assert pair["chosen"][0]["content"] == "yes"
    assert pair["rejected"][0]["content"].startswith("<tool_call>\n")
    assert "tool_calls" not in pair["rejected"][0]


def test_trl_prompts_tell_the_tools_as_the_policy_was_told(run: Cli) -> None:
    row = {"task_id": "t", "messages": [HI, says("yes")], "outcome": 1.0, "gold_actions": []}
    write([row], "r.jsonl")
    meta = {"tools": [TOOL], "prompt": {"tools": "messages", "system": "system"}}
    Path("r.meta.json").write_bytes(orjson.dumps(meta))
    assert run("export", "trl", "r.jsonl", "-o", "trl.jsonl").code == 0
    [made] = lines("trl.jsonl")
    assert [message["role"] for message in made["prompt"]] == ["system", "user"]
    tool = orjson.loads(made["prompt"][0]["content"].split("<tools>\n")[1].split("\n")[0])
    assert (tool, made["tools"]) == (without_kind(TOOL), [])


def test_a_greeting_is_no_choice() -> None:
    episodes = [rollout("a", says("good day"), HI), rollout("b", says("hey"), HI)]
    table = advantages(("a", 0, "message", 1.0, 1.0), ("b", 0, "message", 0.0, 0.0))
    assert list(preferences(episodes, table, [])) == []


def test_preferences_of_rollouts(run: Cli, airline: Files) -> None:
    given = ("export", "preferences", airline.rollouts, "--turns", airline.turns)
    ended = run(*given, "--prefix", "calls", "-o", "pairs.jsonl", "--json")
    pairs = lines("pairs.jsonl")
    assert ended.json() == {"rows": len(pairs), "episodes": 24, "notes": {}}
    assert len(pairs) > 10
    assert all(row["chosen_tier"] != row["rejected_tier"] for row in pairs)
    assert all(row["prompt"][-1]["role"] in ("user", "tool") for row in pairs)
    assert orjson.loads(Path("pairs.meta.json").read_bytes())["settings"]["prefix"] == "calls"


def test_a_calibration_of_other_tiers_is_refused(run: Cli, airline: Files) -> None:
    rollouts, turns = map(str, airline)
    run("score", rollouts, "--tiers", "paper", "-o", "paper.parquet", "--quiet")
    run("calibrate", "paper.parquet", "-o", "paper.yaml", "--quiet")
    options = ("--turns", turns, "--calibration", "paper.yaml")
    result = run("export", "preferences", rollouts, *options, "-o", "pairs.jsonl")
    assert result.code == 2
    assert result.err == (
        f"error: paper.yaml: {turns} can have no tier 'gold'; "
        f"calibrate {turns} itself, or turns of the same tiers\n"
    )


def test_preferences_without_a_pair_are_refused(run: Cli, airline: Files) -> None:
    given = ("export", "preferences", airline.rollouts, "--turns", airline.turns)
    ended = run(*given, "--min-gap", "99", "-o", "pairs.jsonl")
    assert (ended.code, ended.err) == (
        2,
        f"error: {airline.rollouts}: no group has two turns after the same messages with one "
        "better than the other; play more episodes of a task or pass --prefix calls\n",
    )
    assert not Path("pairs.jsonl").exists()


# --- payment --------------------------------------------------------------------------------------


@pytest.mark.parametrize("pay", PAYS)
def test_a_calibration_pays_the_same_in_an_export_as_in_irc_cli_score(
    run: Cli, airline: Files, pay: str
) -> None:
    rollouts, turns = airline
    given = ("calibrate", turns, "--pay", pay, "--min-support", "1", "--fdr", "1", "--quiet")
    assert run(*given, "-o", "calibration.yaml").code == 0
    scoring = ("score", rollouts, "--rewards", "calibration.yaml", "-o", "scored.parquet")
    assert run(*scoring, "--quiet").code == 0
    pairs = ("export", "preferences", rollouts, "--prefix", "calls", "--quiet", "-o")
    valued = ("--turns", turns, "--calibration", "calibration.yaml")
    assert run(*pairs, "valued.jsonl", *valued).code == 0
    assert run(*pairs, "scored.jsonl", "--turns", "scored.parquet").code == 0
    assert lines("valued.jsonl") == lines("scored.jsonl") != []
    scored = read_table(TURNS, "scored.parquet")
    columns = ("episode_id", "turn", "reward")
    judged = read_table(ADVANTAGES, "advantages.parquet").select(columns)
    assert judged.equals(scored.select(columns))
    repeats = pl.struct("episode_id", "tier").is_first_distinct().not_()
    earned = scored.filter(repeats)["reward"].abs().sum()
    assert (earned == 0) == (pay == "once")


# --- tokens ---------------------------------------------------------------------------------------


@pytest.fixture
def tokens(run: Cli) -> Files:
    """A group of two episodes, two turns each; the second episode's prompt was rewritten."""
    names = ("good", "bad")
    rows = [
        {"episode_id": name, "group_id": "g", "status": "ok", "messages": []}
        | {"sampling": {"temperature": 0.5}, "tokens_recorded": True}
        for name in names
    ]
    ids = [
        {"episode_id": name, "turn": turn, "appended": turn > 0 and name == "good"}
        | {"prompt_ids": [1, 2], "token_ids": [3 + turn], "logprobs": [-0.5 - turn]}
        for name in names
        for turn in (0, 1)
    ]
    write(rows, "r.jsonl")
    frame = TOKENS.frame({name: [row[name] for row in ids] for name in TOKENS.columns})
    write_table(TOKENS, frame, "r.tokens.parquet", {}, force=True)
    tiered = [Tiered("g", 1.0, ["gold_write"] * 2), Tiered("g", 0.0, ["error"] * 2)]
    turns = turn_frame(tiered, {"gold_write": 1.0, "error": -0.1})
    named = turns.with_columns(pl.col("episode_id").replace({"e0": "good", "e1": "bad"}))
    write_table(TURNS, named, "t.parquet", {}, force=True)
    return Files(Path("r.jsonl"), Path("t.parquet"))


def test_tokens_have_the_advantage_of_their_turn(run: Cli, tokens: Files) -> None:
    ended = run(*tokens.export, "-o", "o.parquet", "--json")
    assert ended.json() == {"rows": 3, "tokens": 4, "dropped_groups": 0, "notes": {}}
    calibrated = ("calibrate", tokens.turns, "-o", "c.yaml", "--keep-rewards", "--quiet")
    assert run(*calibrated).code == 0
    expected = {
        (row["episode_id"], row["turn"]): row["advantage"]
        for row in read_table(ADVANTAGES, "advantages.parquet").iter_rows(named=True)
    }
    made = read_table(SEQUENCES, "o.parquet")
    assert made["part"].to_list() == [0, 0, 1]
    whole = made.row(0, named=True)
    assert whole["token_ids"] == [1, 2, 3, 1, 2, 4]
    assert whole["mask"] == [False, False, True] * 2
    assert whole["turn"] == [-1, -1, 0, -1, -1, 1]
    assert whole["logprobs"] == [0, 0, -0.5, 0, 0, -1.5]
    assert whole["temperature"] == 0.5
    for row in made.iter_rows(named=True):
        for turn, mask, advantage in zip(row["turn"], row["mask"], row["advantage"], strict=True):
            of_turn = expected[row["episode_id"], turn] if mask else 0
            assert advantage == pytest.approx(of_turn, abs=1e-6)
    assert expected["good", 0] > 0.5
    inputs = orjson.loads(pl.read_parquet_metadata("o.parquet")["irc-cli"])["inputs"]
    assert [one["path"] for one in inputs] == ["r.jsonl", "t.parquet", "r.tokens.parquet"]


def test_logprobs_within_a_nucleus_are_noted(run: Cli, tokens: Files) -> None:
    text = Path("r.jsonl").read_text()
    Path("r.jsonl").write_text(text.replace('"temperature":0.5', '"temperature":0.5,"top_p":0.7'))
    ended = run(*tokens.export, "-o", "o.parquet")
    note = "sequences sampled with top_p below 1: logprobs within the nucleus: 3"
    assert note in ended.err.splitlines()


def test_unknown_logprobs_are_null(run: Cli, tokens: Files) -> None:
    frame = read_table(TOKENS, "r.tokens.parquet")
    unknown = frame.with_columns(
        logprobs=pl.when(pl.col("episode_id") == "good").then(None).otherwise(pl.col("logprobs"))
    )
    write_table(TOKENS, unknown, "r.tokens.parquet", {}, force=True)
    assert run(*tokens.export, "-o", "o.parquet").code == 0
    assert read_table(SEQUENCES, "o.parquet")["logprobs"].is_null().to_list() == [
        True,
        False,
        False,
    ]


def test_tokens_need_no_torch(run: Cli, tokens: Files) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from irc_cli.app import main\n"
        "main()\n"
    )
    words = [str(word) for word in tokens.export]
    ended = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == "3 sequences, 4 tokens with an advantage\n"


def test_tokens_that_were_not_recorded_are_refused(run: Cli, airline: Files) -> None:
    ended = run("export", "tokens", airline.rollouts, "--turns", airline.turns)
    assert (ended.code, ended.err) == (
        2,
        f"error: {airline.rollouts}: 24 of 24 episodes have no recorded tokens; play them with an "
        "engine that tells what it sampled\n",
    )


def test_tokens_without_a_difference_are_refused(run: Cli, tokens: Files) -> None:
    frame = read_table(TURNS, "t.parquet").with_columns(outcome=1.0, success=True, reward=0.0)
    write_table(TURNS, frame, "t.parquet", {}, force=True)
    ended = run(*tokens.export)
    assert (ended.code, ended.err) == (
        2,
        "error: r.jsonl: nothing to learn: no advantage of 1 groups differs from 0; collect groups "
        "with successes and failures\n",
    )
