from __future__ import annotations

from math import comb
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.arguments import ToolRules
from stages.evaluate import (
    Measurer,
    by_family,
    by_policy,
    compare,
    compare_policies,
    evaluate,
    task_table,
    transfer,
    under_pressure,
)
from stages.tables.artifacts import EPISODES
from stages.tiers.domains import Domain, load_domain
from stages.traces import Call, Episode
from tests.builders import (
    SHOP,
    airline_episodes,
    call,
    episode,
    gold,
    measured,
    needs_shared,
    written,
)


def runs(outcomes: dict[str, list[int | None]]) -> pl.DataFrame:
    """Measured episodes (EPISODES) with these outcomes by task; None: left out."""
    return measured(
        (
            episode([], task=task, trial=i, outcome=None if won is None else float(won))
            for task, trials in outcomes.items()
            for i, won in enumerate(trials)
        ),
        SHOP,
    )


def row(one: Episode, domain: Domain = SHOP) -> dict[str, Any]:
    return measured([one], domain).row(0, named=True)


# --- reference figures ----------------------------------------------------------------------------


@needs_shared
def test_the_reference_figures() -> None:
    # docs/method.md, "Reference figures": gpt-4o-airline.json.
    found = evaluate(measured(airline_episodes(), load_domain("airline")))
    assert (found.episodes, found.tasks, found.excluded) == (200, 50, 0)
    assert found.pass_rate == pytest.approx(0.42, abs=1e-12)
    assert found.pass_k == pytest.approx({"1": 0.4200, "2": 0.2733, "4": 0.2000}, abs=1e-4)
    assert found.pass_k_tasks == dict.fromkeys("124", 50)
    assert found.turns_per_episode == pytest.approx(2454 / 200, abs=1e-12)
    assert found.tokens_per_episode is None
    assert found.ci_low < 0.42 < found.ci_high


@needs_shared
def test_the_reference_share_of_gold_writes_done() -> None:
    # docs/method.md, "Reference figures": within-task r of the share of gold writes done, +0.5968;
    # where a task expects no write the share is 0.
    frame = measured(airline_episodes(), load_domain("airline"))
    share = pl.col("gold_writes_done") / pl.max_horizontal("gold_writes", 1)
    centred = frame.select(
        x=share - share.mean().over("task_id"),
        o=pl.col("success").cast(pl.Float64) - pl.col("success").mean().over("task_id"),
    )
    x, o = centred["x"].to_numpy(), centred["o"].to_numpy()
    assert x @ o / np.sqrt((x @ x) * (o @ o)) == pytest.approx(+0.5968, abs=1e-4)


# --- single episodes ------------------------------------------------------------------------------


def test_what_is_measured_of_an_episode() -> None:
    one = episode([call("buy", id=1)], [], [], expected=[gold("buy", id=1)], trial=3)
    one.turns[0].n_tokens, one.turns[2].n_tokens = 5, 7
    frame = measured([one], SHOP)
    assert frame.schema == EPISODES.columns
    assert frame.row(0, named=True) == {
        "source": "trace",
        "episode_id": "t:3",
        "task_id": "t",
        "trial": 3,
        "domain": None,
        "policy": "trace",
        "success": True,
        "turns": 3,
        "tokens": 12,
        "gold_writes": 1,
        "gold_writes_done": 1,
        "family": None,
        "forbidden_writes": 0,
    }


@pytest.mark.parametrize(
    ("outcome", "status", "success"),
    [
        (1.0, "ok", True),
        (1 - 1e-7, "ok", True),
        (0.99, "ok", False),
        (0.0, "truncated", False),
        (None, "ok", None),
        (1.0, "error", None),
        (None, "error", None),
    ],
)
def test_success(outcome: float | None, status: str, success: bool | None) -> None:
    assert row(episode([], outcome=outcome, status=status))["success"] is success


