from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from stages.traces import Episode, messages, nemo_gym, open_trace
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from tests.broken_records import broken

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "formats"

Json = dict[str, Any]


def said(text: str, **more: Any) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": content, "id": "m"} | more


def call(id: str, name: str = "look", **more: Any) -> Json:
    return {"type": "function_call", "call_id": id, "name": name, "arguments": "{}"} | more


def result(id: str, text: str = "a shop") -> Json:
    return {"type": "function_call_output", "call_id": id, "output": text}


def row(*output: Any, **more: Any) -> Json:
    tool = {"type": "function", "name": "look", "parameters": {}, "strict": False}
    base: Json = {
        "responses_create_params": {"input": "hi", "tools": [tool]},
        "response": {"model": "m", "object": "response", "output": list(output)},
        "reward": 0.5,
        "agent_ref": {"type": "responses_api_agents", "name": "shop_agent"},
        "_ng_task_id": {"taskset": "shop", "task_id": "7"},
        "_ng_rollout_index": 2,
    }
    return base | more


def cleaned(record: Json, shared: Any = None) -> Json:
    clean, *_ = nemo_gym.translate(record, ReadOptions(shared=shared), Counter())
    return clean


def read(record: Json) -> Episode:
    return messages.reader("run", Counter())(cleaned(record))


def write(path: Path, rows: list[Json]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def test_a_rollout_becomes_a_clean_record() -> None:
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]}
    record = row(
        thought, said("wait"), call("a"), call("b"), result("a"), result("b"), said("done")
    )
    clean = cleaned(record | {"reward_components": {"right": 0.5}})
    assert clean == {
        "task_id": "shop/7",
        "trial": 2,
        "model": "m",
        "env": "shop_agent",
        "reward": 0.5,
        "rewards": {"right": 0.5},
        "status": "ok",
        "tools": [
            {"type": "function", "function": {"name": "look", "parameters": {}, "strict": False}}
        ],
        "messages": [
            {"role": "user", "content": "hi"},
            {
                "role": "assistant",
                "content": "wait",
                "reasoning_content": "hm",
                "tool_calls": [
                    {"id": id, "type": "function", "function": {"name": "look", "arguments": "{}"}}
                    for id in "ab"
                ],
            },
            {"role": "tool", "tool_call_id": "a", "content": "a shop"},
            {"role": "tool", "tool_call_id": "b", "content": "a shop"},
            {"role": "assistant", "content": "done"},
        ],
    }


@pytest.mark.parametrize(
    ("more", "status", "outcome"),
    [
        ({"reward": 0.0}, "ok", 0.0),
        ({"failure_reason": "no_answer", "reward": 0.0}, "ok", 0.0),
        ({"reward": None}, "masked", None),
        ({"mask_sample": True, "failure_kind": "judge_failed"}, "masked", None),
        ({"truncated": True}, "truncated", 0.5),
        ({"_ng_failure_class": "judge_failed", "reward": 0.0}, "error", None),
    ],
)
def test_four_endings_stay_apart(more: Json, status: str, outcome: float | None) -> None:
    clean = cleaned(row(said("x"), **more))
    assert (clean["status"], clean.get("reward")) == (status, outcome)


def test_a_reward_of_another_scale_is_named() -> None:
    with pytest.raises(BadItemError) as caught:
        read(row(said("x"), reward=2.0))
    assert caught.value.what == "'reward' is 2.0, outside [0, 1]"


def test_a_missing_reward_is_masked() -> None:
    record = row(said("x"))
    del record["reward"]
    assert cleaned(record)["status"] == "masked"


