"""How each kind of request is served: policy.md as procedures.

A plan asks, looks and acts through a `Desk`, which returns the answer or, if it has none yet,
leaves the plan with the next step. The expert policy runs plans on a conversation. The generator of
tasks runs them on the database itself, with all facts known, and so finds the gold actions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stages.envs.airline_mini import rules
from stages.envs.airline_mini.database import Record
from stages.envs.airline_mini.names import METHODS, TOPICS

HAND_OFF = "transfer_to_human_agents"


@dataclass(frozen=True)
class Ask:
    """Ask the customer for facts, named as in the phrase book."""

    facts: tuple[str, ...]


@dataclass(frozen=True)
class CallTool:
    """Call a tool."""

    name: str
    arguments: Record


@dataclass(frozen=True)
class Propose:
    """Announce the next write, and ask for confirmation."""

    call: CallTool


@dataclass(frozen=True)
class Tell:
    """End the request: `done`, `refuse`, or the answer to a question with its values."""

    act: str
    values: tuple[str, ...] = ()


Step = Ask | CallTool | Propose | Tell


class NextStep(Exception):  # noqa: N818  # not an error: it leaves a plan
    """Leaves a plan with the step that its desk can't answer yet."""

    def __init__(self, step: Step) -> None:
        self.step = step


class Desk(ABC):
    """The interface through which a plan works.

    Attributes:
        lenient: whether it does what the policy forbids, as far as the tools allow it.
    """

    lenient = False

    @abstractmethod
    def ask(self, *facts: str) -> list[str]:
        """Return the customer's answers, in the order asked; `route` has two."""

    @abstractmethod
    def look(self, name: str, **arguments: Any) -> Any:
        """Return the result of a read; if it is an error, the request is refused."""

    @abstractmethod
    def act(self, name: str, **arguments: Any) -> Step:
        """Return the last step of a request that ends with a write."""

    def judge(self, verdict: str) -> None:
        """Continue if a rule allows it; otherwise refuse, or hand over."""
        if verdict == rules.HAND_OFF and not self.lenient:
            raise NextStep(CallTool(HAND_OFF, {"summary": "flown"}))
        if verdict == rules.REFUSE and not self.lenient:
            raise NextStep(Tell("refuse"))

    def user(self) -> Record:
        """Return the customer's record."""
        (user_id,) = self.ask("user_id")
        user: Record = self.look("get_user", user_id=user_id)
        return user

    def reservation(self, fact: str = "reservation") -> Record:
        """Return the customer's reservation that the request is about."""
        user_id, reservation_id = self.ask("user_id", fact)
        reservation: Record = self.look("get_reservation", reservation_id=reservation_id)
        self.judge(rules.usable(user_id, reservation))
        return reservation

    def reservation_id(self) -> str:
        """Return the id of the reservation that the request is about."""
        return self.ask("reservation")[0]

    def trip(self) -> tuple[Record, Record]:
        """Return the reservation that the request is about, and its flight."""
        reservation = self.reservation()
        return reservation, self.look("get_flight_status", flight=reservation["flight"])

    def payment(self, user: Record, booking: bool = False) -> str:
        """Return the id of the payment method that the customer wants to use."""
        (wish,) = self.ask("payment")
        kinds = {words: kind for kind, words in METHODS.items()}
        self.judge(rules.may_pay(kinds[wish], booking))
        ids = [method["id"] for method in user["payment"] if method["id"].startswith(kinds[wish])]
        if not ids:
            raise NextStep(Tell("refuse"))
        return str(ids[0])


def next_step(want: str, desk: Desk) -> Step:
    """Return the next step of a request; a request that is not understood is refused.

    Args:
        want: act of the phrase book's section `wants`.
        desk: desk that answers the plan's steps.
    """
    if want in TOPICS:
        return CallTool(HAND_OFF, {"summary": want})
    if want not in PLANS:
        return Tell("refuse")
    try:
        return PLANS[want](desk)
    except NextStep as met:
        return met.step


