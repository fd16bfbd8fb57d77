from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.tiers.domains import Domain, load_domain
from stages.tiers.toolsets import LOOK_AHEAD, Toolsets
from stages.traces import Call, Episode, GoldAction
from tests.builders import SHOP, call, episode, gold

# Tools of one shipped domain alone, and tools that several have.
AIRLINE = ("get_reservation_details", "book_reservation", "search_direct_flight")
RETAIL = ("get_order_details", "find_user_id_by_email", "cancel_pending_order")
SHARED = ("get_user_details", "transfer_to_human_agents", "calculate")


def played(*tools: str, task: str = "5", trial: int = 0, **given: Any) -> Episode:
    """An episode that calls these tools."""
    return replace(episode([call(tool) for tool in tools], task=task, trial=trial), **given)


def told(*episodes: Episode, given: Domain | None = None) -> list[tuple[str | None, str]]:
    """Domain and tools that are found for each episode."""
    return [(e.domain, tools.name) for e, tools in Toolsets(given).assign(episodes)]


def test_each_episode_of_a_mixed_trace_has_tools_of_its_own() -> None:
    assert told(played(*AIRLINE), played(*RETAIL), played(*AIRLINE)) == [
        ("airline", "airline"),
        ("retail", "retail"),
        ("airline", "airline"),
    ]


def test_a_stated_domain_counts_before_the_tools() -> None:
    assert told(played(*AIRLINE, domain="retail")) == [("retail", "retail")]
    # One that does not ship has the tools that fit, and keeps its name.
    assert told(played(*AIRLINE, domain="mine")) == [("mine", "airline")]
    assert told(played("buy", domain="mine")) == [("mine", "guessed")]


def test_a_domain_is_known_by_any_case_and_by_the_environment() -> None:
    retail = ("retail", "retail")
    assert told(played("buy", domain="Retail")) == [retail]
    assert told(played("buy", env="tau2-retail"), played("buy", env="retail")) == [retail] * 2
    assert told(played("buy", env="airline", domain="retail")) == [retail]
    assert told(played("buy", env="shop"), played("buy", env="bank")) == [
        ("shop", "guessed"),
        ("bank", "guessed"),
    ]


def test_the_users_tools_count_for_every_episode_and_tasks_keep_their_domain() -> None:
    assert told(played(*AIRLINE), played("buy"), given=SHOP) == [
        ("airline", "shop"),
        (None, "shop"),
    ]


def test_an_episode_whose_tools_tell_nothing_follows_its_task_then_its_trace() -> None:
    silent, unsure = played(task="9"), played("get_user_details", task="9")
    assert told(silent, played(*RETAIL), unsure) == [("retail", "retail")] * 3
    expected = (GoldAction("get_order_details", {"order_id": "1"}),)
    other = played("get_reservation_details", "book_reservation")
    mixed = told(played(*RETAIL, gold=expected), other, played("calculate", gold=expected))
    assert mixed[2] == ("retail", "retail")


def test_what_stays_unclear_in_a_mixed_trace_is_noted() -> None:
    toolsets = Toolsets()
    episodes = [played(*AIRLINE, task="1"), played(*RETAIL, task="2"), played(task="3")]
    domains = [e.domain for e, _ in toolsets.assign(episodes)]
    assert domains == ["airline", "retail", None]
    assert toolsets.notes == {"domain unclear, in a trace of several": 1}


def test_what_two_tasks_of_one_id_leave_open_is_not_guessed() -> None:
    gold_of = [(GoldAction(tool, {}),) for tool in ("book_reservation", "cancel_pending_order")]
    episodes = [played(*AIRLINE, gold=gold_of[0]), played(*RETAIL, gold=gold_of[1])]
    assert told(*episodes, played(gold=None))[2] == (None, "guessed")
    # Nothing expected is another task than something.
    bare = replace(episodes[1], gold=())
    assert told(episodes[0], bare, played(gold=()))[2] == ("retail", "retail")


