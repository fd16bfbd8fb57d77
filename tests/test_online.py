from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from stages.calibrate import calibrate
from stages.calibration.estimate import CalibrateConfig, Calibration
from stages.calibration.online import Online, add, read_online, weighted, write_online
from stages.calibration.sums import UNITS, Summed, lay_out, merge, sum_turns
from stages.core.correlation import within
from stages.core.forgetting import GateConfig
from stages.errors import InputError
from stages.tables.artifacts import ONLINE
from tests.builders import FEW, Tiered, by_tier, line_of, turn_frame

HALF_LIFE = 200.0


def iteration(
    number: int,
    effect: float = 0.0,
    pass_rate: float = 0.5,
    presence: float = 0.5,
    tasks: int = 12,
    measure: str = "presence",
) -> Summed:
    """Sums of 8 episodes a task: "told" goes with success by `effect`, "noise" with nothing."""
    rng = np.random.default_rng(number)
    episodes = []
    for task in range(tasks):
        for _ in range(8):
            won = rng.random() < pass_rate
            told = rng.random() < presence + (effect / 2 if won else -effect / 2)
            tiers = ["always"] + ["told"] * told + ["noise"] * (rng.random() < presence)
            episodes.append(Tiered(f"{task}", float(won), tiers))
    return sum_turns(turn_frame(episodes).lazy(), measure, "turns")


def follow(
    additions: list[Summed], online: Online | None = None, config: CalibrateConfig = FEW
) -> list[tuple[Online, Calibration]]:
    online = online or Online(config.measure, HALF_LIFE)
    found = []
    for summed in additions:
        inputs = {"turns": f"sha256 of {len(online.additions) + 1}"}
        online, result = add(online, summed, inputs, config, GateConfig(), np.random.default_rng(0))
        found.append((online, result))
    return found


def assert_alike(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Equal but for rounding: the first adds up by task what the other adds up by cell."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value == (
            pytest.approx(other[name], abs=1e-9) if isinstance(value, float) else other[name]
        )


@pytest.mark.parametrize("measure", list(UNITS))
def test_the_first_addition_is_as_without_forgetting(measure: str) -> None:
    config = replace(FEW, measure=measure, resamples=10_000)
    summed = iteration(1, effect=0.8, tasks=24, measure=measure)
    [(online, result)] = follow([summed], config=config)
    plain = calibrate(
        lay_out(summed.sums, measure), summed.excluded, config, np.random.default_rng(0)
    )
    assert result._replace(tiers=[]) == plain._replace(tiers=[])
    # A gate in the place of q sets the value, and it asks for more.
    by_gate = {"value", "status", "more_episodes", "more_low", "more_high"}
    for one, other in zip(result.tiers, plain.tiers, strict=True):
        named = one._asdict().keys() - (by_gate if one.tier == "noise" else {})
        assert_alike({k: one._asdict()[k] for k in named}, {k: other._asdict()[k] for k in named})
    assert by_tier(result)["told"].status == "discriminative"
    assert online.effective_episodes == 192


def test_values_follow_a_flip_and_noise_gets_none() -> None:
    """Issue 5, measured 4, with the real sums: 16 iterations of 192, half-life 400."""
    effects = [0.7] * 12 + [-0.7] * 4
    additions = [iteration(i, effect, tasks=24) for i, effect in enumerate(effects)]
    found = follow(additions, Online("presence", 2 * HALF_LIFE))
    values = [online.additions[-1].values for online, _ in found]
    assert [value["told"] for value in values[:12]] == [1.0] * 12
    assert values[-1]["told"] == -1.0, "two half-lives after the flip"
    assert {value["noise"] for value in values} == {0.0}
    events = [(event.tier, event.event) for event in found[-1][0].events]
    assert events[0] == ("told", "opened")
    assert events[1:] in ([("told", "closed"), ("told", "opened")], [("told", "turned")])
    assert found[-1][0].signs == {"told": -1}


def test_a_restart_continues_exactly(tmp_path: Path) -> None:
    additions = [iteration(i, effect=0.4) for i in range(4)]
    whole = follow(additions)
    path = str(tmp_path / "state")
    write_online(follow(additions[:2])[-1][0], path, {})
    for (online, result), (expected, its_result) in zip(
        follow(additions[2:], read_online(path)), whole[2:], strict=True
    ):
        assert result == its_result
        assert online.sums.equals(expected.sums)
        assert replace(online, sums=expected.sums) == expected
        write_online(online, path, {})
    one = Path(path).read_bytes()
    write_online(whole[-1][0], path, {})
    assert Path(path).read_bytes() == one


def test_a_policy_that_drifts_shows_no_correlation_of_its_own() -> None:
    """It gets better and uses a tier more often: within an iteration the two are unrelated."""
    additions = [iteration(i, pass_rate=0.1 + 0.1 * i, presence=0.1 + 0.1 * i) for i in range(8)]
    merged = lay_out(merge([one.sums for one in additions]), "presence")
    naive = dict(zip(merged.tiers, within(merged.tasks), strict=True))
    assert naive["told"] > 0.15
    online, result = follow(additions, Online("presence", 1e9))[-1]
    assert abs(by_tier(result)["told"].r_within or 1) < 0.1
    assert online.signs == {}


def test_what_is_forgotten_weighs_less_and_at_last_nothing() -> None:
    old = iteration(1, tasks=2)
    other = old._replace(
        sums=iteration(2).sums.with_columns(pl.format("new {}", pl.col("task_id")).alias("task_id"))
    )
    found = follow([old] + [other] * 30)
    after = found[1][0].sums.filter(pl.col("tier").is_null())
    assert after.filter(task_id="0")["episodes"].item() == 8 * 2 ** (-96 / HALF_LIFE)
    assert after.filter(task_id="0")["squares"].item() == pytest.approx(
        8 * 4 ** (-96 / HALF_LIFE), rel=1e-12
    )
    # 8 x 2^(-96 i / 200) < 0.001 from the 28th addition on.
    kept = ["0" in online.sums["task_id"] for online, _ in found]
    assert kept == [True] * 28 + [False] * 3


def test_all_alike_is_a_beginning_too() -> None:
    online, result = follow([iteration(1, pass_rate=0.0)])[0]
    assert (result.pass_rate, online.signs) == (0.0, {})
    assert {tier.status for tier in result.tiers} == {"constant"}
    assert by_tier(follow([iteration(2, effect=0.7)], online)[0][1])["told"].value == 1


def test_the_same_turns_are_added_once() -> None:
    [(online, _)] = follow([iteration(1)])
    with pytest.raises(InputError) as caught:
        add(
            online,
            iteration(2),
            {"a.parquet": "new", "b.parquet": "sha256 of 1"},
            FEW,
            GateConfig(),
            np.random.default_rng(0),
        )
    assert line_of(caught) == (
        "b.parquet: was added before, in iteration 1; add each iteration's turns once"
    )


def test_rows_obey_their_declaration() -> None:
    frame = weighted(iteration(1).sums, "presence")
    assert ONLINE.conform(frame, "state").equals(frame)
    assert frame.filter(pl.col("tier").is_not_null())["oo_deviation"].unique().to_list() == [0.0]
