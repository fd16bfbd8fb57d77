from __future__ import annotations

import ast
import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.trace.generate import TRACE
from stages.calibration.sums import lay_out, sum_turns
from stages.core.arguments import ToolRules
from stages.core.correlation import pooled
from stages.score import Scored
from stages.tables.artifacts import TURNS
from stages.tables.table_file import made_by
from stages.tiers.domains import Domain, find_domain, load_domain
from stages.traces import Call, GoldAction, open_trace
from stages.traces.episode import SUCCESS
from tests.builders import (
    AIRLINE,
    SHARED,
    SHOP,
    airline_scored,
    call,
    episode,
    gold,
    needs_shared,
    scored,
    written,
)
from tests.conftest import Cli


def tiers_of(result: Scored) -> list[str]:
    return list(result.columns["tier"])


def row(result: Scored, turn: int) -> dict[str, Any]:
    return result.frame().row(turn, named=True)


# --- what a turn is -------------------------------------------------------------------------------


def test_every_column_of_a_turn() -> None:
    one = episode(
        [call("look", id=1)], [], expected=[gold("look", id=1, n=2)], outcome=0.5, trial=3
    )
    one.turns[0].n_tokens = 7
    frame = scored(one, tiers="flat").frame()
    assert frame.schema == TURNS.columns
    assert frame.rows(named=True) == [
        {
            "source": "trace",
            "episode_id": "t:3",
            "task_id": "t",
            "trial": 3,
            "group_id": "t",
            "domain": None,
            "policy": "trace",
            "turn": 0,
            "tool_names": ["look"],
            "n_calls": 1,
            "tier": "soft",
            "match": "partial",
            "match_share": 0.5,
            "reward": 0.5,
            "outcome": 0.5,
            "success": False,
            "status": "ok",
            "n_tokens": 7,
        },
        {
            "source": "trace",
            "episode_id": "t:3",
            "task_id": "t",
            "trial": 3,
            "group_id": "t",
            "domain": None,
            "policy": "trace",
            "turn": 1,
            "tool_names": [],
            "n_calls": 0,
            "tier": "message",
            "match": None,
            "match_share": None,
            "reward": 0.0,
            "outcome": 0.5,
            "success": False,
            "status": "ok",
            "n_tokens": None,
        },
    ]
    assert TURNS.conform(frame, "turns").height == 2


def test_a_turn_takes_the_tier_of_its_best_call() -> None:
    calls = [
        call("look", failed=True, id=1),
        call("look", id=9),
        call("ship", id=1),
        call("buy", id=1),
    ]
    expected = [gold("buy", id=1)]
    assert tiers_of(scored(episode(calls, expected=expected))) == ["gold_write"]
    assert tiers_of(scored(episode(calls[:3], expected=expected))) == ["state_change"]
    assert tiers_of(scored(episode(calls[:2], expected=expected))) == ["read_only"]
    result = scored(episode(calls[:1], expected=expected))
    assert (tiers_of(result), result.calls) == (["error"], 1)


@pytest.mark.parametrize("backwards", [False, True])
def test_of_two_soft_calls_the_closer_one_counts(backwards: bool) -> None:
    calls = [call("buy", id=1, n=0, by=0), call("buy", id=1, n=2, by=0)]
    turn = calls[::-1] if backwards else calls
    result = scored(episode(turn, expected=[gold("buy", id=1, n=2, by=3)]), tiers="paper")
    # One-to-one: the closer call meets the gold action whatever their order, the other none.
    assert row(result, 0)["match_share"] == pytest.approx(2 / 3, abs=1e-15)
    both = scored(episode(turn, expected=[gold("buy", id=1, n=2, by=3)]), tiers="flat")
    assert row(both, 0)["match_share"] == pytest.approx(2 / 3, abs=1e-15)


@pytest.mark.parametrize("share", [1, 3, 199])
def test_the_soft_reward_grows_with_the_share_up_to_its_cap(share: int) -> None:
    # docs/method.md, "Tiers": 0.5 + 0.5 * matched share, capped at 0.99.
    keys = [f"k{i}" for i in range(share + 1)]
    near = Call("buy", dict.fromkeys(keys[:-1], 1))
    expected = GoldAction("buy", dict.fromkeys(keys, 1))
    result = scored(episode([near], expected=[expected]))
    assert tiers_of(result) == ["soft"]
    assert row(result, 0)["reward"] == min(0.5 + 0.5 * share / (share + 1), 0.99)


