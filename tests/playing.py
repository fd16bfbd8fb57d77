"""Play episodes of airline-mini, and policies that are no good at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import orjson

from stages.envs.airline_mini import AirlineMini
from stages.envs.airline_mini.session import AirlineSession
from stages.envs.env import Task
from stages.envs.users import pick
from stages.messages.message import Message

Policy = Callable[[list[Message], Random], Message]

TURNS = 20  # as many as the longest conversation of the expert takes
WRITES = 5  # of a policy that writes at random


def play(environment: AirlineMini, task: Task, policy: Policy, seed: int = 0) -> AirlineSession:
    """Play one episode with the scripted user, to its end or for TURNS turns."""
    session, rng = environment.reset(task, seed), Random(f"{task.task_id} {seed}")
    for _ in range(TURNS):
        if session.done:
            break
        session.step(policy(session.messages, rng))
    return session


def pass_rate(
    environment: AirlineMini, tasks: Iterable[Task], policy: Policy, seed: int = 0
) -> float:
    outcomes = [play(environment, task, policy, seed).outcome().outcome for task in tasks]
    return sum(outcomes) / len(outcomes)


def call(name: str, arguments: Any, number: int = 0) -> Message:
    """An assistant message with one tool call; arguments that are no text are written as JSON."""
    text = arguments if isinstance(arguments, str) else orjson.dumps(arguments).decode()
    function = {"name": name, "arguments": text}
    tool_call = {"id": f"call_{number}", "type": "function", "function": function}
    return {"role": "assistant", "content": None, "tool_calls": [tool_call]}


def says(text: str) -> Message:
    return {"role": "assistant", "content": text}


def do_nothing(messages: list[Message], rng: Random) -> Message:
    return says("goodbye")


def random_writes(environment: AirlineMini) -> Policy:
    """A policy that writes at random, with ids and values that exist, then takes its leave."""
    reservations, flights = (
        sorted(environment.tables[table]) for table in ("reservations", "flights")
    )

    def policy(messages: list[Message], rng: Random) -> Message:
        if len(messages) > 2 * WRITES:
            return says("goodbye")
        reservation_id = pick(rng, reservations)
        user_id = environment.tables["reservations"][reservation_id]["user"]
        payment_id = pick(rng, sorted(environment.tables["users"][user_id]["methods"]))
        cabin = pick(rng, ("basic", "economy", "business"))
        on = {"reservation_id": reservation_id}
        people = [{"first": "ada", "last": "fox"}]
        return pick(
            rng,
            (
                call("cancel_reservation", on),
                call("change_cabin", on | {"cabin": cabin, "payment_id": payment_id}),
                call("add_bags", on | {"bags": 1, "paid_bags": 0}),
                call("change_passengers", on | {"passengers": people}),
                call(
                    "change_flight",
                    on | {"flight": pick(rng, flights), "payment_id": payment_id},
                ),
                call("send_certificate", {"user_id": user_id, "amount": 50}),
            ),
        )

    return policy
