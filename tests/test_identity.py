from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.traces import Episode
from stages.traces.identity import Identities, settled
from tests.builders import episode, gold

BUY, SHIP = gold("buy", id=1, n=2), gold("ship", id=3)


def seen(source: str, opening: Any = None, *expected: Any, **more: Any) -> Episode:
    one = episode([], expected=expected, task="5")
    return replace(one, source=source, opening=opening, policy=source, group_id=None, **more)


def names(*episodes: Episode) -> list[str]:
    """The name that each episode's task has in the end."""
    identities = Identities()
    for each in episodes:
        identities.place(f"{each.source}.json", each)
    renamed = identities.renamed({e.source: f"{e.source}.json" for e in episodes})
    return [renamed.get((e.source, e.task), e.task) for e in episodes]


def test_a_task_is_a_domain_and_an_id() -> None:
    assert names(
        seen("a", domain="airline"), seen("b", domain="retail"), seen("c", domain="airline")
    ) == ["airline/5", "retail/5", "airline/5"]


def test_without_a_domain_gold_actions_tell_tasks_apart() -> None:
    assert names(seen("a", "hi", BUY), seen("b", "hi", SHIP)) == ["5", "b/5"]
    # In any order, by what the arguments mean, however the user words it.
    text = replace(BUY, arguments='{"n": "2", "id": 1.0}')
    assert names(seen("a", "hi", BUY, SHIP), seen("b", "hello", SHIP, text)) == ["5", "5"]


@pytest.mark.parametrize("expected", [(), None])
def test_without_gold_actions_the_users_first_message_tells(expected: Any) -> None:
    def told(*openings: Any) -> list[str]:
        return names(
            *(replace(seen(s, o), gold=expected) for s, o in zip("abcd", openings, strict=False))
        )

    assert told("hi", "hello") == ["5", "b/5"]
    assert told("hi  there", [{"type": "text", "text": "hi\nthere"}]) == ["5", "5"]
    assert told("hi", None) == ["5", "5"]  # nothing speaks against it
    assert told("hi", "hello", "hi", "hello") == ["5", "b/5", "5", "b/5"]


def test_a_message_common_to_any_trial_is_enough() -> None:
    first, second = seen("a", "hi"), seen("a", "hello")
    assert names(first, seen("b", "well"), second, seen("b", "hello")) == ["5"] * 4


def test_gold_actions_in_one_trace_only_leave_it_to_the_messages() -> None:
    assert names(seen("a", "hi", BUY), seen("b", "hi")) == ["5", "5"]
    assert names(seen("a", "hi", BUY), seen("b", "hello")) == ["5", "b/5"]
    # Where two tasks fit, nothing tells which.
    assert names(seen("a", "hi", BUY), seen("b", "hi", SHIP), seen("c", "hi")) == [
        *("5", "b/5", "c/5")
    ]


def test_users_of_one_trace_may_word_a_task_in_any_way() -> None:
    assert names(seen("a", "hi"), seen("a", "hello")) == ["5", "5"]
    assert names(seen("a", "hi", BUY), seen("a", "hello")) == ["5", "5"]


def test_gold_actions_tell_tasks_of_one_trace_apart() -> None:
    """Two files and the one that holds both have the same tasks."""
    assert names(seen("a", "hi", BUY), seen("a", "hi", SHIP)) == ["5", "a/5#2"]
    both = seen("b", "hi", BUY), seen("b", "hi", SHIP)
    assert names(seen("a", "hi", BUY), *both) == ["5", "5", "b/5#2"]
    assert names(seen("a", "hi", SHIP), *both) == ["5", "b/5", "5"]
    assert names(*both, seen("a", "hi", SHIP)) == ["5", "b/5#2", "b/5#2"]
    known = (replace(each, domain="shop", namesake=1) for each in both)
    assert names(*known) == ["shop/5", "shop/5"]  # a domain and an id are a task


