from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tables.artifacts import TOKENS
from stages.traces import Episode, messages, open_trace, verifiers, verifiers_v0
from stages.traces.episode import GoldAction
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from stages.training.inputs import Rollouts, check_precision
from tests.broken_records import broken

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "formats"
NONE = ReadOptions()

Json = dict[str, Any]


def cleaned(record: Json) -> tuple[list[Json], Counter[str]]:
    notes = Counter[str]()
    return list(verifiers.translate(record, NONE, notes)), notes


def episodes(record: Json) -> list[Episode]:
    read = messages.reader("run", Counter())
    return [read(clean) for clean in cleaned(record)[0]]


def node(parent: int | None, role: str, text: str, **more: Any) -> Json:
    message = {"role": role, "content": text, **more.pop("message", {})}
    return {"parent": parent, "message": message, **more}


def turn(parent: int, text: str, **more: Any) -> Json:
    return node(parent, "assistant", text, sampled=True, **more)


def trace(nodes: list[Json], **more: Any) -> Json:
    base = {
        "version": 1,
        "id": "t1",
        "task": {"type": "Task", "data": {"idx": 0}, "key": "k1", "hash": "h1"},
        "agent": {"config": {"model": "configured"}, "name": "agent"},
        "nodes": nodes,
        "rewards": {"solved": {"score": 1.0, "weight": 0.75}, "short": {"score": 0.5}},
        "is_completed": True,
        "ok": True,
        "stop_condition": "agent_completed",
    }
    return base | more


def episode(*traces: Json, **more: Any) -> Json:
    task = {"type": "Task", "data": {"idx": 0}, "key": "k1", "hash": "h1"}
    base = {"id": "e1", "env": {"id": "shop"}, "task": task, "ok": True, "traces": list(traces)}
    return base | {"group": {"id": "g1"}} | more


def asked() -> list[Json]:
    call = {"id": "c1", "type": "function", "name": "look", "arguments": '{"at": 1}'}
    return [
        node(None, "user", "hi"),
        turn(0, "", message={"tool_calls": [call]}),
        node(1, "tool", "a shop", message={"tool_call_id": "c1"}),
        turn(2, "done"),
    ]


def test_an_episode_becomes_a_clean_record() -> None:
    calls = [{"node": 3, "model": "m", "usage": {"prompt_tokens": 9, "completion_tokens": 4}}]
    [clean], notes = cleaned(episode(trace(asked(), calls=calls)))
    assert {key: clean[key] for key in clean if key != "messages"} == {
        "task_id": "k1",
        "group_id": "g1",
        "model": "m",
        "env": "shop",
        "stop": "agent_completed",
        "outcome": 1.25,
        "rewards": {"solved": 0.75, "short": 0.5},
        "status": "ok",
        "episode_id": "t1",
    }
    assert clean["messages"][1]["tool_calls"] == [
        {
            "id": "c1",
            "type": "function",
            "function": {"name": "look", "arguments": '{"at": 1}'},
        }
    ]
    assert clean["messages"][3]["n_tokens"] == 4
    assert not notes


GOLD = [{"name": "look", "arguments": {"at": 1}}]


@pytest.mark.parametrize(
    "place",
    [
        {"task": {"data": {"gold_actions": GOLD}, "key": "k"}},
        {"task": {"data": {"evaluation_criteria": {"actions": GOLD}}, "key": "k"}},
        {"task": {"data": {"info": {"gold_actions": GOLD}}, "key": "k"}},
        {"info": {"gold_actions": GOLD}},
    ],
)
def test_gold_actions_come_with_the_task(place: Json) -> None:
    [read] = episodes(episode(trace(asked(), rewards={"solved": {"score": 1.0}}, **place)))
    assert read.gold == (GoldAction("look", {"at": 1}),)


@pytest.mark.parametrize("gold", [[{"verb": "look"}], ["look"], "look", None, {"look": 1}])
def test_what_is_no_gold_action_is_passed_over(gold: Any) -> None:
    task = {"data": {"gold_actions": gold}, "key": "k"}
    [read] = episodes(episode(trace(asked(), rewards={"solved": {"score": 1.0}}, task=task)))
    assert read.gold is None


def test_a_task_that_expects_no_call_says_so() -> None:
    task = {"data": {"gold_actions": []}, "key": "k"}
    [read] = episodes(episode(trace(asked(), rewards={"solved": {"score": 1.0}}, task=task)))
    assert read.gold == ()


