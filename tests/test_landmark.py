from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.calibration.estimate import CalibrateConfig
from stages.calibration.landmark import landmark
from tests.builders import Tiered, by_tier, calibrated, turn_frame
from tests.conftest import Cli


def test_only_episodes_that_get_that_far_and_only_their_first_turns_count() -> None:
    episodes = [
        Tiered("t", 1.0, "abb"),
        Tiered("t", 0.0, "bba"),
        Tiered("t", 0.0, "aa"),  # too short
        Tiered("u", 1.0, "bbbb"),
        Tiered("u", 0.0, "bbba"),
    ]
    found = landmark(turn_frame(episodes), "presence", "within", 3)
    # Within the first three turns a is in both episodes of t, and in none of u.
    assert (found.k, found.episodes) == (3, 4)
    assert found.r == {"a": None, "b": None}
    earlier = landmark(turn_frame(episodes), "presence", "within", 2)
    # Of t, (a, b, won) is (1, 1, 1), (0, 1, 0), (1, 0, 0); of u the a come later.
    assert earlier.episodes == 5
    xo, xx, oo = 1 - 2 / 3, 2 - 4 / 3, (1 - 1 / 3) + (1 - 1 / 2)
    assert earlier.r["a"] == pytest.approx(xo / np.sqrt(xx * oo))


def test_the_median_length_is_the_default() -> None:
    episodes = [Tiered("t", float(i % 2), "a" * n) for i, n in enumerate([1, 3, 4, 9])]
    assert landmark(turn_frame(episodes), "presence", "within", None).k == 3
    assert landmark(turn_frame(episodes), "presence", "within", 10).r == {}


ONE = st.tuples(st.integers(0, 2), st.booleans(), st.lists(st.sampled_from("ab"), min_size=1))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.lists(ONE, min_size=2, max_size=15), st.integers(1, 4))
def test_the_first_turns_alone_say_the_same(
    episodes: list[tuple[int, bool, list[str]]], k: int
) -> None:
    """The landmark r is the raw r of the episodes cut to their first k turns."""
    found = landmark(
        turn_frame(Tiered(f"{t}", float(o), x) for t, o, x in episodes), "presence", "within", k
    )
    cut = [Tiered(f"{t}", float(won), x[:k]) for t, won, x in episodes if len(x) >= k]
    assert found.episodes == len(cut)
    if not cut:
        return
    config = CalibrateConfig(correlation="within", resamples=100)
    for tier, expected in by_tier(calibrated(turn_frame(cut), config)).items():
        assert found.r[tier] == (
            None if expected.r_within is None else pytest.approx(expected.r_within, abs=1e-12)
        )


def test_the_table_and_json_say_it(run: Cli, turns: Path) -> None:
    document = run("calibrate", turns, "--landmark", "2", "--json").json()
    assert document["landmark"] == 2
    assert any(tier["r_landmark"] is not None for tier in document["tiers"])
    printed = run("calibrate", turns, "--landmark", "2").out.decode()
    assert "landmark" in printed and "r of the first 2" in " ".join(printed.split())


def test_sums_have_no_first_turns(run: Cli, turns: Path) -> None:
    refused = run("calibrate", turns, "--stream", "--landmark", "2")
    assert refused.code == 2
    assert refused.err == (
        "error: --stream: sums hold no turns to compute a landmark from; calibrate the turns "
        "themselves for --landmark\n"
    )
