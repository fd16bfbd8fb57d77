from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from stages.envs.env import Outcome, Task, User
from stages.errors import InputError
from stages.messages.message import Message
from stages.replay import Replay, Replayer
from stages.traces import open_trace
from stages.traces.episode import Call, Episode, GoldAction, Turn
from tests.conftest import Cli

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real traces at {SHARED}")
needs_package = pytest.mark.skipif(
    find_spec("inspect_evals") is None, reason="inspect-evals is not installed (extra [tau2])"
)


class Counting:
    """An environment with one number: `add` adds to it, the user's own `double` doubles it.

    The outcome is 1 if the number is what the gold actions reach and all information was told.
    """

    name = "counter"
    policy = ""

    def __init__(self) -> None:
        self.tools: list[dict[str, Any]] = [{"type": "function", "function": {"name": "add"}}]

    def tasks(self, split: str) -> list[Task]:
        if split != "base":
            raise InputError("counter", "no such split", "give base")
        gold = ({"name": "add", "arguments": {"n": 3}},)
        return [Task("t", "", "base", gold, ("done",), None)]

    def reset(self, task: Task, seed: int, user: User | None = None) -> CountingSession:
        return CountingSession(task)


class CountingSession:
    def __init__(self, task: Task) -> None:
        self.task, self.number, self.said = task, 0, ""
        self.messages: list[Message] = []
        self.done = False

    def step(self, message: Message) -> list[Message]:
        self.said += message["content"]
        results = []
        for call in message.get("tool_calls", []):
            name, arguments = call["function"]["name"], call["function"]["arguments"]
            assert isinstance(arguments, str)
            if name == "add":
                self.number += json.loads(arguments)["n"]
                results.append({"role": "tool", "content": json.dumps({"now": self.number})})
            else:
                results.append({"role": "tool", "content": f"Error: Tool '{name}' not found."})
        return results

    def user_call(self, name: str, arguments: Any) -> str:
        self.number *= 2
        return str(self.number)

    def outcome(self) -> Outcome:
        gold = sum(action["arguments"]["n"] for action in self.task.gold_actions)
        told = all(info in self.said for info in self.task.required_info)
        return Outcome(float(self.number == gold and told), {})


def add(n: int, result: str | None) -> Call:
    return Call("add", {"n": n}, result)


def episode(*turns: Turn, outcome: float | None = 1.0, **more: Any) -> Episode:
    fields: dict[str, Any] = {
        "source": "s",
        "episode_id": "e",
        "task_id": "t",
        "trial": 0,
        "group_id": "g",
        "turns": list(turns),
        "gold": None,
        "outcome": outcome,
    }
    return Episode(**fields | more)


def replayed(*episodes: Episode) -> Replay:
    replayer = Replayer(Counting())
    assert list(replayer.watch(episodes)) == list(episodes)
    return replayer.replay()


THREE = Turn([add(1, '{"now": 1}'), add(2, '{"now": 3}')], text="done")


def test_equal_results_and_outcome() -> None:
    found = replayed(episode(THREE), episode(THREE, outcome=1))
    assert found == Replay(results_equal=4, outcomes_equal=2)
    assert found.counts() == {
        "results_equal": 4,
        "results_differ": 0,
        "outcomes_equal": 2,
        "outcomes_differ": 0,
    }


@pytest.mark.parametrize(
    ("call", "why", "replayed_result"),
    [
        (add(3, '{"now": 4}'), None, '{"now": 3}'),
        (add(3, '{"now":3}'), "only the writing differs", '{"now": 3}'),
        (
            Call("add", {"n": 3, "bill": "B0a1b2c3d"}, "Error: no bill"),
            "the id of a new bill is drawn at random",
            '{"now": 3}',
        ),
        (Call("think", {}, ""), "the tool is not in this world", "Error: Tool 'think' not found."),
    ],
)
def test_stale_episode_is_scored_anew(call: Call, why: str | None, replayed_result: str) -> None:
    found = replayed(episode(Turn([call], text="done"), outcome=0.0))
    outcome = float(call.name == "add")
    assert found.counts()["results_differ"] == 1
    assert found.counts()["outcomes_differ"] == outcome
    assert found.differences[0] == {
        "episode_id": "e",
        "task_id": "t",
        "what": "result",
        "why": why,
        "turn": 0,
        "tool": call.name,
        "recorded": call.result,
        "replayed": replayed_result,
    }
    assert found.rescored == [
        {"episode_id": "e", "task_id": "t", "recorded": 0.0, "replayed": outcome}
    ]


