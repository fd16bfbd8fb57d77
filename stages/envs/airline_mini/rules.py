"""policy.md as code: what an agent may do, judged from the results of its tools.

A record is the parsed result of `get_user`, `get_reservation` or `get_flight_status`.
"""

from __future__ import annotations

from collections.abc import Sequence

from stages.envs.airline_mini.database import Record
from stages.envs.airline_mini.names import CABINS

ALLOW, REFUSE, HAND_OFF = "allow", "refuse", "hand_off"
BAG_PRICE = 50
INSURANCE_PRICE = 30  # per passenger
FREE_BAGS = {"regular": 0, "plus": 1, "elite": 2}  # one more in economy, two more in business
MOST_BAGS = {"regular": 3, "plus": 4, "elite": 6}
REGULAR_RESERVATIONS = 4
COMPENSATION = {"cancelled": 100, "delayed": 50}  # per passenger


def usable(user_id: str, reservation: Record) -> str:
    """Judge whether the user may ask anything about the reservation."""
    good = reservation["user"] == user_id and reservation["status"] == "confirmed"
    return ALLOW if good else REFUSE


def cancel(reservation: Record, flight: Record, reason: str | None) -> str:
    """Judge a cancellation with refund; the reason matters only if `reason_matters`."""
    if flight["status"] == "flown":
        return HAND_OFF
    insured = reservation["insurance"] == "yes" and reason in ("health", "weather")
    free = (
        reservation["hours"] <= 24
        or reservation["cabin"] == "business"
        or flight["status"] == "cancelled"
    )
    return ALLOW if free or insured else REFUSE


def reason_matters(reservation: Record, flight: Record) -> bool:
    """Return whether the verdict on a cancellation depends on its reason."""
    verdicts = {cancel(reservation, flight, reason) for reason in ("health", None)}
    return len(verdicts) > 1


def change_cabin(user: Record, reservation: Record, flight: Record, cabin: str) -> str:
    """Judge a change of cabin: up for all, down for members only."""
    if flight["status"] == "flown":
        return HAND_OFF
    down = CABINS.index(cabin) < CABINS.index(reservation["cabin"])
    return REFUSE if down and user["member"] == "regular" else ALLOW


def change_flight(reservation: Record, flight: Record) -> str:
    """Judge a change of flight on the same route."""
    if flight["status"] == "flown":
        return HAND_OFF
    fixed = reservation["cabin"] == "basic" and flight["status"] != "cancelled"
    return REFUSE if fixed else ALLOW


def free_bags(member: str, cabin: str) -> int:
    """Return how many bags of a reservation cost nothing."""
    return FREE_BAGS[member] + CABINS.index(cabin)


def add_bags(user: Record, reservation: Record, flight: Record, more: int) -> str:
    """Judge adding bags to a reservation."""
    if flight["status"] == "flown":
        return HAND_OFF
    return ALLOW if reservation["bags"] + more <= MOST_BAGS[user["member"]] else REFUSE


def paid_bags(user: Record, reservation: Record, more: int) -> int:
    """Return how many of the bags to add must be paid for."""
    free = free_bags(user["member"], reservation["cabin"]) - int(reservation["bags"])
    return more - min(more, max(0, free))


def change_passengers(reservation: Record, flight: Record, passengers: Sequence[str]) -> str:
    """Judge new names for the passengers, whose number must stay."""
    if flight["status"] == "flown":
        return HAND_OFF
    return ALLOW if len(passengers) == len(reservation["passengers"]) else REFUSE


def book(user: Record) -> str:
    """Judge one more reservation."""
    full = user["member"] == "regular" and user["reservations"] >= REGULAR_RESERVATIONS
    return REFUSE if full else ALLOW


def certificate(user: Record, reservation: Record, flight: Record) -> tuple[str, int]:
    """Judge a compensation, and return its amount."""
    if flight["status"] == "flown":
        return HAND_OFF, 0
    entitled = (
        user["member"] != "regular"
        or reservation["insurance"] == "yes"
        or reservation["cabin"] == "business"
    )
    each = COMPENSATION.get(flight["status"], 0)
    if not (entitled and each):
        return REFUSE, 0
    return ALLOW, each * len(reservation["passengers"])


def may_pay(kind: str, booking: bool) -> str:
    """Judge a kind of payment method: certificates are for bookings only."""
    return ALLOW if booking or kind != "cert" else REFUSE


def choose_flight(flights: Sequence[Record], departs: str, seats: int) -> Record | None:
    """Return the flight that a customer wants among the results of `search_flights`, or None."""
    fitting = [
        flight
        for flight in flights
        if flight["seats"] >= seats and departs in ("cheapest", flight["departs"])
    ]
    return min(fitting, key=lambda flight: int(flight["price"]), default=None)
