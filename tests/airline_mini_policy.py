"""An independent reading of data/airline-mini/policy.md: what each request of a task must lead to.

It shares nothing with the rules and plans that made the tasks: it looks at the raw tables, and at
the numbers in policy.md itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from stages.envs.airline_mini.database import Database

Record = dict[str, Any]

POLICY = (files("data") / "airline-mini" / "policy.md").read_text(encoding="utf-8")
RANKS = {"basic": 0, "economy": 1, "business": 2}
OUT_OF_SCOPE = ("pet", "wheelchair", "lost_bag", "child")


def number(before: str, after: str = "") -> int:
    """The number that stands in the policy between these words."""
    found = re.search(re.escape(before) + r"\s*(\d+)\s*" + re.escape(after), POLICY)
    assert found, (before, after)
    return int(found[1])


FREE_BAGS = {
    member: dict(zip(RANKS, map(int, counts.split("|")), strict=True))
    for member, counts in re.findall(r"\| (regular|plus|elite) \| ([\d| ]+) \|\n", POLICY)
}
MOST_BAGS = {
    "regular": number("at most", "bags for regular"),
    "plus": number("regular members,", "for plus"),
    "elite": number("for plus,", "for elite"),
}


class Case:
    """One request against the database as it stands.

    After `decide`: `deeds` are the writes and hand-offs that the policy asks for, `told` what the
    customer must hear.
    """

    def __init__(self, db: Database, want: str, facts: Mapping[str, str]) -> None:
        self.db, self.want, self.facts = db, want, facts
        self.deeds: list[tuple[str, Record]] = []
        self.told: list[str] = []
        self.user = db.get("users", facts["user_id"])
        self.booked: Record = {}
        self.flight: Record = {}
        if "reservation" in facts:
            self.booked = db.get("reservations", facts["reservation"])
            self.flight = db.get("flights", self.booked["flight"])

    def decide(self) -> None:
        if self.want in OUT_OF_SCOPE:
            self.deeds = [("transfer_to_human_agents", {"summary": self.want})]
        elif self.booked and not self.theirs("reservation"):
            return
        elif self.changes_a_trip() and self.flight["status"] == "flown":
            self.deeds = [("transfer_to_human_agents", {"summary": "flown"})]
        else:
            getattr(self, f"on_{self.want}")()

    def theirs(self, fact: str) -> bool:
        booked = self.db.get("reservations", self.facts[fact])
        own: bool = booked["user"] == self.facts["user_id"]
        return own and booked["status"] != "cancelled"

    def changes_a_trip(self) -> bool:
        return self.want in ("cancel", "flight", "cabin", "bags", "passengers", "certificate")

    def do(self, name: str, **arguments: Any) -> None:
        self.deeds.append((name, arguments))

    def method(self, booking: bool = False) -> str | None:
        """The payment method to be used; None where the policy forbids it."""
        kind = {"credit card": "card", "gift card": "gift", "certificate": "cert"}
        wished = kind[self.facts["payment"]]
        if wished == "cert" and not booking:
            return None
        return next(str(method) for method in self.user["methods"] if method.startswith(wished))

    def on_cancel(self) -> None:
        grounds = (
            self.booked["hours"] <= number("booked within the last", "hours"),
            self.flight["status"] == "cancelled",
            self.booked["cabin"] == "business",
            self.booked["insurance"] == "yes" and self.facts["reason"] in ("health", "weather"),
        )
        if any(grounds):
            self.do("cancel_reservation", reservation_id=self.facts["reservation"])

    def on_flight(self) -> None:
        if self.booked["cabin"] == "basic" and self.flight["status"] != "cancelled":
            return
        seats = len(self.booked["passengers"])
        wished = self.offered(self.flight, self.booked["cabin"], seats)
        method = self.method()
        if wished and method:
            self.do(
                "change_flight",
                reservation_id=self.facts["reservation"],
                flight=wished,
                payment_id=method,
            )

    def offered(self, route: Record, cabin: str, seats: int) -> str | None:
        """The flight on a route that the customer wishes; None if no flight fits."""
        fits = {}
        for name in self.db.tables["flights"]:
            flight = self.db.get("flights", name)
            there = all(flight[end] == route[end] for end in ("origin", "destination"))
            open_ = flight["status"] == "scheduled" and flight["seats"][cabin] >= seats
            wish = self.facts["departs"] in (flight["departs"], "cheapest")
            if there and open_ and wish and flight["date"] == self.facts["date"]:
                fits[name] = flight["prices"][cabin]
        assert len(set(fits.values())) == len(fits), "the cheapest flight must be one"
        return min(fits, key=lambda name: fits[name]) if fits else None

    def on_cabin(self) -> None:
        cabin = self.facts["cabin"]
        up = RANKS[cabin] > RANKS[self.booked["cabin"]]
        method = self.method()
        if method and (up or self.user["member"] in ("plus", "elite")):
            self.do(
                "change_cabin",
                reservation_id=self.facts["reservation"],
                cabin=cabin,
                payment_id=method,
            )

    def on_bags(self) -> None:
        more, has = int(self.facts["bags"]), self.booked["bags"]
        if has + more > MOST_BAGS[self.user["member"]]:
            return
        free = FREE_BAGS[self.user["member"]][self.booked["cabin"]]
        paid = sum(1 for bag in range(has + 1, has + more + 1) if bag > free)
        on = {"reservation_id": self.facts["reservation"], "bags": more, "paid_bags": paid}
        if paid and (method := self.method()):
            self.do("add_bags", **on, payment_id=method)
        elif not paid:
            self.do("add_bags", **on)

    def on_remove_bags(self) -> None:
        pass  # never

    def people(self) -> list[Record]:
        names = [name.split(" ") for name in self.facts["passengers"].split(" and ")]
        return [{"first": first, "last": last} for first, last in names]

    def on_passengers(self) -> None:
        people = self.people()
        if len(people) == len(self.booked["passengers"]):
            on = self.facts["reservation"]
            self.do("change_passengers", reservation_id=on, passengers=people)

    def on_book(self) -> None:
        held = len(self.user["reservations"])
        if self.user["member"] == "regular" and held >= number("may hold at most", "reservations"):
            return
        people, cabin = self.people(), self.facts["cabin"]
        route = {end: self.facts[end] for end in ("origin", "destination")}
        if wished := self.offered(route, cabin, len(people)):
            self.do(
                "book_reservation",
                user_id=self.facts["user_id"],
                flight=wished,
                cabin=cabin,
                passengers=people,
                insurance=self.facts["insurance"],
                payment_id=self.method(booking=True),
            )

    def on_certificate(self) -> None:
        each = {
            "cancelled": number("Only if the customer asks:", "for each passenger"),
            "delayed": number("cancelled the flight,", "for each if"),
        }.get(self.flight["status"])
        member = self.user["member"] != "regular"
        covered = self.booked["insurance"] == "yes" or self.booked["cabin"] == "business"
        if each and (member or covered):
            amount = each * len(self.booked["passengers"])
            self.do("send_certificate", user_id=self.facts["user_id"], amount=amount)

    def on_paid(self) -> None:
        self.told = [str(self.booked["paid"])]

    def on_balance(self) -> None:
        gifts = [v for k, v in self.user["methods"].items() if k.startswith("gift")]
        self.told = [str(gifts[0])]

    def on_departure(self) -> None:
        self.told = [self.flight["date"], self.flight["departs"]]

    def on_status(self) -> None:
        self.told = [self.db.get("flights", self.facts["flight"])["status"]]

    def on_fare(self) -> None:
        found = self.offered(dict(self.facts), self.facts["cabin"], 1)
        assert found
        self.told = [str(self.db.get("flights", found)["prices"][self.facts["cabin"]])]

    def on_total(self) -> None:
        assert self.theirs("other")
        other = self.db.get("reservations", self.facts["other"])
        self.told = [str(self.booked["paid"] + other["paid"])]

    def on_free_bags(self) -> None:
        self.told = [str(FREE_BAGS[self.user["member"]][self.booked["cabin"]])]