def test_messages_are_turns() -> None:
    result = scored(episode([], [call("look", id=1)], []), episode([], [], task="u"))
    assert tiers_of(result) == ["message", "read_only", "message", "message", "message"]
    assert result.tiers() == {"message": 4, "read_only": 1}
    assert result.calls == 1


def test_kinds_without_a_match() -> None:
    calls = [call("look"), call("buy"), call("leave"), call("think"), call("teleport")]
    result = scored(episode(*([one] for one in calls)))
    assert tiers_of(result) == [
        "read_only",
        "state_change",
        "handoff",
        "read_only",
        "unknown_tool",
    ]


# --- arguments as recorded ------------------------------------------------------------------------


def test_unparseable_arguments_are_an_error_and_counted() -> None:
    turns = [written("buy", '{"id": '), written("buy", "{'id': 1}"), written("buy", '{"id": 1}')]
    result = scored(
        episode(*([one] for one in turns), expected=[gold("buy", id=1), gold("buy", id=1)])
    )
    assert tiers_of(result) == ["error", "gold_write", "gold_write"]
    assert result.notes == {
        "arguments unparseable, tiered as errors": 1,
        "arguments read as a Python literal": 1,
    }


def test_what_is_left_out_is_not_counted_among_the_calls() -> None:
    crashed = episode([written("buy", "{'id': 1}"), call("buy")], status="error", outcome=None)
    result = scored(crashed)
    assert (result.episodes, result.calls, result.notes, result.tiers()) == (0, 0, {}, {})
    assert tiers_of(result) == ["state_change"]  # its turns are in the table, with their status


def test_guessed_kinds_are_counted() -> None:
    guessed = Domain("guessed", {}, {}, guessed=True)
    result = scored(episode([call("get_it"), call("book_it")]), domain=guessed)
    what = "calls whose tool kind is guessed from its name"
    assert result.notes == {f"{what}: get_it (read)": 1, f"{what}: book_it (write)": 1}
    assert tiers_of(result) == ["state_change"]


def test_notes_name_only_some_tools() -> None:
    guessed = Domain("guessed", {}, {}, guessed=True)
    calls = [call(f"buscar_{letter}") for letter in "abcdefgab"]
    result = scored(episode(calls), domain=guessed)
    what = "calls whose tool kind is unknown"
    counts = {f"{what}: buscar_{x}": n for x, n in zip("abcde", (2, 2, 1, 1, 1), strict=True)}
    assert result.notes == counts | {f"{what}: other tools": 2}
    assert result.columns["tier"] == ["other"]
    stated = Domain("guessed", {"buscar_a": "read"}, {}, guessed=True)
    result = scored(episode([call("buscar_a")], [call("order_x")]), domain=stated)
    assert result.columns["tier"] == ["read_only", "state_change"]
    assert list(result.notes) == ["calls whose tool kind is guessed from its name: order_x (write)"]


def test_results_taken_for_failures_are_counted_by_rule() -> None:
    calls = [
        Call("buy", {"id": 1}, '{"error": "sold out"}'),
        Call("buy", {"id": 1}, "An error occurred while running the tool."),
        Call("buy", {"id": 1}, "Error: no"),
        Call("buy", {"id": 1}, "sold out", flagged=True),
        Call("buy", {"id": 1}, "Error codes: E1 means low ink", flagged=False),
    ]
    turns = [episode([one], expected=[gold("buy", id=1)], trial=i) for i, one in enumerate(calls)]
    crashed = episode([calls[0]], trial=9, status="error")
    result = scored(*turns, crashed)
    assert result.columns["tier"][:5] == ["error"] * 4 + ["gold_write"]
    assert result.failures == {
        "json error": 1,
        "text says that an error occurred": 1,
        "text starts with Error": 1,
        "flag": 1,
    }


def test_rules_of_the_tools_are_for_tiers_that_want_them() -> None:
    domain = Domain("d", SHOP.kinds, {"buy": ToolRules(ignore=frozenset({"note"}))}, False)
    one = episode([call("buy", id=1, note="x")], expected=[gold("buy", id=1, note="y")])
    assert tiers_of(scored(one, tiers="extended", domain=domain)) == ["gold_write"]
    assert tiers_of(scored(one, tiers="flat", domain=domain)) == ["soft"]


