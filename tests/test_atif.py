"""ATIF trajectories: steps, results, copied context, continuations, and Harbor's results."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from stages.errors import InputError
from stages.traces import Episode, atif, open_trace
from stages.traces.fields import BadItemError
from stages.traces.formats import ReadOptions
from tests.broken_records import broken
from tests.builders import SHARED
from tests.conftest import Cli
from tests.translated import clean, episodes, told

Json = dict[str, Any]

METRICS = {
    "completion_tokens": 2,
    "prompt_token_ids": [1, 2, 3],
    "completion_token_ids": [4, 5],
    "logprobs": [-0.5, -0.25],
}


def call(id: str = "c1", name: str = "look", **arguments: Any) -> Json:
    return {"tool_call_id": id, "function_name": name, "arguments": arguments}


def act(text: str = "done", *calls: Json, results: list[Json] | None = None, **more: Any) -> Json:
    step: Json = {"source": "agent", "message": text} | more
    if calls:
        step["tool_calls"] = list(calls)
    return step if results is None else step | {"observation": {"results": results}}


def answer(content: Any = "closed", id: str | None = "c1", **more: Any) -> Json:
    return {"content": content} | ({"source_call_id": id} if id else {}) | more


LOOKED = act("", call(at="a shop"), results=[answer()])


def trajectory(*steps: Json, **more: Any) -> Json:
    opening = [{"source": "system", "message": "Help."}, {"source": "user", "message": "look"}]
    numbered = [step | {"step_id": place} for place, step in enumerate([*opening, *steps], 1)]
    agent = {"name": "terminus-2", "version": "1", "model_name": "m"}
    base = {"schema_version": "ATIF-v1.8", "session_id": "s", "agent": agent, "steps": numbered}
    return base | more


def verdict(**more: Any) -> Json:
    base: Json = {"task_name": "shop", "trial_name": "shop__a1", "exception_info": None}
    return base | {"verifier_result": {"rewards": {"reward": 1.0}}} | more


def trial(folder: Path, record: Json | None, result: Json | None) -> Path:
    """A folder as Harbor leaves it."""
    path = folder / "agent" / "trajectory.json"
    path.parent.mkdir(parents=True)
    if record is not None:
        path.write_text(json.dumps(record))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
    return path


def read(path: Path) -> list[Episode]:
    return list(open_trace(str(path)))


def test_a_trajectory_becomes_a_clean_record() -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {}}}
    record = trajectory(LOOKED | {"reasoning_content": "hm"}, act("done", metrics=METRICS))
    record["agent"]["tool_definitions"] = [tool]
    [one] = clean(atif, record)
    function = {"name": "look", "arguments": '{"at": "a shop"}'}
    assert one == {
        "model": "m",
        "status": "ok",
        "tools": [tool],
        "messages": [
            {"role": "system", "content": "Help."},
            {"role": "user", "content": "look"},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "hm",
                "tool_calls": [{"id": "c1", "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "closed"},
            {
                "role": "assistant",
                "content": "done",
                "n_tokens": 2,
                "token_ids": [4, 5],
                "prompt_ids": [1, 2, 3],
                "logprobs": [-0.5, -0.25],
            },
        ],
    }


@pytest.mark.parametrize("minor", range(10))
def test_versions(minor: int) -> None:
    notes = Counter[str]()
    record = trajectory(LOOKED, schema_version=f"ATIF-v1.{minor}")
    [episode] = episodes(atif, record, notes=notes)
    assert told(episode) == [("", [("look", {"at": "a shop"}, "closed", None)])]
    assert any("newer version" in note for note in notes) == (minor == 9)


def test_another_version_is_refused() -> None:
    with pytest.raises(BadItemError) as caught:
        clean(atif, trajectory(schema_version="ATIF-v2.0"))
    assert caught.value.what == "is of version 'ATIF-v2.0'"


def test_copied_context_is_no_turn() -> None:
    copied = LOOKED | {"is_copied_context": True}
    dispatched = act("", call("c2"), results=[answer("open", "c2")], llm_call_count=0)
    [episode] = episodes(atif, trajectory(copied, dispatched, act("done")))
    assert told(episode) == [("done", [])]


@pytest.mark.parametrize(
    ("calls", "results", "answered"),
    [
        (["a", "b"], [answer("1", None), answer("2", None)], {"a": "1", "b": "2"}),
        (["a", "b"], [answer("screen", None)], {"a": None, "b": "screen"}),
        (["a", "b"], [answer("1", "b"), answer("2", None)], {"a": "2", "b": "1"}),
        (["a"], [answer("1", None), answer("2", None)], {"a": "1"}),
        (["a"], [answer("1", "of another")], {"a": "1"}),
        ([], [answer("screen", None)], {}),
    ],
)
def test_results_without_an_id(
    calls: list[str], results: list[Json], answered: dict[str, str | None]
) -> None:
    step = act("", *(call(id, name=id) for id in calls), results=results)
    [episode] = episodes(atif, trajectory(step))
    assert {call.name: call.result for call in episode.turns[0].calls} == answered
    texts = [message["content"] for message in episode.messages]
    assert all(text in texts for text in (result["content"] for result in results))


def test_parts_and_flags() -> None:
    image = {"type": "image", "source": {"media_type": "image/png", "path": "a.png"}}
    parts = [{"type": "text", "text": "clo"}, image, {"type": "text", "text": "sed"}]
    results = [answer(parts, extra={"is_error": True})]
    [episode] = episodes(atif, trajectory(act("", call(), results=results)))
    assert told(episode) == [("", [("look", {}, "closed", True)])]


def test_a_flag_of_harbors_converters() -> None:
    step = act("", call(), results=[answer()], extra={"tool_result_is_error": True})
    [episode] = episodes(atif, trajectory(step))
    assert episode.turns[0].calls[0].flagged is True


def test_subagents_are_noted() -> None:
    notes = Counter[str]()
    reference = answer(None, subagent_trajectory_ref=[{"trajectory_id": "sub"}])
    record = trajectory(act("", call(), results=[reference]))
    sub = trajectory(LOOKED, act(), trajectory_id="sub")
    [episode] = episodes(atif, record | {"subagent_trajectories": [sub]}, notes=notes)
    assert len(episode.turns) == 1
    assert notes["trajectory of a subagent: left out"] == 1
    assert notes["result that came of a subagent"] == 1


def test_tokens_of_several_calls_of_the_model_are_only_counted() -> None:
    [one] = clean(atif, trajectory(act("done", metrics=METRICS, llm_call_count=2)))
    assert one["messages"][-1] == {"role": "assistant", "content": "done", "n_tokens": 2}


TIMEOUT: Json = {"exception_info": {"exception_type": "AgentTimeoutError"}}
TIMED_OUT = ("error", 1.0, "AgentTimeoutError")
REFUSED = "AgentSafetyRefusalError"


def judged(kind: str, *, valid: bool) -> Json:
    """An exception as Harbor 0.26 writes it, with what it makes of the reward."""
    return {"exception_type": kind, "policy": {"should_grade": True, "has_valid_reward": valid}}


@pytest.mark.parametrize(
    ("more", "status", "outcome", "stop"),
    [
        ({}, "ok", 1.0, None),
        ({"verifier_result": {"rewards": {"reward": 0}}}, "ok", 0.0, None),
        ({"verifier_result": None}, "masked", None, None),
        ({"verifier_result": {"rewards": None}}, "masked", None, None),
        ({"verifier_result": {"rewards": {"reward": None}}}, "masked", None, "not scored"),
        ({"verifier_result": {"rewards": {"a": None, "b": None}}}, "masked", None, "not scored"),
        ({"exception_info": {"exception_type": "X"}}, "error", 1.0, "X"),
        (TIMEOUT, "truncated", 1.0, "AgentTimeoutError"),
        (TIMEOUT | {"verifier_result": None}, "error", None, "AgentTimeoutError"),
        (
            TIMEOUT | {"verifier_result": {"rewards": {"reward": None}}},
            "masked",
            None,
            "not scored",
        ),
        ({"exception_info": {"exception_type": "AgentSafetyRefusalError"}}, "ok", 1.0, REFUSED),
        ({"exception_info": judged("X", valid=True)}, "ok", 1.0, "X"),
        ({"exception_info": judged("AgentTimeoutError", valid=False)}, *TIMED_OUT),
        ({"step_results": [{"step_name": "one"} | TIMEOUT]}, "truncated", 1.0, "AgentTimeoutError"),
    ],
)
def test_the_result_beside(
    tmp_path: Path, more: Json, status: str, outcome: float | None, stop: str | None
) -> None:
    path = trial(tmp_path / "job" / "shop__a1", trajectory(LOOKED, act()), verdict(**more))
    [episode] = read(path)
    assert (episode.task_id, episode.episode_id) == ("shop", "shop__a1")
    assert (episode.status, episode.outcome, episode.stop) == (status, outcome, stop)
    assert [told(one) for one in read(path.parents[1] / "result.json")] == [told(episode)]


def test_without_a_result_the_outcome_is_unknown(tmp_path: Path) -> None:
    [episode] = read(trial(tmp_path, trajectory(act()), None))
    assert (episode.outcome, episode.status) == (None, "ok")


@pytest.mark.parametrize("extra", [{"reward": 0.5}, {"rewards": {"reward": 0.5}}])
def test_rewards_in_the_trajectory(tmp_path: Path, extra: Json) -> None:
    [episode] = read(trial(tmp_path / "a", trajectory(act(), extra=extra), None))
    assert (episode.outcome, episode.rewards) == (0.5, {"reward": 0.5})
    [judged] = read(trial(tmp_path / "b", trajectory(act(), extra=extra), verdict()))
    assert judged.outcome == 1.0


def test_one_of_several_rewards_is_named(run: Cli) -> None:
    rewards = {"tests": 1.0, "style": 0.25}
    path = trial(Path("t"), trajectory(act()), verdict(verifier_result={"rewards": rewards}))
    code, _, err = run("score", str(path))
    assert code == 2 and "has several scores: 'tests', 'style'; name the outcome by --score" in err
    code, out, _ = run("score", str(path), "--score", "style", "--json")
    assert code == 0 and json.loads(out)


def test_a_reward_that_is_no_number_is_refused(tmp_path: Path) -> None:
    graded = verdict(verifier_result={"rewards": {"reward": "high"}})
    path = trial(tmp_path / "t", trajectory(act()), graded)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}:1: 'reward' is 'high', not a number; give 'reward' in [0, 1]"
    )


def test_a_job_is_a_folder_of_trials(tmp_path: Path) -> None:
    for name in ("shop__a1", "shop__b2"):
        trial(tmp_path / name, trajectory(LOOKED, act()), verdict(trial_name=name))
    failed = verdict(trial_name="shop__c3", exception_info={"exception_type": "SetupError"})
    failed["agent_info"] = {"name": "terminus-2", "model_info": {"name": "m", "provider": None}}
    trial(tmp_path / "shop__c3", None, failed)
    (tmp_path / "result.json").write_text(json.dumps({"id": "job", "stats": {}}))
    found = [(e.episode_id, e.trial, e.status, len(e.turns)) for e in read(tmp_path)]
    assert found == [
        ("shop__a1", 0, "ok", 2),
        ("shop__b2", 1, "ok", 2),
        ("shop__c3", 2, "error", 0),
    ]


def test_a_task_of_several_steps(tmp_path: Path) -> None:
    steps = [
        {"step_name": name, "verifier_result": {"rewards": {"reward": reward}}}
        for name, reward in (("one", 1.0), ("two", 0.0))
    ]
    for step in steps:
        trial(tmp_path / "steps" / str(step["step_name"]), trajectory(act()), None)
    (tmp_path / "result.json").write_text(json.dumps(verdict(step_results=steps)))
    found = [(e.task_id, e.episode_id, e.outcome) for e in read(tmp_path)]
    assert found == [("shop/one", "shop__a1/one", 1.0), ("shop/two", "shop__a1/two", 0.0)]


def test_a_trajectory_goes_on_in_the_next(tmp_path: Path) -> None:
    following = "trajectory.cont-1.json"
    copied = LOOKED | {"is_copied_context": True}
    path = trial(tmp_path, trajectory(LOOKED, continued_trajectory_ref=following), None)
    (path.parent / following).write_text(json.dumps(trajectory(copied, act())))
    [episode] = read(tmp_path)
    assert [text for text, _ in told(episode)] == ["", "done"]


@pytest.mark.parametrize("following", ["gone.json", "https://a.example/t.json", "trajectory.json"])
def test_a_continuation_that_is_not_there_is_noted(tmp_path: Path, following: str) -> None:
    record = trajectory(act(), continued_trajectory_ref=following)
    if following == "trajectory.json":
        record = trajectory(act(), continued_trajectory_ref="other.json")
    path = trial(tmp_path, record, None)
    if following == "trajectory.json":  # two that name one another
        other = trajectory(act("x"), continued_trajectory_ref="other.json")
        (path.parent / "other.json").write_text(json.dumps(other))
    trace = open_trace(str(path))
    [episode] = trace
    assert len(episode.turns) == (2 if following == "trajectory.json" else 1)
    assert trace.notes[atif.UNREAD] == 1


def test_lines_of_trajectories_take_no_result(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_text("".join(json.dumps(trajectory(act())) + "\n" for _ in range(2)))
    (tmp_path / "result.json").write_text(json.dumps(verdict()))
    assert [episode.outcome for episode in read(path)] == [None, None]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(broken(trajectory(LOOKED, act("done", metrics=METRICS), extra={"reward": 1.0})))
def test_a_broken_trajectory_is_read_or_refused(record: Json) -> None:
    if atif.accepts(record):
        with contextlib.suppress(BadItemError):
            list(atif.translate(record, ReadOptions(), Counter()))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(broken(verdict(agent_info={"model_info": {"name": "m"}})))
def test_a_broken_result_is_read_or_refused(result: Json) -> None:
    if atif.accepts(result):
        shared = atif.TrialFiles(Path(), result)
        with contextlib.suppress(BadItemError):
            list(atif.translate(trajectory(act()), ReadOptions(shared=shared), Counter()))


def test_the_public_trajectory() -> None:
    path = SHARED / "data/formats/atif-1.5_openhands.trajectory.json.gz"
    if not path.exists():
        pytest.skip("the shared files are not here")
    [episode] = read(path)
    record = json.loads(gzip.decompress(path.read_bytes()))
    steps = [step for step in record["steps"] if step["source"] == "agent"]
    assert [[c.name for c in turn.calls] for turn in episode.turns] == [
        [c["function_name"] for c in step.get("tool_calls") or []] for step in steps
    ]
    assert (len(steps), len(episode.tools or [])) == (2, 6)


def test_the_package_takes_what_is_read() -> None:
    """The records of these tests are trajectories to package `atif` itself."""
    library = pytest.importorskip("atif", reason="atif is not installed")
    record = trajectory(LOOKED, act("done", metrics=METRICS))
    parsed = library.Trajectory.model_validate(record)
    [episode] = episodes(atif, record)
    spoken = [step for step in parsed.steps if step.source == "agent"]
    assert [
        (turn.text, [(c.name, json.loads(c.arguments)) for c in turn.calls])
        for turn in episode.turns
    ] == [
        (step.message, [(c.function_name, c.arguments) for c in step.tool_calls or []])
        for step in spoken
    ]
