"""Draw customers' requests at random, and find their gold actions by the plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import orjson

from stages.envs.airline_mini import rules
from stages.envs.airline_mini.database import Database, Record
from stages.envs.airline_mini.names import CABINS, DEPARTURES, FIRST, LAST, METHODS, REASONS
from stages.envs.airline_mini.plans import CallTool, Desk, Step, Tell, next_step
from stages.envs.airline_mini.tools import call_tool
from stages.envs.users import pick

# The facts that a customer knows for each want, in the order of drawing.
FACTS = {
    "cancel": "reservation reason",
    "cabin": "reservation cabin payment",
    "flight": "reservation new_date departs payment",
    "bags": "reservation bags payment",
    "remove_bags": "reservation",
    "passengers": "reservation new_names",
    "book": "journey cabin departs names insurance payment",
    "certificate": "reservation",
    "paid": "reservation",
    "balance": "",
    "departure": "reservation",
    "status": "flight",
    "fare": "journey cabin departs",
    "total": "reservation other",
    "free_bags": "reservation",
}


class Unfit(Exception):  # noqa: N818  # not an error: draw again
    """The drawn request does not fit the records."""


@dataclass
class CustomerRequest(Desk):
    """One request of a customer, served directly on the database."""

    db: Database
    want: str
    facts: dict[str, str]
    gold: list[Record] = field(default_factory=list)
    info: tuple[str, ...] = ()  # what the customer must be told
    verdict: str = rules.ALLOW

    def serve(self) -> None:
        """Find the gold actions by executing them.

        Raises:
            Unfit: a tool returns an error, so the request has no gold actions.
        """
        match next_step(self.want, self):
            case CallTool(name, arguments):
                self._call(name, arguments)
                self.verdict = rules.HAND_OFF
            case Tell("refuse"):
                self.verdict = rules.REFUSE
            case Tell(_, values):
                self.info = values

    def ask(self, *facts: str) -> list[str]:
        """Return the customer's answers."""
        slots = {"route": ("origin", "destination")}
        return [self.facts[slot] for fact in facts for slot in slots.get(fact, (fact,))]

    def look(self, name: str, **arguments: Any) -> Any:
        """Execute a read as a gold action."""
        return orjson.loads(self._call(name, arguments))

    def act(self, name: str, **arguments: Any) -> Step:
        """Execute a write as a gold action."""
        self._call(name, arguments)
        return Tell("done")

    def _call(self, name: str, arguments: Record) -> str:
        result = call_tool(self.db, name, arguments)
        if result.startswith("Error"):
            raise Unfit
        action = {"name": name, "arguments": arguments}
        if action not in self.gold:
            self.gold.append(action)
        return result


def draw(
    want: str, user_id: str, db: Database, rng: Random, others: Sequence[str] = ()
) -> CustomerRequest:
    """Draw a request and serve it.

    Args:
        want: act of the phrase book's section `wants`.
        user_id: id of the customer.
        db: database after the earlier requests of the task; this one's gold writes change it.
        rng: random generator.
        others: reservations of another customer, to ask about one of them; empty: the request is
            about one of the customer's own.

    Raises:
        Unfit: the request does not fit the records; `db` may have changed.
    """
    facts = {"user_id": user_id}
    own = db.tables["users"][user_id]["reservations"]  # without those that this task booked
    for fact in FACTS.get(want, "").split():
        facts |= _draw_fact(fact, facts, list(others) or own, db, rng)
    request = CustomerRequest(db, want, facts)
    request.serve()
    return request


def _draw_fact(
    fact: str, facts: dict[str, str], reservations: list[str], db: Database, rng: Random
) -> dict[str, str]:
    """Draw one of the entries of FACTS."""
    match fact:
        case "reservation" | "other":
            left = [name for name in reservations if name not in facts.values()]
            if not left:
                raise Unfit
            return {fact: pick(rng, left)}
        case "reason":
            return {fact: pick(rng, REASONS)}
        case "cabin":
            booked = db.find("reservations", facts.get("reservation", "")) or {"cabin": ""}
            return {fact: pick(rng, [cabin for cabin in CABINS if cabin != booked["cabin"]])}
        case "departs":
            return {fact: pick(rng, (*DEPARTURES, "cheapest"))}
        case "insurance":
            return {fact: pick(rng, ("yes", "no"))}
        case "bags":
            return {fact: pick(rng, ("1", "1", "2", "3"))}
        case "payment":
            methods = list(db.get("users", facts["user_id"])["methods"])
            return {fact: METHODS[pick(rng, methods).split("-")[0]]}
        case "names":
            return {"passengers": _names(rng, pick(rng, (1, 1, 2)))}
        case "new_names":
            count = len(db.get("reservations", facts["reservation"])["passengers"])
            return {"passengers": _names(rng, count + (rng.random() < 0.2))}
        case "flight":
            return {fact: pick(rng, list(db.tables["flights"]))}
        case "journey":
            flight = pick(
                rng, [candidate for candidate in db.tables["flights"].values() if _ahead(candidate)]
            )
            return {key: flight[key] for key in ("origin", "destination", "date")}
        case "new_date":
            return {"date": pick(rng, _other_dates(facts["reservation"], db))}
    raise ValueError(fact)


def _names(rng: Random, count: int) -> str:
    return " and ".join(f"{pick(rng, FIRST)} {pick(rng, LAST)}" for _ in range(count))


def _ahead(flight: Record) -> bool:
    return bool(flight["status"] != "flown")


def _other_dates(reservation_id: str, db: Database) -> list[str]:
    """Return the other dates on which a reservation's route is flown; there is at least one."""
    booked = db.get("flights", db.get("reservations", reservation_id)["flight"])
    return [
        flight["date"]
        for flight in db.tables["flights"].values()
        if _ahead(flight)
        and flight["date"] != booked["date"]
        and all(flight[key] == booked[key] for key in ("origin", "destination"))
    ]