# --- repeats --------------------------------------------------------------------------------------


def repeat_after(*between: Call) -> str:
    """The tier of a read that has been made before, with calls in between."""
    turns = [[call("look", id=1)], *([one] for one in between), [written("look", '{"id": "1"}')]]
    return tiers_of(scored(episode(*turns)))[-1]


def test_the_same_call_again_is_a_duplicate_until_something_is_written() -> None:
    assert repeat_after() == "duplicate"
    assert repeat_after(call("look", id=2)) == "duplicate"
    assert repeat_after(call("think", id=2)) == "duplicate"
    assert repeat_after(call("buy", id=2)) == "read_only"
    assert repeat_after(call("buy", failed=True, id=2)) == "duplicate"
    assert repeat_after(call("look", failed=True, id=1), call("look", id=1)) == "duplicate"


def test_a_write_repeats_only_the_write_just_before() -> None:
    result = scored(episode(*[[call("buy", id=i)] for i in (1, 1, 2, 1)]))
    assert tiers_of(result) == ["state_change", "duplicate", "state_change", "state_change"]


def test_a_repeat_within_one_turn_and_none_across_episodes() -> None:
    twice = [call("look", id=1), call("look", id=1)]
    result = scored(episode(twice), episode([call("look", id=1)], task="u"))
    assert tiers_of(result) == ["read_only", "read_only"]  # the first of the two ranks better


# --- gold actions ---------------------------------------------------------------------------------


def test_the_retry_that_worked_meets_the_gold_action() -> None:
    retried = episode(
        [call("buy", failed=True, id=1)], [call("buy", id=1)], expected=[gold("buy", id=1)]
    )
    assert tiers_of(scored(retried)) == ["error", "gold_write"]
    assert tiers_of(scored(retried, tiers="flat")) == ["error", "gold"]


def test_one_to_one_meets_a_gold_action_once_and_any_many_times() -> None:
    twice = episode(*[[call("look", id=1)]] * 2, expected=[gold("look", id=1)])
    assert tiers_of(scored(twice, tiers="extended")) == ["gold_read", "duplicate"]
    assert tiers_of(scored(twice, tiers="paper")) == ["gold", "duplicate"]
    assert tiers_of(scored(twice, tiers="flat")) == ["gold", "gold"]


def test_gold_actions_of_the_user_are_not_the_agents_to_do() -> None:
    one = episode([call("buy", id=1)], expected=[gold("buy", requestor="user", id=1)])
    assert tiers_of(scored(one)) == ["state_change"]
    assert row(scored(one), 0)["match"] == "none"


def test_without_known_gold_actions_the_match_is_unknown() -> None:
    turns = [[call("look", id=1)], []]
    unknown = scored(episode(*turns, expected=None))
    assert [row(unknown, k)["match"] for k in (0, 1)] == [None, None]
    assert [row(unknown, k)["match_share"] for k in (0, 1)] == [None, None]
    assert not unknown.known_gold
    none_expected = scored(episode(*turns, expected=()))
    assert [row(none_expected, k)["match"] for k in (0, 1)] == ["none", None]
    assert none_expected.known_gold
    assert scored(episode(*turns, expected=None), episode(*turns, task="u")).known_gold


# --- what counts ----------------------------------------------------------------------------------


def test_reasons_for_leaving_episodes_out() -> None:
    result = scored(
        episode([], task="a"),
        episode([], task="b", status="truncated", outcome=0.0),
        episode([], task="c", status="error", outcome=None),
        episode([], task="d", status="error", outcome=1.0),
        episode(task="e"),
        episode([], task="f", outcome=None),
    )
    assert result.episodes == 3
    assert result.excluded == {
        "crashed or cut by infrastructure": 2,
        "no turn of the agent": 1,
    }
    assert result.notes == {"episodes without an outcome": 1}
    assert result.tiers() == {"message": 3}
    frame = result.frame()
    assert frame["status"].to_list() == ["ok", "truncated", "error", "error", "ok"]
    assert frame["success"].to_list() == [True, False, None, True, None]


