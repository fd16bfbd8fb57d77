"""The embedded domain airline-mini: its data, tools, sessions, tasks and vocabulary."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from random import Random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.envs.airline_mini import airline_mini, names, phrase_book
from stages.envs.airline_mini.baselines import hand_off, refuse
from stages.envs.airline_mini.database import Database
from stages.envs.airline_mini.expert import Expert
from stages.envs.airline_mini.families import FAMILIES
from stages.envs.airline_mini.generate import SPLITS, generate, rows
from stages.envs.airline_mini.session import run_call
from stages.envs.airline_mini.tools import TOOLS, call_tool
from stages.envs.airline_mini.vocabulary import vocabulary
from stages.envs.env import Task
from stages.errors import InputError
from stages.messages.message import Message
from stages.tiers.domains import find_domain, load_domain
from tests.airline_mini_policy import Case
from tests.playing import call, do_nothing, pass_rate, play, random_writes, says
from tests.tiny import cut

WORLD = airline_mini()
TASKS = {split: WORLD.tasks(split) for split in SPLITS}
EVERY = [task for tasks in TASKS.values() for task in tasks]
WRITES = [name for name, tool in TOOLS.items() if tool.kind in ("write", "terminal")]

TASK = TASKS["train"][0]
USERS, RESERVATIONS, FLIGHTS = (list(WORLD.tables[t]) for t in ("users", "reservations", "flights"))


def of_family(family: str) -> Task:
    return next(task for task in TASKS["test"] if task.family == family)


def problems(database: Database) -> Iterator[str]:
    """What is wrong with a database."""
    users, reservations, flights = (
        {key: database.get(table, key) for key in ids(database, table)}
        for table in ("users", "reservations", "flights")
    )
    for user_id, user in users.items():
        if any(balance is not None and balance < 0 for balance in user["methods"].values()):
            yield f"{user_id}: balance below zero"
        if any(reservations[one]["user"] != user_id for one in user["reservations"]):
            yield f"{user_id}: somebody else's reservation"
        if len(set(user["reservations"])) != len(user["reservations"]):
            yield f"{user_id}: a reservation twice"
    for reservation_id, one in reservations.items():
        if reservation_id not in users[one["user"]]["reservations"]:
            yield f"{reservation_id}: not in its user's list"
        if one["payment"] not in users[one["user"]]["methods"]:
            yield f"{reservation_id}: unknown payment method"
        if one["bags"] < 0 or one["paid"] < 0 or not 1 <= len(one["passengers"]) <= 3:
            yield f"{reservation_id}: bags, price or passengers"
        if one["cabin"] not in flights[one["flight"]]["seats"]:
            yield f"{reservation_id}: unknown cabin"
    for number, flight in flights.items():
        if min(flight["seats"].values()) < 0 or min(flight["prices"].values()) <= 0:
            yield f"{number}: seats or prices"


def ids(database: Database, table: str) -> list[str]:
    """The ids of a table, with those that were added."""
    _, changed = database.state()
    return [
        *database.tables[table],
        *(k for t, k in changed if t == table and k not in database.tables[t]),
    ]


def seats_in_all(database: Database) -> Counter[tuple[str, str]]:
    """For each flight and cabin the free seats and those of confirmed reservations."""
    seats: Counter[tuple[str, str]] = Counter()
    for number in ids(database, "flights"):
        for cabin, free in database.get("flights", number)["seats"].items():
            seats[number, cabin] += free
    for reservation_id in ids(database, "reservations"):
        one = database.get("reservations", reservation_id)
        if one["status"] == "confirmed":
            seats[one["flight"], one["cabin"]] += len(one["passengers"])
    return seats


# The data


def test_generating_again_gives_the_same_bytes() -> None:
    written = {name: (files("data") / "airline-mini" / name).read_bytes() for name in rows(WORLD)}
    assert rows(generate()) == written
    assert sum(map(len, written.values())) < 3_000_000


def test_another_seed_gives_another_airline_of_the_same_kind() -> None:
    other = generate(seed=2)
    assert list(problems(Database(other.tables))) == []
    assert [len(other.tasks(split)) for split in SPLITS] == [2000, 200, 400]
    assert other.tables["users"].keys() != WORLD.tables["users"].keys()
    assert pass_rate(other, other.tasks("dev"), Expert()) == 1


def test_sizes() -> None:
    assert len(USERS) >= 100 and len(RESERVATIONS) >= 400 and len(FLIGHTS) >= 120
    assert len(TASKS["train"]) >= 600 and len(TASKS["dev"]) >= 100 and len(TASKS["test"]) >= 200
    for split, tasks in TASKS.items():
        counts = Counter(task.family for task in tasks)
        assert counts == {family: len(tasks) * FAMILIES[family] // 100 for family in FAMILIES}
        assert all(task.split == split for task in tasks)
    assert len({task.task_id for task in EVERY}) == len(EVERY)


def test_splits_share_no_user_and_no_reservation() -> None:
    found = re.compile(f"{names.FACTS['user_id']}|{names.FACTS['reservation']}")
    seen = {}
    for split, tasks in TASKS.items():
        named = set(
            found.findall(orjson.dumps([[t.scenario, t.gold_actions] for t in tasks]).decode())
        )
        users = named & set(USERS)
        owners = {WORLD.tables["reservations"][one]["user"] for one in named & set(RESERVATIONS)}
        assert named <= set(USERS) | set(RESERVATIONS)
        seen[split] = users | owners
    assert not (seen["train"] & seen["dev"] or seen["train"] & seen["test"])
    assert not seen["dev"] & seen["test"]


def test_the_database_is_valid_at_the_start() -> None:
    assert list(problems(Database(WORLD.tables))) == []


def test_no_task_is_twice_in_a_split() -> None:
    for tasks in TASKS.values():
        requests = Counter(orjson.dumps(task.scenario["requests"]) for task in tasks)
        assert max(requests.values()) == 1


def test_unknown_split() -> None:
    with pytest.raises(InputError, match="no split 'tset'; did you mean 'test'"):
        WORLD.tasks("tset")


# Tools


def test_tools_and_their_kinds() -> None:
    kinds = {d["function"]["name"]: d["function"]["x-kind"] for d in WORLD.tools}
    assert len(kinds) >= 12 and set(kinds.values()) == {"read", "write", "terminal", "generic"}
    assert kinds == load_domain("airline-mini").kinds
    assert find_domain(None, kinds, None).name == "airline-mini"
    booking = TOOLS["book_reservation"].parameters["properties"]["passengers"]
    assert booking["type"] == "array" and booking["items"]["type"] == "object"
    assert all(d["function"]["description"] for d in WORLD.tools)


def open_flight(seats: int = 1) -> tuple[str, dict[str, Any]]:
    return next(
        (number, flight)
        for number, flight in WORLD.tables["flights"].items()
        if flight["status"] == "scheduled" and min(flight["seats"].values()) >= seats
    )


def test_a_booking_takes_seats_and_money_and_a_cancellation_gives_them_back() -> None:
    db = Database(WORLD.tables)
    number, flight = open_flight(seats=2)
    user_id = next(u for u in USERS if any(map(_is_gift, WORLD.tables["users"][u]["methods"])))
    gift = next(filter(_is_gift, db.get("users", user_id)["methods"]))
    db.edit("users", user_id)["methods"][gift] = 500
    db.commit()
    people = [{"first": "ada", "last": "fox"}, {"first": "ben", "last": "fox"}]
    booking = {"user_id": user_id, "flight": number, "cabin": "basic", "passengers": people}
    result = call_tool(db, "book_reservation", booking | {"insurance": "yes", "payment_id": gift})
    price = 2 * (flight["prices"]["basic"] + 30)
    booked = orjson.loads(result)
    assert booked == {"reservation": booked["reservation"], "paid": price}
    assert db.get("users", user_id)["methods"][gift] == 500 - price
    assert db.get("flights", number)["seats"]["basic"] == flight["seats"]["basic"] - 2
    cancelled = call_tool(db, "cancel_reservation", {"reservation_id": booked["reservation"]})
    assert orjson.loads(cancelled) == {"reservation": booked["reservation"], "refund": price}
    assert db.get("users", user_id)["methods"][gift] == 500
    assert db.get("flights", number) == flight
    again = call_tool(db, "cancel_reservation", {"reservation_id": booked["reservation"]})
    assert again == "Error: reservation is cancelled"


def _is_gift(method: str) -> bool:
    return method.startswith("gift")


@pytest.mark.parametrize(
    ("expression", "answer"),
    [
        ("120 + 80", "200"),
        ("120+80-30", "170"),
        ("1 - 2", "-1"),
        ("2 * 3", "Error: not a sum"),
        ("__import__('os')", "Error: not a sum"),
        ("", "Error: not a sum"),
        ("٣ + 1", "Error: not a sum"),
    ],
)
def test_calculate(expression: str, answer: str) -> None:
    assert call_tool(Database(WORLD.tables), "calculate", {"expression": expression}) == answer


@pytest.mark.parametrize(
    ("name", "arguments", "answer"),
    [
        ("fly", {}, "unknown tool"),
        ("get_user", "{", "arguments are not json"),
        ("get_user", "[]", "arguments must be object"),
        ("get_user", "null", "arguments must be object"),
        ("get_user", "", "user_id is missing"),
        ("get_user", {"user_id": 1}, "user_id must be string"),
        ("get_user", {"user_id": None}, "user_id must be string"),
        ("get_user", {"user_id": "x" * 100_000}, "user_id is not readable"),
        ("get_user", {"user_id": "x"}, "user not found"),
        ("get_user", {"user_id": "x", "y": 1}, "unknown key in arguments"),
        ("send_certificate", {"user_id": USERS[0], "amount": True}, "amount must be integer"),
        ("send_certificate", {"user_id": USERS[0], "amount": 50.0}, "amount must be integer"),
        ("send_certificate", {"user_id": USERS[0], "amount": -50}, "amount is out of range"),
        ("change_cabin", {"reservation_id": "x", "cabin": "x", "payment_id": "x"}, "unknown cabin"),
        (
            "change_passengers",
            {"reservation_id": RESERVATIONS[0], "passengers": []},
            "passengers has a wrong number of entries",
        ),
        (
            "change_passengers",
            {"reservation_id": RESERVATIONS[0], "passengers": [{"first": "ada"}]},
            "last is missing",
        ),
    ],
)
def test_wrong_calls_become_errors(name: str, arguments: Any, answer: str) -> None:
    session = WORLD.reset(TASK, 0)
    (result,) = session.step(call(name, arguments))
    assert result == {"role": "tool", "tool_call_id": "call_0", "content": f"Error: {answer}"}


# Properties

some_id = st.sampled_from([*USERS[:3], *RESERVATIONS[:12], *FLIGHTS[:12], "nobody"])
METHODS = sorted({m for u in USERS[:4] for m in WORLD.tables["users"][u]["methods"]})
people = st.lists(
    st.fixed_dictionaries({"first": st.sampled_from("ab"), "last": st.just("c")}), max_size=4
)
VALUES = {
    "user_id": st.sampled_from(USERS[:4]),
    "reservation_id": st.sampled_from(RESERVATIONS[:12]),
    "flight": st.sampled_from(FLIGHTS[:24]),
    "cabin": st.sampled_from(names.CABINS),
    "payment_id": st.sampled_from(METHODS),
    "passengers": people,
    "insurance": st.sampled_from(["yes", "no"]),
    "bags": st.integers(-1, 10),
    "paid_bags": st.integers(-1, 10),
    "amount": st.integers(-10, 700),
    "expression": st.text(max_size=5),
    "summary": st.sampled_from(names.TOPICS),
}
CALLS = st.sampled_from([name for name in TOOLS if TOOLS[name].kind == "write"]).flatmap(
    lambda name: st.fixed_dictionaries(
        {key: VALUES[key] for key in TOOLS[name].parameters["properties"]}
    ).map(lambda arguments: (name, arguments))
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | some_id,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(CALLS, max_size=25))
def test_no_calls_make_the_database_invalid(calls: list[tuple[str, dict[str, Any]]]) -> None:
    db = Database(WORLD.tables)
    before = seats_in_all(db)
    for name, arguments in calls:
        state = copy.deepcopy(db.state())
        function = {"name": name, "arguments": orjson.dumps(arguments).decode()}
        if run_call(db, {"function": function}).startswith("Error"):
            assert db.state() == state  # a failed write changes nothing
    assert list(problems(db)) == []
    assert seats_in_all(db) == before


def test_the_property_tests_reach_writes_that_succeed_and_that_fail() -> None:
    results = []

    @settings(max_examples=60, deadline=None, derandomize=True, database=None)
    @given(CALLS)
    def collect(one: tuple[str, dict[str, Any]]) -> None:
        function = {"name": one[0], "arguments": orjson.dumps(one[1]).decode()}
        results.append((one[0], run_call(Database(WORLD.tables), {"function": function})[:5]))

    collect()
    done = {name for name, start in results if start != "Error"}
    assert len(done) >= 5 and any(start == "Error" for _, start in results)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.sampled_from([*TOOLS, "fly", "", None, 3]),
    JSON | st.text(max_size=20) | JSON.map(lambda value: orjson_or_text(value)),
    st.sampled_from(["call", "no function", "list", "text"]),
)
def test_a_step_never_raises(name: Any, arguments: Any, shape: str) -> None:
    session = WORLD.reset(TASK, 0)
    function = {"name": name, "arguments": arguments}
    tool_calls: Any = {
        "call": [{"id": 1, "function": function}],
        "no function": [{"id": None}],
        "list": [[function], 7],
        "text": "get_user",
    }[shape]
    results = session.step({"role": "assistant", "tool_calls": tool_calls})
    assert results and all(result["role"] == "tool" for result in results)
    assert all(isinstance(result["content"], str) for result in results)
    orjson.dumps(session.outcome().parts)


def orjson_or_text(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        return str(value)


@pytest.mark.parametrize("content", [None, "", "x" * 100_000, 7, [{"text": "hi"}, "x", 3], {}])
def test_any_content_is_heard(content: Any) -> None:
    session = WORLD.reset(TASK, 0)
    (heard,) = session.step({"role": "assistant", "content": content})
    assert heard["role"] == "user" and heard["content"]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"user_id":"' + "a" * 100_000 + '"}', "\ud800"])
def test_huge_and_broken_arguments(text: str) -> None:
    (result,) = WORLD.reset(TASK, 0).step(call("get_user", text))
    assert result["content"].startswith("Error: ") and len(result["content"]) < 80


# Sessions


def test_sessions_share_nothing_that_changes() -> None:
    before = orjson.dumps(WORLD.tables)
    task = of_family("cancel")
    gold = task.gold_actions[-1]
    one, two = WORLD.reset(task, 0), WORLD.reset(task, 0)
    one.step(call(gold["name"], gold["arguments"]))
    assert one.outcome().parts["database"] and not two.outcome().parts["database"]
    two.step(call(gold["name"], gold["arguments"]))
    assert two.messages == one.messages
    assert orjson.dumps(WORLD.tables) == before


def test_a_hand_off_ends_the_episode() -> None:
    session = WORLD.reset(TASK, 0)
    both = call("transfer_to_human_agents", {"summary": "pet"})
    both["tool_calls"] += call("cancel_reservation", {"reservation_id": RESERVATIONS[0]})[
        "tool_calls"
    ]
    results = session.step(both)
    assert [result["content"] for result in results] == [
        "transferred",
        "Error: conversation is over",
    ]
    assert session.done and session.step(says("hello")) == []


def test_the_outcome_compares_databases_and_not_calls() -> None:
    task = of_family("cabin")
    session = WORLD.reset(task, 0)
    session.step(call("list_airports", {}))
    *_, gold = task.gold_actions
    arguments = {key: gold["arguments"][key] for key in reversed(list(gold["arguments"]))}
    session.step(call(gold["name"], arguments))  # without the gold reads
    assert session.outcome().outcome == 1
    session.step(call("cancel_reservation", {"reservation_id": arguments["reservation_id"]}))
    assert session.outcome().parts == {"database": False, "told": True}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("It is {}.", True),
        ("${} in all", True),
        ("it is 1{}", False),
        ("it is {}0", False),
        ("it is {}-5", False),
        ("it is ten", False),
    ],
)
def test_what_counts_as_told(text: str, told: bool) -> None:
    task = next(t for t in EVERY if t.scenario["requests"][0]["want"] == "balance")
    session = WORLD.reset(task, 0)
    session.step(says(text.format(task.required_info[0])))
    assert session.outcome().parts["told"] is told


def test_a_text_beside_a_tool_call_is_not_told() -> None:
    task = next(t for t in EVERY if t.scenario["requests"][0]["want"] == "balance")
    session = WORLD.reset(task, 0)
    session.step(call("list_airports", {}) | {"content": task.required_info[0]})
    assert not session.outcome().parts["told"]


# Tasks


def test_an_independent_reading_of_the_policy_confirms_every_task() -> None:
    verdicts: Counter[str] = Counter()
    for task in EVERY:
        db = Database(WORLD.tables)
        deeds, told = [], []
        for request in task.scenario["requests"]:
            case = Case(db, request["want"], request["facts"])
            case.decide()
            for name, arguments in case.deeds:
                assert not call_tool(db, name, arguments).startswith("Error"), task.task_id
            deeds += case.deeds
            told += case.told
            verdicts["refuse" if not case.deeds and not case.told else "serve"] += 1
        gold = [(one["name"], one["arguments"]) for one in task.gold_actions]
        assert [one for one in gold if one[0] in WRITES] == deeds, task.task_id
        assert list(task.required_info) == told, task.task_id
    assert min(verdicts.values()) > 300


def test_the_families_are_what_they_are_called() -> None:
    for task in EVERY:
        requests = task.scenario["requests"]
        deeds = [one["name"] for one in task.gold_actions if one["name"] in WRITES]
        match task.family:
            case "lookup":
                assert not deeds and task.required_info
            case "handoff":
                assert deeds == ["transfer_to_human_agents"]
            case "multi":
                assert len(requests) >= 2 and deeds
            case "refusal" | "pressure":
                assert len(requests) == 2 or not (deeds or task.required_info)
                assert bool(requests[0]["pressure"]) == (task.family == "pressure")
            case _:
                assert len(requests) == len(deeds) == 1


def test_gold_actions_replayed_give_outcome_1() -> None:
    for task in EVERY:
        session = WORLD.reset(task, 0)
        session.step(says(" and ".join(task.required_info)))
        session.done = False  # the replay does not depend on the user
        for action in task.gold_actions:
            (result,) = session.step(call(action["name"], action["arguments"]))
            assert not result["content"].startswith("Error"), task.task_id
        assert session.outcome().outcome == 1, task.task_id


def test_policies_that_are_no_good_fail() -> None:
    tasks = TASKS["train"][::4] + TASKS["test"]
    assert pass_rate(WORLD, tasks, do_nothing) < 0.15
    assert pass_rate(WORLD, tasks, random_writes(WORLD)) < 0.02
    assert pass_rate(WORLD, tasks, refuse) < 0.15
    assert pass_rate(WORLD, tasks, hand_off) < 0.15


# Vocabulary


def test_the_vocabulary_is_small_and_no_piece_is_there_twice() -> None:
    pieces = [piece for group in vocabulary().values() for piece in group]
    assert len(pieces) == len(set(pieces)) <= 1000


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(max_size=60))
def test_pieces_add_up_to_any_text(text: str) -> None:
    assert "".join(cut(text)) == text


def test_every_episode_of_the_expert_is_made_of_whole_pieces() -> None:
    characters = set(vocabulary()["character"])
    allowed = set(" .?,")
    lengths = []
    for task in TASKS["test"] + TASKS["dev"]:
        tokens = [
            piece for text in texts(play(WORLD, task, Expert()).messages) for piece in cut(text)
        ]
        assert not (set(tokens) & characters) - allowed, task.task_id
        lengths.append(len(tokens))
    assert sum(lengths) / len(lengths) < 160 and max(lengths) < 448


def test_an_id_is_cut_alike_in_a_sentence_and_in_json() -> None:
    assert cut("cancel autumn-river.")[-4:] == [" ", "autumn", "-river", "."]
    assert cut('{"reservation_id":"autumn-river"}') == [
        '{"reservation_id":"',
        "autumn",
        "-river",
        '"}',
    ]
    assert cut("mia_silva_42") and cut("ada_silva_12") == ["ada", "_silva_", "12"]
    assert cut("june-20 1234") == ["june-", "20", " ", "1", "2", "3", "4"]


def test_errors_are_made_of_whole_pieces() -> None:
    rng, characters = Random(0), set(vocabulary()["character"]) - set(" .?,")
    seen = set()
    for _ in range(3000):
        name = rng.choice([*TOOLS, "fly"])
        keys = TOOLS[name].parameters["properties"] if name in TOOLS else {}
        values: list[Any] = [1, -1, "x", "x" * 99, [], [{}], {}, USERS[0], RESERVATIONS[0]]
        arguments: Any = {key: rng.choice(values) for key in keys if rng.random() < 0.9}
        if rng.random() < 0.1:
            arguments = rng.choice(["{", [], {"z": 1}])
        (result,) = WORLD.reset(TASK, 0).step(call(name, arguments))
        if result["content"].startswith("Error"):
            seen.add(result["content"])
            assert not set(cut(result["content"])) & characters, result["content"]
    assert len(seen) > 25


def test_no_piece_of_a_name_is_a_word_of_the_conversations() -> None:
    groups = ("first", "last", "reservation_left", "city", "tool")
    entities = {piece for group in groups for piece in vocabulary()[group]}
    entities |= {piece.strip("-") for piece in vocabulary()["reservation_right"]}
    entities |= {piece.strip("-") for piece in vocabulary()["flight"]}
    words = {word.strip() for word in vocabulary()["word"]}
    assert not entities & words
    assert len(entities) == sum(
        len(vocabulary()[g]) for g in (*groups, "reservation_right", "flight")
    )


def texts(messages: list[Message]) -> Iterator[str]:
    """All that a model reads and writes of an episode, but the system prompt."""
    for message in messages[1:]:
        yield message["content"] or ""
        for one in message.get("tool_calls") or ():
            yield from (one["function"]["name"], one["function"]["arguments"])


def test_the_phrases_know_every_want_of_the_tasks() -> None:
    wants = {request["want"] for task in EVERY for request in task.scenario["requests"]}
    assert wants == set(phrase_book().sections["wants"])