def test_calls_of_the_user_are_made_in_their_place() -> None:
    turns = [
        Turn([add(1, '{"now": 1}')]),
        Turn([add(1, '{"now": 3}')], text="done", user_calls=1),
    ]
    calls = [Call("double", {}, "2"), Call("double", {}, "6"), Call("double", {}, "7")]
    gold = (GoldAction("add", {"n": 12}), GoldAction("double", {}, requestor="user"))
    found = replayed(episode(*turns, user_calls=calls, gold=gold))
    assert (found.results_equal, found.results_differ) == (4, 1)
    assert (found.differences[0]["turn"], found.differences[0]["replayed"]) == (2, "12")
    assert found.outcomes_equal == 1


def test_outcome_is_judged_by_the_task_of_the_trace() -> None:
    # The environment's task wants 3 and "done"; the trace's wanted 2 and "ok".
    turn = Turn([add(2, '{"now": 2}')], text="ok")
    own: dict[str, Any] = {"gold": (GoldAction("add", {"n": 2}),), "required_info": ("ok",)}
    found = replayed(episode(turn, **own))
    assert (found.outcomes_equal, found.outcomes_differ) == (1, 0)
    assert found.rescored[0]["replayed"] == 0.0
    assert replayed(episode(turn, **own, outcome=0.0)).outcomes_differ == 1
    assert replayed(episode(turn, outcome=0.0)).rescored == []


def test_recorded_judgement_of_a_language_model_is_left_out() -> None:
    factors = {"DB": 1.0, "COMMUNICATE": 1.0, "NL_ASSERTION": 0.0}
    assert replayed(episode(THREE, outcome=0.0)).outcomes_differ == 1
    assert replayed(episode(THREE, outcome=0.0, factors=factors)).outcomes_equal == 1
    failed = factors | {"DB": 0.0}
    assert replayed(episode(THREE, outcome=0.0, factors=failed)).outcomes_differ == 1


def test_what_was_not_recorded_is_not_compared() -> None:
    cut = episode(Turn([add(1, None)]), outcome=None, status="error")
    long = episode(THREE, outcome=0.0, status="truncated")
    found = replayed(cut, long, episode(THREE, task_id="other"))
    assert (found.results_equal, found.unjudged, found.unknown) == (2, 2, 1)
    assert (found.outcomes_equal, found.outcomes_differ, found.differences) == (0, 0, [])


def test_traces_of_another_world_are_an_error() -> None:
    with pytest.raises(InputError, match=r"^counter: has none of the tasks of these traces; "):
        replayed(episode(THREE, task_id="other"))


def test_a_task_of_another_domain_is_not_the_worlds_task_of_that_id() -> None:
    found = replayed(episode(THREE), episode(THREE, domain="retail"))
    assert (found.results_equal, found.unknown) == (2, 1)
    assert replayed(episode(THREE, domain="of my own")).unknown == 0


