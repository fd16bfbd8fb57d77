"""The placebo of the study: a tier that stands on turns by chance, and is all that pays."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from examples.study import placebo
from irc_cli.loop import Runner
from stages.calibration.file import read_previous
from stages.loop import Places
from tests.conftest import Cli


@pytest.fixture
def at(run: Cli) -> Places:
    """An iteration whose turns are scored."""
    places = Places(Path("out"), 0)
    places.folder.mkdir(parents=True)
    play = ("rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.3", "--fresh")
    tasks = ("--sample-tasks", "12", "--group-size", "8", "--out", places("rollouts.jsonl"))
    assert run(*play, *tasks).code == 0
    assert run("score", places("rollouts.jsonl"), "--out", places("turns.parquet")).code == 0
    return places


def test_the_tier_stands_on_turns_by_chance(at: Places) -> None:
    placebo.relabel(at, seed=3)
    turns, relabelled = (pl.read_parquet(at(f"{name}.parquet")) for name in ("turns", "placebo"))
    chosen = relabelled["tier"] == placebo.TIER
    assert abs(chosen.mean() - placebo.SHARE) < 0.1  # type: ignore[operator]
    assert relabelled.filter(~chosen).equals(turns.filter(~chosen))
    placebo.relabel(at, seed=3)
    assert pl.read_parquet(at("placebo.parquet")).equals(relabelled)
    placebo.relabel(at, seed=4)
    assert not pl.read_parquet(at("placebo.parquet")).equals(relabelled)


def test_nothing_but_the_tier_has_a_value(at: Places) -> None:
    placebo.relabel(at, seed=3)
    Runner(lambda doing: None)(placebo.value_step(at), at.folder)
    values = dict(read_previous(at("value/calibration.yaml")).values)
    assert abs(values.pop(placebo.TIER)) == 1  # the largest value, whatever it tells
    assert set(values.values()) == {0.0}


def test_options_of_stages_are_read_as_the_loop_reads_them() -> None:
    given = ["train.lr=0.0003", 'train.advantage="hybrid"', "rollout.max-turns=20"]
    assert placebo.stage_options(given) == {
        "train": {"lr": 0.0003, "advantage": "hybrid"},
        "rollout": {"max-turns": 20},
    }