@pytest.mark.parametrize(
    ("response", "status", "stop"),
    [
        (
            {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
            "truncated",
            "max_output_tokens",
        ),
        ({"status": "failed", "error": {"code": "server_error"}}, "error", "failed"),
    ],
)
def test_how_the_response_ended(response: Json, status: str, stop: str) -> None:
    record = row(said("x"))
    record["response"] |= response
    clean = cleaned(record)
    assert (clean["status"], clean["stop"]) == (status, stop)


def test_what_the_model_said_in_the_request_is_no_turn() -> None:
    record = row(said("mine"))
    heard = [{"role": "user", "content": "hi"}, said("before"), call("z"), result("z")]
    record["responses_create_params"]["input"] = heard
    assert [turn.text for turn in read(record).turns] == ["mine"]


def test_a_list_for_each_step_is_read_once() -> None:
    first = [{"type": "message", "role": "user", "content": "hi"}, call("a"), result("a")]
    record = row(first, [*first, said("done")])
    record["responses_create_params"]["input"] = []
    assert [len(turn.calls) for turn in read(record).turns] == [1, 0]


def test_tokens_stand_on_the_message_that_they_are_of() -> None:
    tokens: Json = {
        "prompt_token_ids": [1, 2],
        "generation_token_ids": [3, 4],
        "generation_log_probs": [-0.5, -1.0],
    }
    message = cleaned(row(call("a"), call("b", **tokens)))["messages"][-1]
    assert len(message["tool_calls"]) == 2
    assert (message["prompt_ids"], message["token_ids"]) == ([1, 2], [3, 4])
    assert (message["logprobs"], message["n_tokens"]) == ([-0.5, -1.0], 2)


def test_a_hosted_call_is_refused_as_everywhere(tmp_path: Path) -> None:
    hosted = {"type": "web_search_call", "id": "w", "status": "completed"}
    path = write(tmp_path / "rollouts.jsonl", [row(hosted)])
    with pytest.raises(Exception, match="a call of the kind 'web_search_call'"):
        list(open_trace(str(path)))


def test_tasks_are_joined_by_what_they_say_and_never_by_index(tmp_path: Path) -> None:
    gold = [{"name": "look", "arguments": "{}"}]
    rows, tasks = list[Json](), list[Json]()
    for index, text in enumerate(("one", "two")):
        record = row(said("x"), _ng_task_index=index)
        del record["_ng_task_id"]
        # As the server gives it back: with the fields that the input had left out.
        record["responses_create_params"] = {
            "input": [{"role": "user", "content": text, "type": "message"}],
            "temperature": None,
        }
        rows.append(record)
        asked = {"input": [{"role": "user", "content": text}]}
        truth = gold if text == "one" else []
        tasks.append({"responses_create_params": asked, "ground_truth": truth})
    # Indices of another order.
    tasks = [{**task, "_ng_task_index": place} for place, task in enumerate(reversed(tasks))]
    path = write(tmp_path / "rollouts.jsonl", rows)
    write(tmp_path / "rollouts_materialized_inputs.jsonl", tasks)
    found = list(open_trace(str(path)))
    assert [[action.name for action in one.gold or ()] for one in found] == [["look"], []]
    assert found[0].task_id != found[1].task_id


def test_failed_attempts_beside_the_rollouts_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "rollouts.jsonl", [row(said("x"))])
    failed = [{"_ng_failure_class": "agent_run_error", "_ng_task_index": 0}] * 2
    write(tmp_path / "rollouts_failures.jsonl", failed)
    trace = open_trace(str(path))
    assert len(list(trace)) == 1
    of_folder = open_trace(str(tmp_path))
    assert len(list(of_folder)) == 1 and of_folder.notes == trace.notes
    note = "attempt without a rollout (agent_run_error), in rollouts_failures.jsonl"
    assert trace.notes[note] == 2
    assert trace.format == "nemo-gym"


def test_a_simulation_of_tau2_bench_brings_its_gold_actions(tmp_path: Path) -> None:
    action = {"action_id": "1", "name": "look", "arguments": {"at": 1}, "requestor": "assistant"}
    task = {
        "id": "50",
        "user_scenario": {"instructions": {"domain": "retail"}},
        "evaluation_criteria": {"actions": [{**action, "compare_args": ["at"]}]},
    }
    spoken = {"id": "c", "name": "look", "arguments": {"at": 1}, "requestor": "assistant"}
    simulation = {
        "id": "s1",
        "task_id": "50",
        "trial": 0,
        "termination_reason": "user_stop",
        "reward_info": {"reward": 1.0, "reward_breakdown": {"DB": 1.0}},
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [spoken]},
            {"role": "tool", "id": "c", "content": "a shop", "error": True},
        ],
    }
    path = write(tmp_path / "rollouts.jsonl", [row(said("x"), task=task, result=simulation)])
    [found] = list(open_trace(str(path)))
    assert (found.episode_id, found.task_id, found.trial) == ("s1", "50", 2)
    assert (found.outcome, found.domain, found.policy) == (1.0, "retail", "m")
    assert found.gold is not None
    assert [(one.name, one.compare_args) for one in found.gold] == [("look", ("at",))]
    assert (found.turns[0].calls[0].flagged, found.factors) == (True, {"DB": 1.0})


@given(broken(row(said("wait"), call("a"), result("a"), said("done"), ground_truth=[])))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_broken_row_is_read_or_refused(record: Json) -> None:
    with contextlib.suppress(BadItemError):
        read(record)


def test_the_public_example() -> None:
    path = SHARED / "nemo-gym_workplace_assistant_rollouts.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no public example at {path}")
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    trace = open_trace(str(path))
    found = list(trace)
    assert trace.format == "nemo-gym"
    assert (len(found), sum(len(t.calls) for one in found for t in one.turns)) == (5, 8)
    assert [one.outcome for one in found] == [line["reward"] for line in lines]
    assert {one.policy for one in found} == {"gpt-4.1-2025-04-14"}