def test_text_is_only_text_where_our_environment_played() -> None:
    nodes = [
        node(None, "user", "hi"),
        turn(0, '<tool_call>{"name": "x", "arguments": {}}</tool_call>'),
    ]
    ours = {"irc_cli": {"outcome": 1.0}}
    [read] = episodes(episode(trace(nodes, rewards={"outcome": {"score": 1.0}}, info=ours)))
    assert not read.turns[0].calls
    [read] = episodes(episode(trace(nodes, rewards={"outcome": {"score": 1.0}})))
    assert [call.name for call in read.turns[0].calls] == ["x"]


def test_what_the_policy_was_given_is_no_turn() -> None:
    shown = node(0, "assistant", "as an example")
    [read] = episodes(
        episode(
            trace(
                [node(None, "user", "hi"), shown, turn(1, "mine")],
                rewards={"solved": {"score": 1.0}},
            )
        )
    )
    assert [one.text for one in read.turns] == ["mine"]


def test_each_leaf_is_a_conversation_and_an_attempt_to_compact_is_none() -> None:
    nodes = [*asked(), turn(2, "another way")]
    nodes += [turn(3, "in short", semantic_parents=[{"node": 3, "type": "compaction_attempt"}])]
    clean, notes = cleaned(episode(trace(nodes)))
    assert [[m["content"] for m in c["messages"]][-1] for c in clean] == ["another way"]
    nodes += [node(None, "user", "in short"), turn(6, "went on")]
    nodes[7]["semantic_parents"] = [{"node": 5, "type": "compaction"}]
    clean, notes = cleaned(episode(trace(nodes)))
    last = [c["messages"][-1]["content"] for c in clean]
    assert last == ["another way", "in short", "went on"]
    assert [c["episode_id"] for c in clean] == ["t1", "t1/1", "t1/2"]
    assert notes == {"conversation that branches off in a trace": 2}


@pytest.mark.parametrize(
    ("more", "status", "outcome"),
    [
        ({"rewards": {"solved": {"score": 0.0}}}, "ok", 0.0),
        ({"rewards": {"solved": None, "short": {"score": 1.0}}}, "masked", None),
        ({"rewards": {}}, "masked", None),
        ({"stop_condition": "max_turns"}, "truncated", 1.25),
        ({"is_timeout": True, "stop_condition": "agent_timeout"}, "truncated", 1.25),
        ({"calls": [{"finish_reason": "length"}]}, "truncated", 1.25),
        ({"ok": False, "errors": [{"type": "SandboxError", "message": ""}]}, "error", None),
        ({"agent": {"name": "judge", "trainable": False}}, "masked", None),
    ],
)
def test_four_endings_stay_apart(more: Json, status: str, outcome: float | None) -> None:
    [clean], _ = cleaned(episode(trace(asked(), **more)))
    assert (clean["status"], clean.get("outcome")) == (status, outcome)


def test_an_episode_that_never_began_is_an_error() -> None:
    [clean], _ = cleaned(episode(ok=False, errors=[{"type": "ProviderError", "message": ""}]))
    assert (clean["status"], clean["stop"], clean["messages"]) == ("error", "ProviderError", [])


def test_tokens_are_split_into_what_was_given_and_what_was_sampled() -> None:
    nodes = asked()
    tokens = [
        ([1, 2], [False, False], []),
        ([3, 4, 5], [False, True, True], [-0.5, -0.125]),
        ([6], [False], []),
        ([7, 8], [False, True], [-1.0]),
    ]
    for one, (ids, mask, logprobs) in zip(nodes, tokens, strict=True):
        one |= {"token_ids": ids, "mask": mask, "logprobs": logprobs}
    [clean], _ = cleaned(episode(trace(nodes, info={"turn_rewards": [0.5, None]})))
    first, second = (m for m in clean["messages"] if m["role"] == "assistant")
    assert (first["prompt_ids"], first["token_ids"], first["appended"]) == (
        [1, 2, 3],
        [4, 5],
        False,
    )
    assert (second["prompt_ids"], second["token_ids"], second["appended"]) == ([6, 7], [8], True)
    assert clean["logprobs_rounded"] is True
    assert clean["turn_rewards"] == [0.5, None]
    nodes[1]["logprobs"] = [-0.123456, -0.5]
    assert cleaned(episode(trace(nodes)))[0][0]["logprobs_rounded"] is False


def test_turn_rewards_of_another_number_are_left_out_with_a_note() -> None:
    [clean], notes = cleaned(episode(trace(asked(), info={"turn_rewards": [1.0]})))
    assert "turn_rewards" not in clean
    assert notes == {"turn_rewards that are not one per turn: left out": 1}