def test_a_trace_of_other_tools_that_shares_a_name_with_a_shipped_domain_is_not_its() -> None:
    shop = [played("get_order_details", "buy"), played("get_order_details")]
    others = [played("buy", "look", "ship"), played("ship", "pay")]
    assert told(*shop, *others) == [(None, "guessed")] * 4
    # A shipped domain beside it keeps its own.
    assert told(*shop, played(*AIRLINE), *others)[2] == ("airline", "airline")


def test_a_domain_of_its_own_beside_a_shipped_one_does_not_get_its_tools() -> None:
    custom = played("buy", "look", "calculate", task="7")
    assert told(played(*AIRLINE), custom, played(*AIRLINE))[1] == (None, "guessed")


def test_a_tool_that_the_model_made_up_does_not_change_the_domain() -> None:
    made_up = Call("find_everything", {}, "Error: unknown tool")
    confused = episode([made_up, made_up], task="8")
    assert told(played(*AIRLINE), confused)[1] == ("airline", "airline")


def test_definitions_tell_all_of_an_episodes_tools() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "buy")]
    mine = played("look", tools=tools)
    retail = [{"type": "function", "function": {"name": name}} for name in RETAIL]
    assert told(mine, played(*AIRLINE), played(tools=retail), played("buy")) == [
        (None, "tool definitions"),
        ("airline", "airline"),
        ("retail", "retail"),
        (None, "tool definitions"),  # of those that define the tool
    ]


def test_episodes_far_apart_are_told_as_they_come() -> None:
    taken = 0

    def counted() -> Iterable[Episode]:
        nonlocal taken
        for trial in range(3 * LOOK_AHEAD):
            taken += 1
            yield played(*(RETAIL if trial % 2 else AIRLINE), trial=trial)

    for at, (each, tools) in enumerate(Toolsets().assign(counted())):
        assert taken <= at + LOOK_AHEAD + 1
        assert each.domain == tools.name == ("retail" if each.trial % 2 else "airline")


def test_domains_are_loaded_once() -> None:
    pairs = list(Toolsets().assign([played(*AIRLINE, trial=trial) for trial in range(3)]))
    assert all(tools is load_domain("airline") for _, tools in pairs)
    pairs = list(Toolsets().assign([played("buy", trial=trial) for trial in range(3)]))
    assert len({id(tools) for _, tools in pairs}) == 1


@pytest.mark.parametrize("tools", [SHARED[:1], ("calculate",), ()])
def test_names_that_several_domains_have_tell_nothing(tools: Sequence[str]) -> None:
    assert told(played(*tools))[0][0] is None


@st.composite
def traces(draw: st.DrawFn) -> tuple[list[Episode], list[Episode]]:
    """Episodes of two domains over the same task ids, all clear by a tool or a gold action."""
    files = []
    for own in (AIRLINE, RETAIL):
        episodes = []
        for trial in range(draw(st.integers(1, 6))):
            task = draw(st.sampled_from("567"))
            names = draw(st.lists(st.sampled_from(own + SHARED), max_size=4))
            expected = [gold(own[0], id=task)]
            one = episode([call(name) for name in names], expected=expected, task=task, trial=trial)
            episodes.append(one)
        files.append(episodes)
    return files[0], files[1]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(traces(), st.randoms(use_true_random=False))
def test_any_interleaving_reads_as_two_traces(
    files: tuple[list[Episode], list[Episode]], rng: random.Random
) -> None:
    mixed = [replace(each) for each in files[0] + files[1]]
    rng.shuffle(mixed)
    apart = [pair for episodes in files for pair in Toolsets().assign(episodes)]
    expected = sorted((e.domain or "", e.task_id, e.trial, d.name) for e, d in apart)
    together = sorted(
        (e.domain or "", e.task_id, e.trial, d.name) for e, d in Toolsets().assign(mixed)
    )
    assert together == expected
