from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.core.advantages import (
    AdvantageConfig,
    Advantages,
    Estimator,
    Normalise,
    advantages,
    normalised,
)
from stages.core.layout import Floats, Layout, turn_layout
from stages.core.leave_one_out import mean_of_others

ESTIMATORS: tuple[Estimator, ...] = ("grpo", "mt-grpo", "gtpo", "hybrid")  # that normalise
NORMALISE: tuple[Normalise, ...] = ("turn", "group", "batch")


class Rollout(NamedTuple):
    group: int
    reward: list[float]
    outcome: float


def run(rollouts: list[Rollout], config: AdvantageConfig) -> Advantages:
    reward = np.array([r for rollout in rollouts for r in rollout.reward])
    outcome = np.array([rollout.outcome for rollout in rollouts])
    return advantages(reward, outcome, layout_of(rollouts), config)


def layout_of(rollouts: list[Rollout]) -> Layout:
    episode = [i for i, rollout in enumerate(rollouts) for _ in rollout.reward]
    turn = [k for rollout in rollouts for k in range(len(rollout.reward))]
    group = [rollout.group for rollout in rollouts]
    return turn_layout(np.array(episode, int), np.array(turn, int), np.array(group, int))


def split(x: Floats, rollouts: list[Rollout]) -> list[list[float]]:
    """The values of each episode."""
    ends = np.cumsum([len(rollout.reward) for rollout in rollouts])[:-1]
    return [part.tolist() for part in np.split(x, ends)]


ANY_REWARD = st.sampled_from([-0.1, 0.0, 0.1, 0.3, 1.0]) | st.floats(-5, 5)


@st.composite
def batches(draw: st.DrawFn, values: st.SearchStrategy[float] = ANY_REWARD) -> list[Rollout]:
    """Ragged episodes of several groups, whose order is mixed."""
    n = draw(st.integers(1, 10))
    return [
        Rollout(
            group=draw(st.integers(0, min(2, n - 1))),
            reward=draw(st.lists(values, min_size=1, max_size=5)),
            outcome=draw(st.sampled_from([0.0, 0.0, 1.0, 1.0, 0.25])),
        )
        for _ in range(n)
    ]


configs = st.builds(
    AdvantageConfig,
    estimator=st.sampled_from(ESTIMATORS),
    gamma=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    outcome_weight=st.sampled_from([0.0, 0.3, 2.0]),
    normalise=st.sampled_from(NORMALISE),
    last_turn_reward=st.booleans(),
)
quick = settings(max_examples=40, deadline=None, derandomize=True)
EPISODES = [
    Rollout(0, [0.3, 1.0, 9.0], 1.0),
    Rollout(0, [0.3, 1.0, 9.0], 1.0),
    Rollout(0, [0.3, 0.1, 9.0], 0.0),
    Rollout(0, [0.0, -0.1, 9.0], 0.0),
]
O = 0.8660  # GN of two successes and two failures  # noqa: E741


# The check values of docs/method.md, "Advantages"; the last turn carries no reward, so its 9.0 must
# not matter.
@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        ("grpo", [[O, O, O], [O, O, O], [-O, -O, -O], [-O, -O, -O]]),
        (
            "mt-grpo",
            [
                [2.2235, 1.7235, 0.8660],
                [2.2235, 1.7235, 0.8660],
                [-1.0520, -1.5520, -0.8660],
                [-3.3950, -1.8950, -0.8660],
            ],
        ),
        (
            "gtpo",
            [
                [0.8520, 0.8636, 0.8660],
                [0.8520, 0.8636, 0.8660],
                [-0.6321, -0.7727, -0.8660],
                [-1.0718, -0.9545, -0.8660],
            ],
        ),
        (
            "hybrid",
            [
                [1.1118, 1.1234, 1.1258],
                [1.1118, 1.1234, 1.1258],
                [-0.8919, -1.0325, -1.1258],
                [-1.3316, -1.2144, -1.1258],
            ],
        ),
    ],
)
def test_check_values_of_the_method(estimator: Estimator, expected: list[list[float]]) -> None:
    got = run(EPISODES, AdvantageConfig(estimator=estimator, last_turn_reward=False))
    np.testing.assert_allclose(got.advantage.reshape(4, 3), expected, rtol=0, atol=1e-4)


