"""Runs drawn from a model in which the true correlations are known in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stages.core.correlation import Floats, Ints, TaskSums


class Model(NamedTuple):
    """Outcomes and tier presence, both clustered by task.

    A task's pass rate p is Beta(pass_a, pass_b); tier c is present with probability
    base_t + effect_t * o + confounding * p, where base_t and effect_t are base and effect times
    1 - spread or 1 + spread, by the toss of a coin for each task.
    """

    episodes: Ints  # [T]
    base: Floats  # [C]
    effect: Floats  # [C]
    spread: float = 0.5
    confounding: float = 0.0
    pass_a: float = 1.0
    pass_b: float = 1.0

    def truth(self) -> tuple[Floats, Floats]:
        """r_within and r_pooled among infinitely many tasks; each of shape [C].

        With u = E p(1-p): within covariance E(effect) u, variance of o u, variance of x
        E q(1-q) for q = base + confounding p + effect p plus what o explains, which is the variance
        of a Bernoulli(q). The factor (n - 1) / n cancels.
        """
        a, b = self.pass_a, self.pass_b
        mean = a / (a + b)
        square = mean * (a + 1) / (a + b + 1)
        u, var_p = mean - square, square - mean**2
        slope = self.effect + self.confounding
        q = self.base + slope * mean
        spread_slope = self.spread * self.effect
        q_square = self.base**2 * (1 + self.spread**2) + 2 * self.base * slope * mean
        q_square += (slope**2 + spread_slope**2) * square
        r_within = self.effect * u / np.sqrt((q - q_square) * u)
        covariance = self.effect * u + slope * var_p
        r_pooled = covariance / np.sqrt(q * (1 - q) * mean * (1 - mean))
        return r_within, r_pooled

    def runs(self, count: int, rng: np.random.Generator) -> Iterator[TaskSums]:
        """Draw `count` runs."""
        size = (len(self.episodes), len(self.base))
        for _ in range(count):
            p = rng.beta(self.pass_a, self.pass_b, len(self.episodes))
            s = rng.binomial(self.episodes, p)
            base = self.base * (1 + self.spread * rng.choice([-1, 1], size))
            effect = self.effect * (1 + self.spread * rng.choice([-1, 1], size))
            base = base + self.confounding * p[:, None]
            xo = rng.binomial(s[:, None], base + effect).astype(np.float64)
            failed = (self.episodes - s)[:, None]
            x = xo + rng.binomial(failed, base)
            yield TaskSums(self.episodes, s, x, x, xo)


def alike(tasks: int, trials: int) -> Ints:
    """Trials of each task, all the same."""
    return np.full(tasks, trials)
