"""The tools of the agent: what they take, and what they do to the database."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from stages.envs.airline_mini.database import Database, Record, ToolError
from stages.envs.airline_mini.names import CABINS, CITIES, LEFT, NUMBERS, RIGHT, TOPICS
from stages.envs.airline_mini.rules import BAG_PRICE, INSURANCE_PRICE

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "maxLength": 80}
CABIN: Schema = {"type": "string", "enum": list(CABINS)}
CITY: Schema = {"type": "string", "enum": list(CITIES)}
PASSENGERS: Schema = {
    "type": "array",
    "minItems": 1,
    "maxItems": 3,
    "items": {
        "type": "object",
        "properties": {"first": TEXT, "last": TEXT},
        "required": ["first", "last"],
    },
}
SUM = re.compile(r"\s*[0-9]{1,6}(\s*[+-]\s*[0-9]{1,6}){0,9}\s*")


@dataclass(frozen=True)
class Tool:
    """One tool: its definition, and the function that answers a call."""

    kind: str  # read | write | terminal | generic
    description: str
    parameters: Schema
    run: Callable[..., Any]  # (database, **arguments) -> what the model sees; may raise ToolError

    def definition(self, name: str) -> dict[str, Any]:
        """Return the definition in OpenAI's form."""
        function = {"name": name, "description": self.description, "x-kind": self.kind}
        return {"type": "function", "function": function | {"parameters": self.parameters}}


TOOLS: dict[str, Tool] = {}


def tool(
    kind: str, optional: tuple[str, ...] = (), **parameters: Schema
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a tool; its docstring is the description."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        schema = {
            "type": "object",
            "properties": parameters,
            "required": [name for name in parameters if name not in optional],
        }
        TOOLS[run.__name__] = Tool(kind, (run.__doc__ or "").strip(), schema, run)
        return run

    return register


@tool("read", user_id=TEXT)
def get_user(db: Database, user_id: str) -> Record:
    """Get a user's membership, number of reservations, and payment methods with balances."""
    user = db.get("users", user_id)
    methods = [
        {"id": method} | ({} if balance is None else {"balance": balance})
        for method, balance in user["methods"].items()
    ]
    return {
        "member": user["member"],
        "reservations": len(user["reservations"]),
        "payment": methods,
    }


@tool("read", reservation_id=TEXT)
def get_reservation(db: Database, reservation_id: str) -> Record:
    """Get a reservation; hours: since it was booked; paid: for the flight and insurance."""
    reservation = db.get("reservations", reservation_id)
    shown = ("user", "flight", "cabin", "passengers", "bags", "insurance", "hours", "paid")
    return {key: reservation[key] for key in (*shown, "status")}


@tool("read", flight=TEXT)
def get_flight_status(db: Database, flight: str) -> Record:
    """Get a flight's route, date, departure and status."""
    record = db.get("flights", flight)
    shown = ("origin", "destination", "date", "departs", "status")
    return {key: record[key] for key in shown}


@tool("read", origin=CITY, destination=CITY, date=TEXT, cabin=CABIN)
def search_flights(
    db: Database, origin: str, destination: str, date: str, cabin: str
) -> list[Record]:
    """Find the flights on offer, with the price for one passenger and the seats left."""
    offers = []
    # No tool adds a flight, so the shared table has them all.
    for number in db.tables["routes"].get(f"{origin} {destination} {date}", {}).get("flights", ()):
        flight = db.get("flights", number)
        if flight["status"] == "scheduled":
            price, seats = flight["prices"][cabin], flight["seats"][cabin]
            departs = flight["departs"]
            offers.append({"flight": number, "departs": departs, "price": price, "seats": seats})
    return offers


@tool("read")
def list_airports(db: Database) -> list[str]:
    """List all airports."""
    return list(CITIES)