@pytest.mark.parametrize(
    ("outcome", "success"), [(1.0, True), (SUCCESS, True), (1 - 2e-6, False), (0.0, False)]
)
def test_success_is_an_outcome_of_one_up_to_rounding(outcome: float, success: bool) -> None:
    # docs/method.md, "Terms": success when o >= 1 - 1e-6.
    assert row(scored(episode([], outcome=outcome)), 0)["success"] is success


# --- an independent implementation of `flat` ------------------------------------------------------
# Plain Python on the raw JSON: it shares no code with the readers, the comparison or the scorer.

TERMINAL = "transfer_to_human_agents"
WRITES = (
    *("book_", "cancel_", "update_", "send_certificate", "modify_", "exchange_", "return_"),
    *("suspend_", "resume_", "enable_", "disable_", "refuel_", "send_payment_request"),
)
# Invented: by the example trace, and by the random ones below.
UNKNOWN = {"get_booking", "get_payment_methods", "lookup_policy", "fly"}

NaiveCall = tuple[str, Any, bool]  # name, arguments as recorded, failed
NaiveGold = list[tuple[str, dict[str, Any]]]


class Naive(NamedTuple):
    """An episode, as bare as can be."""

    outcome: float
    gold: NaiveGold
    turns: list[list[NaiveCall]]


class Figures(NamedTuple):
    """What there is to compare of a tier."""

    turns: int
    episodes: int
    r_pooled: float | None


def naive_turns(messages: list[dict[str, Any]]) -> list[list[NaiveCall]]:
    """Turns of the assistant; each call takes the first result after it that is still free."""
    results = [
        (i, m.get("tool_call_id") or m.get("id"), m)
        for i, m in enumerate(messages)
        if m["role"] == "tool" and m.get("requestor") != "user"
    ]
    turns = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            turn = []
            for entry in message.get("tool_calls") or []:
                function = entry.get("function") or entry
                found = next(r for r in results if r[0] > i and r[1] == entry["id"])
                results.remove(found)
                failed = found[2]["content"].startswith("Error") or bool(found[2].get("error"))
                turn.append((function["name"], function["arguments"], failed))
            turns.append(turn)
    return turns


def naive_tau_bench(path: Path) -> Iterator[Naive]:
    for item in json.loads(path.read_bytes()):
        actions = item["info"]["task"]["actions"]
        expected = [(action["name"], action["kwargs"]) for action in actions]
        yield Naive(item["reward"], expected, naive_turns(item["traj"]))


def naive_tau2(path: Path) -> Iterator[Naive]:
    document = json.loads(gzip.decompress(path.read_bytes()))
    expected = {
        task["id"]: [
            (action["name"], action["arguments"])
            for action in task["evaluation_criteria"]["actions"] or []
            if action["requestor"] == "assistant"
        ]
        for task in document["tasks"]
    }
    for item in document["simulations"]:
        reward = item["reward_info"]["reward"]
        yield Naive(reward, expected[item["task_id"]], naive_turns(item["messages"]))


def naive_rollouts(path: Path) -> Iterator[Naive]:
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        if item["status"] != "error":
            expected = [(one["name"], one["arguments"]) for one in item["gold_actions"]]
            yield Naive(item["outcome"], expected, naive_turns(item["messages"]))


def is_number(text: str) -> bool:
    whole, point, part = text.removeprefix("-").partition(".")
    zeros = len(whole) > 1 and whole[0] == "0"
    return text.isascii() and whole.isdigit() and not zeros and (part.isdigit() or not point)


def normal(value: Any) -> Any:
    """A nested tuple that is the same for values that mean the same; None for an empty one."""
    if isinstance(value, bool):
        return ("boolean", value)
    if isinstance(value, int | float):
        return ("number", Fraction(str(value)))
    if isinstance(value, str):
        text = " ".join(value.split()).casefold()
        return ("number", Fraction(text)) if is_number(text) else ("text", text) if text else None
    if isinstance(value, list):
        return ("list", *sorted(map(normal, value), key=repr)) if value else None
    if isinstance(value, dict):
        pairs = {k: normal(v) for k, v in value.items()}
        for key in [key for key in value if f"new_{key}" in value]:
            one, two = value[key], value[f"new_{key}"]
            if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
                rows = [[a, b] for a, b in zip(one, two, strict=True)]
                del pairs[key], pairs[f"new_{key}"]
                pairs[f"{key} | new_{key}"] = tuple(
                    sorted(((normal(a), normal(b)) for a, b in rows), key=repr)
                )
        kept = sorted((k, v) for k, v in pairs.items() if v is not None)
        return ("object", *kept) if kept else None
    return None