def test_a_trace_without_user_messages_goes_with_the_only_other_task() -> None:
    def told(*openings: Any) -> list[str]:
        return names(*(seen(s, o) for s, o in zip("abc", openings, strict=True)))

    assert told("hi", None, "hi") == ["5"] * 3
    assert told("hi", "hello", None) == ["5", "b/5", "c/5"]
    assert told(None, "hello", "hi") == ["5", "b/5", "c/5"]


def test_numbered_tasks_are_never_those_of_another_trace() -> None:
    numbered = {"task_numbered": True}
    assert names(
        seen("a", **numbered), seen("b", **numbered), seen("b", domain="retail", **numbered)
    ) == ["a/5", "b/5", "retail/b/5"]


def test_a_domain_that_the_user_names_is_in_the_id_and_proves_nothing() -> None:
    identities = Identities()
    episodes = [seen("a", "hi", BUY), seen("b", "hi", SHIP)]
    for each in episodes:
        identities.place(each.source, each, "shop")
    assert [(e.task, e.domain) for e in episodes] == [("shop/5", "shop")] * 2
    assert identities.renamed({"a": "a", "b": "b"}) == {("b", "shop/5"): "shop/b/5"}


def test_traces_of_one_name_are_called_by_their_paths() -> None:
    identities = Identities()
    identities.place("a/t.json", seen("t", "hi"))
    identities.place("b/t.json", seen("t", "hello"))
    assert identities.renamed({"t": "b/t.json"}) == {("t", "5"): "b/t.json/5"}
    assert identities.renamed({"t": "a/t.json"}) == {}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sampled_from([None, "hi", "hello"]),
            st.sampled_from([(), (BUY,), (SHIP,)]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_the_order_of_traces_does_not_matter_to_counts(rows: list[Any]) -> None:
    files = {source: [row for row in rows if row[0] == source] for source, _, _ in rows}

    def tasks(order: tuple[str, ...]) -> set[frozenset[str]]:
        episodes = [seen(s, opening, *expected) for f in order for s, opening, expected in files[f]]
        found: dict[str, set[str]] = {}
        for each, name in zip(episodes, names(*episodes), strict=True):
            found.setdefault(name, set()).add(each.source)
        return {frozenset(sources) for sources in found.values()}

    assert len({frozenset(tasks(order)) for order in permutations(files)}) == 1


# --- groups ---------------------------------------------------------------------------------------


def groups(*episodes: Episode) -> tuple[list[str], int]:
    identities = Identities()
    for each in episodes:
        identities.place(each.source, each)
    return [each.group for each in episodes], identities.split_groups()


def test_a_group_is_of_one_task_and_one_policy() -> None:
    assert groups(seen("a"), seen("a"), seen("b"), seen("a", domain="retail")) == (
        ["a:5", "a:5", "b:5", "a:retail/5"],
        0,
    )


def test_a_stated_group_is_kept_unless_another_policy_or_task_has_it() -> None:
    ours = [replace(seen(source), policy="m", group_id="run/5") for source in "ab"]
    assert groups(*ours) == (["run/5", "run/5"], 0)  # two shards of one run
    theirs = [replace(seen(source), group_id="g") for source in "abb"]
    assert groups(*theirs) == (["g", "b:5:g", "b:5:g"], 1)
    other_task = replace(seen("a"), group_id="g", task_id="6")
    assert groups(replace(seen("a"), group_id="g"), other_task) == (["g", "a:6:g"], 1)


# --- tables ---------------------------------------------------------------------------------------


def test_rows_get_the_names_that_tasks_have_in_the_end() -> None:
    frame = pl.DataFrame(
        {"source": ["a", "b", "b"], "task_id": ["5", "5", "6"], "group_id": ["m:5", "m:5", "m:6"]}
    )
    moved = settled(frame, {("b", "5"): "b/5"})
    assert moved["task_id"].to_list() == ["5", "b/5", "6"]
    assert moved["group_id"].to_list() == ["m:5", "b/m:5", "m:6"]
    assert settled(frame, {}) is frame
    assert settled(frame.drop("group_id"), {("b", "5"): "b/5"})["task_id"][1] == "b/5"