@tool(
    "write",
    user_id=TEXT,
    flight=TEXT,
    cabin=CABIN,
    passengers=PASSENGERS,
    insurance={"type": "string", "enum": ["yes", "no"]},
    payment_id=TEXT,
)
def book_reservation(
    db: Database,
    user_id: str,
    flight: str,
    cabin: str,
    passengers: list[dict[str, str]],
    insurance: str,
    payment_id: str,
) -> Record:
    """Book a flight for one to three passengers."""
    user, seats = db.edit("users", user_id), len(passengers)
    each = _take_seats(db, flight, cabin, seats)
    price = seats * (each + (INSURANCE_PRICE if insurance == "yes" else 0))
    _pay(user, payment_id, price)
    reservation_id = _free_id(db, user_id, flight)
    user["reservations"].append(reservation_id)
    reservation = {
        "user": user_id,
        "flight": flight,
        "cabin": cabin,
        "passengers": [_name(passenger) for passenger in passengers],
        "bags": 0,
        "insurance": insurance,
        "hours": 0,
        "paid": price,
        "payment": payment_id,
        "status": "confirmed",
    }
    db.add("reservations", reservation_id, reservation)
    return {"reservation": reservation_id, "paid": price}


@tool("write", reservation_id=TEXT)
def cancel_reservation(db: Database, reservation_id: str) -> Record:
    """Cancel a reservation and refund what was paid."""
    reservation = _confirmed(db, reservation_id)
    refund = reservation["paid"]
    _free_seats(db, reservation)
    _pay(db.edit("users", reservation["user"]), reservation["payment"], -refund)
    reservation |= {"status": "cancelled", "paid": 0}
    return {"reservation": reservation_id, "refund": refund}


@tool("write", reservation_id=TEXT, cabin=CABIN, payment_id=TEXT)
def change_cabin(db: Database, reservation_id: str, cabin: str, payment_id: str) -> Record:
    """Change the cabin of all passengers; the difference is charged or refunded."""
    reservation = _confirmed(db, reservation_id)
    return _move(db, reservation_id, reservation["flight"], cabin, payment_id)


@tool("write", reservation_id=TEXT, flight=TEXT, payment_id=TEXT)
def change_flight(db: Database, reservation_id: str, flight: str, payment_id: str) -> Record:
    """Change the flight in the same cabin; the difference is charged or refunded."""
    reservation = _confirmed(db, reservation_id)
    return _move(db, reservation_id, flight, reservation["cabin"], payment_id)


@tool(
    "write",
    optional=("payment_id",),
    reservation_id=TEXT,
    bags={"type": "integer", "minimum": 1, "maximum": 9},
    paid_bags={"type": "integer", "minimum": 0, "maximum": 9},
    payment_id=TEXT,
)
def add_bags(
    db: Database, reservation_id: str, bags: int, paid_bags: int, payment_id: str | None = None
) -> Record:
    """Add bags to a reservation; paid_bags: how many of these cost 50."""
    reservation = _confirmed(db, reservation_id)
    if paid_bags > bags:
        raise ToolError("too many paid_bags")
    if paid_bags:
        if payment_id is None:
            raise ToolError("payment_id is missing")
        _pay(db.edit("users", reservation["user"]), payment_id, BAG_PRICE * paid_bags)
        # A card has no balance that would show which one was used.
        reservation["bags_paid_with"] = [*reservation.get("bags_paid_with", ()), payment_id]
    reservation["bags"] += bags
    return {"reservation": reservation_id, "bags": reservation["bags"]}


@tool("write", reservation_id=TEXT, passengers=PASSENGERS)
def change_passengers(
    db: Database, reservation_id: str, passengers: list[dict[str, str]]
) -> Record:
    """Change the names of the passengers."""
    reservation = _confirmed(db, reservation_id)
    if len(passengers) != len(reservation["passengers"]):
        raise ToolError("number of passengers can't change")
    reservation["passengers"] = [_name(passenger) for passenger in passengers]
    return {"reservation": reservation_id, "passengers": reservation["passengers"]}