def naive_arguments(recorded: Any) -> dict[str, Any] | None:
    """The arguments, or None where they can't be read."""
    if isinstance(recorded, dict):
        return recorded
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(recorded)
        except (ValueError, SyntaxError):
            continue
        return dict(value)
    return None


def naive_tier(one: NaiveCall, expected: NaiveGold) -> str:
    name, recorded, failed = one
    arguments = naive_arguments(recorded)
    if failed or arguments is None:
        return "error"
    same_name = [wanted for gold_name, wanted in expected if gold_name == name]
    if any(normal(wanted) == normal(arguments) for wanted in same_name):
        return "gold"
    for wanted in same_name:
        for key, value in wanted.items():
            if normal(value) is not None and normal(value) == normal(arguments.get(key)):
                return "soft"
    if name in UNKNOWN:
        return "unknown_tool"
    if name == TERMINAL:
        return "handoff"
    return "state_change" if name.startswith(WRITES) else "read_only"


RANK = ["gold", "soft", "state_change", "handoff", "read_only", "unknown_tool", "error", "message"]


def naive_figures(episodes: Iterable[Naive]) -> dict[str, Figures]:
    """Turns, episodes and r_pooled of each tier; r by whole numbers up to the last root."""
    turns: Counter[str] = Counter()
    having: Counter[str] = Counter()
    won: Counter[str] = Counter()
    n = successes = 0
    for one in episodes:
        found = [
            min((naive_tier(c, one.gold) for c in turn), key=RANK.index, default="message")
            for turn in one.turns
        ]
        turns.update(found)
        having.update(set(found))
        n += 1
        if one.outcome >= 1 - 1e-6:
            successes += 1
            won.update(set(found))
    figures = {}
    for tier in turns:
        spread = having[tier] * (n - having[tier]) * successes * (n - successes)
        above = n * won[tier] - having[tier] * successes
        figures[tier] = Figures(turns[tier], having[tier], above / spread**0.5 if spread else None)
    return figures


def our_figures(path: Path) -> dict[str, Figures]:
    episodes = list(open_trace(str(path)))
    names = {one.name for e in episodes for turn in e.turns for one in turn.calls}
    domain = find_domain(episodes[0].domain, names, None)
    result = scored(*episodes, tiers="flat", domain=domain)
    sums = lay_out(sum_turns(result.frame().lazy(), "presence", "turns").sums, "presence")
    r = pooled(sums.tasks).tolist()
    return {
        tier: Figures(int(sums.turns[c]), int(sums.episodes[c]), None if r[c] != r[c] else r[c])
        for c, tier in enumerate(sums.tiers)
    }


def assert_equal_figures(ours: dict[str, Figures], naive: dict[str, Figures]) -> None:
    assert {t: f[:2] for t, f in ours.items()} == {t: f[:2] for t, f in naive.items()}
    for tier, figures in naive.items():
        assert ours[tier].r_pooled == pytest.approx(figures.r_pooled, abs=1e-12), tier


@needs_shared
@pytest.mark.parametrize(
    ("path", "read"),
    [
        ("tau-bench/gpt-4o-airline.json", naive_tau_bench),
        ("tau2-traces/airline-grok-4.json.gz", naive_tau2),
        ("tau2-traces/retail-gpt-4.1.json.gz", naive_tau2),
        ("tau2-traces/telecom-grok-3.json.gz", naive_tau2),
    ],
)
def test_flat_equals_an_independent_implementation(
    path: str, read: Callable[[Path], Iterator[Naive]]
) -> None:
    file = SHARED / "data" / path
    naive = naive_figures(read(file))
    assert len(naive) >= 5
    assert_equal_figures(our_figures(file), naive)


def test_flat_equals_the_independent_implementation_on_the_example() -> None:
    naive = naive_figures(naive_rollouts(TRACE))
    assert set(naive) == set(RANK)
    assert_equal_figures(our_figures(TRACE), naive)


