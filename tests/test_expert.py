"""The expert: plays every task to success, and slips as often and in as many ways as it is told."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import orjson
import pytest

from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.expert import Expert
from stages.envs.airline_mini.mistakes import MISTAKES
from stages.envs.airline_mini.plans import Step, next_step
from stages.envs.airline_mini.tools import TOOLS
from stages.envs.airline_mini.transcript import Transcript
from stages.messages.message import Message
from tests.playing import TURNS, call, pass_rate, play, says

WORLD = airline_mini()
SPLITS = ("train", "dev", "test")


class NoChance:
    """A generator that must not be asked."""

    def random(self) -> float:
        raise AssertionError


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_passes_every_task(seed: int) -> None:
    longest = 0
    for split in SPLITS:
        for task in WORLD.tasks(split):
            session = play(WORLD, task, Expert(), seed)
            assert session.done and session.outcome().outcome == 1, task.task_id
            turns = sum(message["role"] == "assistant" for message in session.messages)
            longest = max(longest, turns)
    assert longest < TURNS


def test_does_the_gold_actions_and_no_others() -> None:
    for task in WORLD.tasks("test"):
        done = [c for message in play(WORLD, task, Expert()).messages for c in calls_of(message)]
        assert all(action in done for action in task.gold_actions), task.task_id
        writes = [one for one in done if TOOLS[one["name"]].kind == "write"]
        assert all(one in task.gold_actions for one in writes), task.task_id


def calls_of(message: Message) -> list[dict[str, Any]]:
    functions = [one["function"] for one in message.get("tool_calls") or ()]
    return [{"name": f["name"], "arguments": orjson.loads(f["arguments"])} for f in functions]


def test_draws_nothing_without_noise_and_leaves_the_messages_alone() -> None:
    session = WORLD.reset(WORLD.tasks("dev")[0], 0)
    before = copy.deepcopy(session.messages)
    message = Expert()(session.messages, NoChance())
    assert session.messages == before and message["role"] == "assistant"


def test_asks_before_it_writes() -> None:
    for task in WORLD.tasks("dev"):
        messages = play(WORLD, task, Expert()).messages
        for before, message in itertools.pairwise(messages):
            for one in message.get("tool_calls") or ():
                if TOOLS[one["function"]["name"]].kind == "write":
                    assert before["role"] == "user", task.task_id


def test_finds_back_after_a_mistake() -> None:
    """Calls that fail or are needless do no harm, wherever they come."""
    mistakes = (
        call("get_user", {"user_id": "nobody"}, 900),
        call("cancel_reservation", "{", 901),
        call("fly", {}, 902),
        call("list_airports", {}, 903),
    )
    tasks = WORLD.tasks("test")
    for k, mistake in enumerate(mistakes):

        def policy(
            messages: list[Message], rng: Random, at: int = k, slip: Message = mistake
        ) -> Message:
            turns = sum(message["role"] == "assistant" for message in messages)
            return copy.deepcopy(slip) if turns == at else Expert()(messages, rng)

        assert pass_rate(WORLD, tasks[k::8], policy) == 1


def test_refuses_what_it_does_not_understand() -> None:
    messages = [says("x"), {"role": "user", "content": "sing me a song"}]
    assert Expert()(messages, NoChance())["content"] == "sorry, this is not allowed. anything else?"


# Noise


def test_noise_sets_the_pass_rate() -> None:
    tasks = WORLD.tasks("train")
    rates = [pass_rate(WORLD, tasks[::4], Expert(noise)) for noise in (0.05, 0.1, 0.4)]
    assert rates == sorted(rates, reverse=True) and rates[0] > 0.85 and rates[-1] < 0.5
    assert 0.6 <= pass_rate(WORLD, tasks, Expert(0.23)) <= 0.65  # 2,000 tasks: error 0.011


def test_noise_of_1_plays_to_an_end() -> None:
    for task in WORLD.tasks("dev"):
        play(WORLD, task, Expert(1.0))
    assert pass_rate(WORLD, WORLD.tasks("dev"), Expert(1.0)) < 0.15


def test_every_kind_of_slip_is_made() -> None:
    made: Counter[str] = Counter()
    rng = Random(0)
    for task in WORLD.tasks("dev"):
        session = WORLD.reset(task, 0)
        while not session.done:
            right = Expert()(session.messages, rng)
            for _, make in MISTAKES:
                message = make(right_step(session.messages), session.messages, rng)
                if message is not None:
                    made[make.__name__] += 1
                    assert message["role"] == "assistant"
            session.step(right)
    assert set(made) == {make.__name__ for _, make in MISTAKES} and min(made.values()) > 20


def right_step(messages: Sequence[Message]) -> Step:
    desk = Transcript(messages)
    return next_step(desk.want, desk)


def test_the_mistakes_leave_traces_of_every_kind() -> None:
    """Errors, repeats, broken JSON, other writes than gold, hand-offs and refusals out of place."""
    seen: Counter[str] = Counter()
    for task in WORLD.tasks("train")[:600]:
        session = play(WORLD, task, Expert(0.3))
        gold = [orjson.dumps(action) for action in task.gold_actions]
        done = []
        for message in session.messages:
            seen["error"] += str(message["content"]).startswith("Error")
            for one in message.get("tool_calls") or ():
                name, text = one["function"]["name"], one["function"]["arguments"]
                try:
                    action = orjson.dumps({"name": name, "arguments": orjson.loads(text)})
                except orjson.JSONDecodeError:
                    seen["broken"] += 1
                    continue
                seen["repeat"] += action in done
                seen["wrong " + TOOLS[name].kind] += action not in gold
                done.append(action)
    assert min(seen[k] for k in ("error", "broken", "repeat")) > 20
    assert min(seen[f"wrong {kind}"] for kind in ("read", "write", "terminal")) > 20


@pytest.mark.parametrize("kind", [Random, np.random.default_rng])
def test_the_same_seed_plays_the_same(kind: type) -> None:
    def episode(seed: int) -> bytes:
        session, rng = WORLD.reset(WORLD.tasks("train")[7], 0), kind(seed)
        policy = Expert(0.3)
        for _ in range(TURNS):
            if session.done:
                break
            session.step(policy(session.messages, rng))
        return orjson.dumps(session.messages)

    assert episode(1) == episode(1)
    assert len({episode(seed) for seed in range(12)}) > 3