def _cancel(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    reason = desk.ask("reason")[0] if rules.reason_matters(reservation, flight) else None
    desk.judge(rules.cancel(reservation, flight, reason))
    return desk.act("cancel_reservation", reservation_id=desk.reservation_id())


def _cabin(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    cabin, _ = desk.ask("cabin", "payment")
    user = desk.user()
    desk.judge(rules.change_cabin(user, reservation, flight, cabin))
    return desk.act(
        "change_cabin",
        reservation_id=desk.reservation_id(),
        cabin=cabin,
        payment_id=desk.payment(user),
    )


def _flight(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    desk.judge(rules.change_flight(reservation, flight))
    date, departs, _ = desk.ask("date", "departs", "payment")
    flights = desk.look(
        "search_flights",
        origin=flight["origin"],
        destination=flight["destination"],
        date=date,
        cabin=reservation["cabin"],
    )
    chosen = rules.choose_flight(flights, departs, len(reservation["passengers"]))
    if chosen is None:
        return Tell("refuse")
    return desk.act(
        "change_flight",
        reservation_id=desk.reservation_id(),
        flight=chosen["flight"],
        payment_id=desk.payment(desk.user()),
    )


def _bags(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    bags, _ = desk.ask("bags", "payment")
    more = int(bags)
    user = desk.user()
    desk.judge(rules.add_bags(user, reservation, flight, more))
    paid = rules.paid_bags(user, reservation, more)
    paying = {"payment_id": desk.payment(user)} if paid else {}
    reservation_id = desk.reservation_id()
    return desk.act("add_bags", reservation_id=reservation_id, bags=more, paid_bags=paid, **paying)


def _passengers(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    names = desk.ask("passengers")[0].split(" and ")
    desk.judge(rules.change_passengers(reservation, flight, names))
    reservation_id = desk.reservation_id()
    return desk.act("change_passengers", reservation_id=reservation_id, passengers=_people(names))


def _book(desk: Desk) -> Step:
    user = desk.user()
    desk.judge(rules.book(user))
    origin, destination, date, cabin, departs = desk.ask("route", "date", "cabin", "departs")
    people, insurance, _ = desk.ask("passengers", "insurance", "payment")
    names = people.split(" and ")
    route = {"origin": origin, "destination": destination, "date": date, "cabin": cabin}
    chosen = rules.choose_flight(desk.look("search_flights", **route), departs, len(names))
    if chosen is None:
        return Tell("refuse")
    return desk.act(
        "book_reservation",
        user_id=desk.ask("user_id")[0],
        flight=chosen["flight"],
        cabin=cabin,
        passengers=_people(names),
        insurance=insurance,
        payment_id=desk.payment(user, booking=True),
    )


def _certificate(desk: Desk) -> Step:
    reservation, flight = desk.trip()
    user = desk.user()
    verdict, amount = rules.certificate(user, reservation, flight)
    desk.judge(verdict)
    return desk.act("send_certificate", user_id=desk.ask("user_id")[0], amount=amount or 50)


def _remove_bags(desk: Desk) -> Step:
    return Tell("refuse")


def _paid(desk: Desk) -> Step:
    return Tell("paid", (str(desk.reservation()["paid"]),))


def _balance(desk: Desk) -> Step:
    gifts = [method for method in desk.user()["payment"] if method["id"].startswith("gift")]
    return Tell("balance", (str(gifts[0]["balance"]),)) if gifts else Tell("refuse")


def _departure(desk: Desk) -> Step:
    _, flight = desk.trip()
    return Tell("departure", (flight["date"], flight["departs"]))


def _status(desk: Desk) -> Step:
    (number,) = desk.ask("flight")
    return Tell("status", (desk.look("get_flight_status", flight=number)["status"],))


def _fare(desk: Desk) -> Step:
    origin, destination, date, cabin, departs = desk.ask("route", "date", "cabin", "departs")
    route = {"origin": origin, "destination": destination, "date": date, "cabin": cabin}
    chosen = rules.choose_flight(desk.look("search_flights", **route), departs, 1)
    return Tell("fare", (str(chosen["price"]),)) if chosen else Tell("refuse")


def _total(desk: Desk) -> Step:
    desk.ask("user_id", "reservation", "other")
    paid = [str(desk.reservation(fact)["paid"]) for fact in ("reservation", "other")]
    return Tell("total", (str(desk.look("calculate", expression=" + ".join(paid))),))


def _free_bags(desk: Desk) -> Step:
    cabin = desk.reservation()["cabin"]
    return Tell("free_bags", (str(rules.free_bags(desk.user()["member"], cabin)),))


def _people(names: Sequence[str]) -> list[dict[str, str]]:
    return [dict(zip(("first", "last"), name.split(), strict=True)) for name in names]


PLANS: dict[str, Callable[[Desk], Step]] = {
    "cancel": _cancel,
    "cabin": _cabin,
    "flight": _flight,
    "bags": _bags,
    "remove_bags": _remove_bags,
    "passengers": _passengers,
    "book": _book,
    "certificate": _certificate,
    "paid": _paid,
    "balance": _balance,
    "departure": _departure,
    "status": _status,
    "fare": _fare,
    "total": _total,
    "free_bags": _free_bags,
}