TOOLS = st.sampled_from(["cancel_reservation", "get_user_details", "calculate", TERMINAL, "fly"])
VALUES = st.sampled_from([1, "1", "1.0", 2, " A b", "a  B", "007", 7, True, None, "", [1, "2"]])
ARGUMENTS = st.dictionaries(st.sampled_from(["id", "n"]), VALUES, max_size=2)
RECORDED = st.builds(
    lambda arguments, as_recorded: as_recorded(arguments),
    ARGUMENTS,
    st.sampled_from([lambda a: a, json.dumps, repr, lambda a: json.dumps(a)[:-1]]),
)
RESULTS = st.sampled_from(["ok", "ok", "Error: no", ""])


@st.composite
def rollouts(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Episodes of an airline agent, with every oddity that `flat` can see."""
    expected = [
        [
            {"name": draw(TOOLS), "arguments": draw(ARGUMENTS)}
            for _ in range(draw(st.integers(0, 3)))
        ]
        for _ in range(2)
    ]
    episodes = []
    for i in range(draw(st.integers(2, 6))):
        messages: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
        for k in range(draw(st.integers(1, 4))):
            calls = [
                {"id": f"{k}-{j}", "function": {"name": draw(TOOLS), "arguments": draw(RECORDED)}}
                for j in range(draw(st.integers(0, 2)))
            ]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls or None})
            for one in calls:
                result = draw(RESULTS)
                messages.append({"role": "tool", "tool_call_id": one["id"], "content": result})
        episodes.append(
            {
                "task_id": i % 2,
                "status": draw(st.sampled_from(["ok", "ok", "truncated", "error"])),
                "domain": "airline",
                "outcome": draw(st.sampled_from([0, 1, 0.5, 1 - 1e-7])),
                "messages": messages,
                "gold_actions": expected[i % 2],
            }
        )
    return episodes


@settings(max_examples=40, deadline=None, derandomize=True)
@given(rollouts())
def test_flat_equals_the_independent_implementation_on_random_traces(
    tmp_path_factory: pytest.TempPathFactory, episodes: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("random") / "rollouts.jsonl"
    path.write_text("\n".join(map(json.dumps, episodes)), encoding="utf-8")
    naive = naive_figures(naive_rollouts(path))
    if naive:
        assert_equal_figures(our_figures(path), naive)


@needs_shared
def test_the_reference_counts() -> None:
    # docs/method.md, "Reference figures": gpt-4o-airline.json under `flat`.
    result = airline_scored("flat")
    assert (result.episodes, len(tiers_of(result)), result.calls) == (200, 2454, 1164)
    assert result.excluded.total() == 0
    assert max(result.columns["n_calls"]) == 1
    assert result.tiers() == {
        "message": 1290,
        "read_only": 547,
        "gold": 397,
        "error": 73,
        "soft": 55,
        "handoff": 48,
        "state_change": 44,
    }


@needs_shared
def test_raw_argument_strings_find_few_of_the_gold_calls() -> None:
    # docs/method.md, "Reference figures": comparing the raw strings finds 66 or 331 of the 397, by
    # the separators.
    def found(separators: tuple[str, str]) -> int:
        matches = 0
        for one in naive_tau_bench(AIRLINE):
            wanted = {(name, json.dumps(a, separators=separators)) for name, a in one.gold}
            calls = [c for turn in one.turns for c in turn]
            matches += sum((name, text) in wanted for name, text, failed in calls if not failed)
        return matches

    assert found((", ", ": ")) == 66
    assert found((",", ":")) == 331


def test_the_domain_of_the_naive_implementation_is_that_of_the_domain_files() -> None:
    for name in ("airline", "retail", "telecom"):
        domain = load_domain(name)
        for tool, kind in domain.kinds.items():
            tier = naive_tier((tool, {}, False), [])
            expected = {"write": "state_change", "terminal": "handoff"}.get(kind, "read_only")
            assert tier == expected, tool


def test_turns_beyond_a_chunk_are_the_same(
    run: Cli, example: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run("score", str(example), "-o", "whole.parquet", "--json")
    lines = run("score", str(example), "-o", "-", "-q")
    monkeypatch.setattr("stages.score.CHUNK", 50)
    assert run("score", str(example), "-o", "chunked.parquet", "--json") == whole
    assert pl.read_parquet("chunked.parquet").equals(pl.read_parquet("whole.parquet"))
    assert made_by("chunked.parquet") == made_by("whole.parquet")
    assert run("score", str(example), "-o", "-", "-q") == lines
