"""The critic made of tiers: what its rewards sum to, what it learns, and from whom."""

from __future__ import annotations

from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core import critic
from stages.core.advantages import AdvantageConfig, advantages
from stages.core.critic import FOLDS, MOST_REPEATS, MOST_TURNS, Critic, Weights, fold_of
from stages.core.layout import Floats, Ints, Layout, turn_layout
from stages.core.leave_one_out import mean_of_others
from stages.core.potential import (
    CriticArrays,
    earlier_turns,
    fit_critic,
    forecasts,
    shaping_rewards,
)

quick = settings(max_examples=40, deadline=None, derandomize=True)
C = 3  # tiers


class Played(NamedTuple):
    group: int
    tiers: list[int]
    outcome: float


class Batch(NamedTuple):
    tier: Ints
    outcome: Floats
    layout: Layout
    fold: Ints  # of each episode: groups are tasks

    @property
    def lengths(self) -> Ints:
        return np.bincount(self.layout.episode)


def batch_of(played: list[Played]) -> Batch:
    tier = np.array([tier for episode in played for tier in episode.tiers], int)
    episode = np.repeat(np.arange(len(played)), [len(each.tiers) for each in played])
    turn = [k for each in played for k in range(len(each.tiers))]
    group = np.array([each.group for each in played])
    outcome = np.array([each.outcome for each in played])
    return Batch(tier, outcome, turn_layout(episode, np.array(turn), group), group % FOLDS)


@st.composite
def batches(draw: st.DrawFn) -> list[Played]:
    tiers = st.lists(st.integers(0, C - 1), min_size=1, max_size=7)
    n = draw(st.integers(1, 12))
    return [
        Played(
            draw(st.integers(0, min(n - 1, 4))),
            draw(tiers),
            draw(st.sampled_from([0.0, 1.0, 0.25])),
        )
        for _ in range(n)
    ]


numbers = st.floats(-2, 2)


@st.composite
def critics(draw: st.DrawFn) -> CriticArrays:
    def array(*shape: int) -> Floats:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(numbers, min_size=size, max_size=size))).reshape(shape)

    return CriticArrays(array(FOLDS + 1), array(FOLDS + 1, C), array(FOLDS + 1, C))


def rewards_of(batch: Batch, weights: CriticArrays) -> Floats:
    return shaping_rewards(batch.tier, batch.layout, weights, batch.fold, C)


@quick
@given(batches(), critics())
def test_rewards_sum_to_0_and_errors_to_the_outcome_less_its_baseline(
    played: list[Played], weights: CriticArrays
) -> None:
    batch = batch_of(played)
    reward = rewards_of(batch, weights)
    assert np.bincount(batch.layout.episode, reward) == pytest.approx(0, abs=1e-12)
    made = advantages(reward, batch.outcome, batch.layout, AdvantageConfig("potential"))
    seen = forecasts(reward, made.group_mean, batch.outcome, batch.layout)
    total = np.bincount(batch.layout.episode, seen.error)
    baseline = mean_of_others(batch.outcome, batch.layout.group)
    assert total == pytest.approx(batch.outcome - baseline, abs=1e-12)
    first = batch.layout.last + 1 - batch.lengths
    assert seen.before[first] == pytest.approx(baseline, abs=1e-12)
    inner = np.ones(batch.tier.size, bool)
    inner[batch.layout.last] = False
    after, before = seen.after[inner], seen.before[np.flatnonzero(inner) + 1]
    assert after == pytest.approx(before, abs=1e-12)  # the forecast after a turn is the next one's