@tool("write", user_id=TEXT, amount={"type": "integer", "minimum": 10, "maximum": 600})
def send_certificate(db: Database, user_id: str, amount: int) -> Record:
    """Give a user a certificate."""
    methods = db.edit("users", user_id)["methods"]
    free = (f"cert-{number}" for number in NUMBERS if f"cert-{number}" not in methods)
    certificate = next(free, None)
    if certificate is None:
        raise ToolError("too many certificates")
    methods[certificate] = amount
    return {"id": certificate, "balance": amount}


@tool("generic", expression=TEXT)
def calculate(db: Database, expression: str) -> str:
    """Add and subtract whole numbers, as in 120 + 80 - 30."""
    if not SUM.fullmatch(expression):
        raise ToolError("not a sum")
    return str(sum(int(term) for term in re.findall(r"[+-]?[0-9]+", re.sub(r"\s", "", expression))))


@tool("terminal", summary={"type": "string", "enum": list(TOPICS)})
def transfer_to_human_agents(db: Database, summary: str) -> str:
    """Hand the customer over to a human agent; this ends the conversation."""
    db.handed_off = True
    return "transferred"


def call_tool(db: Database, name: str, arguments: Record) -> str:
    """Execute a call with checked arguments; a write that fails changes nothing.

    Returns:
        JSON, or text that starts with "Error".
    """
    try:
        result = TOOLS[name].run(db, **arguments)
    except ToolError as error:
        db.rollback()
        return f"Error: {error}"
    db.commit()
    return result if isinstance(result, str) else orjson.dumps(result).decode()


def _confirmed(db: Database, reservation_id: str) -> Record:
    reservation = db.edit("reservations", reservation_id)
    if reservation["status"] != "confirmed":
        raise ToolError("reservation is cancelled")
    return reservation


def _move(db: Database, reservation_id: str, flight: str, cabin: str, payment_id: str) -> Record:
    """Move a reservation to another flight or cabin."""
    reservation = db.edit("reservations", reservation_id)
    if (flight, cabin) == (reservation["flight"], reservation["cabin"]):
        raise ToolError("nothing to change")
    seats = len(reservation["passengers"])
    _free_seats(db, reservation)
    insurance = INSURANCE_PRICE if reservation["insurance"] == "yes" else 0
    price = seats * (_take_seats(db, flight, cabin, seats) + insurance)
    difference = price - reservation["paid"]
    _pay(db.edit("users", reservation["user"]), payment_id, difference)
    reservation |= {"flight": flight, "cabin": cabin, "paid": price, "payment": payment_id}
    word = "refund" if difference < 0 else "charged"
    return {"reservation": reservation_id, word: abs(difference)}


def _take_seats(db: Database, flight: str, cabin: str, count: int) -> int:
    """Take seats on a flight, and return the price of each."""
    record = db.edit("flights", flight)
    if record["status"] in ("flown", "cancelled"):
        raise ToolError("flight is not on offer")
    if record["seats"][cabin] < count:
        raise ToolError("not enough seats")
    record["seats"][cabin] -= count
    return int(record["prices"][cabin])


def _free_seats(db: Database, reservation: Record) -> None:
    flight = db.edit("flights", reservation["flight"])
    flight["seats"][reservation["cabin"]] += len(reservation["passengers"])


def _pay(user: Record, payment_id: str, price: int) -> None:
    """Charge a user's payment method, or refund a negative price; cards have no balance."""
    methods = user["methods"]
    if payment_id not in methods:
        raise ToolError("payment not found")
    if methods[payment_id] is not None:
        if methods[payment_id] < price:
            raise ToolError("not enough balance")
        methods[payment_id] -= price


def _name(passenger: dict[str, str]) -> str:
    return f"{passenger['first']} {passenger['last']}"


def _free_id(db: Database, user_id: str, flight: str) -> str:
    """Return an id for a new reservation, which the booking determines but nobody can guess."""
    ids = len(LEFT) * len(RIGHT)
    start = zlib.crc32(f"{user_id} {flight}".encode())
    for place in range(start, start + ids):
        left, right = divmod(place % ids, len(RIGHT))
        if db.find("reservations", name := f"{LEFT[left]}-{RIGHT[right]}") is None:
            return name
    raise ToolError("no reservation left")
