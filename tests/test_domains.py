from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.core.arguments import ToolRules
from stages.errors import InputError
from stages.tiers.domains import SHIPPED, Domain, find_domain, load_domain
from stages.tiers.tool_names import guessed_kind
from stages.traces import open_trace

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real traces at {SHARED}")


WRITE_VERBS = (
    "create update delete cancel book send modify set add remove exchange return refund pay enable "
    "disable reset change edit submit order schedule purchase transfer"
)


def function(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def load_error(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_domain(str(path))
    return str(caught.value).replace(str(path), "d.yaml")


# The tool types are those of tau2-bench's toolkits (ToolType.READ, WRITE, GENERIC), but for the
# hand-off, which ends the conversation, and `think`, which only tau-bench has.
@pytest.mark.parametrize(
    ("domain", "kind", "tools"),
    [
        ("airline", "write", "book_reservation cancel_reservation send_certificate"),
        ("airline", "write", "update_reservation_baggages update_reservation_flights"),
        ("airline", "write", "update_reservation_passengers"),
        ("airline", "read", "get_user_details get_reservation_details get_flight_status"),
        ("airline", "read", "list_all_airports search_direct_flight search_onestop_flight"),
        ("retail", "write", "cancel_pending_order exchange_delivered_order_items"),
        ("retail", "write", "modify_pending_order_address modify_pending_order_items"),
        ("retail", "write", "modify_pending_order_payment modify_user_address"),
        ("retail", "write", "return_delivered_order_items"),
        ("retail", "read", "find_user_id_by_email find_user_id_by_name_zip get_order_details"),
        ("retail", "read", "get_product_details get_item_details get_user_details"),
        ("retail", "read", "list_all_product_types"),
        ("telecom", "write", "suspend_line resume_line refuel_data enable_roaming"),
        ("telecom", "write", "disable_roaming send_payment_request"),
        ("telecom", "read", "get_customer_by_phone get_customer_by_id get_customer_by_name"),
        ("telecom", "read", "get_details_by_id get_bills_for_customer get_data_usage"),
        ("airline", "generic", "calculate think"),
        ("retail", "generic", "calculate think"),
        *[(name, "terminal", "transfer_to_human_agents") for name in SHIPPED],
        ("telecom", "unknown", "toggle_data check_network_status reboot_device"),
        ("airline", "unknown", "get_order_details get_weather"),
    ],
)
def test_kinds_of_the_shipped_domains(domain: str, kind: str, tools: str) -> None:
    known = load_domain(domain)
    assert {tool: known.kind(tool) for tool in tools.split()} == dict.fromkeys(tools.split(), kind)
    assert known.name == domain and not known.guessed


def test_rules_of_the_shipped_domains() -> None:
    for name in SHIPPED:
        assert load_domain(name).rules["transfer_to_human_agents"].ignore == {"summary"}
    retail = load_domain("retail").rules
    for tool in ("modify_pending_order_items", "exchange_delivered_order_items"):
        assert retail[tool].paired == (("item_ids", "new_item_ids"),)
        assert retail[tool].text >= {"item_ids", "new_item_ids"}
    assert load_domain("airline").rules["think"] == ToolRules(ignore=frozenset({"thought"}))
    assert load_domain("telecom").rules["suspend_line"].ignore == {"reason"}


@needs_shared
def test_the_shipped_domains_know_every_tool_of_the_real_traces() -> None:
    traces = {
        "tau-bench/gpt-4o-airline.json": "airline",
        "tau2-traces/airline-grok-4.json.gz": "airline",
        "tau2-traces/retail-gpt-4.1.json.gz": "retail",
        "tau2-traces/telecom-grok-3.json.gz": "telecom",
    }
    for path, expected in traces.items():
        episodes = list(open_trace(str(SHARED / path)))
        names = {call.name for e in episodes for turn in e.turns for call in turn.calls}
        names |= {g.name for e in episodes for g in e.gold or () if g.requestor == "assistant"}
        domain = find_domain(None, names, None)
        assert domain.name == expected
        assert {name for name in names if domain.kind(name) == "unknown"} == set()
    for name in ("airline", "retail"):
        tasks = orjson.loads((SHARED / f"tau-bench/{name}-tasks.json").read_bytes())
        tools = {action["name"] for task in tasks for action in task["actions"]}
        assert {tool for tool in tools if load_domain(name).kind(tool) == "unknown"} == set()


def test_the_stated_name_decides_if_it_is_shipped() -> None:
    assert find_domain("retail", ["book_reservation"], None).name == "retail"
    assert find_domain("banking", ["book_reservation"], None).name == "airline"


def test_tools_that_several_domains_know_half_of_are_of_none() -> None:
    names = ["get_user_details", "book_court"]  # the first is airline's and retail's
    assert find_domain(None, names, None).name == "guessed"
    assert find_domain(None, names, None).kind("book_court") == "write"
    assert find_domain(None, ["get_user_details", "think"], None).name == "airline"


def test_the_domain_that_knows_most_tools_wins_from_half_on() -> None:
    assert find_domain(None, ["get_order_details", "made_up"], None).name == "retail"
    assert find_domain(None, ["get_order_details", "one", "two"], None).name == "guessed"
    defined = [function("get_order_details"), function("get_user_details")]
    assert find_domain(None, [], defined).name == "retail"


def test_a_tie_is_broken_only_where_it_does_not_matter() -> None:
    both = find_domain(None, ["get_user_details", "calculate"], None)
    assert both.name == "airline" and both.kind("get_user_details") == "read"
    torn = find_domain(None, ["book_reservation", "cancel_pending_order"], None)
    assert torn.name == "guessed" and torn.kind("cancel_pending_order") == "write"


def test_tool_definitions_state_kinds_and_types() -> None:
    schema = {
        "type": "object",
        "properties": {
            "id": {"type": ["string", "null"]},
            "urgent": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "amount": {"type": "number"},
            "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
            "lines": {"type": "array", "items": {"properties": {"sku": {"type": "string"}}}},
            "tags": {"type": "array", "items": {"type": "string"}},
            "open": {},
        },
    }
    tools = [
        function("peek", annotations={"readOnlyHint": True}, parameters=schema),
        {"type": "function", "x-kind": "terminal", "function": {"name": "leave"}},
        {"name": "ship", "kind": "write"},
        {"name": "no function"},
        function("drop", annotations={"readOnlyHint": False}),
        "rubbish",
    ]
    domain = find_domain(None, [], tools)  # type: ignore[arg-type]  # as found in a trace
    assert domain.name == "tool definitions"
    kinds = {name: domain.kind(name) for name in ("peek", "leave", "ship", "drop", "other")}
    assert kinds == {
        "peek": "read",
        "leave": "terminal",
        "ship": "write",
        "drop": "write",
        "other": "unknown",
    }
    assert (domain.has("drop"), domain.has("other")) == (True, False)
    assert domain.guessed  # "no function" states no kind
    assert domain.rules == {
        "peek": ToolRules(booleans=frozenset({"urgent"}), text=frozenset({"id", "sku", "tags"}))
    }
    assert not find_domain(None, [], tools[:3]).guessed  # type: ignore[arg-type]  # as above


@pytest.mark.parametrize(
    ("tool", "kind"),
    [
        ("get_weather", "read"),
        ("searchFlights", "read"),
        ("list-files", "read"),
        ("mcp__shop__find_order", "read"),
        ("shop.lookup", "read"),
        ("transfer_to_human", "terminal"),
        ("transferToAgent", "terminal"),
        ("escalate_case", "terminal"),
        ("hand_off", "terminal"),
        ("transfer_money", "write"),
        ("calculate", "generic"),
        ("think", "generic"),
        ("book_table", "write"),
        ("getaway_book", "unknown"),
        ("", "unknown"),
        ("???", "unknown"),
        # A verb of another language, or one that says too little, is no write.
        ("buscar_vuelos", "unknown"),
        ("listar_pedidos", "unknown"),
        ("añadir_bolsa", "unknown"),
        ("track_shipment", "unknown"),
        ("execute_sql_query", "unknown"),
        ("run_search", "unknown"),
        ("getweather", "unknown"),
        # A reading verb at the end.
        ("KB_search", "read"),
        ("order_lookup", "read"),
        ("knowledge_base_query", "read"),
        ("orderLookup", "read"),
        ("KBSearch", "read"),
        ("look_up_order", "read"),
        ("get_all_user_accounts_by_user_id_3847", "read"),
        ("functions.get_order:0", "read"),
        ("book_search", "read"),
        ("order_status", "read"),
        ("return_policy", "read"),
        ("list_transfer_agents", "read"),
        *[(f"{verb}_thing", "write") for verb in WRITE_VERBS.split()],
        *[(f"{verb}Thing", "write") for verb in WRITE_VERBS.split()],
        ("order_cancel", "write"),
        ("close_account_42", "write"),
        ("clear_shopping_list", "write"),
        ("create_search", "write"),
        # A second verb that writes.
        ("get_or_create_user", "write"),
        ("check_and_update_order", "write"),
        ("compareAndSet", "write"),
        ("search_and_book", "write"),
        ("get_status_and_cancel", "unknown"),
        ("search_terms_and_conditions", "read"),
        ("get_refund_or_credit", "read"),
        # "in" and "out" change what these verbs mean.
        ("check_in", "unknown"),
        ("checkOutGuest", "unknown"),
        ("log_in", "unknown"),
        ("log_event", "write"),
        # A noun before another, or a verb before its object.
        ("credit_score", "unknown"),
        ("order_list", "unknown"),
        ("transfer_balance", "unknown"),
        ("store_details", "unknown"),
        ("refund_history", "read"),
        ("shopping_list", "unknown"),
        ("flight_status", "unknown"),
    ],
)
def test_kinds_guessed_from_names(tool: str, kind: str) -> None:
    assert guessed_kind(tool) == kind
    assert Domain("guessed", {}, {}, guessed=True).kind(tool) == kind


@pytest.mark.parametrize(
    ("stated", "kind"),
    [
        ({"annotations": {"readOnlyHint": True}}, "read"),
        ({"annotations": {"readOnlyHint": True, "destructiveHint": True}}, "read"),
        ({"annotations": {"readOnlyHint": False}}, "write"),
        ({"annotations": {"read_only_hint": True}}, "read"),
        ({"readOnlyHint": True}, "read"),
        ({"read_only_hint": False}, "write"),
        ({"annotations": {"destructiveHint": True}}, "write"),
        ({"destructive_hint": True}, "write"),
        ({"annotations": {"destructiveHint": False}}, None),  # adds, or only reads
        ({"annotations": {"readOnlyHint": "yes"}}, None),
        ({"annotations": None}, None),
        ({"x-kind": "generic"}, "generic"),
        ({"kind": "WRITE"}, "write"),
        ({"tool_type": "ToolType.READ"}, "read"),
        ({"tool_type": "think"}, "generic"),
        ({"kind": "other"}, None),
    ],
)
def test_kinds_that_definitions_state(stated: dict[str, Any], kind: str | None) -> None:
    for tools in ([function("tramitar", **stated)], [{"name": "tramitar", **stated}]):
        domain = find_domain(None, [], tools)
        assert domain.kind("tramitar") == (kind or "unknown")
        assert domain.guesses("tramitar") is domain.guessed is (kind is None)


def test_types_of_tools_that_tau2_records() -> None:
    types = {"tramitar": "write", "buscar": "read", "transfer_to_human": "generic", "get": "odd"}
    for tools in (None, [function("buscar"), function("mirar")]):
        domain = find_domain(None, ["buscar", "mirar"], tools, types)
        kinds = {tool: domain.kind(tool) for tool in ("tramitar", "buscar", "transfer_to_human")}
        assert kinds == {"tramitar": "write", "buscar": "read", "transfer_to_human": "terminal"}
        assert domain.unclear("mirar") and not domain.unclear("buscar")
        assert domain.guesses("mirar") and not domain.guesses("buscar")
    # A shipped domain knows better.
    assert (
        find_domain("retail", [], None, {"get_order_details": "write"}).kind("get_order_details")
        == "read"
    )


def test_tools_of_the_banking_domain() -> None:
    domain = load_domain("banking_knowledge")
    call = "call_discoverable_agent_tool"
    inner = {
        "get_bank_account_transactions_9173": "read",
        "close_debit_card_4721": "write",
        "initial_transfer_to_human_agent_0218": "generic",
        "made_up": "write",
    }
    assert {name: domain.kind(call, {"agent_tool_name": name}) for name in inner} == inner
    odd: list[Any] = [None, {}, [], {"agent_tool_name": 5}, {"agent_tool_name": {}}]
    for arguments in odd:
        assert domain.kind(call, arguments) == "write"
    assert domain.kind("KB_search") == "read"
    assert find_domain("banking_knowledge", [], None) is domain
    assert find_domain(None, ["KB_search", call], None) is domain
    # Its tools return their errors, which tau2-bench does not flag.
    rule = domain.failures.rule
    assert rule(False, "Error: Account 'a' not found.") == "text starts with Error"
    assert rule(False, "Error codes of cards") is None
    # Tools that agents of any kind have tell no domain.
    assert find_domain(None, ["grep", "shell"], None).name == "guessed"


def test_a_domain_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\n"
        "tools:\n"
        "  buy: {kind: write, ordered: [stops], booleans: [gift], text: sku, paired: [[a, b]]}\n"
        "  look: {kind: read}\n",
        encoding="utf-8",
    )
    domain = load_domain(str(path))
    assert domain == Domain(
        "mine",
        {"buy": "write", "look": "read"},
        {
            "buy": ToolRules(
                ordered=frozenset({"stops"}),
                booleans=frozenset({"gift"}),
                text=frozenset({"sku"}),
                paired=(("a", "b"),),
            )
        },
        guessed=False,
    )
    assert domain.kind("steal") == "unknown"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "name: x\ntools:\n  a: {kind: read, ignor: [b]}\n",
            "d.yaml:3:19: unknown key 'ignor'; did you mean 'ignore'?",
        ),
        (
            "name: x\ntools:\n  a: {kind: raed}\n",
            "d.yaml:3:13: unknown value 'raed'; did you mean 'read'?",
        ),
        (
            "name: x\ntools:\n  a: {}\n",
            "d.yaml:3:6: tool 'a' has no 'kind'; give one of read, write, terminal, generic",
        ),
        ("name: x\n", "d.yaml:1:1: no key 'tools'; give 'name' and 'tools'"),
        ("- x\n", "d.yaml:1:1: expected keys and values, found a list; correct the file"),
        (
            "name: x\ntools:\n  a: {kind: write, paired: [[b]]}\n",
            "d.yaml:3:29: a pair of one list; name the lists that belong together",
        ),
        (
            "name: x\ntools:\n  a: {kind: write, text: [1]}\n",
            "d.yaml:3:27: expected text, found 1; put it in quotes",
        ),
    ],
)
def test_a_bad_domain_file(tmp_path: Path, text: str, line: str) -> None:
    assert load_error(tmp_path / "d.yaml", text) == line


def test_an_unknown_domain_is_a_missing_file() -> None:
    with pytest.raises(InputError) as caught:
        load_domain("airlines")
    assert str(caught.value) == "airlines: no such file; check the path"