@quick
@given(batches(), critics(), st.floats(0, 1))
def test_advantages_are_gae_of_the_errors(
    played: list[Played], weights: CriticArrays, gae_lambda: float
) -> None:
    batch = batch_of(played)
    reward, config = rewards_of(batch, weights), AdvantageConfig("potential", gae_lambda=gae_lambda)
    made = advantages(reward, batch.outcome, batch.layout, config)
    error = forecasts(reward, made.group_mean, batch.outcome, batch.layout).error
    for episode, last in enumerate(batch.layout.last):
        turns = range(last + 1 - batch.lengths[episode], last + 1)
        for k in turns:
            expected = sum(gae_lambda ** (m - k) * error[m] for m in turns if m >= k)
            assert made.advantage[k] == pytest.approx(expected, abs=1e-9)
    assert made.advantage == pytest.approx(made.return_part + made.outcome_part)


@quick
@given(batches(), critics(), st.data())
def test_no_turns_added_to_a_failure_raise_its_return(
    played: list[Played], weights: CriticArrays, data: st.DataObject
) -> None:
    i = data.draw(st.integers(0, len(played) - 1))
    played[i] = played[i]._replace(outcome=0.0)
    more = data.draw(st.lists(st.integers(0, C - 1), min_size=1, max_size=40))
    at = data.draw(st.integers(0, len(played[i].tiers)))
    padded = list(played)
    tiers = played[i].tiers
    padded[i] = played[i]._replace(tiers=[*tiers[:at], *more, *tiers[at:]])

    def earned(rollouts: list[Played]) -> float:
        batch = batch_of(rollouts)
        reward = rewards_of(batch, weights)
        return float(reward[batch.layout.episode == i].sum() + batch.outcome[i])

    assert earned(padded) <= earned(played) + 1e-9


@quick
@given(batches(), critics())
def test_one_episode_after_another_earns_the_same(
    played: list[Played], weights: CriticArrays
) -> None:
    batch = batch_of(played)
    reward = rewards_of(batch, weights)
    rows = [
        Weights(turn, *({str(c): x for c, x in enumerate(row)} for row in (first, again)))
        for turn, first, again in zip(*weights, strict=True)
    ]
    by_name = Critic(rows[-1], tuple(rows[:-1]))
    for i, episode in enumerate(played):
        names = [str(tier) for tier in episode.tiers]
        earned = critic.potential_rewards(names, by_name.folds[episode.group % FOLDS])
        assert earned == pytest.approx(reward[batch.layout.episode == i], abs=1e-12)


def test_repeats_and_turns_add_up_to_a_limit() -> None:
    weights = Weights(0.01, {"read": 0.3}, {"read": -0.1})
    earned = critic.potential_rewards(["read"] * 50, weights)
    assert earned[0] == pytest.approx(0.31)
    assert earned[1 : 1 + MOST_REPEATS] == pytest.approx([-0.09] * MOST_REPEATS)
    assert earned[1 + MOST_REPEATS : MOST_TURNS] == pytest.approx([0.01] * 26)
    assert earned[MOST_TURNS:-1] == [0.0] * 19
    assert earned[-1] == pytest.approx(-0.3)
    assert critic.potential_rewards([], weights) == []
    assert critic.potential_rewards(["read"], weights) == [0.0]


def test_folds_do_not_depend_on_the_run() -> None:
    assert [fold_of(f"airline/{i}") for i in range(8)] == [3, 4, 0, 0, 0, 2, 3, 1]
    of_many = np.bincount([fold_of(str(i)) for i in range(10_000)])
    assert len(of_many) == FOLDS and of_many.min() > 1_800


def test_earlier_turns_of_the_same_tier() -> None:
    tier, episode = np.array([1, 1, 0, 1, 1, 0, 1]), np.array([0, 0, 0, 0, 1, 1, 1])
    assert earlier_turns(tier, episode, 2).tolist() == [0, 1, 0, 2, 0, 0, 1]


# --- what it learns -------------------------------------------------------------------------------

