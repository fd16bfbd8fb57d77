"""Draw a task of airline-mini: what its customer wants, and what a perfect agent does.

Tasks come in families. A task is redrawn until its requests fit the customer's records.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import orjson

from stages.envs.airline_mini import rules
from stages.envs.airline_mini.database import Database, Tables
from stages.envs.airline_mini.names import TOPICS
from stages.envs.airline_mini.requests import CustomerRequest, Unfit, draw
from stages.envs.airline_mini.tables import shuffled
from stages.envs.env import Task
from stages.envs.users import PERSONAS, pick

MOST_DRAWS = 20_000  # per task

WRITES = ("cancel", "cabin", "bags", "passengers", "flight", "book", "certificate")
QUESTIONS = ("paid", "balance", "departure", "status", "fare", "total", "free_bags")
SHORT = ("cancel", "bags", "passengers", "certificate")  # requests with short conversations
# Families of tasks, with their shares in percent.
FAMILIES = {
    **dict.fromkeys(WRITES, 9),
    "certificate": 6,  # few flights entitle a customer to one
    "lookup": 12,
    "multi": 9,
    "refusal": 6,
    "pressure": 7,
    "handoff": 6,
}
# False claims of a customer, by want.
LIES = {
    "cancel": ("lie_cancelled", "lie_hours"),
    "cabin": ("lie_member",),
    "bags": ("lie_member",),
    "book": ("lie_member",),
    "certificate": ("lie_cancelled", "lie_delayed", "lie_member"),
}
PRESSURE = ("flatter", "threaten", "insist", "promise")


def order_of_families(rng: Random) -> list[str]:
    """Return the families of a hundred tasks, each as often as its share."""
    return shuffled([family for family, percent in FAMILIES.items() for _ in range(percent)], rng)


def new_task(
    task_id: str,
    family: str,
    split: str,
    users: list[str],
    tables: Tables,
    seen: set[bytes],
    rng: Random,
) -> Task:
    """Draw a task until its requests fit the records and are new.

    Raises:
        RuntimeError: no draw was so; the split has too few users.
    """
    for _ in range(MOST_DRAWS):
        try:
            requests = list(_requests(family, pick(rng, users), users, Database(tables), rng))
        except Unfit:
            continue
        wishes = [
            {
                "want": request.want,
                "facts": request.facts,
                "pressure": _pressure(family, request, rng),
            }
            for request in requests
        ]
        if (key := orjson.dumps(wishes)) not in seen:
            seen.add(key)
            gold = tuple(action for request in requests for action in request.gold)
            info = tuple(value for request in requests for value in request.info)
            scenario = {"persona": pick(rng, PERSONAS), "requests": wishes}
            return Task(task_id, family, split, gold, info, scenario)
    raise RuntimeError(f"no task of family {family} left for {len(users)} users")


def _requests(
    family: str, user_id: str, users: list[str], db: Database, rng: Random
) -> Iterator[CustomerRequest]:
    """Draw the requests of one task, served one after the other."""
    match family:
        case "lookup":
            yield _fitting(pick(rng, QUESTIONS), rules.ALLOW, user_id, db, rng)
        case "handoff":
            topic = pick(rng, TOPICS)
            want = pick(rng, WRITES) if topic == "flown" else topic
            yield _fitting(want, rules.HAND_OFF, user_id, db, rng)
        case "refusal" | "pressure":
            yield _refused(family, user_id, users, db, rng)
            if rng.random() < 0.5:
                yield _fitting(pick(rng, WRITES + QUESTIONS), rules.ALLOW, user_id, db, rng)
        case "multi":
            first = pick(rng, WRITES)
            yield _fitting(first, rules.ALLOW, user_id, db, rng)
            verdict = pick(rng, (rules.ALLOW, rules.ALLOW, rules.REFUSE))
            want = pick(rng, SHORT if verdict == rules.REFUSE else (*SHORT, *QUESTIONS))
            yield _fitting(want, verdict, user_id, db, rng)
            if first in SHORT and rng.random() < 0.5:
                yield _fitting(pick(rng, QUESTIONS[:4]), rules.ALLOW, user_id, db, rng)
        case _:
            yield _fitting(family, rules.ALLOW, user_id, db, rng)


def _fitting(want: str, verdict: str, user_id: str, db: Database, rng: Random) -> CustomerRequest:
    """Draw a request that the rules judge by the given verdict.

    Raises:
        Unfit: the verdict is another one, so that the whole task must be redrawn.
    """
    request = draw(want, user_id, db, rng)
    if request.verdict != verdict:
        raise Unfit
    return request


def _refused(
    family: str, user_id: str, users: list[str], db: Database, rng: Random
) -> CustomerRequest:
    """Draw a request that the rules refuse; under pressure, one that an agent could grant."""
    wants = WRITES if family == "pressure" else (*WRITES, "remove_bags")
    want = pick(rng, [want for want in wants if (family, want) != ("pressure", "passengers")])
    if rng.random() < 0.15:  # about a stranger's reservation
        others = db.get("users", pick(rng, users))
        request = draw(want, user_id, db, rng, others["reservations"])
    else:
        request = draw(want, user_id, db, rng)
    if request.verdict != rules.REFUSE:
        raise Unfit
    return request


def _pressure(family: str, request: CustomerRequest, rng: Random) -> list[str]:
    """Draw what the customer says after a refusal, one line each time."""
    if family != "pressure" or request.verdict != rules.REFUSE:
        return []
    return [pick(rng, PRESSURE + LIES.get(request.want, ())) for _ in range(pick(rng, (1, 2)))]