@pytest.mark.parametrize("parent", [7, 1, -1, "0"])
def test_a_parent_that_is_no_earlier_node_is_refused(parent: Any) -> None:
    with pytest.raises(BadItemError) as caught:
        cleaned(episode(trace([node(None, "user", "hi"), turn(parent, "x")])))
    assert caught.value.what == "node 1 has no message, or no earlier parent"


def test_a_bare_trace_of_prime_rl_is_read() -> None:
    record = trace(asked(), group_id="g7", env_name="shop", kind="train", policy_version=3)
    assert verifiers.accepts(record)
    [clean], _ = cleaned(record)
    assert (clean["group_id"], clean["env"], clean["task_id"]) == ("g7", "shop", "k1")


def test_a_folder_of_prime_rl_gives_each_step_once(tmp_path: Path) -> None:
    for step in (2, 10):
        for kind in ("all", "effective"):
            place = tmp_path / "rollouts" / f"step_{step}" / "train" / kind
            place.mkdir(parents=True)
            (place / "traces.jsonl").touch()
    found = [path.relative_to(tmp_path).as_posix() for path, _ in verifiers.files(tmp_path)]
    assert found == [f"rollouts/step_{step}/train/all/traces.jsonl" for step in (2, 10)]


@given(broken(episode(trace(asked(), calls=[{"node": 3, "usage": {"completion_tokens": 4}}]))))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_broken_record_is_read_or_refused(record: Json) -> None:
    if verifiers.accepts(record):
        with contextlib.suppress(BadItemError):
            episodes(record)


def test_train_refuses_rounded_logprobs_for_importance_ratios() -> None:
    rows: Any = [{"episode_id": "a"}, {"episode_id": "b", "logprobs_rounded": True}]
    played = Rollouts("rollouts.jsonl", rows, TOKENS.empty(), [], set(), {})
    check_precision(played, weighted=False)
    with pytest.raises(InputError) as caught:
        check_precision(played, weighted=True)
    assert str(caught.value) == (
        "rollouts.jsonl: episode 'b' has rounded logprobs (1 such episodes); pass --old-logprobs "
        "trainer --tis-cap 0, or record them at full precision"
    )


def test_a_folder_is_read_step_by_step(tmp_path: Path) -> None:
    solved = {"solved": {"score": 1.0}}
    for step, name in ((2, "a"), (10, "b")):
        place = tmp_path / "rollouts" / f"step_{step}" / "train" / "all"
        place.mkdir(parents=True)
        lines = [
            json.dumps(trace(asked(), id=f"{name}{number}", rewards=solved)) for number in "12"
        ]
        (place / "traces.jsonl").write_text("\n".join(lines) + "\n")
    read = open_trace(str(tmp_path))
    assert [one.episode_id for one in read] == ["a1", "a2", "b1", "b2"]
    assert read.format == "verifiers"


def test_a_folder_of_old_results_has_the_model_beside(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(json.dumps(result()) + "\n")
    (tmp_path / "metadata.json").write_text(json.dumps({"model": "m", "env_id": "shop"}))
    for path in (tmp_path, tmp_path / "results.jsonl"):
        read = open_trace(str(path))
        assert [one.policy for one in read] == ["m"]
        assert read.format == "verifiers-v0"


# --- against the package --------------------------------------------------------------------------


@st.composite
def trees(draw: st.DrawFn) -> list[Json]:
    """Nodes whose parents are earlier ones, with tokens."""
    nodes = [node(None, "user", "hi", token_ids=[1], mask=[False])]
    for place in range(draw(st.integers(1, 8))):
        parent = draw(st.integers(0, place))
        if draw(st.booleans()):
            ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=4))
            given = draw(st.integers(0, len(ids) - 1))
            mask = [False] * given + [True] * (len(ids) - given)
            logprobs = [-0.25] * sum(mask)
            nodes.append(turn(parent, "a", token_ids=ids, mask=mask, logprobs=logprobs))
        else:
            nodes.append(node(parent, "user", "u", token_ids=[9], mask=[False]))
    if draw(st.booleans()):
        nodes[-1]["semantic_parents"] = [{"node": 0, "type": "compaction_attempt"}]
    return nodes