# Two turns, each of tier 0 or 1 by the toss of a coin; then success has this probability.
CHAIN = {(0, 0): 0.8, (0, 1): 0.6, (1, 0): 0.6, (1, 1): 0.2}
START = 0.55
AFTER = {0: 0.7, 1: 0.4}  # the first turn
ORACLE = CriticArrays(
    np.zeros(FOLDS + 1),
    np.tile([AFTER[0] - START, AFTER[1] - START, 0.0], (FOLDS + 1, 1)),
    np.zeros((FOLDS + 1, C)),
)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_an_oracle_gives_the_exact_advantage_of_a_markov_chain(gae_lambda: float) -> None:
    """A(s, a) = Q(s, a) - V(s), by enumeration of all pairs of episodes of a group."""
    config = AdvantageConfig("potential", gae_lambda=gae_lambda)
    paths = [
        ((first, second), outcome, 0.25 * (p if outcome else 1 - p))
        for (first, second), p in CHAIN.items()
        for outcome in (0, 1)
    ]
    expected = dict.fromkeys([(0,), (1,), *CHAIN], 0.0)
    for (own, outcome, p), (others, outcome_of_other, q) in product(paths, repeat=2):
        played = [Played(0, [*own], outcome), Played(0, [*others], outcome_of_other)]
        batch = batch_of(played)
        reward = rewards_of(batch, ORACLE)
        advantage = advantages(reward, batch.outcome, batch.layout, config).advantage
        expected[own[:1]] += p * q / 0.5 * advantage[0]
        expected[own] += p * q / 0.25 * advantage[1]
    for first in (0, 1):
        assert expected[first,] == pytest.approx(AFTER[first] - START, abs=1e-12)
        for second in (0, 1):
            exact = CHAIN[first, second] - AFTER[first]
            assert expected[first, second] == pytest.approx(exact, abs=1e-12)


def chain_batch(tasks: int, size: int, rng: np.random.Generator) -> Batch:
    played = []
    for task in range(tasks):
        for _ in range(size):
            tiers = rng.integers(0, 2, 2).tolist()
            played.append(Played(task, tiers, float(rng.random() < CHAIN[tiers[0], tiers[1]])))
    return batch_of(played)


def test_the_fit_finds_the_oracle() -> None:
    batch = chain_batch(1000, 8, np.random.default_rng(0))
    made = fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C)
    # Before the second turn there was one: what tiers add and what a turn adds go together.
    added = made.first + made.turn[:, None]
    assert added[:, 0] == pytest.approx(AFTER[0] - START, abs=0.02)
    assert added[:, 1] == pytest.approx(AFTER[1] - START, abs=0.02)
    assert made.first[:, 2].tolist() == [0.0] * (FOLDS + 1)


def noise_batch(seed: int, lone: bool = False) -> Batch:
    """Tiers that tell nothing of outcomes."""
    rng = np.random.default_rng(seed)
    played = [
        Played(
            task if not lone else 4 * task + i,
            rng.integers(0, C, rng.integers(2, 8)).tolist(),
            float(rng.integers(2)),
        )
        for task in range(10)
        for i in range(4)
    ]
    return batch_of(played)


@pytest.mark.parametrize("lone", [False, True])
def test_cross_fitting_removes_the_bias_of_the_fit_in_sample(lone: bool) -> None:
    """Of tiers that tell nothing, a fit in sample credits turns with their own outcome's noise."""
    own: dict[str, list[float]] = {"in sample": [], "cross-fitted": []}
    for seed in range(60):
        batch = noise_batch(seed, lone)
        made = fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C)
        baseline = mean_of_others(batch.outcome, batch.layout.group)
        for name, row in (
            ("in sample", np.full_like(batch.fold, FOLDS)),
            ("cross-fitted", batch.fold),
        ):
            reward = shaping_rewards(batch.tier, batch.layout, made, row, C)
            reward[batch.layout.last] = 0.0
            own[name].append(
                float(
                    np.corrcoef(
                        np.bincount(batch.layout.episode, reward), batch.outcome - baseline
                    )[0, 1]
                )
            )
    mean = {name: float(np.mean(values)) for name, values in own.items()}
    error = {name: float(np.std(values) / np.sqrt(len(values))) for name, values in own.items()}
    assert mean["in sample"] > 0.2
    assert mean["cross-fitted"] < 2 * error["cross-fitted"]


