from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.envs.env import STOP, Task
from stages.envs.registry import open_env
from stages.envs.tau2 import package as packages
from stages.envs.tau2.database import State
from stages.envs.tau2.env import WORLDS, Tau2Env, Tau2Session
from stages.envs.tau2.package import Package, load_package
from stages.errors import InputError
from stages.messages.message import Message
from stages.tiers.domains import load_domain

needs_package = pytest.mark.skipif(
    find_spec("inspect_evals") is None, reason="inspect-evals is not installed (extra [tau2])"
)

Json = dict[str, Any]


class Silent:
    """A user who only answers what a test gives."""

    def __init__(self, answer: str = "") -> None:
        self.answer = answer
        self.heard: list[str] = []
        self.tools: list[Json] = []

    def open(self) -> str:
        return "hello"

    def reply(self, agent: str, history: Sequence[Message]) -> str:
        self.heard.append(agent)
        return self.answer

    def equip(self, tools: list[Json], call: Any) -> None:
        self.tools, self.call = tools, call


def calling(*calls: tuple[str, Any]) -> Message:
    entries = [
        {"id": str(n), "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": "", "tool_calls": entries}


def answers(session: Tau2Session, *calls: tuple[str, Any]) -> list[str]:
    return [message["content"] for message in session.step(calling(*calls))]


def state(session: Tau2Session) -> dict[str, State]:
    return session._environment.state()


def start(name: str, task_id: str | None = None, user: Any = None) -> Tau2Session:
    environment = Tau2Env(name)
    task = environment.tasks("base")[0] if task_id is None else environment.task(task_id)
    return environment.reset(task, 0, user or Silent())


def play_gold(session: Tau2Session, package: Package, task: Task) -> None:
    """All gold actions, the user's too, and all required information."""
    for action in package.task(task.task_id).evaluation_criteria.actions or []:
        if action.requestor == "user":
            session.user_call(action.name, action.arguments)
        else:
            session.step(calling((action.name, json.dumps(action.arguments))))
    session.step({"role": "assistant", "content": f"This is it: {task.required_info}"})


# --- tasks and outcomes ---------------------------------------------------------------------------


@needs_package
@pytest.mark.parametrize(
    ("name", "tasks", "parts"),
    [
        ("tau2-airline", 50, {"database", "told"}),
        ("tau2-retail", 114, {"database", "told"}),
        ("tau2-telecom", 114, {"assertions", "actions"}),
    ],
)
def test_gold_actions_solve_every_task(name: str, tasks: int, parts: set[str]) -> None:
    environment, package = Tau2Env(name), load_package(name.removeprefix("tau2-"))
    seen: set[str] = set()
    for task in environment.tasks("base"):
        session = environment.reset(task, 0, Silent())
        play_gold(session, package, task)
        outcome = session.outcome()
        assert outcome.outcome == 1.0, (task.task_id, outcome)
        assert all(outcome.parts.values())
        seen |= outcome.parts.keys()
    assert len(environment.tasks("base")) == tasks
    assert seen == parts


@needs_package
@pytest.mark.parametrize("name", ["tau2-airline", "tau2-retail"])
def test_doing_nothing_solves_only_what_changes_nothing(name: str) -> None:
    environment, package = Tau2Env(name), load_package(name.removeprefix("tau2-"))
    solved = changed = 0
    for task in environment.tasks("base"):
        session = environment.reset(task, 0, Silent())
        solved += session.outcome().parts["database"] is True
        play_gold(session, package, task)
        changed += bool(state(session)["agent"])
    assert 0 < solved == len(environment.tasks("base")) - changed < changed


@needs_package
def test_doing_nothing_solves_no_telecom_task() -> None:
    environment = Tau2Env("tau2-telecom")
    outcomes = [
        environment.reset(task, 0, Silent()).outcome().outcome
        for task in environment.tasks("small")
    ]
    assert len(outcomes) == 20
    assert sum(outcomes) == 0


@needs_package
def test_information_is_told_by_the_rule_of_tau2_bench() -> None:
    # Source: evaluator_communicate.py of tau2-bench: within one message, without commas and case.
    environment = Tau2Env("tau2-retail")
    task = replace(environment.tasks("base")[0], gold_actions=(), required_info=("1234.5", "Visa"))
    session = environment.reset(task, 0, Silent())
    session.step({"role": "assistant", "content": "It is $1,234.50."})
    assert session.outcome().parts == {"database": True, "told": False}
    session.step({"role": "assistant", "content": "By vi"})
    session.step({"role": "assistant", "content": "sa."})
    assert session.outcome().outcome == 0.0
    session.step({"role": "assistant", "content": "By VISA."})
    assert session.outcome().parts == {"database": True, "told": True}


@needs_package
def test_what_needs_a_language_model_is_left_unjudged() -> None:
    package = load_package("airline")
    record = json.loads(json.dumps(package.records["0"]))
    record["evaluation_criteria"]["reward_basis"] = ["DB", "NL_ASSERTION"]
    task = Tau2Env("tau2-airline").task("0")
    session = Tau2Session(replace(package, records={"0": record}), task, Silent())
    assert session.outcome().parts == {"database": True, "judged": None}
    assert session.outcome().outcome == 1.0


@needs_package
def test_databases_are_told_apart_as_by_tau2_bench() -> None:
    # Its hash is of JSON text, in which 3 and 3.0 differ.
    environment = Tau2Env("tau2-airline")
    arguments: Json = {"reservation_id": "EHGLP3", "nonfree_baggages": 0, "payment_id": "none"}
    method = json.loads(answers(start("tau2-airline"), ("get_user_details", EMMA))[0])
    arguments["payment_id"] = next(iter(method["payment_methods"]))
    tool = "update_reservation_baggages"
    gold = {"name": tool, "arguments": arguments | {"total_baggages": 3}}
    task = replace(environment.task("0"), gold_actions=(gold,))
    outcomes = []
    for bags in (3, 3.0):
        session = environment.reset(task, 0, Silent())
        (text,) = answers(session, (tool, arguments | {"total_baggages": bags}))
        assert f'"total_baggages": {bags}' in text
        outcomes.append(session.outcome().outcome)
    assert outcomes == [1.0, 0.0]


@needs_package
@pytest.mark.parametrize("name", WORLDS)
def test_world_offers_tools_with_kinds_and_splits(name: str) -> None:
    environment = Tau2Env(name)
    domain = load_domain(name.removeprefix("tau2-"))
    assert {tool["x-kind"] for tool in environment.tools} >= {"read", "write", "terminal"}
    for tool in environment.tools:
        assert tool["type"] == "function"
        assert tool["function"]["parameters"]["type"] == "object"
        assert tool["function"]["description"]
        assert tool["x-kind"] == domain.kind(tool["function"]["name"])
    train, test = (
        {task.task_id for task in environment.tasks(split)} for split in ("train", "test")
    )
    assert not train & test
    assert train | test == {task.task_id for task in environment.tasks("base")}
    assert "policy" in environment.policy
    with pytest.raises(InputError, match=f"^{name}: no split 'dev'; use '"):
        environment.tasks("dev")
    with pytest.raises(InputError, match=f"^{name}: has no scripted user; choose the user 'llm'$"):
        environment.reset(environment.tasks("test")[0], 0)


def test_unknown_environment_is_an_error() -> None:
    with pytest.raises(InputError) as error:
        open_env("tau2")
    given = "use 'airline-mini' or 'tau2-airline' or 'tau2-retail' or 'tau2-telecom'"
    assert str(error.value) == f"--env: no environment 'tau2'; {given}"


def test_missing_package_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{path}'", name=path.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError) as error:
        packages.load_package.__wrapped__("airline")
    assert str(error.value) == (
        "tau2-airline: needs the package 'inspect_evals', which is not installed; "
        "run pip install 'irc-cli[tau2]'"
    )


# --- conversations --------------------------------------------------------------------------------


@needs_package
def test_user_and_agent_take_turns_until_the_user_ends() -> None:
    user = Silent("my name is Emma")
    session = start("tau2-airline", user=user)
    assert [m["role"] for m in session.messages] == ["system", "user"]
    (reply,) = session.step({"role": "assistant", "content": "Who are you?"})
    assert reply == {"role": "user", "content": "my name is Emma"}
    assert not session.done
    user.answer = f"Thanks! {STOP}"
    assert session.step({"role": "assistant", "content": None}) == []
    assert session.done
    assert session.step(calling(("calculate", {"expression": "1"}))) == []
    assert user.heard == ["Who are you?", ""]
    assert STOP not in str(session.messages)
    assert session.record[-1]["content"] == user.answer


@needs_package
def test_agent_does_not_see_the_tools_of_the_user() -> None:
    user = Silent()
    session = start("tau2-telecom", user=user)
    assert {tool["function"]["name"] for tool in user.tools} >= {"toggle_data", "run_speed_test"}
    text = user.call("check_status_bar", {})
    assert text.startswith("Status Bar: ")
    assert [m["role"] for m in session.messages] == ["system", "user"]
    asked, answered = session.record[-2:]
    assert asked["tool_calls"][0]["function"]["name"] == "check_status_bar"
    assert answered == {
        "role": "tool",
        "requestor": "user",
        "tool_call_id": asked["tool_calls"][0]["id"],
        "content": text,
    }
    assert answers(session, ("check_status_bar", {})) == [
        "Error: Tool 'check_status_bar' not found."
    ]
    assert user.call("get_customer_by_id", {}) == "Error: Tool 'get_customer_by_id' not found."
    airline = start("tau2-airline", user=user)
    assert airline.user_call("toggle_data", {}) == "Error: User tools not available"


@needs_package
def test_agent_and_user_change_one_world() -> None:
    session = start(
        "tau2-telecom", "[mobile_data_issue]data_mode_off|data_usage_exceeded[PERSONA:None]"
    )
    assert session.user_call("run_speed_test", {}) == "Speed test failed: No Connection."
    session.user_call("toggle_data", {})
    assert "failed" in session.user_call("run_speed_test", {})
    line = {"customer_id": "C1001", "line_id": "L1002", "gb_amount": 2.0}
    (text,) = answers(session, ("refuel_data", line))
    # As recorded in tau2-bench's own traces: numbers outside of models become strings.
    assert text == (
        '{"message": "Successfully added 2.0 GB of data for line L1002 for $4.00", '
        '"new_data_refueling_gb": "2.0", "charge": "4.0"}'
    )
    assert "275.00 Mbps (Excellent)" in session.user_call("run_speed_test", {})
    assert session.outcome().outcome == 1.0


# --- answers of tools -----------------------------------------------------------------------------

EMMA = {"user_id": "emma_kim_9957"}


@needs_package
@pytest.mark.parametrize(
    ("name", "arguments", "text"),
    [
        ("nothing", {}, "Error: Tool 'nothing' not found."),
        ("db", {}, "Error: Tool 'db' not found."),
        ("_get_user", EMMA, "Error: Tool '_get_user' not found."),
        (None, {}, "Error: Tool '' not found."),
        ("get_user_details", {"user_id": "x"}, "Error: User x not found"),
        ("get_user_details", {"user_id": "\ud800"}, "Error: User \\ud800 not found"),
        ("get_user_details", {"user_id": ["x"]}, "Error: unhashable type: 'list'"),
        ("get_user_details", '["x"]', "Error: the arguments are not a JSON object"),
        ("get_user_details", None, "Error: the arguments are not a JSON object"),
        (
            "get_user_details",
            {},
            "Error: AirlineTools.get_user_details() missing 1 required positional argument: "
            "'user_id'",
        ),
        (
            "get_user_details",
            '{"user_id": ',
            "Error: Expecting value: line 1 column 13 (char 12)",
        ),
        ("calculate", {"expression": "2 * (3 + 4)"}, "14.0"),
        ("calculate", {"expression": "rm -rf"}, "Error: Invalid characters in expression"),
        ("transfer_to_human_agents", {"summary": "help"}, "Transfer successful"),
    ],
)
def test_tools_answer_as_in_tau2_bench(name: Any, arguments: Any, text: str) -> None:
    session = start("tau2-airline")
    assert answers(session, (name, arguments)) == [text]
    assert state(session) == {"agent": {}}


@needs_package
@pytest.mark.parametrize(
    "calls", [{}, "x", [None], [[]], [{}], [{"function": "f"}], 7, [{"id": 1}]]
)
def test_malformed_calls_are_tool_errors(calls: Any) -> None:
    session = start("tau2-airline")
    results = session.step({"role": "assistant", "tool_calls": calls})
    if not calls:
        assert [m["role"] for m in results] == ["user"]
    else:
        assert [m["content"] for m in results] == ["Error: Tool '' not found."]


@needs_package
def test_arguments_nested_too_deep_are_a_tool_error() -> None:
    session = start("tau2-airline")
    deep = "[" * 200_000 + "]" * 200_000
    (text,) = answers(session, ("get_user_details", f'{{"user_id": {deep}}}'))
    assert text.startswith("Error: ")


@needs_package
def test_new_bill_has_the_same_id_each_time() -> None:
    customer = {"customer_id": "C1002"}  # without a draft of the next bill
    refuel = ("refuel_data", customer | {"line_id": "L1004", "gb_amount": 1})
    bills = []
    for _ in range(2):
        session = start("tau2-telecom")
        answers(session, refuel)
        known, _, listed = answers(
            session,
            ("get_customer_by_id", customer),
            refuel,
            ("get_bills_for_customer", customer),
        )
        (bill,) = [bill for bill in json.loads(listed) if bill["status"] == "Draft"]
        assert len(bill["line_items"]) == 2
        assert json.loads(known)["bill_ids"] == ["B1004", "B1005", bill["bill_id"]]
        assert "Draft" in answers(session, ("get_details_by_id", {"id": bill["bill_id"]}))[0]
        bills.append(bill)
    assert bills[0] == bills[1]


# --- one episode's own database -------------------------------------------------------------------


@needs_package
@pytest.mark.parametrize(
    ("name", "write", "read"),
    [
        (
            "tau2-airline",
            ("cancel_reservation", {"reservation_id": "EHGLP3"}),
            ("get_reservation_details", {"reservation_id": "EHGLP3"}),
        ),
        (
            "tau2-retail",
            (
                "modify_user_address",
                {"user_id": "yusuf_rossi_9620"}
                | dict.fromkeys(["address1", "address2", "city", "state", "country", "zip"], "x"),
            ),
            ("get_user_details", {"user_id": "yusuf_rossi_9620"}),
        ),
        (
            "tau2-telecom",
            ("enable_roaming", {"customer_id": "C1001", "line_id": "L1001"}),
            ("get_details_by_id", {"id": "L1001"}),
        ),
    ],
)
def test_sessions_share_no_state(name: str, write: Any, read: Any) -> None:
    one, two = start(name), start(name)
    before, (clean,) = state(two), answers(one, read)
    (written,) = answers(one, write)
    assert not written.startswith("Error")
    assert answers(one, read) != [clean]
    assert answers(two, read) == [clean]
    assert answers(start(name), read) == [clean]
    assert state(two) == before != state(one)


@needs_package
def test_default_vpn_of_one_phone_is_not_that_of_another() -> None:
    # `break_vpn`, an initial action of many tasks, changes the default in place.
    broken = next(id for id in load_package("telecom").records if "bad_vpn" in id)
    assert "poor" in start("tau2-telecom", broken).user_call("check_vpn_status", {})
    other = start("tau2-telecom")
    other.user_call("connect_vpn", {})
    assert "excellent" in other.user_call("check_vpn_status", {})


@needs_package
def test_undone_call_leaves_earlier_changes() -> None:
    session = start("tau2-airline")
    answers(session, ("cancel_reservation", {"reservation_id": "EHGLP3"}))
    kept = state(session)
    bad = {"reservation_id": "EHGLP3", "passengers": [{"first_name": 1}]}
    assert answers(session, ("update_reservation_passengers", bad))[0].startswith("Error")
    assert state(session) == kept != {"agent": {}}


PLAUSIBLE = (
    "emma_kim_9957 EHGLP3 yusuf_rossi_9620 #W2378156 C1001 L1001 L1002 B1001 D1001 HAT001 JFK SFO "
    "2024-05-20 economy business round_trip yes gift_card_3576581 credit_card_9513926 4g_only "
    "messaging 1151293680 7706410293 2**9 \ud800"
)
WORDS = st.sampled_from(PLAUSIBLE.split(" "))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | WORDS | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["flight_number", "date", "amount"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@st.composite
def some_calls(draw: st.DrawFn, tools: list[Json]) -> list[tuple[str, Any]]:
    """Calls of real tools, mostly with arguments of the right names and plausible values."""
    calls = []
    for _ in range(draw(st.integers(1, 6))):
        function = draw(st.sampled_from(tools))["function"]
        names = list(function["parameters"].get("properties", {}))
        arguments: Any = {name: draw(WORDS | VALUES) for name in names}
        if draw(st.integers(0, 9)) == 0:
            arguments = draw(VALUES)
        calls.append((function["name"], arguments))
    return calls


@needs_package
@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.filterwarnings("error")
def test_any_calls_are_answered_and_failed_ones_change_nothing(name: str) -> None:
    environment, package = Tau2Env(name), load_package(name.removeprefix("tau2-"))
    session = start(name)
    before = package.agent.database.model_dump_json()
    failures = successes = 0

    @settings(max_examples=60, deadline=None, derandomize=True)
    @given(some_calls(environment.tools), some_calls(environment.user_tools or environment.tools))
    def check(calls: list[tuple[str, Any]], of_user: list[tuple[str, Any]]) -> None:
        nonlocal session, failures, successes
        session = start(name)
        for by_user, made in ((False, calls), (True, of_user)):
            for tool, arguments in made:
                known = state(session)
                (text,) = (
                    [session.user_call(tool, arguments)]
                    if by_user
                    else answers(session, (tool, arguments))
                )
                text.encode()
                if text.startswith("Error"):
                    failures += 1
                    assert state(session) == known
                else:
                    successes += 1
        assert session.outcome().outcome in (0.0, 1.0)

    check()
    assert failures > 20
    assert successes > 20
    assert package.agent.database.model_dump_json() == before


def test_the_package_is_imported_only_when_a_world_is_opened() -> None:
    code = (
        "import sys, stages.replay, stages.envs.registry, stages.envs.tau2.env\n"
        "sys.exit(any(name.startswith(('inspect_', 'pydantic')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