def test_reader_keeps_what_replay_needs(tmp_path: Path) -> None:
    simulation = {
        "task_id": "t",
        "termination_reason": "user_stop",
        "reward_info": {
            "reward": 1.0,
            "reward_breakdown": {"DB": 1.0},
            "communicate_checks": [{"info": "42", "met": True}],
        },
        "messages": [
            {"role": "assistant", "content": "hi"},
            {"role": "user", "tool_calls": [{"id": "1", "name": "look", "arguments": {}}]},
            {"role": "tool", "id": "1", "content": "dark", "requestor": "user"},
            {"role": "assistant", "content": "bye"},
        ],
    }
    path = tmp_path / "s.jsonl"
    path.write_text(json.dumps(simulation))
    [read] = open_trace(str(path))
    assert [(turn.text, turn.user_calls) for turn in read.turns] == [("hi", 0), ("bye", 1)]
    assert read.factors == {"DB": 1.0}
    assert read.required_info == ("42",)


# --- real traces ----------------------------------------------------------------------------------

EQUAL = {
    "airline-grok-4": (144, 16),
    "retail-gpt-4.1": (299, 40),
    "telecom-grok-3": (56, 5),
}


@needs_package
@needs_shared
@pytest.mark.parametrize("name", EQUAL)
def test_real_traces_replay_exactly(run: Cli, name: str) -> None:
    results, outcomes = EQUAL[name]
    trace = SHARED / "tau2-traces" / f"{name}.json.gz"
    env = f"tau2-{name.partition('-')[0]}"
    found = run("eval", trace, "--replay", "--env", env, "--json")
    assert found.code == 0
    document = found.json()
    assert document["episodes"] == outcomes
    assert document["replay"] == {
        "results_equal": results,
        "results_differ": 0,
        "outcomes_equal": outcomes,
        "outcomes_differ": 0,
    }
    assert document["replay_differences"] == document["rescored"] == []
    assert (
        f"replay: {results} of {results} results equal"
        in run("eval", trace, "--replay", "--env", env).out.decode()
    )


@needs_package
@needs_shared
def test_first_tau_bench_has_other_texts_and_the_same_outcomes(run: Cli) -> None:
    # Its tools write JSON otherwise; judged by its own gold actions on tau2-bench's database.
    trace = SHARED / "tau-bench" / "gpt-4o-airline.json"
    found = run("eval", trace, "--replay", "--env", "tau2-airline", "--json")
    assert found.code == 1
    document = found.json()
    assert document["replay"]["results_differ"] == 984
    assert document["replay"]["outcomes_equal"] == 198
    assert len(document["rescored"]) == 200
    lines = run("eval", trace, "--replay", "--env", "tau2-airline").out.decode()
    assert "and 981 more; see --json" in lines
    assert "200 stale episodes re-scored: 30 pass" in lines


@needs_package
@needs_shared
def test_changed_trace_is_noticed(tmp_path: Path, run: Cli) -> None:
    with gzip.open(SHARED / "tau2-traces" / "retail-gpt-4.1.json.gz") as file:
        document = json.load(file)
    document["simulations"] = document["simulations"][:2]
    document["simulations"][0]["messages"][5]["content"] = "somebody_else"
    document["simulations"][1]["reward_info"]["reward_breakdown"]["DB"] = 0.0
    trace = tmp_path / "changed.json"
    trace.write_text(json.dumps(document))
    found = run("eval", trace, "--replay", "--env", "tau2-retail")
    assert found.code == 1
    text = " ".join(found.out.decode().split())
    assert "turn 2 find_user_id_by_email: recorded 'somebody_else'" in text
    assert "outcome: recorded '0.0', replayed '1.0'" in text
    assert "1 stale episodes re-scored" in text


@pytest.mark.parametrize("option", [["--replay"], ["--env", "tau2-airline"]])
def test_replay_and_env_belong_together(run: Cli, example: Path, option: Sequence[str]) -> None:
    found = run("eval", example, *option)
    assert found.code == 2
    assert found.err == "error: eval: '--replay' and '--env' belong together; give both or none\n"


def test_unknown_environment_is_one_line(run: Cli, example: Path) -> None:
    found = run("eval", example, "--replay", "--env", "tau2-space")
    assert found.code == 2
    assert found.err == (
        "error: --env: no environment 'tau2-space'; did you mean 'tau2-airline'?\n"
    )
