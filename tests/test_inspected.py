"""Advantages that are read from a file: they are of these turns, or they are refused."""

from __future__ import annotations

from pathlib import Path

import orjson
import polars as pl
import pytest

from stages.tables.artifacts import ADVANTAGES, SEQUENCES, TOKENS, TURNS
from stages.tables.table_file import read_table, write_table
from tests.builders import Tiered, turn_frame
from tests.conftest import Cli

EXPORT = ("export", "tokens", "r.jsonl", "--turns", "t.parquet", "-o", "o.parquet", "--force")
RERUN = "rerun irc-cli calibrate on these turns"


@pytest.fixture
def made(run: Cli) -> pl.DataFrame:
    """Rollouts with tokens, their turns, a calibration, and the advantages that it wrote."""
    names = ("e0", "e1")
    rows = [
        {"episode_id": name, "group_id": "g", "status": "ok", "messages": []}
        | {"sampling": {"temperature": 1.0}, "tokens_recorded": True}
        for name in names
    ]
    Path("r.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    ids = [
        {"episode_id": name, "turn": turn, "appended": turn > 0, "prompt_ids": [1]}
        | {"token_ids": [2 + turn], "logprobs": [-0.5]}
        for name in names
        for turn in (0, 1)
    ]
    frame = TOKENS.frame({name: [row[name] for row in ids] for name in TOKENS.columns})
    write_table(TOKENS, frame, "r.tokens.parquet", {}, force=True)
    tiered = [Tiered("g", 1.0, ["gold_write"] * 2), Tiered("g", 0.0, ["error"] * 2)]
    turns = turn_frame(tiered, {"gold_write": 1.0, "error": -0.1})
    write_table(TURNS, turns, "t.parquet", {}, force=True)
    calibrated = run("calibrate", "t.parquet", "-o", "c.yaml", "--quiet", "--gamma", "0.5")
    assert calibrated.code == 0, calibrated.err
    return read_table(ADVANTAGES, "advantages.parquet")


def refused(run: Cli, *more: str) -> str:
    ended = run(*EXPORT, "--advantages", "advantages.parquet", *more)
    assert ended.code == 2 and not Path("o.parquet").exists()
    return ended.err


def rewritten(frame: pl.DataFrame) -> None:
    """Write advantages as another program would, without what they were made from."""
    write_table(ADVANTAGES, frame, "advantages.parquet", {}, force=True)


def test_tokens_have_the_advantages_of_the_file(run: Cli, made: pl.DataFrame) -> None:
    rewritten(made.with_columns(advantage=pl.col("turn") + 0.25))
    assert run(*EXPORT, "--advantages", "advantages.parquet").code == 0
    rows = read_table(SEQUENCES, "o.parquet")["advantage"].to_list()
    assert rows == [[0, 0.25, 0, 1.25]] * 2
    recorded = orjson.loads(pl.read_parquet_metadata("o.parquet")["irc-cli"])
    assert recorded["settings"]["advantage"] is None
    paths = [file["path"] for file in recorded["inputs"]]
    assert paths == ["r.jsonl", "t.parquet", "advantages.parquet", "r.tokens.parquet"]


def test_what_was_inspected_is_what_the_same_options_make(run: Cli, made: pl.DataFrame) -> None:
    inspected = ("--advantages", "advantages.parquet", "--calibration", "c.yaml")
    assert run(*EXPORT, *inspected).code == 0
    first = read_table(SEQUENCES, "o.parquet")
    assert run(*EXPORT, "--calibration", "c.yaml", "--gamma", "0.5").code == 0
    assert read_table(SEQUENCES, "o.parquet").equals(first)


def test_preferences_read_them_too(run: Cli, made: pl.DataFrame) -> None:
    ended = run(
        *("export", "preferences", "r.jsonl", "--turns", "t.parquet"),
        *("--advantages", "t.parquet"),
    )
    assert ended.code == 2 and "t.parquet" in ended.err


def test_other_turns_are_told_by_their_bytes(run: Cli, made: pl.DataFrame) -> None:
    turns = read_table(TURNS, "t.parquet").with_columns(reward=pl.lit(0.5))
    write_table(TURNS, turns, "t.parquet", {}, force=True)
    line = f"error: advantages.parquet: was made from other turns than t.parquet; {RERUN}\n"
    assert refused(run) == line


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (pl.col("turn") == 0, "no advantage of turn 1 of episode 'e0' (2 lacking)"),
        (pl.col("episode_id") == "e0", "no advantage of turn 0 of episode 'e1' (2 lacking)"),
    ],
)
def test_a_turn_that_lacks_an_advantage(
    run: Cli, made: pl.DataFrame, change: pl.Expr, what: str
) -> None:
    rewritten(made.filter(change))
    assert refused(run) == f"error: advantages.parquet: {what}; {RERUN}\n"


def test_advantages_of_other_rollouts(run: Cli, made: pl.DataFrame) -> None:
    rewritten(made.with_columns(pl.col("episode_id") + "x"))
    line = f"error: advantages.parquet: has no turn of the episodes in t.parquet; {RERUN}\n"
    assert refused(run) == line


def test_turns_of_another_tier(run: Cli, made: pl.DataFrame) -> None:
    rewritten(made.with_columns(tier=pl.lit("read")))
    what = "turn 0 of episode 'e0' is of tier 'read', in t.parquet of 'gold_write'"
    assert refused(run) == f"error: advantages.parquet: {what}; {RERUN}\n"


def test_rewards_of_another_calibration(run: Cli, made: pl.DataFrame) -> None:
    rewritten(made.with_columns(reward=pl.lit(0.125)))
    assert refused(run, "--calibration", "c.yaml") == (
        "error: advantages.parquet: turn 0 of episode 'e0' has another reward than "
        "--calibration gives; give the calibration.yaml beside it, or leave that out\n"
    )


def test_an_estimator_beside_them(run: Cli, made: pl.DataFrame) -> None:
    assert refused(run, "--gamma", "0.5") == (
        "error: --advantages: was computed by an estimator, so --advantage, --gamma, --lambda, "
        "--gae-lambda, --normalise and --last-turn-reward have no effect; leave these out\n"
    )
