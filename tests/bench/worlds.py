"""Speed of environments alone, on one core, against a rate for which no engine has to wait.

A step is one message of the assistant; the time includes each episode's reset and outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from stages.envs.airline_mini import airline_mini
from stages.envs.airline_mini.expert import Expert
from stages.envs.env import STOP, Env, Task, User
from stages.envs.tau2.env import Tau2Env
from stages.messages.message import Message
from tests.bench.timing import Row, medians
from tests.playing import call, says

EPISODES = 200
NOISE = 0.24  # of the expert, so that some calls are wrong

Episode = tuple[Task, list[Message]]


class Content:
    """A user who ends the conversation at the agent's first reply."""

    def open(self) -> str:
        return "hello"

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        return STOP


def expert_episodes() -> list[Episode]:
    """Return the expert's messages on tasks of airline-mini."""
    world, expert, episodes = airline_mini(), Expert(NOISE), []
    for task in world.tasks("train")[:EPISODES]:
        session, rng, messages = world.reset(task, 0), Random(task.task_id), list[Message]()
        while not session.done and len(messages) < 30:
            messages.append(expert(session.messages, rng))
            session.step(messages[-1])
        episodes.append((task, messages))
    return episodes


def gold_episodes(world: Env) -> list[Episode]:
    """Return the gold actions of a domain's tasks, one per message, and a last message."""

    def messages(task: Task) -> list[Message]:
        gold = [call(action["name"], action["arguments"]) for action in task.gold_actions]
        return [*gold, says("Done.")]

    return [(task, messages(task)) for task in world.tasks("base")]


def rate(world: Env, episodes: list[Episode], user: User | None, floor: int) -> Row:
    """Measure the seconds per step against those that a floor of steps per second allows."""
    steps = sum(len(messages) for _, messages in episodes)

    def play() -> None:
        for task, messages in episodes:
            session = world.reset(task, 0, user)
            for message in messages:
                session.step(message)
            session.outcome()

    (seconds,) = medians(play)
    name = f"{world.name} alone, {steps / seconds:,.0f} steps/s"
    return Row(name, f"{floor:,} steps/s", seconds / steps, 1 / floor, 1)


def bench() -> list[Row]:
    """Measure our domain with its scripted user, and tau2-bench's airline."""
    tau2 = Tau2Env("tau2-airline")
    return [
        rate(airline_mini(), expert_episodes(), None, 2_000),
        rate(tau2, gold_episodes(tau2), Content(), 500),
    ]