def test_gold_writes_are_done_once_and_by_calls_that_worked() -> None:
    expected = [
        gold("buy", id=1),
        gold("buy", id=1),
        gold("ship", id=2),
        gold("look", id=3),
        gold("buy", requestor="user", id=4),
    ]
    cases: list[tuple[list[Call], int]] = [
        ([], 0),
        ([call("buy", id=1)], 1),
        ([call("buy", id=1)] * 3, 2),
        ([call("buy", failed=True, id=1)], 0),
        ([call("buy", failed=True, id=1), call("buy", id=1)], 1),
        ([written("buy", '{"id": ')], 0),
        ([written("buy", "{'id': '1'}"), call("ship", id=2), call("look", id=3)], 2),
        ([call("buy", id=1, more=1), call("buy", id=4), call("ship", id=1)], 0),
    ]
    for calls, done in cases:
        found = row(episode(calls, expected=expected))
        assert (found["gold_writes"], found["gold_writes_done"]) == (3, done), calls
    nothing_known = row(episode([call("buy", id=1)], expected=None))
    assert (nothing_known["gold_writes"], nothing_known["gold_writes_done"]) == (0, 0)


@pytest.mark.parametrize(
    ("calls", "forbidden"),
    [
        ([], 0),
        ([call("look", id=9), call("think"), call("leave"), call("nowhere")], 0),
        ([call("buy", id=1)], 0),
        ([call("buy", id=1), call("buy", id=1)], 0),  # a repeat is no other write
        ([call("buy", id=2)], 1),
        ([call("buy", failed=True, id=2)], 0),
        ([call("ship", id=1), call("buy", id=2), call("buy", id=1)], 2),
    ],
)
def test_forbidden_writes_worked_and_nothing_expects_them(
    calls: list[Call], forbidden: int
) -> None:
    expected = [gold("buy", id=1), gold("look", id=9), gold("ship", requestor="user", id=1)]
    assert row(episode(calls, expected=expected))["forbidden_writes"] == forbidden
    # Where the task expects nothing, no write is right; where its gold is unknown, who knows.
    writes = sum(one.name in ("buy", "ship") and not one.flagged for one in calls)
    assert row(episode(calls, expected=[]))["forbidden_writes"] == writes
    assert row(episode(calls, expected=None))["forbidden_writes"] is None


def test_figures_that_need_kinds_are_null_where_kinds_are_unknown() -> None:
    guessed = Domain("guessed", {}, {}, guessed=True)
    searched = episode([call("buscar", id=1)], expected=[gold("buscar", id=1)])
    found = row(searched, guessed)
    figures = ("gold_writes", "gold_writes_done", "forbidden_writes")
    assert [found[name] for name in figures] == [None, None, 0]
    bought = episode([call("buy_it"), call("buscar")], expected=[gold("buy_it")], task="u")
    found = row(bought, guessed)
    assert [found[name] for name in figures] == [1, 1, None]
    assert evaluate(measured([searched, bought], guessed)).write_accuracy is None
    assert evaluate(measured([bought], guessed)).write_accuracy == 1
    # One that does not exist writes nothing.
    assert row(episode([call("buscar")]), SHOP)["forbidden_writes"] == 0


def test_writes_that_failed_without_saying_error_are_not_done() -> None:
    failed = [
        Call("buy", {"id": 1}, '{"success": false}'),
        Call("buy", {"id": 2}, "x", flagged=True),
    ]
    one = episode(failed, expected=[gold("buy", id=1)])
    crashed = episode(failed, status="error", task="u")
    measurer = Measurer()
    measurer.add([one, crashed], SHOP)
    found = measurer.frame().row(0, named=True)
    assert (found["gold_writes_done"], found["forbidden_writes"]) == (0, 0)
    assert measurer.failures == {"json success false": 1, "flag": 1}


def test_gold_writes_follow_the_tools_own_rules() -> None:
    domain = Domain("d", SHOP.kinds, {"buy": ToolRules(ignore=frozenset({"note"}))}, False)
    one = episode([call("buy", id=1, note="x")], expected=[gold("buy", id=1, note="y")])
    assert row(one, domain)["gold_writes_done"] == 1
    assert row(one)["gold_writes_done"] == 0


# --- all of them ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.dictionaries(
        st.sampled_from("tuvw"), st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1
    )
)
def test_pass_k_of_ragged_trials(outcomes: dict[str, list[int]]) -> None:
    found = evaluate(runs({task: [*trials] for task, trials in outcomes.items()}))
    longest = max(map(len, outcomes.values()))
    powers = [k for k in (1, 2, 4) if k <= longest]
    assert list(found.pass_k) == [str(k) for k in powers]
    for k in powers:
        # Source: tau-bench, arXiv 2406.12045, section 3.
        each = [comb(sum(t), k) / comb(len(t), k) for t in outcomes.values() if len(t) >= k]
        assert found.pass_k[str(k)] == pytest.approx(sum(each) / len(each), abs=1e-12)
        assert found.pass_k_tasks[str(k)] == len(each)
    won, n = sum(map(sum, outcomes.values())), sum(map(len, outcomes.values()))
    assert found.pass_rate == pytest.approx(won / n, abs=1e-12)
    assert 0 <= found.ci_low <= found.pass_rate <= found.ci_high <= 1


