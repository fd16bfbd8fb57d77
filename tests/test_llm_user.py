"""The user that a language model plays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.envs.env import STOP, UserError
from stages.envs.llm_user import (
    ATTEMPTS,
    EQUIPPED,
    GREETING,
    TOOL_CALLS,
    Budget,
    LlmUser,
    fault,
    prompt_of,
)
from tests.conftest import Cli
from tests.mock_openai import Body, MockServer, Reply, calls, fails, says

SCENARIO = {
    "persona": "in a hurry",
    "instructions": {
        "domain": "airline",
        "reason_for_call": "cancel EHGLP3",
        "known_info": "your id is emma_kim_9957",
        "unknown_info": "what you paid",
        "task_instructions": "accept no voucher",
    },
}
ROLLOUT = ("rollout", "--env", "airline-mini", "--policy", "expert", "--split", "dev")
needs_openai = pytest.mark.skipif(
    find_spec("openai") is None, reason="the extra [openai] is not installed"
)
LLM = ("--user", "llm", "--user-model", "tiny", "--max-tasks", "2", "--max-turns", "3", "--json")


class Script:
    """Answers with one message after the other, and remembers what it was asked."""

    def __init__(self, *messages: Body | str) -> None:
        self.bodies: list[Body] = []
        self._messages: Iterator[Body | str] = iter(messages)

    def __call__(self, body: Body) -> Body:
        self.bodies.append({**body, "messages": list(body["messages"])})
        message = next(self._messages)
        said = {"role": "assistant", "content": message} if isinstance(message, str) else message
        return {"choices": [{"message": said}]}


def test_the_prompt_holds_every_field_of_a_scenario() -> None:
    prompt = prompt_of(SCENARIO)
    told = [SCENARIO["persona"], *SCENARIO["instructions"].values()]  # type: ignore[attr-defined] # a dict
    assert all(str(text) in prompt for text in told)
    assert all(end in prompt for end in ("###STOP###", "###TRANSFER###", "###OUT-OF-SCOPE###"))


def test_other_scenarios_are_told_as_they_are() -> None:
    assert "cancel my flight" in prompt_of("cancel my flight")
    mini = {"persona": "terse", "requests": [{"want": "bags", "facts": {"user_id": "ada_lopez"}}]}
    assert "ada_lopez" in prompt_of(mini)
    assert "terse" in prompt_of(mini)


def test_the_agent_is_the_users_user() -> None:
    script = Script("I want to cancel.", "It is EHGLP3.", STOP)
    user = LlmUser(SCENARIO, script, seed=5)
    assert user.open() == "I want to cancel."
    assert user.reply("Which one?", []) == "It is EHGLP3."
    assert user.reply("Done.", []) == STOP
    first, *rest = script.bodies[-1]["messages"]
    assert first["role"] == "system"
    assert [(message["role"], message["content"]) for message in rest] == [
        ("user", GREETING),
        ("assistant", "I want to cancel."),
        ("user", "Which one?"),
        ("assistant", "It is EHGLP3."),
        ("user", "Done."),
    ]
    assert len({body["seed"] for body in script.bodies}) == 3


AGENTS = [
    "Assistant: I can help with that.",
    "**Agent:** Sure.",
    "Yes.\nAssistant: It is cancelled.",
    '<tool_call>{"name": "cancel"}</tool_call>',
    '{"name": "cancel", "arguments": {}}',
    "Hello! How can I help you today?",
    "Is there anything else I can do for you?",
    "Thank you for contacting us.",
    "I have cancelled your reservation EHGLP3.",
    "I've successfully updated your bags.",
    "Let me check your reservation.",
    "",
]
CUSTOMERS = [
    "I want to cancel my flight EHGLP3, please.",
    "Can you help me with my bags?",
    "I have cancelled my plans, so I need a refund.",
    "Let me check... it is EHGLP3.",
    "Thanks for your help!",
    "Your agent told me I would get a refund.",
    "My id: emma_kim_9957",
    STOP,
]


@pytest.mark.parametrize("text", AGENTS)
def test_a_user_who_speaks_as_the_agent_tries_again(text: str) -> None:
    assert fault(text)
    script = Script(text, text, "I want to cancel.")
    assert LlmUser(SCENARIO, script, 0).open() == "I want to cancel."
    sent = script.bodies[-1]["messages"]
    assert len(sent) == 2  # what was wrong is not in its memory


@pytest.mark.parametrize("text", CUSTOMERS)
def test_customers_are_not_taken_for_agents(text: str) -> None:
    assert fault(text) is None


def test_a_user_who_stays_the_agent_fails() -> None:
    script = Script(*["How can I help you?"] * 9)
    with pytest.raises(UserError, match="does not speak as a customer: it offers help"):
        LlmUser(SCENARIO, script, 0).open()
    assert len(script.bodies) == ATTEMPTS


def tool_call(name: str = "restart", arguments: Any = "{}") -> Body:
    call = {"id": "c1", "type": "function", "function": {"name": name, "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_a_user_with_tools_calls_them_before_it_speaks() -> None:
    called: list[tuple[str, Any]] = []

    def call(name: str, arguments: Any) -> str:
        called.append((name, arguments))
        return "restarted"

    script = Script(tool_call(), "It has restarted.")
    user = LlmUser(SCENARIO, script, 0)
    user.equip([{"type": "function", "function": {"name": "restart"}}], call)
    assert user.open() == "It has restarted."
    assert called == [("restart", "{}")]
    assert script.bodies[0]["tools"][0]["function"]["name"] == "restart"
    assert script.bodies[1]["messages"][-1]["content"] == "restarted"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([tool_call()] * (TOOL_CALLS + 1), f"{TOOL_CALLS} calls without a word"),
        ([{"tool_calls": [{"function": None}]}], "has no name or id"),
    ],
)
def test_wrong_calls_of_a_user(messages: list[Body], reason: str) -> None:
    user = LlmUser(SCENARIO, Script(*messages), 0)
    user.equip([], lambda name, arguments: "done")
    with pytest.raises(UserError, match=reason):
        user.open()


def test_only_a_user_with_tools_is_told_of_them() -> None:
    script = Script("It is slow.", "It is slow.")
    user = LlmUser(SCENARIO, script, 0)
    user.open()
    user.equip([], lambda name, arguments: "done")
    user.open()
    told = [EQUIPPED in body["messages"][0]["content"] for body in script.bodies]
    assert told == [False, True]


def test_the_budget_counts_tokens_and_money() -> None:
    budget = Budget.of(150, 1.0, "0.5/2")
    budget.check()
    message = {"role": "assistant", "content": "x" * 40}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    budget.spend({}, {"choices": [{"message": message}], "usage": usage})
    assert budget.spent_tokens == 110
    assert budget.spent_usd == pytest.approx(70e-6)
    budget.check()
    budget.spend({"messages": ["y" * 160]}, {"choices": [{"message": message}]})  # not counted
    with pytest.raises(UserError, match="the budget of 150 tokens is spent"):
        budget.check()
    budget = Budget(cost_usd=0.001, usd_out=100)
    budget.spend({}, {"choices": [{"message": message}], "usage": usage})
    with pytest.raises(UserError, match=r"the budget of 0\.001 USD is spent"):
        budget.check()


def play(run: Cli, answer: Any, *args: str) -> tuple[Body, list[Body]]:
    with MockServer(answer) as server:
        document = run(*ROLLOUT, *LLM, "--user-base-url", server.base_url, *args).json()
    return document, server.requests


@needs_openai
def test_the_command_with_an_llm_user(run: Cli) -> None:
    def answer(body: Body, number: int) -> Reply:
        return says("I want to cancel.") if len(body["messages"]) == 2 else says(STOP)

    document, requests = play(run, answer, "-o", "r.jsonl")
    assert document["status"] == {"ok": 8, "truncated": 0, "error": 0}
    assert len(requests) == 16
    assert requests[0]["model"] == "tiny"


@needs_openai
def test_a_user_that_fails_is_no_zero(run: Cli) -> None:
    document, requests = play(run, lambda body, number: fails(401, "who are you"))
    assert document["status"] == {"ok": 0, "truncated": 0, "error": 8}
    assert document["pass_rate"] is None
    assert document["failures"] == {"user: HTTP 401: who are you": 8}
    assert len(requests) == 8


@needs_openai
def test_a_spent_budget_ends_the_episodes_that_follow(run: Cli) -> None:
    def answer(body: Body, number: int) -> Reply:
        text = "I want to cancel." if len(body["messages"]) == 2 else STOP
        return says(text, usage={"prompt_tokens": 90, "completion_tokens": 10})

    limits = ("--user-tokens", "600", "--concurrency", "1")
    document, requests = play(run, answer, *limits)
    assert document["status"] == {"ok": 3, "truncated": 0, "error": 5}
    assert document["failures"] == {"user: the budget of 600 tokens is spent": 5}
    assert len(requests) == 6


@needs_openai
@pytest.mark.skipif(find_spec("inspect_evals") is None, reason="the extra [tau2] is not installed")
def test_a_telecom_user_uses_its_phone(run: Cli) -> None:
    """The agent refuels data, the user switches data on and tells what a speed test shows."""

    def customer(body: Body, number: int) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return says(last["content"])
        return {
            GREETING: lambda: says("My data does not work."),
            "Switch data on.": lambda: calls("toggle_data", "{}"),
            "Test the speed.": lambda: calls("run_speed_test", "{}"),
            "Anything else?": lambda: says(STOP),
        }[last["content"]]()

    line = {"customer_id": "C1001", "line_id": "L1002", "gb_amount": 2.0}
    script = (
        says("Switch data on."),
        calls("refuel_data", json.dumps(line)),
        says("Test the speed."),
        says("Anything else?"),
    )

    def agent(body: Body, number: int) -> Reply:
        return script[number]

    task = "[mobile_data_issue]data_mode_off|data_usage_exceeded[PERSONA:None]"
    with MockServer(customer) as user, MockServer(agent) as policy:
        document = run(
            *("rollout", "--env", "tau2-telecom", "--split", "base", "--tasks", task),
            *("--policy", "openai", "--model", "m", "--base-url", policy.base_url),
            *("--user", "llm", "--user-model", "m", "--user-base-url", user.base_url),
            *("--group-size", "1", "--json", "-o", "r.jsonl"),
        ).json()
    assert (document["status"]["ok"], document["pass_rate"]) == (1, 1.0)
    names = {tool["function"]["name"] for tool in user.requests[0]["tools"]}
    assert {"toggle_data", "run_speed_test"} <= names
    assert not names & {tool["function"]["name"] for tool in policy.requests[0]["tools"]}
    heard = policy.requests[-1]["messages"][-1]
    assert heard["role"] == "user"
    assert "275.00 Mbps (Excellent)" in heard["content"]
    (row,) = map(orjson.loads, Path("r.jsonl").read_bytes().splitlines())
    own = [
        m["tool_calls"][0] for m in row["messages"] if m["role"] == "user" and m.get("tool_calls")
    ]
    assert [call["function"]["name"] for call in own] == ["toggle_data", "run_speed_test"]
