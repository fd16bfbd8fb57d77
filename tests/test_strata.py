from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.strata import random_effects

# dat.bcg of the R package metafor: log risk ratios of 13 trials of a vaccine, and their variances.
BCG = np.array(
    [
        (-0.8893, 0.3256),
        (-1.5854, 0.1946),
        (-1.3481, 0.4154),
        (-1.4416, 0.0200),
        (-0.2175, 0.0512),
        (-0.7861, 0.0069),
        (-1.6209, 0.2230),
        (0.0120, 0.0040),
        (-0.4694, 0.0564),
        (-1.3713, 0.0730),
        (-0.3394, 0.0124),
        (0.4459, 0.5325),
        (-0.0173, 0.0714),
    ]
)


def test_the_vaccine_trials_of_metafor() -> None:
    # Viechtbauer (2010), J. Stat. Softw. 36(3): the profile of Q gives tau2 within [0.12, 1.11] and
    # I2 within [81.9 %, 97.7 %]; the mean by REML is -0.71.
    found = random_effects(*BCG.T)
    assert found.i2_low == pytest.approx(0.819, abs=0.002)
    assert found.i2_high == pytest.approx(0.977, abs=0.001)
    assert found.mean == pytest.approx(-0.715, abs=0.003)
    assert found.tau2 == pytest.approx(0.318, abs=0.003)
    assert found.low < found.mean < found.high < 0


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(-3, 3))
def test_a_shift_moves_the_mean_alone(values: list[float], shift: float) -> None:
    y, v = np.array(values), np.linspace(0.01, 0.1, len(values))
    one, other = random_effects(y, v), random_effects(y + shift, v)
    assert other.mean == pytest.approx(one.mean + shift, abs=1e-6)
    assert other[3:] == pytest.approx(one[3:], abs=1e-6)


def test_strata_that_agree_have_the_fixed_mean() -> None:
    found = random_effects(np.full(5, 0.3), np.array([0.01, 0.02, 0.03, 0.04, 0.05]))
    assert found.mean == pytest.approx(0.3)
    assert (found.tau2, found.i2, found.i2_low) == (0, 0, 0)


def test_one_stratum_says_nothing_of_others() -> None:
    assert np.isnan(random_effects(np.array([0.3, np.nan]), np.array([0.1, np.nan]))).all()


def test_the_mean_is_covered() -> None:
    rng = np.random.default_rng(0)
    v = rng.uniform(0.005, 0.05, (800, 6))
    y = 0.2 + 0.2 * rng.standard_normal(v.shape) + np.sqrt(v) * rng.standard_normal(v.shape)
    found = [random_effects(*pair) for pair in zip(y, v, strict=True)]
    assert 0.93 <= np.mean([one.low <= 0.2 <= one.high for one in found]) <= 0.97