# By hand from the same example: R of turn 2 is 1.9, 1.9, 0.1, -0.1, so mean 0.95 and std 1.1.
def test_group_mean_and_std_are_of_the_returns() -> None:
    got = run(EPISODES, AdvantageConfig(last_turn_reward=False))
    np.testing.assert_allclose(got.group_mean[1::3], 0.95)
    np.testing.assert_allclose(got.group_std[1::3], 1.1)
    np.testing.assert_allclose(got.return_part[1], 0.95 / 1.1, atol=1e-5)
    np.testing.assert_allclose(got.outcome_part[1], 0.3 * 0.75**0.5, atol=1e-5)


def by_the_formulas(rollouts: list[Rollout], config: AdvantageConfig) -> Floats:
    """The formulas of docs/method.md, "Advantages", exactly, over lists of lists."""
    slots = [(i, k) for i, rollout in enumerate(rollouts) for k in range(len(rollout.reward))]
    n_turns = [len(rollout.reward) for rollout in rollouts]
    rewarded = [(i, k) for i, k in slots if config.last_turn_reward or k < n_turns[i] - 1]

    def same_set(a: tuple[int, int], b: tuple[int, int]) -> bool:
        same_group = rollouts[a[0]].group == rollouts[b[0]].group
        return {
            "turn": same_group and a[1] == b[1],
            "group": same_group,
            "batch": True,
        }[config.normalise]

    def gn(x: float, values: list[float]) -> float:
        if len(values) < 2 or max(values) == min(values):
            return 0.0
        return (x - statistics.mean(values)) / (statistics.stdev(values) + config.eps)

    def gn_turns(x: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
        return {a: gn(x[a], [x[b] for b in x if same_set(a, b)]) for a in x}

    def outcome_score(i: int) -> float:
        of_group = [r.outcome for r in rollouts if r.group == rollouts[i].group]
        return gn(rollouts[i].outcome, of_group)

    r = {(i, k): rollouts[i].reward[k] for i, k in rewarded}
    returns = {
        (i, k): sum(config.gamma ** (m - k) * r.get((i, m), 0.0) for m in range(k, n_turns[i]))
        + config.gamma ** (n_turns[i] - 1 - k) * rollouts[i].outcome
        for i, k in slots
    }
    z, big_z = gn_turns(r), gn_turns(returns)

    def return_part(i: int, k: int) -> float:
        if config.estimator == "grpo":
            return 0.0
        if config.estimator == "mt-grpo":
            return sum(z.get((i, m), 0.0) for m in range(k, n_turns[i]))
        return big_z[i, k]

    weight = {"grpo": 1.0, "mt-grpo": 1.0, "gtpo": 0.0, "hybrid": config.outcome_weight}
    parts = [(return_part(i, k), weight[config.estimator] * outcome_score(i)) for i, k in slots]
    return np.array(parts).T


@settings(max_examples=100, deadline=None, derandomize=True)
@given(batches(), configs)
def test_equals_the_formulas_written_as_loops(
    rollouts: list[Rollout], config: AdvantageConfig
) -> None:
    got = run(rollouts, config)
    return_part, outcome_part = by_the_formulas(rollouts, config)
    np.testing.assert_allclose(got.return_part, return_part, atol=1e-7)
    np.testing.assert_allclose(got.outcome_part, outcome_part, atol=1e-7)
    np.testing.assert_array_equal(got.advantage, got.return_part + got.outcome_part)


# Rewards that differ by less than 1 at a million; eps is large enough to hide what returns round.
@quick
@given(batches(values=st.floats(1e6, 1e6 + 1)), configs)
def test_rewards_of_large_scale(rollouts: list[Rollout], config: AdvantageConfig) -> None:
    got = run(rollouts, replace(config, eps=1e-3))
    expected = by_the_formulas(rollouts, replace(config, eps=1e-3)).sum(axis=0)
    np.testing.assert_allclose(got.advantage, expected, atol=1e-5)


@quick
@given(batches(), st.sampled_from(NORMALISE))
def test_scores_of_a_set_have_mean_0_and_their_std(
    rollouts: list[Rollout], normalise: Normalise
) -> None:
    got = run(rollouts, AdvantageConfig(estimator="gtpo", normalise=normalise))
    sets: dict[Any, list[int]] = {}
    slots = [(r.group, k) for r in rollouts for k in range(len(r.reward))]
    for n, (group, turn) in enumerate(slots):
        key = {"turn": (group, turn), "group": group, "batch": ()}[normalise]
        sets.setdefault(key, []).append(n)
    for members in sets.values():
        score, std = got.advantage[members], got.group_std[members]
        assert score.mean() == pytest.approx(0, abs=1e-7)
        assert len(set(got.group_mean[members])) == 1
        if len(members) == 1:
            assert score[0] == 0
            assert np.isnan(std[0])
        else:
            assert score.std(ddof=1) == pytest.approx(std[0] / (std[0] + 1e-6), abs=1e-7)


@quick
@given(batches(), configs)
def test_mean_and_std_give_back_the_quantity(
    rollouts: list[Rollout], config: AdvantageConfig
) -> None:
    got = run(rollouts, replace(config, estimator="gtpo", gamma=0.0, last_turn_reward=True))
    x = got.group_mean + got.advantage * (np.nan_to_num(got.group_std) + config.eps)
    reward = [
        r + (rollout.outcome if k == len(rollout.reward) - 1 else 0)  # gamma = 0: R is r, + o at K
        for rollout in rollouts
        for k, r in enumerate(rollout.reward)
    ]
    np.testing.assert_allclose(x, reward, atol=1e-9)


@quick
@given(batches(), st.integers(0, 4), st.floats(-3, 3))
def test_shifting_the_rewards_of_a_turn_index_leaves_mt_grpo(
    rollouts: list[Rollout], turn: int, shift: float
) -> None:
    config = AdvantageConfig(estimator="mt-grpo")
    shifted = [
        r._replace(
            reward=[x + shift * (k == turn and r.group == 0) for k, x in enumerate(r.reward)]
        )
        for r in rollouts
    ]
    np.testing.assert_allclose(
        run(shifted, config).advantage, run(rollouts, config).advantage, atol=1e-6
    )


@quick
@given(batches(values=st.sampled_from([-0.25, 0.0, 0.125, 0.5, 1.0])), configs)
def test_scaling_rewards_and_outcomes_changes_nothing_but_eps(
    rollouts: list[Rollout], config: AdvantageConfig
) -> None:
    scaled = [Rollout(r.group, [8 * x for x in r.reward], 8 * r.outcome) for r in rollouts]
    got, plain = (
        run(scaled, replace(config, eps=8 * 1e-6)),
        run(rollouts, replace(config, eps=1e-6)),
    )
    np.testing.assert_allclose(got.advantage, plain.advantage, atol=1e-12)
    np.testing.assert_allclose(got.group_mean, 8 * plain.group_mean, atol=1e-12)


@quick
@given(batches(), configs, st.randoms())
def test_permuting_episodes_permutes_advantages(
    rollouts: list[Rollout], config: AdvantageConfig, random: Any
) -> None:
    order = list(range(len(rollouts)))
    random.shuffle(order)
    permuted = [rollouts[i] for i in order]
    got = split(run(permuted, config).advantage, permuted)
    plain = split(run(rollouts, config).advantage, rollouts)
    for i, values in zip(order, got, strict=True):
        np.testing.assert_allclose(values, plain[i], atol=1e-7)


@quick
@given(batches())
def test_hybrid_without_outcome_weight_is_gtpo(rollouts: list[Rollout]) -> None:
    hybrid = run(rollouts, AdvantageConfig(outcome_weight=0.0))
    gtpo = run(rollouts, AdvantageConfig(estimator="gtpo"))
    np.testing.assert_array_equal(hybrid.advantage, gtpo.advantage)


@quick
@given(batches())
def test_hybrid_adds_lambda_grpo_to_gtpo(rollouts: list[Rollout]) -> None:
    hybrid, gtpo, grpo = (
        run(rollouts, AdvantageConfig(estimator=name, outcome_weight=0.7)).advantage
        for name in ("hybrid", "gtpo", "grpo")
    )
    np.testing.assert_allclose(hybrid, gtpo + 0.7 * grpo, atol=1e-12)


@quick
@given(batches(), configs, st.floats(-100, 100))
def test_last_reward_counts_only_if_told(
    rollouts: list[Rollout], config: AdvantageConfig, last: float
) -> None:
    config = replace(config, last_turn_reward=False)
    changed = [r._replace(reward=[*r.reward[:-1], last]) for r in rollouts]
    for got, plain in zip(run(changed, config), run(rollouts, config), strict=True):
        np.testing.assert_array_equal(got, plain)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_single_turns_reduce_to_group_normalisation(
    estimator: Estimator, normalise: Normalise
) -> None:
    rollouts = [Rollout(0, [0.5], o) for o in (1.0, 0.0, 1.0, 1.0)]
    got = run(rollouts, AdvantageConfig(estimator=estimator, normalise=normalise)).advantage
    score = np.array([0.5, -1.5, 0.5, 0.5])  # (o - 3/4) / (1/2)
    weight = 1.3 if estimator == "hybrid" else 1.0
    np.testing.assert_allclose(got, weight * score, atol=1e-5)


# 0.1 three times sums to 0.30000000000000004: a naive mean would leave noise, here exactly 0.
@pytest.mark.parametrize("value", [0.1, 1e6 / 3, -1e-9, 0.0])
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalise", NORMALISE)
def test_constant_groups_give_exactly_0(
    value: float, estimator: Estimator, normalise: Normalise
) -> None:
    config = AdvantageConfig(estimator=estimator, normalise=normalise, gamma=0.0)
    rollouts = [Rollout(0, [value] * 3, 0.0) for _ in range(3)]
    np.testing.assert_array_equal(run(rollouts, config).advantage, 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_groups_of_one_give_exactly_0(estimator: Estimator) -> None:
    rollouts = [Rollout(0, [0.3, 1.0], 1.0), Rollout(1, [0.1, 0.7, -0.1], 0.0)]
    got = run(rollouts, AdvantageConfig(estimator=estimator))
    np.testing.assert_array_equal(got.advantage, 0)
    assert np.isnan(got.group_std).all()
    assert np.isfinite(got.group_mean).all()


# The outcome term stays in its group: all of an easy task's episodes succeed and earn nothing.
def test_batch_normalisation_leaves_the_outcome_to_its_group() -> None:
    rollouts = [Rollout(0, [0.0], 1.0)] * 2 + [Rollout(1, [0.0], 0.0)] * 2
    got = run(rollouts, AdvantageConfig(normalise="batch"))
    np.testing.assert_array_equal(got.outcome_part, 0)
    np.testing.assert_allclose(got.return_part, [O, O, -O, -O], atol=1e-4)


def test_mt_grpo_last_turns_are_in_no_set() -> None:
    rollouts = [Rollout(0, [1.0, 5.0], 0.0), Rollout(0, [0.0, 2.0, 5.0], 0.0)]
    got = run(rollouts, AdvantageConfig(estimator="mt-grpo", last_turn_reward=False))
    np.testing.assert_allclose(got.advantage, [0.5**0.5, 0, -(0.5**0.5), 0, 0], atol=1e-5)
    np.testing.assert_array_equal(got.group_mean, [0.5, np.nan, 0.5, 2.0, np.nan])
    np.testing.assert_array_equal(np.isnan(got.group_std), [False, True, False, True, True])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("normalise", NORMALISE)
@pytest.mark.parametrize("last_turn_reward", [True, False])
def test_no_episodes(estimator: Estimator, normalise: Normalise, last_turn_reward: bool) -> None:
    config = AdvantageConfig(estimator, normalise=normalise, last_turn_reward=last_turn_reward)
    assert all(x.shape == (0,) for x in run([], config))


# An episode of 3,000 turns among short ones: no padding to [episodes, longest].
def test_one_long_episode_needs_no_padding() -> None:
    rollouts = [Rollout(i // 2, [1.0], float(i % 2)) for i in range(3000)]
    rollouts.append(Rollout(0, [1.0] * 3000, 1.0))
    layout = layout_of(rollouts)
    assert layout.cell.max() + 1 == 3000 + 1499  # group 0 to turn 2,999, the others one turn each
    got = run(rollouts, AdvantageConfig(estimator="gtpo", gamma=0.5))
    assert got.group_mean[-1] == 2.0  # alone at its index: r + o
    assert got.group_mean[-3] == pytest.approx(2.0)  # 1 + (1 + 2 / 2) / 2
    assert np.isfinite(got.advantage).all()


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_arguments_are_left_alone_and_may_be_integers(dtype: str) -> None:
    reward, outcome = np.array([1, 0, 0, 1]).astype(dtype), np.array([1, 0]).astype(dtype)
    layout = turn_layout(
        np.array([0, 0, 1, 1], np.uint32), np.array([0, 1, 0, 1], np.int32), np.array([0, 0])
    )
    before = [x.copy() for x in (reward, outcome, *layout)]
    for estimator in ESTIMATORS:
        for last in (True, False):
            config = AdvantageConfig(estimator, last_turn_reward=last)
            got = advantages(reward, outcome, layout, config)
            as_floats = advantages(reward.astype(float), outcome.astype(float), layout, config)
            np.testing.assert_array_equal(got.advantage, as_floats.advantage)
    for x, y in zip(before, (reward, outcome, *layout), strict=True):
        np.testing.assert_array_equal(x, y)


# --- leave-one-out --------------------------------------------------------------------------------


def rloo_by_the_formula(rollouts: list[Rollout]) -> list[float]:
    """S[i,k] less the mean of S[j,min(k,K_j)] over the others of the group, or over all others."""
    to_go = [[sum(r.reward[k:]) + r.outcome for k in range(len(r.reward))] for r in rollouts]
    made = []
    for i, rollout in enumerate(rollouts):
        rest = [j for j in range(len(rollouts)) if j != i]
        others = [j for j in rest if rollouts[j].group == rollout.group] or rest
        for k, mine in enumerate(to_go[i]):
            theirs = [to_go[j][min(k, len(to_go[j]) - 1)] for j in others]
            made.append(mine - statistics.mean(theirs) if theirs else 0.0)
    return made


@quick
@given(batches(), st.booleans())
def test_rloo_equals_its_formula(rollouts: list[Rollout], last: bool) -> None:
    got = run(rollouts, AdvantageConfig("rloo", last_turn_reward=last))
    if not last:
        rollouts = [r._replace(reward=[*r.reward[:-1], 0.0]) for r in rollouts]
    np.testing.assert_allclose(got.advantage, rloo_by_the_formula(rollouts), atol=1e-9)
    np.testing.assert_array_equal(got.advantage, got.return_part + got.outcome_part)
    to_go = [sum(r.reward[k:]) + r.outcome for r in rollouts for k in range(len(r.reward))]
    np.testing.assert_allclose(got.advantage + got.group_mean, to_go, atol=1e-9)
    assert np.isnan(got.group_std).all()


@quick
@given(batches(), st.sampled_from(["rloo", "potential"]))
def test_without_rewards_it_is_the_outcome_against_the_others(
    rollouts: list[Rollout], estimator: Estimator
) -> None:
    silent = [r._replace(reward=[0.0] * len(r.reward)) for r in rollouts]
    got = run(silent, AdvantageConfig(estimator, gae_lambda=1.0))
    outcome = np.array([r.outcome for r in rollouts])
    expected = outcome - mean_of_others(outcome, np.array([r.group for r in rollouts]))
    for values, of_episode in zip(split(got.advantage, rollouts), expected, strict=True):
        assert values == pytest.approx([of_episode] * len(values), abs=1e-12)


@quick
@given(batches(), st.lists(ANY_REWARD, min_size=1, max_size=8), st.floats(0, 1))
def test_a_baseline_does_not_depend_on_what_its_episode_does(
    rollouts: list[Rollout], reward: list[float], outcome: float
) -> None:
    mine = rollouts[0]._replace(reward=reward, outcome=outcome)
    if len(rollouts) == 1:
        return  # nobody to compare with: the baseline is its own
    changed = [mine, *rollouts[1:]]
    for config in (AdvantageConfig("rloo"), AdvantageConfig("potential")):
        before, after = (
            split(run(batch, config).group_mean, batch)[0] for batch in (rollouts, changed)
        )
        for one, other in zip(before, after, strict=False):  # the turns that both have
            assert one == pytest.approx(other, abs=1e-9)


@quick
@given(batches(), st.sampled_from(["rloo", "potential"]), st.randoms())
def test_permuting_episodes_permutes_leave_one_out(
    rollouts: list[Rollout], estimator: Estimator, random: Any
) -> None:
    test_permuting_episodes_permutes_advantages.hypothesis.inner_test(  # type: ignore[attr-defined]  # of hypothesis
        rollouts, AdvantageConfig(estimator), random
    )


@pytest.mark.parametrize("estimator", ["rloo", "potential"])
def test_leave_one_out_at_the_edges(estimator: Estimator) -> None:
    config = AdvantageConfig(estimator, gae_lambda=1.0)
    assert all(x.shape == (0,) for x in run([], config))
    only = run([Rollout(0, [0.0, 0.0], 1.0)], config)
    np.testing.assert_array_equal(only.advantage, 0)
    alone = run([Rollout(0, [0.0], 1.0), Rollout(1, [0.0], 0.5), Rollout(1, [0.0], 0.0)], config)
    np.testing.assert_allclose(alone.advantage, [0.75, 0.5, -0.5])


def test_equal_values_score_0_beside_a_set_that_varies() -> None:
    got = normalised(np.array([0.1, 1.0, 0.1, 3.0, 0.1]), np.array([2, 0, 2, 0, 2]), eps=1e-6)
    np.testing.assert_allclose(got.score, [0, -(0.5**0.5), 0, 0.5**0.5, 0], atol=1e-6)
    np.testing.assert_array_equal(got.score[[0, 2, 4]], 0)
    np.testing.assert_array_equal(got.mean, [0.1, 2.0, 0.1, 2.0, 0.1])


@pytest.mark.parametrize(
    ("episode", "turn", "group", "message"),
    [
        ([0, 0], [0], [0], "want [N], [N], [E]; got (2,), (1,), (1,)"),
        ([1, 0], [0, 0], [0, 0], "the turns are not sorted by episode"),
        ([0, 1], [0, 0], [0], "a code of episode is not in 0..0"),
        ([-1, 0], [0, 0], [0], "a code of episode is not in 0..0"),
        ([0, 2], [0, 0], [0, 0, 0], "the turns of each episode are not 0, 1, 2, ..."),
        ([0, 0], [0, 2], [0], "the turns of each episode are not 0, 1, 2, ..."),
        ([0, 0], [1, 0], [0], "the turns of each episode are not 0, 1, 2, ..."),
        ([0, 1], [0, 1], [0, 0], "the turns of each episode are not 0, 1, 2, ..."),
        ([0, 1], [0, 0], [0, 2], "a code of group is not in 0..1"),
    ],
)
def test_layout_errors(episode: list[int], turn: list[int], group: list[int], message: str) -> None:
    with pytest.raises(ValueError) as error:
        turn_layout(*(np.array(codes) for codes in (episode, turn, group)))
    assert str(error.value) == message


@pytest.mark.parametrize(("n", "e"), [(2, 1), (3, 2)])
def test_shapes_other_than_the_layouts(n: int, e: int) -> None:
    layout = layout_of([Rollout(0, [0.0, 1.0, 0.0], 1.0)])
    with pytest.raises(ValueError, match="not as in the layout"):
        advantages(np.zeros(n), np.zeros(e), layout, AdvantageConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "ppo"}, "unknown estimator 'ppo'"),
        ({"normalise": "task"}, "unknown normalise 'task'"),
        ({"gamma": 1.1}, "gamma 1.1 is not in [0, 1]"),
        ({"gamma": float("nan")}, "gamma nan is not in [0, 1]"),
        ({"outcome_weight": -0.3}, "outcome_weight -0.3 is not finite and >= 0"),
        ({"gae_lambda": -0.1}, "gae_lambda -0.1 is not in [0, 1]"),
        ({"eps": 0.0}, "eps 0.0 is not finite and > 0"),
    ],
)
def test_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        AdvantageConfig(**options)
    assert str(error.value) == message
