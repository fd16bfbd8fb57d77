from __future__ import annotations

import polars as pl
import pytest

from stages.calibration import blocks
from stages.calibration.sums import sum_turns
from stages.errors import InputError
from tests.builders import Tiered, line_of, turn_frame
from tests.conftest import Cli

TURNS = turn_frame([Tiered("t", 1.0, "ab"), Tiered("t", 0.0, "ba"), Tiered("u", None, "aaa")])


def changed(column: str, row: int, value: object) -> pl.DataFrame:
    values = TURNS[column].to_list()
    values[row] = value
    return TURNS.with_columns(pl.Series(column, values, TURNS[column].dtype))


RULES = [
    ("reward", float("nan"), "reward finite"),
    ("reward", float("inf"), "reward finite"),
    ("reward", None, "reward not null"),
    ("tier", None, "tier not null"),
    ("task_id", None, "task_id not null"),
]
OF_EPISODES = [
    ("outcome", float("nan"), "outcome within [0, 1]"),
    ("outcome", 7.0, "outcome within [0, 1]"),
    ("outcome", -0.1, "outcome within [0, 1]"),
    ("outcome", 1.0, "success as the outcome says"),
    ("outcome", None, "success as the outcome says"),
    ("success", True, "success as the outcome says"),
    ("status", "fine", "status is ok, truncated, error or masked"),
]
DIFFER = [
    ("task_id", "u", "'t' and 'u'"),
    ("group_id", "u", "'t' and 'u'"),
    ("policy", "other", "'trace' and 'other'"),
    ("domain", "airline", "None and 'airline'"),
    ("status", "truncated", "'ok' and 'truncated'"),
]


@pytest.mark.parametrize("block", [1, 3, 500_000])
@pytest.mark.parametrize(("column", "value", "rule"), RULES)
def test_a_row_that_breaks_a_rule_is_named(
    monkeypatch: pytest.MonkeyPatch, column: str, value: object, rule: str, block: int
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    with pytest.raises(InputError) as caught:
        sum_turns(changed(column, 3, value).lazy(), "presence", "turns")
    assert line_of(caught).startswith(f"turns:row 4: breaks rule '{rule}' (1 of ")


@pytest.mark.parametrize(("column", "value", "rule"), OF_EPISODES)
def test_an_episode_that_breaks_a_rule_is_refused(column: str, value: object, rule: str) -> None:
    wrong = pl.when(episode_id="e1").then(pl.lit(value)).otherwise(column).alias(column)
    with pytest.raises(InputError) as caught:
        sum_turns(TURNS.with_columns(wrong).lazy(), "presence", "turns")
    line = f"turns:row 3: breaks rule '{rule}' (2 of 7); rerun irc-cli score"
    assert line_of(caught) == line


@pytest.mark.parametrize("block", [1, 3, 500_000])
@pytest.mark.parametrize(("column", "value", "values"), DIFFER)
def test_turns_of_one_episode_agree(
    monkeypatch: pytest.MonkeyPatch, column: str, value: object, values: str, block: int
) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    with pytest.raises(InputError) as caught:
        sum_turns(changed(column, 3, value).lazy(), "presence", "turns")
    assert line_of(caught) == (
        f"turns:row 4: the turns of episode 'e1' differ in '{column}': {values}; "
        "give an episode one of them"
    )


@pytest.mark.parametrize("way", [(), ("--stream",), ("--partial", "-o", "sums")])
@pytest.mark.parametrize(("column", "value", "what"), [*RULES[:1], *DIFFER[:1]])
def test_each_way_to_calibrate_checks_turns(
    run: Cli, way: tuple[str, ...], column: str, value: object, what: str
) -> None:
    changed(column, 3, value).write_parquet("turns.parquet")
    result = run("calibrate", "turns.parquet", *way)
    assert (result.code, result.out) == (2, b"")
    assert result.err.startswith("error: turns.parquet:row 4: ") and result.err.count("\n") == 1


def test_what_is_only_checked_may_be_missing() -> None:
    without = TURNS.drop("reward", "outcome")
    assert sum_turns(without.lazy(), "count", "turns").sums.equals(
        sum_turns(TURNS.lazy(), "count", "turns").sums
    )
