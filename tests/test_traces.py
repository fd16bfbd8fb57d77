from __future__ import annotations

import gzip
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tables.artifacts import TURNS
from stages.tables.table_file import read_table
from stages.tiers.failures import default_failures
from stages.traces import Call, Episode, GoldAction, Trace, Turn, open_trace
from stages.traces.fields import BadItemError, policy_in
from stages.traces.folders import trace_files
from stages.traces.turns import read_turns
from tests.conftest import Cli

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real traces at {SHARED}")

Json = dict[str, Any]


def failed(call: Call) -> bool:
    return default_failures().rule(call.flagged, call.result) is not None


class Read(Protocol):
    def __call__(self, document: Any, *, lines: bool = ...) -> tuple[list[Episode], Trace]: ...


# --- building traces ------------------------------------------------------------------------------


def called(*calls: tuple[str | None, str, Any], text: str | None = None, **more: Any) -> Json:
    """An assistant message with (id, name, arguments) calls as OpenAI has them."""
    entries = [
        {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for id, name, arguments in calls
    ]
    return {"role": "assistant", "content": text, "tool_calls": entries, **more}


def answer(id: str | None, content: Any, **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": id, "content": content, **more}


def said(text: Any, **more: Any) -> Json:
    return {"role": "assistant", "content": text, **more}


def item(task: int = 0, trial: int = 0, traj: list[Json] | None = None, **more: Any) -> Json:
    """A tau-bench item."""
    base = {
        "task_id": task,
        "trial": trial,
        "reward": 1.0,
        "traj": [said("hello")] if traj is None else traj,
        "info": {"task": {"actions": [{"name": "get", "kwargs": {"id": "1"}}]}},
    }
    return base | more


def simulation(task: str = "a", trial: int | None = 0, **more: Any) -> Json:
    base = {
        "id": f"{task}-{trial}",
        "task_id": task,
        "trial": trial,
        "termination_reason": "user_stop",
        "reward_info": {"reward": 1.0, "action_checks": []},
        "messages": [said("Hi! How can I help you today?", tool_calls=None, usage=None)],
    }
    return base | more


def results(*simulations: Json, tasks: list[Json] | None = None) -> Json:
    return {
        "info": {"environment_info": {"domain_name": "retail"}},
        "tasks": [{"id": "a", "evaluation_criteria": None}] if tasks is None else tasks,
        "simulations": list(simulations),
    }


def check(name: str, matched: bool, **more: Any) -> Json:
    action: Json = {"name": name, "arguments": {}, "requestor": "assistant", "compare_args": None}
    return {"action": action | more, "action_match": matched, "action_reward": float(matched)}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Write a document as t.json, or a list of them as t.jsonl, and read it."""

    def read(document: Any, *, lines: bool = False) -> tuple[list[Episode], Trace]:
        path = tmp_path / ("t.jsonl" if lines else "t.json")
        rows = document if lines else [document]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        trace = open_trace(str(path))
        return list(trace), trace

    return read


def turns_of(*messages: Any) -> tuple[list[Turn], Counter[str]]:
    notes = Counter[str]()
    turns, _ = read_turns(list(messages), notes)
    return turns, notes


def error_of(path: Path | str) -> str:
    with pytest.raises(InputError) as caught:
        list(open_trace(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- real traces ----------------------------------------------------------------------------------


@needs_shared
def test_the_tau_bench_file_has_the_reference_figures() -> None:
    # docs/method.md, "Reference figures": 200 episodes, 50 tasks x 4, 2,454 turns, 1,164 calls, at
    # most one a turn, pass^1 = 0.42; README of the data: the file's sha256.
    path = SHARED / "tau-bench/gpt-4o-airline.json"
    trace = open_trace(str(path))
    episodes = list(trace)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert (trace.source, trace.format, trace.domain) == ("gpt-4o-airline", "tau-bench", None)
    assert len(episodes) == 200
    assert Counter(e.task_id for e in episodes) == {str(task): 4 for task in range(50)}
    assert {e.trial for e in episodes} == {0, 1, 2, 3}
    assert len(turns) == 2454
    assert Counter(len(turn.calls) for turn in turns) == {0: 1290, 1: 1164}
    assert sum(e.outcome or 0 for e in episodes) / 200 == 0.42
    assert all(call.result is not None for turn in turns for call in turn.calls)
    assert sum(failed(call) for turn in turns for call in turn.calls) == 73  # no error is gold
    assert trace.sha256.startswith("e9e6c0297660c537")
    # Counted with a loop of its own over the raw file: ids used again within one conversation.
    assert trace.notes == {"call id used again after its result": 73}


@needs_shared
@pytest.mark.parametrize(
    ("name", "domain", "episodes", "tasks", "pass_rate"),
    [  # README of the data
        ("airline-grok-4", "airline", 16, 4, 0.4375),
        ("telecom-grok-3", "telecom", 5, 5, 0.8),
        ("retail-gpt-4.1", "retail", 40, 40, 0.85),
    ],
)
def test_the_tau2_files(
    name: str, domain: str, episodes: int, tasks: int, pass_rate: float
) -> None:
    path = SHARED / f"tau2-traces/{name}.json.gz"
    trace = open_trace(str(path))
    found = list(trace)
    raw = json.loads(gzip.decompress(path.read_bytes()))
    assert (trace.source, trace.format, trace.domain) == (name, "tau2", domain)
    assert len(found) == episodes
    assert len({e.task_id for e in found}) == tasks
    assert sum(e.outcome or 0 for e in found) / episodes == pass_rate
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    for episode, simulation in zip(found, raw["simulations"], strict=True):
        own = [m for m in simulation["messages"] if m["role"] == "assistant"]
        assert len(episode.turns) == len(own)
        assert [[c.name for c in t.calls] for t in episode.turns] == [
            [c["name"] for c in m["tool_calls"] or []] for m in own
        ]
        assert [t.n_tokens for t in episode.turns] == [
            (m["usage"] or {}).get("completion_tokens") for m in own
        ]
        results = {m["id"]: m for m in simulation["messages"] if m["role"] == "tool"}
        calls = [c for m in simulation["messages"] for c in m.get("tool_calls") or []]
        ours = [c for t in episode.turns for c in t.calls] + episode.user_calls
        assert sorted((c.name, c.result or "", failed(c)) for c in ours) == sorted(
            (c["name"], results[c["id"]]["content"], results[c["id"]]["error"]) for c in calls
        )
        assert episode.checks is not None and episode.gold is not None
        assert [action for action, _ in episode.checks] == list(episode.gold)


@needs_shared
def test_telecom_users_call_tools_that_are_not_the_agents() -> None:
    trace = open_trace(str(SHARED / "tau2-traces/telecom-grok-3.json.gz"))
    episodes = list(trace)
    assert sum(len(e.user_calls) for e in episodes) == trace.notes["call of the user"] == 25
    assert all(call.result is not None for e in episodes for call in e.user_calls)
    assert {g.requestor for e in episodes for g in e.gold or ()} == {"user", "assistant"}


# --- messages to turns ----------------------------------------------------------------------------


def test_text_and_calls_in_one_message_are_one_turn() -> None:
    turns, notes = turns_of(
        {"role": "system", "content": "policy"},
        {"role": "developer", "content": "policy"},
        {"role": "user", "content": "hi"},
        called(("x", "get", '{"a": 1}'), ("y", "put", {"a": 1}), text="one moment"),
        answer("y", "done"),
        answer("x", "Error: no"),
        said("bye", tool_calls=None),
    )
    assert turns == [
        Turn([Call("get", '{"a": 1}', "Error: no"), Call("put", {"a": 1}, "done")]),
        Turn(),
    ]
    assert notes == {}


@pytest.mark.parametrize("arguments", ['{"a": 1}', {"a": 1}, "{'a': 1}", "{broken", None, 7, [1]])
def test_arguments_are_kept_as_recorded(arguments: Any) -> None:
    turns, notes = turns_of(called(("x", "get", arguments)), answer("x", "1"))
    assert turns[0].calls == [Call("get", arguments, "1")]
    assert notes == ({"null arguments read as none": 1} if arguments is None else {})


@pytest.mark.parametrize(
    ("ids", "answers", "expected", "note"),
    [
        (["x", "y"], ["y", "x"], ["2", "1"], {}),
        ([None, None], [None, None], ["1", "2"], {"call id missing": 2}),
        (["", ""], ["x", "x"], ["1", "2"], {"call id missing": 2}),
        (["x", "x"], ["x", "x"], ["1", "2"], {"call id repeated": 1}),
        (["x", "x", "x"], ["x", "x", "x"], ["1", "2", "3"], {"call id repeated": 2}),
        (["x", "y"], ["other", "y"], ["1", "2"], {"result paired by position": 1}),
        (["x", "x", "y"], ["y", "x", "x"], ["2", "3", "1"], {"call id repeated": 1}),
        (["x", "y"], ["y"], [None, "1"], {"call without a result": 1}),
        (["x"], ["x", "x"], ["1"], {"second result of a call": 1}),
        (["x", "y"], [None, "x"], ["1", "2"], {"result paired by position": 2}),
        ([["x"], 7], ["x", 7], ["1", "2"], {"call id missing": 2}),
    ],
)
def test_results_go_to_the_call_of_their_id_else_by_position(
    ids: list[Any], answers: list[Any], expected: list[str | None], note: dict[str, int]
) -> None:
    results = [answer(id, str(number)) for number, id in enumerate(answers, 1)]
    turns, notes = turns_of(called(*[(id, "get", {}) for id in ids]), *results)
    assert [call.result for call in turns[0].calls] == expected
    assert notes == note


def test_an_id_used_again_in_a_later_message_is_the_later_call() -> None:
    turns, notes = turns_of(
        called(("x", "get", {})), answer("x", "1"), called(("x", "get", {})), answer("x", "2")
    )
    assert [turn.calls[0].result for turn in turns] == ["1", "2"]
    assert notes == {"call id used again after its result": 1}


def test_a_missing_result_does_not_shift_those_of_later_messages() -> None:
    for id in (None, "x"):
        turns, notes = turns_of(called((id, "a", {})), called((id, "b", {})), answer(id, "2"))
        assert [turn.calls[0].result for turn in turns] == [None, "2"]
        assert notes["call without a result"] == 1


def test_a_late_result_finds_its_call_by_id() -> None:
    turns, _ = turns_of(
        called(("x", "a", {})), said("wait"), called(("y", "b", {})), answer("x", 1)
    )
    assert turns[0].calls == [Call("a", {}, "1")]


@pytest.mark.parametrize(
    ("content", "more", "result", "flagged"),
    [
        ("Error: no", {}, "Error: no", None),
        ("fine", {"error": True}, "fine", True),
        ("fine", {"error": {"type": "timeout", "message": "no"}}, "fine", True),
        ("fine", {"error": None}, "fine", None),
        ("fine", {"is_error": True}, "fine", True),
        ("fine", {"isError": False}, "fine", False),
        ("fine", {"status": "error"}, "fine", True),
        ("fine", {"status": "success"}, "fine", False),
        ("fine", {"status": "completed"}, "fine", None),
        ("fine", {"success": False}, "fine", True),
        ("an Error", {"error": False}, "an Error", False),
        (None, {}, "", None),
        (
            [{"type": "text", "text": "Err"}, {"type": "text", "text": "or"}],
            {},
            "Error",
            None,
        ),
        ([1, {"a": "é"}], {}, '[1, {"a": "é"}]', None),
        ({"ok": None}, {}, '{"ok": null}', None),
    ],
)
def test_results_of_any_shape(content: Any, more: Json, result: str, flagged: bool | None) -> None:
    turns, notes = turns_of(called(("x", "get", {})), answer("x", content, **more))
    assert turns[0].calls == [Call("get", {}, result, flagged)]
    assert notes == {}


def test_flat_tool_calls() -> None:
    turns, _ = turns_of(
        {"role": "assistant", "tool_calls": [{"id": "x", "name": "get", "arguments": {"a": 1}}]},
        {"role": "tool", "id": "x", "content": "1", "error": False, "requestor": "assistant"},
    )
    assert turns == [Turn([Call("get", {"a": 1}, "1", flagged=False)])]


def test_legacy_function_calls() -> None:
    turns, notes = turns_of(
        said(None, function_call={"name": "get", "arguments": "{}"}),
        {"role": "function", "name": "get", "content": "1"},
    )
    assert turns == [Turn([Call("get", "{}", "1")])]
    assert notes == {"legacy function_call": 1}


def test_calls_written_as_text() -> None:
    turns, notes = turns_of(
        said(
            'Let me look.\n<tool_call>\n{"name": "a", "arguments": {"x": 1}}\n</tool_call>\n'
            "<tool_call>{'name': 'b', 'parameters': {'y': True}}</tool_call>"
        ),
        {
            "role": "user",
            "content": "<tool_response>\none\n</tool_response>\n<tool_response>Error"
            "</tool_response>",
        },
        said([{"type": "text", "text": '<tool_call>{"name": "c", "arguments": "{}"}'}]),
        {"role": "tool", "content": "four"},
    )
    assert turns == [
        Turn([Call("a", '{"x": 1}', "one"), Call("b", {"y": True}, "Error")]),
        Turn([Call("c", "{}", "four")]),
    ]
    assert notes == {"call read from text": 3}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"name": "get", "arguments": {"a": }', "get"),
        ("{'name': 'get', 'arguments': {", "get"),
        ("get(1)", ""),
        ('["get"]', ""),
        ('{"name": 3}', ""),
        (r"{'name': '\d'", r"\d"),
        ("[" * 5000, ""),
        ("<function=get>\n<parameter=id>\n1", "get"),
    ],
)
def test_a_broken_call_in_text_keeps_its_text_as_arguments(text: str, name: str) -> None:
    turns, notes = turns_of(said(f"<tool_call>{text}</tool_call>"))
    assert turns == [Turn([Call(name, text)])]
    assert notes["broken call in text"] == 1


def test_calls_written_as_xml_take_their_types_from_the_tools() -> None:
    text = (
        "<tool_call>\n<function=get>\n<parameter=id>\n1e5\n</parameter>\n<parameter=n>\n2\n"
        "</parameter>\n</function>\n</tool_call>"
    )
    parameters = {"type": "object", "properties": {"id": {"type": "string"}, "n": True}}
    function = {"name": "get", "parameters": parameters}
    for tool in (function, {"type": "function", "function": function}):
        notes = Counter[str]()
        [turn], _ = read_turns([said(text)], notes, [tool, None, {"function": 3}])
        assert turn == Turn([Call("get", '{"id": "1e5", "n": 2}')])
        assert notes == {"call read from text": 1, "call without a result": 1}


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("<think>I could write {a} but no</think>no", []),
        ("<think>or {a}?</think>{b}", ["b"]),
        ("or {a}?</think>{b}", ["b"]),  # the prompt began the thoughts
        ("<think>or {a}", []),  # cut off
        ("{a}<think>or {b}?</think>", ["a"]),
        ("Well. <think>{a}?</think> No.", []),
        ("{a}<think>or {b}", ["a", "b"]),  # never ends: no thought
    ],
)
def test_a_call_that_is_only_thought_of_is_not_made(text: str, names: list[str]) -> None:
    for name in "ab":
        text = text.replace(f"{{{name}}}", f'<tool_call>{{"name": "{name}"}}</tool_call>')
    [turn], _ = turns_of(said(text))
    assert [call.name for call in turn.calls] == names


def test_token_counts() -> None:
    turns, notes = turns_of(
        said("a", n_tokens=3),
        said("b", usage={"completion_tokens": 4, "prompt_tokens": 9}),
        said("c", usage=None),
        said("d", usage={}),
        said("e", n_tokens=1.5),
        said("f", n_tokens=2**31 - 1),
        said("g", n_tokens=2**31),
        said("h", n_tokens=-1),
    )
    counts = [3, 4, None, None, None, 2**31 - 1, None, None]
    assert [turn.n_tokens for turn in turns] == counts
    assert notes == {"token count not an integer": 1, "token count out of range": 2}


def test_trials_that_no_column_holds_are_none(read: Read) -> None:
    trials = (5, 2**31 - 1, 2**31, -(2**31) - 1)
    episodes, trace = read([item(trial=trial) for trial in trials])
    assert [e.trial for e in episodes] == [5, 2**31 - 1, 2, 3]
    assert trace.notes == {"no trial": 2}


def test_messages_of_nobody_are_skipped_and_counted() -> None:
    turns, notes = turns_of(
        {"role": "critic", "content": "hm"},
        {"role": ["user"], "content": "hm"},
        {"content": "no role"},
        "text",
        None,
        ["role"],
        said("hi"),
        said(None),
    )
    assert turns == [Turn(), Turn()]
    assert notes == {
        "unknown role 'critic'": 1,
        "unknown role ['user']": 1,
        "message without a role": 4,
        "turn without text or calls": 1,
    }


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
MESSAGE = JSON | st.fixed_dictionaries(
    {"role": st.sampled_from(["assistant", "user", "tool", "function", "system", "x"]) | JSON},
    optional={
        "content": JSON | st.just("<tool_call>{}</tool_call><tool_response>"),
        "tool_calls": JSON | st.lists(st.fixed_dictionaries({"id": JSON, "function": JSON})),
        "function_call": JSON,
        "tool_call_id": JSON,
        "requestor": JSON | st.just("user"),
        "usage": JSON,
        "n_tokens": JSON,
    },
)


@given(st.lists(MESSAGE, max_size=8))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_message_is_read_or_refused_and_every_assistant_message_is_a_turn(
    messages: list[Any],
) -> None:
    try:
        turns, _ = turns_of(*messages)
    except BadItemError as error:
        assert error.what.startswith(("message ", "no message is of the assistant"))
        return
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    assert len(turns) == sum(role == "assistant" for role in roles)
    assert all(isinstance(call.name, str) for turn in turns for call in turn.calls)
    assert all(
        call.result is None or isinstance(call.result, str) for turn in turns for call in turn.calls
    )


# --- tau-bench ------------------------------------------------------------------------------------


def test_a_tau_bench_item(read: Read) -> None:
    [episode], trace = read([item(task=7, trial=2, reward=0.0)])
    assert episode == Episode(
        source="t",
        episode_id="t:7:2",
        task_id="7",
        trial=2,
        group_id=None,
        turns=[Turn()],
        gold=(GoldAction("get", {"id": "1"}),),
        outcome=0.0,
        policy="t",
    )
    assert episode.group == "t:7"
    assert (trace.source, trace.format, trace.notes) == ("t", "tau-bench", {})


def test_a_crashed_item_is_an_error_not_a_failure(read: Read) -> None:
    crashed = item(task=1, traj=[], reward=0.0, info={"error": "timeout", "traceback": "..."})
    episodes, trace = read([item(), crashed])
    assert [(e.status, e.outcome) for e in episodes] == [("ok", 1.0), ("error", None)]
    assert episodes[1].gold is None
    assert trace.notes == {"crashed item": 1}


def test_items_without_task_id_or_trial_are_numbered(read: Read) -> None:
    bare = {"traj": [said("a")], "reward": 1}
    episodes, trace = read([bare, bare, {**bare, "task_id": "x"}, {**bare, "task_id": "x"}])
    assert [(e.task_id, e.trial) for e in episodes] == [("0", 0), ("1", 0), ("x", 0), ("x", 1)]
    assert trace.notes == {"no task id": 2, "no trial": 4, "no gold actions": 4}
    assert all(e.gold is None for e in episodes)


def test_trials_that_repeat_the_task_id_are_numbered_anew(read: Read) -> None:
    episodes, trace = read([item(0, 0), item(5, 5), item(5, 5), item(6, 6)])
    assert [(e.task_id, e.trial) for e in episodes] == [("0", 0), ("5", 0), ("5", 1), ("6", 0)]
    assert trace.notes == {"trial equal to task id": 4, "no trial": 4}
    episodes, trace = read([item(5, 5), item(5, 1)])
    assert [e.trial for e in episodes] == [5, 1]
    assert trace.notes == {}


def test_the_same_task_and_trial_twice_are_kept_apart(read: Read) -> None:
    episodes, trace = read([item(0, 0), item(0, 0), item(0, 1), item(0, 0)])
    assert [e.trial for e in episodes] == [0, 1, 2, 3]
    assert len({e.episode_id for e in episodes}) == 4
    assert trace.notes == {"same task and trial twice": 2}


def test_duplicate_json_keys_take_the_last(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"task_id": 1, "task_id": 2, "traj": [], "reward": 0}]')
    [episode] = open_trace(str(tmp_path / "t.json"))
    assert episode.task_id == "2"


def test_json_as_only_python_writes_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    messages = [said("half an emoji \ud83d"), called(("x", "get", {"\ud83d": float("nan")}))]
    odd = item(traj=messages, cost=float("nan"))
    for document in ([odd], odd):  # a document, and a JSONL of one line
        path.write_text(json.dumps(document))
        trace = open_trace(str(path))
        [episode] = trace
        assert list(episode.turns[1].calls[0].arguments) == ["?"]
        assert trace.notes["JSON outside the standard"] == 1


# --- tau2-bench -----------------------------------------------------------------------------------


def test_tau2_gold_and_checks(read: Read) -> None:
    action = {"name": "put", "arguments": {"a": 1}, "compare_args": ["a"], "requestor": "user"}
    tasks: list[Json] = [
        {"id": "a", "evaluation_criteria": {"actions": [action]}},
        {"id": 2, "evaluation_criteria": {"actions": None}},
        {"id": "idle", "evaluation_criteria": None},
    ]
    reward = {"reward": 0.0, "action_checks": [check("put", True, compare_args=[])]}
    document = results(
        simulation("a", reward_info=reward), simulation("2"), simulation("new"), tasks=tasks
    )
    (first, second, third), trace = read(document)
    assert first.gold == (GoldAction("put", {"a": 1}, ("a",), "user"),)
    assert first.checks == [(GoldAction("put", {}, ()), True)]
    assert (second.gold, second.checks, third.gold) == ((), [], ())
    assert first.episode_id == "a-0" and first.group == "t:a" and first.domain == "retail"
    assert trace.domain == "retail" and trace.notes == {"task never run": 1}


@pytest.mark.parametrize(
    ("reason", "reward", "status", "outcome", "note"),
    [
        ("user_stop", 1.0, "ok", 1.0, {}),
        ("agent_stop", 0.5, "ok", 0.5, {}),
        ("TerminationReason.USER_STOP", 1.0, "ok", 1.0, {}),
        ("max_steps", 0.0, "truncated", 0.0, {}),
        ("max_steps", None, "truncated", 0.0, {"no reward: counted as 0": 1}),
        ("too_many_errors", None, "ok", 0.0, {"no reward: counted as 0": 1}),
        ("agent_error", None, "ok", 0.0, {"no reward: counted as 0": 1}),
        ("user_stop", None, "error", None, {"no reward: left out": 1}),
        (None, 1.0, "ok", 1.0, {"no termination reason: taken as 'user_stop'": 1}),
        ("user_error", 0.0, "error", None, {"ended by 'user_error'": 1}),
        ("infrastructure_error", None, "error", None, {"ended by 'infrastructure_error'": 1}),
        ("unexpected_error", None, "error", None, {"ended by 'unexpected_error'": 1}),
        ("timeout", None, "error", None, {"ended by 'timeout'": 1}),
        ("context_window_exceeded", 0.0, "error", None, {"ended by 'context_window_exceeded'": 1}),
        ("solar_flare", 1.0, "error", None, {"ended by 'solar_flare'": 1}),
    ],
)
def test_how_a_simulation_ended(
    read: Read,
    reason: str | None,
    reward: float | None,
    status: str,
    outcome: float | None,
    note: dict[str, int],
) -> None:
    info = None if reward is None else {"reward": reward, "action_checks": []}
    [episode], trace = read(results(simulation(termination_reason=reason, reward_info=info)))
    assert (episode.status, episode.outcome) == (status, outcome)
    del trace.notes["no recorded action checks"]
    assert trace.notes == note


def test_a_simulation_without_messages_says_nothing(read: Read) -> None:
    [episode], trace = read(results(simulation(messages=None)))
    assert (episode.status, episode.outcome, episode.turns) == ("error", None, [])
    assert trace.notes == {"simulation without messages": 1}


def test_a_bare_list_takes_gold_from_the_checks_of_the_task(read: Read) -> None:
    checked = {"reward": 1.0, "action_checks": [check("get", True), check("put", False)]}
    unchecked = {"reward": 0.0, "action_checks": None}
    episodes, trace = read(
        [
            simulation("a", 0, reward_info=unchecked, termination_reason="max_steps"),
            simulation("a", 1, reward_info=checked),
            simulation("b", 0, reward_info=unchecked),
        ]
    )
    assert trace.format == "tau2" and trace.domain is None
    assert [[g.name for g in e.gold or ()] for e in episodes] == [["get", "put"]] * 2 + [[]]
    assert episodes[2].gold is None and episodes[0].checks is None
    assert trace.notes == {"no recorded action checks": 2}


def test_the_users_own_calls_are_not_the_agents(read: Read) -> None:
    own = {"id": "u", "name": "toggle", "arguments": {}, "requestor": "user"}
    messages = [
        {"role": "assistant", "tool_calls": [{"id": "x", "name": "get", "arguments": {}}]},
        {"role": "user", "content": None, "tool_calls": [own]},
        {"role": "tool", "id": "", "content": "on", "requestor": "user", "error": True},
        {"role": "tool", "id": "x", "content": "1", "requestor": "assistant"},
    ]
    [episode], trace = read(results(simulation(messages=messages)))
    assert episode.turns == [Turn([Call("get", {}, "1")])]
    assert episode.user_calls == [Call("toggle", {}, "on", True)]
    assert trace.notes == {
        "call of the user": 1,
        "result paired by position": 1,
        "result without 'error'": 1,
    }


def test_an_id_of_a_simulation_twice_is_made_unique(read: Read) -> None:
    episodes, trace = read(results(*[simulation(trial=k, id="same") for k in range(3)]))
    assert [e.episode_id for e in episodes] == ["same", "same#2", "same#3"]
    assert trace.notes == {"episode id twice": 2}


def write_folder(folder: Path, *, tasks: bool = True) -> None:
    (folder / "simulations").mkdir(parents=True)
    if tasks:
        listed: list[Json] = [{"id": task, "evaluation_criteria": None} for task in "abc"]
        header = results(tasks=listed) | {"simulations": []}
        (folder / "results.json").write_text(json.dumps(header))
    for task in ("a", "b"):
        (folder / "simulations" / f"{task}.json").write_text(json.dumps(simulation(task)))


def test_a_folder_with_one_simulation_per_file(tmp_path: Path) -> None:
    folder = tmp_path / "run-1"
    write_folder(folder)
    trace = open_trace(str(folder))
    episodes = list(trace)
    assert (trace.source, trace.format, trace.domain) == ("run-1", "tau2", "retail")
    assert [e.episode_id for e in episodes] == ["a-0", "b-0"]
    assert trace.notes == {"task never run": 1}
    files = [folder / "results.json", *sorted((folder / "simulations").iterdir())]
    stored = b"".join(file.read_bytes() for file in files)
    assert trace.sha256 == hashlib.sha256(stored).hexdigest()
    for path in (folder / "results.json", folder / "simulations"):
        assert [e.episode_id for e in open_trace(str(path))] == ["a-0", "b-0"]


def test_a_folder_without_results_json(tmp_path: Path) -> None:
    write_folder(tmp_path / "run", tasks=False)
    trace = open_trace(str(tmp_path / "run"))
    assert [e.gold for e in trace] == [(), ()]
    assert trace.domain is None and trace.notes == {}


# --- messages -------------------------------------------------------------------------------------

ROLLOUT: Json = {
    "episode_id": "e1",
    "group_id": "g1",
    "task_id": "t1",
    "trial": 3,
    "domain": "airline",
    "status": "truncated",
    "outcome": 0.25,
    "tools": [{"type": "function", "function": {"name": "get"}}],
    "gold_actions": [
        {"name": "get", "arguments": {"a": 1}},
        {"name": "put", "kwargs": {"b": 2}},
        {"name": "end", "arguments": {}},
    ],
    "messages": [
        {"role": "user", "content": "hi"},
        called(("x", "get", '{"a": 1}'), n_tokens=12),
        answer("x", "1"),
        said("bye", n_tokens=3),
    ],
}
EPISODE = Episode(
    source="t",
    episode_id="e1",
    task_id="t1",
    trial=3,
    group_id="g1",
    turns=[Turn([Call("get", '{"a": 1}', "1")], 12), Turn([], 3)],
    gold=(GoldAction("get", {"a": 1}), GoldAction("put", {"b": 2}), GoldAction("end", {})),
    outcome=0.25,
    status="truncated",
    policy="t",
    domain="airline",
    tools=[{"type": "function", "function": {"name": "get"}}],
)


@pytest.mark.parametrize("document", [ROLLOUT, [ROLLOUT]])
def test_a_conversation_as_a_document(read: Read, document: Any) -> None:
    episodes, trace = read(document)
    assert episodes == [EPISODE]
    assert (trace.format, trace.domain, trace.notes) == ("messages", "airline", {})


@pytest.mark.parametrize(
    "stored",
    [
        json.dumps(ROLLOUT).encode(),
        b"\n" + json.dumps(ROLLOUT).encode() + b"\r\n\n",
        b"\xef\xbb\xbf" + json.dumps(ROLLOUT).encode(),
        json.dumps(ROLLOUT, indent=2).encode(),
        gzip.compress(json.dumps(ROLLOUT).encode()),
        json.dumps(
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in ROLLOUT.items()}
        ).encode(),
    ],
    ids=["one line", "blank lines", "byte order mark", "indented", "gzip", "JSON in strings"],
)
def test_a_conversation_however_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: bytes
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(stored)
    trace = open_trace(str(path))
    assert list(trace) == [EPISODE]
    assert trace.sha256 == hashlib.sha256(stored).hexdigest()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stored)))
    trace = open_trace("-")
    assert [e.episode_id for e in trace] == ["e1"]
    assert (trace.source, trace.sha256) == ("stdin", hashlib.sha256(stored).hexdigest())


def test_a_large_document_has_the_hash_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps([item(note="x" * 3_000_000)]))
    trace = open_trace(str(path))
    assert len(list(trace)) == 1
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "JSON strings"])
def test_parquet(tmp_path: Path, nested: bool) -> None:
    import polars as pl

    other = {"role": "assistant", "tool_calls": [{"function": {"name": "n", "arguments": "{}"}}]}
    rows = [ROLLOUT | {"episode_id": "e1"}, ROLLOUT | {"episode_id": "e2", "messages": [other]}]
    if not nested:
        rows = [
            {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows
        ]
    path = tmp_path / "t.parquet"
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    trace = open_trace(str(path))
    first, second = trace
    assert first == EPISODE
    assert [call.name for call in second.turns[0].calls] == ["n"]
    assert (trace.source, trace.format) == ("t", "messages")
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    # (e2 has the group and trial of e1)
    assert trace.notes["same task and trial twice"] == 1


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({}, None),
        ({"outcome": None, "reward": 0.5}, 0.5),
        ({"reward": 1}, 1.0),
        ({"success": True}, 1.0),
        ({"success": False, "outcome": 0.7}, 0.7),
        ({"reward": 1 + 1e-9}, 1.0),
        ({"reward": -1e-9}, 0.0),
    ],
)
def test_the_outcome_of_a_conversation(read: Read, fields: Json, outcome: float | None) -> None:
    [episode], _ = read({"messages": [said("a")], **fields})
    assert episode.outcome == outcome and episode.status == "ok"
    assert episode.gold is None and episode.tools is None and episode.domain is None


def test_odd_fields_of_a_conversation_are_noted(read: Read) -> None:
    [episode], trace = read(
        {
            "messages": [],
            "status": "finished",
            "tools": {"get": {}},
            "gold_actions": [],
            "trial": "x",
        }
    )
    assert (episode.status, episode.tools, episode.gold) == ("ok", None, ())
    assert trace.notes == {
        "unknown status 'finished'": 1,
        "tools not a list": 1,
        "conversation without a turn: no messages": 1,
        "no task id": 1,
        "no trial": 1,
        "no outcome, reward or success": 1,
    }


def test_a_group_stands_for_a_missing_task(read: Read) -> None:
    rows = [{"messages": [said("a")], "group_id": "g"} for _ in range(2)]
    episodes, _ = read(rows, lines=True)
    assert [(e.task_id, e.group_id, e.trial) for e in episodes] == [("g", "g", 0), ("g", "g", 1)]


def test_a_jsonl_is_read_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(json.dumps(ROLLOUT).encode() + b"\n" + b'{"messages": \n')
    trace = iter(open_trace(str(path)))
    assert next(trace) == EPISODE
    with pytest.raises(InputError):
        next(trace)


def test_a_trace_that_is_never_read_leaves_no_warning(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes((json.dumps(ROLLOUT) + "\n").encode() * 3)
    assert open_trace(str(path)).format == "messages"


def test_items_and_simulations_as_jsonl(read: Read) -> None:
    episodes, trace = read([item(0), item(1)], lines=True)
    assert (len(episodes), trace.format) == (2, "tau-bench")
    episodes, trace = read([simulation("a"), simulation("b")], lines=True)
    assert (len(episodes), trace.format) == (2, "tau2")


# --- bad input ------------------------------------------------------------------------------------

KNOWN = "give a format of docs/formats.md, such as chat messages or tau-bench results"
AGAIN = "copy or download the file again"
REPAIR = "repair the line or pass --skip-bad"
RESCALE = "rescale it so that 1 is a full success, or name another field by --map outcome=FIELD"
GOOD = json.dumps({"messages": [said("a")]})


@pytest.mark.parametrize(
    ("stored", "line"),
    [
        (b"", "t: is empty; give a trace file"),
        (b" \n\n", "t: is empty; give a trace file"),
        (b"\x89PNG\r\n\x00\x00", f"t: is a binary file, not a trace; {KNOWN}"),
        (
            b'[{"task_id": 0, "traj": [',
            f"t:byte 25: the JSON is cut off; {AGAIN}",
        ),
        (
            '[{"task_id": "éé", "traj": ['.encode(),
            f"t:byte 30: the JSON is cut off; {AGAIN}",
        ),
        (
            b'{\n  "simulations": [\n    {"id": ',
            f"t:byte 32: the JSON is cut off; {AGAIN}",
        ),
        (
            b'[{"traj": [], }]',
            f"t:byte 12: broken JSON; {AGAIN}",
        ),
        (b'["\xff"]', f"t:byte 2: not UTF-8 text; {AGAIN}"),
        (
            b"[" * 3000,
            f"t:byte 1025: JSON nested too deep; {AGAIN}",
        ),
        (b"[]", f"t: is no known trace: an empty list; {KNOWN}"),
        (b"[1, 2]", f"t: is no known trace: a list of int; {KNOWN}"),
        (b'"text"', f"t: is no known trace: str; {KNOWN}"),
        (b"{}", f"t: is no known trace: an empty object; {KNOWN}"),
        (
            b'{"a": 1, "b": 2}\n{"a": 1, "b": 2}\n',
            f"t: is no known trace: an object with the keys 'a', 'b'; {KNOWN}",
        ),
        (
            b'[{"a": 1, "b": 2}]',
            f"t: is no known trace: a list of an object with the keys 'a', 'b'; {KNOWN}",
        ),
        (
            b"hello\n",
            f"t:byte 0: broken JSON; {AGAIN}",
        ),
        (
            gzip.compress(b"x" * 99, mtime=0)[:-12],
            f"t: the gzip data is cut off; {AGAIN}",
        ),
        (b"\x1f\x8bnonsense", f"t: broken gzip data (Unknown compression method); {AGAIN}"),
        (b"PAR1nonsense", "t: is broken Parquet; copy or write the file again"),
        (
            b'{"simulations": [], "tasks": []}',
            f"t: holds no simulations; {KNOWN}",
        ),
        (
            json.dumps([item(reward=2)]).encode(),
            f"t:item 1: 'reward' is 2, outside [0, 1]; {RESCALE}",
        ),
        (
            json.dumps([item(), item(reward="good")]).encode(),
            "t:item 2: 'reward' is 'good', not a number; give 'reward' in [0, 1]",
        ),
        (
            json.dumps([item(), 3]).encode(),
            f"t:item 2: is not an object; {KNOWN}",
        ),
        (
            json.dumps([item(info="x")]).encode(),
            "t:item 1: 'info' is 'x', not an object; give the file as it was written",
        ),
        (
            json.dumps([item(), {"task_id": 1}]).encode(),
            "t:item 2: has no 'traj'; give the file as it was written",
        ),
        (
            json.dumps(results(simulation(reward_info={"reward": -1}))).encode(),
            f"t:simulation 1: 'reward' is -1, outside [0, 1]; {RESCALE}",
        ),
        (
            json.dumps(results(simulation(), tasks=[{"name": "a"}])).encode(),
            "t: 'tasks' has an entry without 'id'; give the file as it was written",
        ),
        (
            json.dumps([simulation(reward_info={"action_checks": [{"x": 1}]})]).encode(),
            "t:item 1: 'action_checks' has an entry without 'action' or 'action_match'; "
            "give the file as tau2-bench wrote it",
        ),
        (
            f"{GOOD}\n[1]\n".encode(),
            f"t:2: is not a JSON object; {REPAIR}",
        ),
        (
            f'{GOOD}\n\n{{"messages": [\n{GOOD}\n'.encode(),
            f"t:3: the JSON is cut off at byte 15; {REPAIR}",
        ),
        (
            f"oops\n{GOOD}\n".encode(),
            f"t:1: broken JSON at byte 0; {REPAIR}",
        ),
        (
            f'{GOOD}\n{{"messages": 3}}\n'.encode(),
            "t:2: 'messages' is not a list; give one list of messages per record",
        ),
        (
            b'{"messages": "[1"}\n',
            "t:1: 'messages' holds broken JSON; write it anew",
        ),
        (
            b'{"messages": [], "gold_actions": [{"kwargs": {}}]}\n',
            "t:1: an entry of 'gold_actions' is a call without a name: {'kwargs': {}}; "
            "give {name, arguments}",
        ),
        (
            b'{"messages": [], "gold_actions": 3}\n',
            "t:1: 'gold_actions' is not a list; give a list of {name, arguments}",
        ),
        (
            b'{"messages": [], "outcome": NaN}\n',
            f"t:1: 'outcome' is nan, outside [0, 1]; {RESCALE}",
        ),
        (  # beyond every float
            b'{"messages": [], "outcome": 1%s}\n' % (b"0" * 400),
            f"t:1: 'outcome' is 1{'0' * 39}, outside [0, 1]; {RESCALE}",
        ),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path: Path, stored: bytes, line: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(stored)
    assert error_of(path).replace(str(tmp_path) + "/", "") == line


def with_each_place_replaced(document: Any, value: Any) -> Iterator[Any]:
    """The same document with one of its values replaced, for each of them in turn."""
    if isinstance(document, (dict, list)):
        keys = list(document) if isinstance(document, dict) else range(len(document))
        for key in keys:
            copy = document.copy()
            for replaced in [value, *with_each_place_replaced(document[key], value)]:
                copy[key] = replaced
                yield copy


@pytest.mark.parametrize("value", [None, 7, 2.5, "x", [1], {"a": 1}, [{}]])
def test_a_value_of_the_wrong_kind_never_crashes(tmp_path: Path, value: Any) -> None:
    action = {"name": "get", "arguments": {}, "compare_args": ["a"]}
    tasks = [{"id": "a", "evaluation_criteria": {"actions": [action]}}]
    checked = {"reward": 1.0, "action_checks": [check("get", True)]}
    document = results(simulation(reward_info=checked), tasks=tasks)
    read_whole = 0
    for whole in (item(), document, ROLLOUT, [simulation(reward_info=checked)]):
        for broken in with_each_place_replaced(whole, value):
            path = tmp_path / "t.json"
            path.write_text(json.dumps(broken))
            try:
                episodes = list(open_trace(str(path)))
            except InputError as error:
                assert str(error).startswith(str(path)) and "\n" not in str(error)
                continue
            read_whole += 1
            assert all(isinstance(e.episode_id, str) for e in episodes)
            assert all(isinstance(g.name, str) for e in episodes for g in e.gold or ())
    assert read_whole > 20


def test_parquet_with_wrong_columns(tmp_path: Path) -> None:
    import polars as pl

    path = tmp_path / "t.parquet"
    pl.DataFrame({"prompt": ["a"], "answer": ["b"]}).write_parquet(path)
    assert error_of(path) == (
        f"{path}: has no column 'messages' (columns: 'prompt', 'answer'); "
        "give one row per conversation: messages, and optionally tools, gold_actions, outcome"
    )
    pl.DataFrame({"messages": ["[]"], "reward": [9.0]}).write_parquet(path)
    assert error_of(path) == (f"{path}:row 1: 'reward' is 9.0, outside [0, 1]; {RESCALE}")
    pl.DataFrame({"messages": pl.Series([], dtype=pl.String)}).write_parquet(path)
    assert error_of(path) == f"{path}: has no rows; give one row per conversation"


def test_paths_that_hold_no_trace(tmp_path: Path) -> None:
    missing = tmp_path / "none.json"
    assert error_of(missing) == f"{missing}: no such file; check the path"
    assert error_of(tmp_path) == (
        f"{tmp_path}: is a directory without traces; give a file or a results folder"
    )
    below = missing / "x"
    missing.write_text("{}")
    assert error_of(below) == f"{below}: can't be read (not a directory); check the path"


def test_a_folder_of_other_files(tmp_path: Path) -> None:
    file = tmp_path / "monolith.json"
    file.write_text(json.dumps(results(simulation())))
    assert trace_files(str(tmp_path)) == [str(file)]
    (tmp_path / "other.json").write_text("{}")
    file.write_text(json.dumps(simulation()))
    assert error_of(tmp_path) == (
        f"{tmp_path / 'other.json'}: is not one record of tau2: an empty object; give a "
        "results folder, or a single file by its own name"
    )
    (tmp_path / "other.json").unlink()
    file.write_text(json.dumps(simulation(reward_info={"reward": 7})))
    assert error_of(tmp_path) == (f"{file}: 'reward' is 7, outside [0, 1]; {RESCALE}")
    file.write_text(json.dumps(simulation())[:-5])
    assert error_of(tmp_path).startswith(f"{file}:byte ")
    (tmp_path / "results.json").write_text("[]")
    assert error_of(tmp_path) == (
        f"{tmp_path / 'results.json'}: is no results header: an empty list; {KNOWN}"
    )


def test_bad_lines_are_handed_over_and_skipped(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(f'oops\n{GOOD}\n{{"messages": 1}}\n{GOOD}\n'.encode())
    skipped: list[tuple[int, bytes, str]] = []
    trace = open_trace(str(path), skip_bad=lambda *line: skipped.append(line))
    assert [e.task_id for e in trace] == ["0", "1"]
    assert skipped == [
        (1, b"oops\n", "broken JSON at byte 0"),
        (3, b'{"messages": 1}\n', "'messages' is not a list"),
    ]
    assert trace.notes["bad record left out"] == 2
    assert trace.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_bad_line_of_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = io.TextIOWrapper(io.BytesIO(f"{GOOD}\noops\n".encode()))
    monkeypatch.setattr(sys, "stdin", stored)
    assert error_of("-").startswith("standard input:2: broken JSON")


@pytest.mark.parametrize(
    ("stated", "policy"),
    [
        ({"policy": "a", "model": "b"}, "a"),
        ({"model": "b"}, "b"),
        ({"model_name": "b"}, "b"),
        ({"agent": {"model_name": "b", "name": "terminus"}}, "b"),
        ({"metadata": {"model": "b"}}, "b"),
        ({"agent": "b"}, "b"),
        ({"model": {"name": "b"}}, "b"),
        ({"agent": {"name": "b"}}, "b"),
        ({"agent": {"version": "b"}}, None),
        ({"metadata": ["model"]}, None),
        ({}, None),
    ],
)
def test_what_acted_is_stated_in_many_places(stated: dict[str, Any], policy: str | None) -> None:
    assert policy_in(stated) == policy


# --- folders of traces ----------------------------------------------------------------------------

TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}


def test_a_folder_of_traces_means_its_files(run: Cli) -> None:
    Path("logs/old").mkdir(parents=True)
    for name in ("a.jsonl", "b.json", "b.meta.json", "c.jsonl.gz", "a.jsonl.bad.jsonl", "d.txt"):
        text = json.dumps(TALK | {"task_id": name, "outcome": 1}).encode()
        Path("logs", name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert trace_files("logs") == ["logs/a.jsonl", "logs/b.json", "logs/c.jsonl.gz"]
    assert trace_files("logs/a.jsonl") == ["logs/a.jsonl"]
    assert trace_files("-") == ["-"]
    assert run("score", "logs", "-o", "t.parquet", "--quiet").code == 0
    assert read_table(TURNS, "t.parquet")["source"].to_list() == ["a", "b", "c"]
    twice = run("score", "logs", "logs/a.jsonl")
    assert (twice.code, twice.err) == (2, "error: logs/a.jsonl: given twice; name each file once\n")
    over = run("score", "logs", "-o", "logs/a.jsonl", "--force")
    assert (over.code, Path("logs/a.jsonl").read_bytes()) == (
        2,
        json.dumps(TALK | {"task_id": "a.jsonl", "outcome": 1}).encode(),
    )


def test_a_folder_that_a_format_lays_out_is_one_trace(tmp_path: Path) -> None:
    (tmp_path / "trial/agent").mkdir(parents=True)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "trial/agent/trajectory.json").write_text("{}")
    assert trace_files(str(tmp_path)) == [str(tmp_path)]