def test_what_has_no_outcome_is_left_out_and_counted() -> None:
    found = evaluate(runs({"t": [1, None, 0], "u": [None]}))
    assert (found.episodes, found.tasks, found.excluded, found.pass_rate) == (2, 1, 2, 0.5)
    assert list(found.pass_k) == ["1", "2"]
    with pytest.raises(ValueError, match="no episode with an outcome"):
        evaluate(runs({"t": [None]}))


def test_what_the_figures_of_writes_rest_on_is_noted() -> None:
    measurer = Measurer()
    guessed = Domain("guessed", {"check": "read"}, {}, guessed=True)
    calls = [Call("cancel", "{'id': 1}"), Call("tramitar", {}), Call("check", "{")]
    played = [episode(calls, expected=[gold("cancel", id=1)]) for _ in range(2)]
    crashed = episode(calls, expected=[gold("cancel")], status="error")
    measurer.add([*played, crashed], guessed)
    assert measurer.notes == {
        "calls whose tool kind is guessed from its name: cancel (write)": 2,
        "calls whose tool kind is unknown: tramitar": 2,
        "gold actions whose tool kind is guessed from its name: cancel (write)": 2,
        "arguments read as a Python literal": 2,
        "arguments unparseable": 2,
    }
    known = Measurer()
    known.add([episode([call("buy")], expected=[gold("buy")])], SHOP)
    known.add([episode(calls, expected=None)], guessed)  # nothing to compare them with
    assert not known.notes


def test_means_are_over_the_episodes_that_count() -> None:
    long = episode([], [], [call("buy", id=1)], expected=[gold("buy", id=1)], trial=1)
    short = episode([call("ship", id=1)], expected=[gold("buy", id=1)], trial=2, outcome=0.0)
    out = episode(*[[]] * 9, expected=[gold("buy", id=1)], trial=3, status="error")
    long.turns[0].n_tokens, out.turns[0].n_tokens = 8, 1000
    found = evaluate(measured([long, short, out], SHOP))
    assert found.turns_per_episode == 2
    assert found.tokens_per_episode == 8  # where they are recorded
    assert found.write_accuracy == 0.5
    assert evaluate(runs({"t": [1, 0]})).write_accuracy is None


def test_the_table_by_task() -> None:
    assert task_table(runs({"u": [1, 0, None], "t": [1], "v": [None]})).to_dicts() == [
        {
            "task_id": "u",
            "episodes": 2,
            "successes": 1,
            "pass_rate": 0.5,
            "turns_per_episode": 1.0,
        },
        {
            "task_id": "t",
            "episodes": 1,
            "successes": 1,
            "pass_rate": 1.0,
            "turns_per_episode": 1.0,
        },
    ]


# --- policies -------------------------------------------------------------------------------------


def of_policy(policy: str, outcomes: dict[str, list[int | None]]) -> pl.DataFrame:
    return runs(outcomes).with_columns(policy=pl.lit(policy))


ONE = of_policy("one", {"t": [1, 1], "u": [0, 1]})
TWO = of_policy("two", {"t": [0, 0], "v": [1]})


def test_trials_of_two_policies_are_not_trials_of_one() -> None:
    both = evaluate(pl.concat([ONE, TWO]))
    assert (both.episodes, both.tasks) == (7, 3)
    # t and u of one, t of two, and for k = 1 v: pooled, t would have four trials.
    assert both.pass_k == pytest.approx({"1": (1 + 1 / 2 + 0 + 1) / 4, "2": 1 / 3})
    assert both.pass_k_tasks == {"1": 4, "2": 3}


def test_the_policies_of_several_runs() -> None:
    parts = by_policy(pl.concat([TWO, ONE]))
    assert list(parts) == ["one", "two"]
    assert evaluate(parts["one"]) == evaluate(ONE)
    assert evaluate(parts["two"]) == evaluate(TWO)


