"""Draw the database at the start of every episode: flights, users and reservations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from random import Random
from typing import Any, TypeVar

from stages.envs.airline_mini import rules
from stages.envs.airline_mini.database import Record, Tables
from stages.envs.airline_mini.names import (
    CABINS,
    CITIES,
    DAYS,
    DEPARTURES,
    FIRST,
    FLEET,
    LAST,
    LEFT,
    MEMBERS,
    MONTHS,
    NUMBERS,
    RIGHT,
    TODAY,
)
from stages.envs.users import pick

T = TypeVar("T")

ROUTES, DATES = 20, 8  # routes, and dates per route, with one flight at each time of day
USERS = 480
RESERVATIONS = (2, 3, 3, 4, 4, 5)  # per user
FRESH = (3, 6, 9, 12, 18, 21, 23, 24)  # hours since a booking
STALE = (25, 28, 30, 36, 50, 80, 120, 240)
FARES = tuple(range(60, 210, 10))  # of economy


def new_tables(
    rng: Random, n_users: int = USERS, taken: AbstractSet[str] = frozenset()
) -> dict[str, dict[str, Record]]:
    """Draw users, reservations and flights, by id, without the ids in `taken`."""
    flights = dict(_flights(rng))
    users: dict[str, Record] = {}
    reservations: dict[str, Record] = {}
    names = shuffled([f"{left}-{right}" for left in LEFT for right in RIGHT], rng)
    ids = (name for name in names if name not in taken)
    while len(users) < n_users:
        user_id = f"{pick(rng, FIRST)}_{pick(rng, LAST)}_{pick(rng, NUMBERS)}"
        if user_id in users or user_id in taken:
            continue
        users[user_id] = user = _user(rng)
        for _ in range(pick(rng, RESERVATIONS)):
            reservation_id = next(ids)
            user["reservations"].append(reservation_id)
            reservations[reservation_id] = _reservation(user_id, user, flights, rng)
    return {"users": users, "reservations": reservations, "flights": flights}


def with_routes(tables: Tables) -> Tables:
    """Return the tables with an index of flights by route and date, for the search."""
    routes: dict[str, Record] = {}
    for number, flight in tables["flights"].items():
        key = f"{flight['origin']} {flight['destination']} {flight['date']}"
        routes.setdefault(key, {"flights": []})["flights"].append(number)
    return {**tables, "routes": routes}


def shuffled(things: Sequence[T], rng: Random) -> list[T]:
    """Return the things in random order, the same on every version of Python."""
    return [thing for _, _, thing in sorted((rng.random(), k, t) for k, t in enumerate(things))]


def _flights(rng: Random) -> Iterator[tuple[str, Record]]:
    numbers = iter(shuffled([f"{fleet}-{number}" for fleet in FLEET for number in NUMBERS], rng))
    past, ahead = _dates()
    routes = [(origin, destination) for origin in CITIES for destination in CITIES]
    routes = [(origin, destination) for origin, destination in routes if origin != destination]
    for origin, destination in shuffled(routes, rng)[:ROUTES]:
        for date in [*shuffled(past, rng)[:1], *shuffled(ahead, rng)[: DATES - 1]]:
            fares = shuffled(FARES, rng)  # all different, so that the cheapest flight is unique
            for departs, fare in zip(DEPARTURES, fares, strict=False):
                status = pick(rng, ("scheduled",) * 5 + ("delayed", "cancelled"))
                yield (
                    next(numbers),
                    {
                        "origin": origin,
                        "destination": destination,
                        "date": date,
                        "departs": departs,
                        "status": "flown" if date in past else status,
                        "prices": dict(zip(CABINS, (fare - 20, fare, 2 * fare), strict=True)),
                        "seats": {cabin: pick(rng, (0, 1, 2, 3, 5, 7, 9)) for cabin in CABINS},
                    },
                )


def _dates() -> tuple[list[str], list[str]]:
    """Return the dates before today and those after."""
    dates = [f"{month}-{day}" for month in MONTHS for day in DAYS]
    today = dates.index("-".join(TODAY))
    return dates[:today], dates[today + 1 :]


def _user(rng: Random) -> Record:
    methods: dict[str, Any] = {f"card-{pick(rng, NUMBERS)}": None}
    if rng.random() < 0.6:
        methods[f"gift-{pick(rng, NUMBERS)}"] = pick(rng, range(50, 410, 10))
    if rng.random() < 0.4:
        methods[f"cert-{pick(rng, NUMBERS)}"] = pick(rng, range(100, 310, 10))
    return {"member": pick(rng, MEMBERS), "reservations": [], "methods": methods}


def _reservation(user_id: str, user: Record, flights: dict[str, Record], rng: Random) -> Record:
    number = pick(rng, list(flights))
    cabin, insurance, count = pick(rng, CABINS), pick(rng, ("yes", "no")), pick(rng, (1, 1, 2))
    passengers = [f"{pick(rng, FIRST)} {pick(rng, LAST)}" for _ in range(count)]
    each = flights[number]["prices"][cabin]
    each += rules.INSURANCE_PRICE if insurance == "yes" else 0
    return {
        "user": user_id,
        "flight": number,
        "cabin": cabin,
        "passengers": passengers,
        "bags": pick(rng, (0, 0, 1, 1, 2)),
        "insurance": insurance,
        "hours": pick(rng, FRESH if rng.random() < 0.3 else STALE),
        "paid": each * count,
        "payment": pick(rng, list(user["methods"])),
        "status": "cancelled" if rng.random() < 0.05 else "confirmed",
    }