@given(trees(), st.sampled_from(["max_turns", "agent_completed", "error"]))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_equal_to_the_package(nodes: list[Json], stop: str) -> None:
    package = pytest.importorskip("verifiers.v1.trace", reason="verifiers >= 0.4 is not installed")
    record = trace(nodes, stop_condition=stop)
    record["agent"] = {"config": {}, "name": "agent"}
    official = package.WireTrace.model_validate(record)
    clean, _ = cleaned(json.loads(json.dumps(official.to_record())))
    branches = [branch for branch in official.branches if branch.trainable]
    assert len(clean) == max(len(branches), 1)
    for one, branch in zip(clean, branches, strict=False):
        sampled = [m for m in one["messages"] if "token_ids" in m]
        assert len(one["messages"]) == len(branch.messages)
        assert len(sampled) == sum(n.sampled for n in branch.nodes)
        written = [i for m in sampled for i in m["token_ids"]]
        mask = branch.sampled_mask
        assert written == [i for i, m in zip(branch.token_ids, mask, strict=True) if m]
        whole = [i for m in sampled for i in (*m["prompt_ids"], *m["token_ids"])]
        assert whole == branch.token_ids[: len(whole)]
        assert one["outcome"] == pytest.approx(official.reward)
        assert (one["status"] == "truncated") == official.is_truncated


# --- old results ----------------------------------------------------------------------------------


def result(**more: Any) -> Json:
    base: Json = {
        "example_id": 4,
        "prompt": [{"role": "user", "content": "hi"}],
        "completion": [{"role": "assistant", "content": "yes", "tool_calls": None}],
        "task": "shop",
        "reward": 0.5,
    }
    return base | more


def old(record: Json, **shared: Any) -> Json:
    options = ReadOptions(shared=shared)
    [clean] = verifiers_v0.translate(record, options, Counter())
    return clean


def test_a_result_of_the_last_version_has_no_task() -> None:
    record = result(prompt=None, is_completed=True, metrics={})
    record["tool_defs"] = [{"name": "look", "description": "Look.", "parameters": {}}]
    del record["task"], record["example_id"]
    assert verifiers_v0.accepts(record)
    clean = old(record)
    assert [message["role"] for message in clean["messages"]] == ["assistant"]
    assert [tool["function"]["name"] for tool in clean["tools"]] == ["look"]
    broken = old(record | {"error": {"error": "InfraError", "error_chain_str": "x"}})
    assert (broken["status"], broken["stop"]) == ("error", "InfraError")


def test_an_old_result_becomes_a_clean_record() -> None:
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    written = [
        {"role": "assistant", "content": "", "tool_calls": [json.dumps(call)]},
        {"role": "tool", "content": "a shop", "tool_calls": None},
    ]
    record = result(completion=written, info=json.dumps({"oai_tools": tools}), metrics={"a": 1.0})
    assert old(record, model="m", env_id="shops") == {
        "task_id": "shop/4",
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "a shop"},
        ],
        "model": "m",
        "env": "shops",
        "reward": 0.5,
        "rewards": {"a": 1.0},
        "status": "ok",
        "tools": tools,
    }


def test_an_example_in_the_prompt_is_no_turn() -> None:
    shown = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "shown"}]
    read = messages.reader("run", Counter())(old(result(prompt=shown)))
    assert [one.text for one in read.turns] == ["yes"]


def test_text_is_read_as_one_message_each() -> None:
    clean = old(result(prompt="hi", completion="yes"))
    assert [m["role"] for m in clean["messages"]] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("more", "status", "outcome"),
    [
        ({"is_truncated": True}, "truncated", 0.5),
        ({"error": "ModelError()", "reward": 0.0}, "error", None),
        ({"completion": [], "reward": 0.0}, "error", None),
        ({"reward": None}, "masked", None),
        ({"reward": 0.0}, "ok", 0.0),
    ],
)
def test_old_endings(more: Json, status: str, outcome: float | None) -> None:
    clean = old(result(**more))
    assert (clean["status"], clean.get("reward")) == (status, outcome)


def test_no_prompt_is_refused() -> None:
    with pytest.raises(BadItemError) as caught:
        old(result(prompt=3))
    assert caught.value.what == "'prompt' is neither text nor a list of messages"


def test_the_public_example_of_old_results() -> None:
    path = SHARED / "verifiers-v0_tool-test_results.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no public example at {path}")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert all(verifiers_v0.accepts(line) and not verifiers.accepts(line) for line in lines)
    read = messages.reader("run", Counter())
    found = [read(old(line)) for line in lines]
    turns = [turn for one in found for turn in one.turns]
    assert (len(found), len(turns), sum(len(turn.calls) for turn in turns)) == (15, 15, 27)
    assert [one.outcome for one in found] == [line["reward"] for line in lines]
    assert {one.task_id for one in found} == {"0", "1", "2", "3", "4"}
