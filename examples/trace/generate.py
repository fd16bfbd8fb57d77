"""Write the example trace: a scripted agent serves an invented airline, 24 tasks x 8 trials.

Run as `python -m examples.trace.generate`; every run writes the same bytes. Each customer holds two
bookings, and the task is about the first. The agent makes the mistakes that models make. Their rate
depends on the kind of task, on the agent's haste in the episode, and on whether it read before it
acted. Outcomes are not drawn at random: an episode succeeds if its database ends in the state that
the gold actions produce and its last message contains the answer to the customer.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import orjson

Record = dict[str, Any]
T = TypeVar("T")

TRACE = Path(__file__).parents[2] / "data/examples/airline-24x8.jsonl"
TRIALS = 8
CRASHED = ("bags-1", "change-2", "refuse-2")  # tasks with one extra episode, which crashed
# By kind of task: the number of tasks, and the chance to get a decisive action wrong at medium
# haste. Chosen by hand, so that tasks whose gold actions include reads are hard.
KINDS = {
    "bags": (4, 0.08),
    "cancel": (4, 0.08),
    "certificate": (2, 0.08),
    "change": (6, 0.5),
    "look-up": (3, 0.35),
    "rebook": (2, 0.4),
    "refuse": (3, 0.35),
}
POLICY = (
    "You serve customers of Northbay Air. Cancel only bookings with insurance; send certificates "
    "only for flights we cancelled; hand what you may not do to a human agent."
)
PEOPLE = ("Mara Olsen", "Tomas Ferro", "Ilse Brandt", "Kofi Mensah", "Renata Kowal", "Yuki Sato")
AIRPORTS = ("OSL", "LIS", "ATH", "VIE", "DUB", "HEL", "WAW", "BUD")
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ"  # without I and O, which look like digits
CASELESS = ("reservation_id", "cabin")  # arguments whose case the tools ignore
UNKNOWN_TOOLS = ("get_booking", "lookup_policy", "get_payment_methods")


def below(rng: Random, limit: int) -> int:
    """Return a number in [0, limit)."""
    # Only random() gives the same numbers on every version of Python.
    return int(rng.random() * limit)


def pick(rng: Random, options: Sequence[T]) -> T:
    """Return one of the options."""
    return options[below(rng, len(options))]


def action(name: str, **arguments: Any) -> Record:
    """Return a tool call in the form of `gold_actions`."""
    return {"name": name, "arguments": arguments}


@dataclass
class Airline:
    """The part of the database that concerns one customer, and the tools."""

    user: Record
    reservations: dict[str, Record]  # by id; the task is about the first
    flights: list[Record]  # the flights to choose from, all on one route and day
    handoffs: int = 0

    def answer(self, name: str, arguments: Record) -> str:
        """Run a tool and return the text of its result."""
        try:
            result = self._run(name, copy.deepcopy(arguments))
        except LookupError as error:
            return f"Error: {error.args[0]}"
        return result if isinstance(result, str) else orjson.dumps(result).decode()

    def _run(self, name: str, given: Record) -> Any:
        match name:
            case "get_user_details":
                return self.user
            case "get_reservation_details":
                return self._reservation(given)
            case "search_direct_flight":
                return [flight for flight in self.flights if given.items() <= flight.items()]
            case "calculate":
                return sum(int(number) for number in given["expression"].split(" + "))
            case "cancel_reservation":
                return self._update(given, status="cancelled")
            case "update_reservation_flights":
                return self._update(given, flights=given["flights"], cabin=given["cabin"].lower())
            case "update_reservation_baggages":
                bags = {key: int(given[key]) for key in ("total_baggages", "nonfree_baggages")}
                return self._update(given, **bags)
            case "book_reservation":
                keys = ("flights", "passengers", "insurance")
                kept = {"reservation_id": f"NEW{len(self.reservations)}", "status": "confirmed"}
                return self.reservations.setdefault(
                    kept["reservation_id"], kept | {key: given[key] for key in keys}
                )
            case "send_certificate":
                self.user["certificates"].append(int(given["amount"]))
                return "Certificate sent"
            case "transfer_to_human_agents":
                self.handoffs += 1
                return "Transfer successful"
            case _:
                return f"Unknown action {name}"

    def _reservation(self, given: Record) -> Record:
        reservation = self.reservations.get(given["reservation_id"].upper())
        if reservation is None:
            raise LookupError("reservation not found")
        return reservation

    def _update(self, given: Record, **changes: Any) -> Record:
        reservation = self._reservation(given)
        if reservation["status"] == "cancelled":
            raise LookupError("reservation is cancelled already")
        reservation.update(changes)
        return reservation


@dataclass(frozen=True)
class CustomerTask:
    """What a customer wants, and the gold actions."""

    task_id: str
    kind: str
    world: Airline  # initial state of every episode
    request: str
    reads: list[Record]  # gold reads
    deeds: list[Record]  # the decisive gold actions: writes, the hand-off, or the calculation
    answer: str = ""  # text that the last message must contain


def new_world(rng: Random) -> Airline:
    """Invent a customer with two bookings, and three flights."""
    first, last = pick(rng, PEOPLE).split()
    start, day = below(rng, len(AIRPORTS)), 10 + below(rng, 15)
    route = {"origin": AIRPORTS[start], "destination": AIRPORTS[start - 3]}
    numbers = [f"NB{100 * k + below(rng, 90) + 10}" for k in range(1, 6)]
    bookings = [
        {
            "reservation_id": "".join(pick(rng, LETTERS) for _ in range(5)) + str(k + 2),
            **route,
            "cabin": "economy",
            "flights": [{"flight_number": numbers[k], "date": f"2026-05-{day - k}"}],
            "fare": 100 + 7 * k + 20 * below(rng, 10),
            "total_baggages": 1,
            "nonfree_baggages": 0,
            "insurance": "yes",
            "status": "confirmed",
        }
        for k in range(2)
    ]
    flights = [
        {"flight_number": numbers[2 + k], **route, "date": f"2026-05-{day + 2}", "price": price}
        for k, price in enumerate([90 + 40 * k + below(rng, 30) for k in range(3)])
    ]
    user: Record = {
        "user_id": f"{first}.{last}.{below(rng, 90) + 10}".lower(),
        "name": {"first_name": first, "last_name": last},
        "payment_id": f"card-{below(rng, 9000) + 1000}",
        "reservations": [booking["reservation_id"] for booking in bookings],
        "certificates": [],
    }
    return Airline(user, dict(zip(user["reservations"], bookings, strict=True)), flights)


def new_task(kind: str, number: int) -> CustomerTask:
    """Invent the world of a task, its request and its gold actions."""
    rng = Random(f"task {kind} {number}")
    world = new_world(rng)
    user_id, payment_id = world.user["user_id"], world.user["payment_id"]
    (target, booking), (other, second) = world.reservations.items()
    flight = pick(rng, world.flights)
    price, date = flight["price"], flight["date"]
    route = {key: flight[key] for key in ("origin", "destination")}
    flights = [{"flight_number": flight["flight_number"], "date": date}]
    look = action("get_reservation_details", reservation_id=target)
    search = action("search_direct_flight", **route, date=date)
    cancel = action("cancel_reservation", reservation_id=target)
    reads, answer = [], ""
    if kind == "bags":
        total = 2 + below(rng, 3)
        wish = f"I need {total} checked bags in all on {target}; one of them is free."
        bags = {"total_baggages": total, "nonfree_baggages": total - 1, "payment_id": payment_id}
        deeds = [action("update_reservation_baggages", reservation_id=target, **bags)]
    elif kind == "cancel":
        wish = f"Please cancel my trip of {booking['flights'][0]['date']}, booking {target}."
        deeds = [cancel]
    elif kind == "certificate":
        booking["status"], amount = "cancelled", 50 * (1 + below(rng, 4))
        wish = f"You cancelled my flight, {target}. I was promised a certificate of {amount}."
        deeds = [action("send_certificate", user_id=user_id, amount=amount)]
    elif kind == "change":
        wish = f"Move {target} to the flight for {price} on {date}, same cabin."
        change = {"cabin": "economy", "flights": flights, "payment_id": payment_id}
        reads = [look, search]
        deeds = [action("update_reservation_flights", reservation_id=target, **change)]
    elif kind == "look-up":
        wish = f"What did I pay for {target} and {other} together?"
        reads = [look, action("get_reservation_details", reservation_id=other)]
        deeds = [action("calculate", expression=f"{booking['fare']} + {second['fare']}")]
        answer = str(booking["fare"] + second["fare"])
    elif kind == "rebook":
        wish = f"Cancel {target} and book me on the flight for {price} on {date} instead."
        passengers = [world.user["name"]]
        payment = {"payment_methods": [{"payment_id": payment_id, "amount": price}]}
        trip = {"flight_type": "one_way", "cabin": "economy", "flights": flights}
        extras = {"total_baggages": 1, "nonfree_baggages": 0, "insurance": "no"}
        booked: Record = {"user_id": user_id, **route, **trip, "passengers": passengers, **payment}
        reads, deeds = [look, search], [cancel, action("book_reservation", **booked, **extras)]
    else:
        booking["insurance"] = "no"
        wish = f"I am too ill to fly. Cancel {target} and give me my money back."
        deeds = [action("transfer_to_human_agents", summary="cancellation without insurance")]
    request = f"Hello, I am {user_id}. {wish}"
    return CustomerTask(f"{kind}-{number}", kind, world, request, reads, deeds, answer)


def mistaken(task: CustomerTask, intended: Record, rng: Random) -> Record:
    """Return a wrong action in place of a gold action."""
    name, arguments = intended["name"], intended["arguments"]
    target, other = task.world.reservations
    if name == "transfer_to_human_agents":  # out of pity, it cancels against the policy
        return action("cancel_reservation", reservation_id=target)
    if name in ("get_reservation_details", "cancel_reservation"):
        wrong: Record = {"reservation_id": target if other in arguments.values() else other}
    elif name == "search_direct_flight":
        wrong = {"date": task.world.reservations[target]["flights"][0]["date"]}
    elif name == "calculate":  # adds a fee that nobody paid
        wrong = {"expression": arguments["expression"] + " + 25"}
    elif name == "update_reservation_baggages":  # takes "in all" for "on top"
        total = arguments["total_baggages"] + 1
        wrong = {"total_baggages": total, "nonfree_baggages": total - 1}
    elif name == "send_certificate":
        wrong = {"amount": arguments["amount"] + 50}
    else:  # books another flight of that day
        right = arguments["flights"][0]["flight_number"]
        flight = pick(
            rng,
            [candidate for candidate in task.world.flights if candidate["flight_number"] != right],
        )
        wrong = {"flights": [{key: flight[key] for key in ("flight_number", "date")}]}
    return action(name, **arguments | wrong)


def restyled(arguments: Record) -> Record:
    """Return arguments in another notation that the tools accept as equal."""
    folded = {key: arguments[key].swapcase() for key in arguments if key in CASELESS}
    numbers = {key: str(value) for key, value in arguments.items() if isinstance(value, int)}
    return dict(reversed((arguments | folded | numbers).items()))


@dataclass
class CustomerConversation:
    """The messages of an episode in OpenAI's format, and the database that they change."""

    world: Airline
    rng: Random
    messages: list[Record] = field(default_factory=list)

    def hear(self, text: str, role: str = "user") -> None:
        """Append a message that is not the agent's."""
        self.messages.append({"role": role, "content": text})

    def say(self, text: str | None, *actions: Record) -> None:
        """Append a message of the agent, with its tool calls and their results."""
        calls: list[Record] = []
        results: list[Record] = []
        for intended in actions:
            name, arguments = intended["name"], intended["arguments"]
            if self.rng.random() < 0.15:
                arguments = restyled(arguments)
            written = orjson.dumps(arguments).decode()
            if self.rng.random() < 0.002:  # models sometimes write Python instead of JSON
                written = str(arguments)
            call_id = f"call_{len(self.messages)}_{len(calls)}"
            function = {"name": name, "arguments": written}
            calls.append({"id": call_id, "type": "function", "function": function})
            result = self.world.answer(name, arguments)
            results.append({"role": "tool", "tool_call_id": call_id, "content": result})
        letters = len(text or "") + sum(len(str(call["function"])) for call in calls)
        message = {"role": "assistant", "content": text, "n_tokens": 2 + letters // 4}
        self.messages += [message | ({"tool_calls": calls} if calls else {}), *results]


def look_around(task: CustomerTask, talk: CustomerConversation, haste: float) -> None:
    """Let the agent make the reads of the task, and some unneeded ones."""
    rng = talk.rng
    target, other = task.world.reservations
    look = action("get_reservation_details", reservation_id=target)
    for read in task.reads or [look]:
        if rng.random() < 0.15:
            talk.say(None, mistaken(task, read, rng))
        if rng.random() < 0.08 + 0.1 * haste:  # drops the last letter of the id
            talk.say(None, action(look["name"], reservation_id=target[:-1]))
        talk.say(None, read)
        if rng.random() < 0.1 + 0.1 * haste:  # repeats the call
            talk.say("Let me check.", read)
    if rng.random() < 0.15:
        talk.say(None, look, action(look["name"], reservation_id=other))


def play(task: CustomerTask, trial: int) -> CustomerConversation:
    """Play one episode of a task."""
    rng = Random(f"episode {task.task_id} {trial}")
    talk = CustomerConversation(copy.deepcopy(task.world), rng)
    talk.hear(POLICY, role="system")
    talk.hear(task.request)
    user_id, haste = task.world.user["user_id"], rng.random()
    slip = KINDS[task.kind][1] * (0.5 + haste)
    if rng.random() < 0.4:
        talk.say(None, action("get_user_details", user_id=user_id))
    if rng.random() < 0.1 + 0.1 * haste:
        target = task.world.user["reservations"][0]
        talk.say(None, action(pick(rng, UNKNOWN_TOOLS), reservation_id=target))
    looks = rng.random() > 0.1 + 0.3 * haste
    if looks:
        look_around(task, talk, haste)
    elif task.reads:  # it guesses the flight, but cannot guess a sum
        slip = 1.0 if task.answer else 0.7
    if rng.random() < slip / 4:
        talk.say("I am afraid I cannot do that for you.")
        return talk
    if rng.random() < slip / 4:
        talk.say(None, action("transfer_to_human_agents", summary="the customer needs help"))
        return talk
    if task.kind != "refuse" and rng.random() < 0.5:
        talk.say("I have all I need. Shall I go on?")
        talk.hear("Yes, please.")
    for deed in task.deeds:
        right = rng.random() >= slip
        if not right:
            talk.say(None, mistaken(task, deed, rng))
        if right or (looks and rng.random() < 0.3):  # notices the mistake, perhaps too late
            talk.say(None, deed)
    if rng.random() < 0.2 * haste:  # goodwill that the policy forbids
        talk.say("Take this, too.", action("send_certificate", user_id=user_id, amount=25))
    if not talk.world.handoffs:
        answer = talk.messages[-1]["content"] if task.answer else "It is done."
        talk.say(f"{answer} Is there anything else?")
    return talk


def episodes(task: CustomerTask) -> list[Record]:
    """Return all episodes of a task, in the format of `rollouts.jsonl`."""
    goal = copy.deepcopy(task.world)
    gold = task.reads + task.deeds
    for intended in gold:
        goal.answer(intended["name"], intended["arguments"])
    rows: list[Record] = []
    for trial in range(TRIALS + (task.task_id in CRASHED)):
        talk = play(task, trial)
        answered = task.answer in (talk.messages[-1]["content"] or "")
        crashed = trial == TRIALS
        row = {"episode_id": f"{task.task_id}/{trial}", "task_id": task.task_id, "trial": trial}
        row |= {"group_id": task.task_id, "domain": "airline"}
        if crashed:
            row |= {"status": "error", "outcome": 0, "messages": []}
        else:
            success = talk.world == goal and answered
            row |= {"status": "ok", "outcome": int(success), "messages": talk.messages}
        rows.append(row | {"gold_actions": gold})
    return rows


def trace() -> bytes:
    """Return the bytes of the trace file."""
    tasks = [new_task(kind, k) for kind, (count, _) in KINDS.items() for k in range(count)]
    lines = [orjson.dumps(row) for task in tasks for row in episodes(task)]
    return b"\n".join(lines) + b"\n"


if __name__ == "__main__":
    TRACE.write_bytes(trace())