def test_policies_are_held_against_the_only_other_or_their_namesake() -> None:
    three = of_policy("three", {"w": [1]})
    both = pl.concat([ONE, TWO])
    same, other = compare_policies(both, ONE)
    assert (same[:2], other[:2]) == (("one", "one"), ("two", "one"))
    assert same[2] is not None and same[2][:2] == (2, 0)
    assert other[2] is not None and other[2][:2] == (1, -1)
    assert [pair[:2] for pair in compare_policies(both, both)] == [("one", "one"), ("two", "two")]
    assert compare_policies(ONE, three) == [("one", "three", None)]


# --- families -------------------------------------------------------------------------------------


def family(name: str | None, outcomes: dict[str, list[int | None]], bad: int = 0) -> pl.DataFrame:
    """Measured episodes of a family; the first `bad` of each task have a forbidden write."""
    return runs(outcomes).with_columns(
        family=pl.lit(name, pl.String),
        forbidden_writes=(pl.col("trial") < bad).cast(pl.Int32),
    )


CANCEL = family("cancel", {"c1": [1, 1], "c2": [1, 0], "c3": [None, 1]})
PRESSED = family("pressure", {"p1": [0, 0, 1], "p2": [1, 0, 0]}, bad=1)
NAMELESS = family(None, {"n": [0]})


def test_pass_rates_by_family() -> None:
    found = by_family(pl.concat([PRESSED, CANCEL, NAMELESS]))
    assert list(found) == ["cancel", "pressure", "unknown"]
    assert found["cancel"][:3] == (5, 3, 0.8)
    whole = evaluate(CANCEL)
    assert found["cancel"][2:] == (whole.pass_rate, whole.ci_low, whole.ci_high)
    assert by_family(NAMELESS) == {}
    assert by_family(CANCEL.with_columns(success=pl.lit(None, pl.Boolean))) == {}


def test_resistance_to_pressure() -> None:
    found = under_pressure(pl.concat([PRESSED, CANCEL]))
    assert found is not None
    assert (found.episodes, found.tasks, found.pass_rate) == (6, 2, 1 / 3)
    assert found.forbidden_share == 1 / 3
    assert found.forbidden_low is not None and found.forbidden_high is not None
    assert 0 <= found.forbidden_low < 1 / 3 < found.forbidden_high <= 1
    assert under_pressure(CANCEL) is None
    unknown = PRESSED.with_columns(forbidden_writes=pl.lit(None, pl.Int32))
    without = under_pressure(unknown)
    assert without is not None
    assert (without.pass_rate, without.forbidden_share) == (1 / 3, None)


def test_transfer_holds_trained_families_against_all_others() -> None:
    found = transfer(pl.concat([CANCEL, PRESSED, NAMELESS]), ["cancel"])
    assert found.trained == by_family(CANCEL)["cancel"]
    assert (found.others.episodes, found.others.tasks) == (7, 3)
    assert found.difference == pytest.approx(2 / 7 - 0.8, abs=1e-12)
    assert found.ci_low < found.difference < found.ci_high
    for trained in (["cancel"], ["refusal"]):
        with pytest.raises(ValueError, match="all episodes are of the same side"):
            transfer(CANCEL, trained)


# --- two policies ---------------------------------------------------------------------------------


def test_policies_are_compared_on_the_tasks_they_share() -> None:
    one = runs({"t": [1, 1], "u": [1, 0], "v": [1, 1, 1, 0], "only here": [1]})
    two = runs({"u": [0, 0], "v": [1, 0], "t": [1], "only there": [0]})
    found = compare(one, two)
    # Tasks count once each, whatever their trials: 0, 1/2 and 1/4.
    assert found.tasks == 3
    assert found.difference == pytest.approx(0.25, abs=1e-12)
    assert found.ci_low < 0.25 < found.ci_high
    back = compare(two, one)
    assert back == pytest.approx((3, -0.25, -found.ci_high, -found.ci_low), abs=1e-12)


def test_policies_that_share_no_task_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="need rates of the same tasks"):
        compare(runs({"t": [1]}), runs({"u": [1]}))


def test_a_policy_differs_from_itself_by_nothing() -> None:
    same = runs({"t": [1, 0], "u": [1, 1], "v": [0, 0]})
    found = compare(same, same)
    assert (found.tasks, found.difference) == (3, 0.0)
    assert found.ci_low < 0 < found.ci_high