@pytest.mark.parametrize("lone", [False, True])
def test_no_outcome_enters_its_own_forecast(lone: bool) -> None:
    batch = noise_batch(0, lone)
    made = fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C)
    for fold in range(FOLDS):
        turned = np.where(batch.fold == fold, 1 - batch.outcome, batch.outcome)
        other = fit_critic(batch.tier, turned, batch.layout, batch.fold, C)
        for mine, theirs in zip(made, other, strict=True):
            np.testing.assert_array_equal(mine[fold], theirs[fold])
            assert not np.array_equal(mine[FOLDS], theirs[FOLDS])


@quick
@given(batches(), st.randoms())
def test_the_order_of_episodes_does_not_matter(played: list[Played], random: Any) -> None:
    shuffled = list(played)
    random.shuffle(shuffled)
    for mine, theirs in zip(
        *(
            fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C)
            for batch in map(batch_of, (played, shuffled))
        ),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_a_task_by_itself_has_no_forecast_but_its_baseline() -> None:
    batch = batch_of([Played(0, [0, 1], 1.0), Played(0, [1, 1], 0.0)])
    made = fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C)
    assert not made.turn[0] and not made.first[0].any() and not made.again[0].any()
    assert made.first[FOLDS, 0] > 0 > made.first[FOLDS, 1]
    assert not rewards_of(batch, made).any()


def test_the_fit_equals_a_regression_on_all_states() -> None:
    """Of each state before a turn: presence, repeats, turns; the penalty is on their scale."""
    batch = batch_of(
        [Played(i % 7, np.random.default_rng(i).integers(0, C, 2 + i % 9).tolist(), i % 3 / 2)
         for i in range(60)]
    )  # fmt: skip
    baseline = mean_of_others(batch.outcome, batch.layout.group)
    made = fit_critic(batch.tier, batch.outcome, batch.layout, batch.fold, C, ridge=2.0)
    for fold in range(FOLDS + 1):
        rows, y = [], []
        for episode in np.flatnonzero(batch.fold != fold):
            tiers = batch.tier[batch.layout.episode == episode].tolist()
            for k in range(1, len(tiers)):
                counts = [tiers[:k].count(c) for c in range(C)]
                repeats = [min(max(n - 1, 0), MOST_REPEATS) for n in counts]
                rows.append([*(n > 0 for n in counts), *repeats, min(k, MOST_TURNS)])
                y.append(batch.outcome[episode] - baseline[episode])
        x, scale = np.array(rows, float), np.array([1.0] * C + [3.0] * C + [10.0])
        fitted = np.linalg.solve(x.T @ x + 2.0 * np.diag(scale**2), x.T @ np.array(y))
        assert np.allclose(made.first[fold], fitted[:C], atol=1e-12)
        assert np.allclose(made.again[fold], fitted[C:-1], atol=1e-12)
        assert np.isclose(made.turn[fold], fitted[-1], atol=1e-12)


@pytest.mark.parametrize(
    ("tier", "outcome", "fold", "message"),
    [
        ([0], [1.0], [0], "tiers (1,) or outcomes (1,) not as in the layout"),
        ([0, 1], [1.0], [0, 1], "(2,) folds of (1,) episodes"),
        ([0, 1], [1.0], [5], "a code of fold is not in 0..4"),
        ([0, 3], [1.0], [0], "a code of tier is not in 0..2"),
    ],
)
def test_errors(tier: Any, outcome: Any, fold: Any, message: str) -> None:
    layout = batch_of([Played(0, [0, 1], 1.0)]).layout
    with pytest.raises(ValueError) as error:
        fit_critic(np.array(tier), np.array(outcome), layout, np.array(fold), C)
    assert str(error.value) == message


def test_tiers_and_episodes_of_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(1,\) tiers of \(2,\) turns"):
        earlier_turns(np.array([0]), np.array([0, 0]), 1)
