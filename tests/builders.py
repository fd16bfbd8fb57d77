"""Small episodes, tables of turns and the shared traces, for tests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pytest

from stages.calibrate import calibrate
from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics
from stages.calibration.sums import lay_out, sum_turns
from stages.errors import InputError
from stages.evaluate import Measurer
from stages.score import Scored, Scorer
from stages.tables.artifacts import TURNS
from stages.tiers.domains import Domain, load_domain
from stages.tiers.file import load_tiers
from stages.tiers.rules import Tiers
from stages.traces import Call, Episode, GoldAction, Turn, open_trace

SHARED = Path(__file__).resolve().parents[2] / "shared"
AIRLINE = SHARED / "data/tau-bench/gpt-4o-airline.json"
needs_shared = pytest.mark.skipif(not AIRLINE.exists(), reason="the shared traces are not here")

SHOP = Domain(
    "shop",
    {"look": "read", "buy": "write", "ship": "write", "leave": "terminal", "think": "generic"},
    {},
    guessed=False,
)


def call(name: str, failed: bool = False, **arguments: Any) -> Call:
    return Call(name, arguments, "Error: no" if failed else "done", failed or None)


def written(name: str, arguments: str) -> Call:
    """A call whose arguments were recorded as this text."""
    return Call(name, arguments, "done")


def gold(name: str, requestor: str = "assistant", **arguments: Any) -> GoldAction:
    return GoldAction(name, arguments, requestor=requestor)


def episode(
    *turns: Sequence[Call],
    expected: Sequence[GoldAction] | None = (),
    outcome: float | None = 1.0,
    task: str = "t",
    trial: int = 0,
    status: str = "ok",
) -> Episode:
    return Episode(
        source="trace",
        episode_id=f"{task}:{trial}",
        task_id=task,
        trial=trial,
        group_id=task,
        turns=[Turn(list(calls)) for calls in turns],
        gold=None if expected is None else tuple(expected),
        outcome=outcome,
        status=status,
        policy="trace",
    )


def measured(episodes: Iterable[Episode], domain: Domain = SHOP) -> pl.DataFrame:
    """Measured episodes (EPISODES)."""
    measurer = Measurer()
    measurer.add(episodes, domain)
    return measurer.frame()


def scored(*episodes: Episode, tiers: str | Tiers = "extended", domain: Domain = SHOP) -> Scored:
    scorer = Scorer(load_tiers(tiers) if isinstance(tiers, str) else tiers)
    scorer.add(episodes, domain)
    return scorer.scored


@cache
def airline_episodes() -> list[Episode]:
    return list(open_trace(str(AIRLINE)))


@cache
def airline_scored(tiers: str) -> Scored:
    return scored(*airline_episodes(), tiers=tiers, domain=load_domain("airline"))


class Tiered(NamedTuple):
    """An episode of which only the tiers of its turns matter."""

    task: str
    outcome: float | None
    tiers: Sequence[str]
    status: str = "ok"
    group: str | None = None  # of the task; None: it has one


def turn_frame(
    episodes: Iterable[Tiered], rewards: dict[str, float] | None = None, first: int = 0
) -> pl.DataFrame:
    """Turns (TURNS) of episodes named e0, e1, ... from `first` on."""
    rows: list[dict[str, Any]] = [
        {
            "source": "trace",
            "episode_id": f"e{i}",
            "task_id": one.task,
            "trial": i,
            "group_id": one.task if one.group is None else f"{one.group}/{one.task}",
            "domain": None,
            "policy": "trace",
            "turn": k,
            "tool_names": [],
            "n_calls": 0,
            "tier": tier,
            "match": None,
            "match_share": None,
            "reward": (rewards or {}).get(tier, 0.0),
            "outcome": one.outcome,
            "success": None if one.outcome is None else one.outcome == 1,
            "status": one.status,
            "n_tokens": None,
        }
        for i, one in enumerate(episodes, start=first)
        for k, tier in enumerate(one.tiers)
    ]
    return TURNS.frame({name: [row[name] for row in rows] for name in TURNS.columns})


def line_of(caught: pytest.ExceptionInfo[InputError]) -> str:
    """The line that a user reads."""
    assert "\n" not in str(caught.value)
    return str(caught.value)


FEW = CalibrateConfig(resamples=200)


def calibrated(turns: pl.DataFrame, config: CalibrateConfig = FEW, seed: int = 0) -> Calibration:
    summed = sum_turns(turns.lazy(), config.measure, "turns")
    sums = lay_out(summed.sums, config.measure)
    return calibrate(sums, summed.excluded, config, np.random.default_rng(seed))


def by_tier(result: Calibration) -> dict[str, TierStatistics]:
    return {tier.tier: tier for tier in result.tiers}
