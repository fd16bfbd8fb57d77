"""Advantages of turns: GRPO, MT-GRPO, GTPO and their hybrid, over ragged groups of episodes.

For turn k = 1..K of episode i, with rewards r, outcome o, discount g and GN as in `normalised`:

    grpo      A[i,k] = GN(o)[i]
    mt-grpo   A[i,k] = sum over l >= k of GN_l(r[.,l])[i]  +  GN(o)[i]
    gtpo      A[i,k] = GN_k(R[.,k])[i],  R[i,k] = sum over l >= k of g^(l-k) r[i,l]  +  g^(K-k) o[i]
    hybrid    A[i,k] = GN_k(R[.,k])[i]  +  lambda GN(o)[i]

Turns are flat arrays [N], episode after episode; a `Layout` says where each turn stands.

Sources: GRPO arXiv 2402.03300, MT-GRPO arXiv 2505.11821, GTPO arXiv 2511.14846, the hybrid
arXiv 2604.02869; what they leave open is settled in docs/method.md, "Advantages".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.settings import Setting, check_settings

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer]
Codes: TypeAlias = npt.NDArray[np.intp]

Estimator: TypeAlias = Literal["grpo", "mt-grpo", "gtpo", "hybrid"]
Normalise: TypeAlias = Literal["turn", "group", "batch"]

PANEL = "Advantage"  # of the help


@dataclass(frozen=True)
class AdvantageConfig:
    """The estimator, and the choices that change its numbers."""

    estimator: Annotated[
        Estimator, Setting("Estimator of the advantages.", PANEL, option="advantage")
    ] = "hybrid"
    gamma: Annotated[
        float,
        Setting("Discount per turn of rewards and outcome (gtpo, hybrid).", PANEL, low=0, high=1),
    ] = 0.9
    outcome_weight: Annotated[
        float, Setting("Weight of the outcome in the hybrid.", PANEL, low=0, option="lambda")
    ] = 0.3
    normalise: Annotated[
        Normalise,
        Setting(
            "What a return is normalised over: the same turn of its group, its group, or all.",
            PANEL,
        ),
    ] = "turn"
    last_turn_reward: Annotated[
        bool, Setting("Whether an episode's last turn carries its own reward.", PANEL)
    ] = True  # False: r of an episode's last turn does not count, as in IRC
    eps: float = 1e-6  # added to each std

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.eps < np.inf:
            raise ValueError(f"eps {self.eps} is not finite and > 0")


class Layout(NamedTuple):
    """Where each of N turns stands among E episodes; see `turn_layout`."""

    episode: Codes  # [N] episode of the turn, non-decreasing
    cell: Codes  # [N] one code for each (group, turn index)
    group: Codes  # [E] group of the episode
    last: Codes  # [E] position in [N] of the episode's last turn
    last_by_length: Codes  # [E] the same, longest episode first
    n_longer: Codes  # [K] episodes with more than 0, 1, .. K-1 turns, K of the longest


class Normalised(NamedTuple):
    """Values against the other values of their set, each [N]."""

    score: Floats
    mean: Floats
    std: Floats


class Advantages(NamedTuple):
    """The advantage of each turn and what made it, each [N]."""

    advantage: Floats  # return_part + outcome_part
    return_part: Floats
    outcome_part: Floats
    group_mean: Floats  # of what was normalised at the turn: o (grpo), r (mt-grpo), else R
    group_std: Floats


def turn_layout(episode: Ints, turn: Ints, group: Ints) -> Layout:
    """Index N turns of E episodes, once for any number of `advantages`.

    Args:
        episode: episode of each turn, 0..E-1, non-decreasing, shape [N].
        turn: position of each turn in its episode, 0..K-1 in order, shape [N].
        group: group of each episode, below E and in any order, shape [E].

    Returns:
        Where each of the N turns stands.

    Raises:
        ValueError: the shapes differ, a code is out of range, the episodes are out of order, or
            the turns of an episode are not 0..K-1, K >= 1.
    """
    n_turns, n_episodes = episode.size, group.size
    if not episode.shape == turn.shape == (n_turns,) or group.shape != (n_episodes,):
        raise ValueError(f"want [N], [N], [E]; got {episode.shape}, {turn.shape}, {group.shape}")
    if np.any(episode[1:] < episode[:-1]):
        raise ValueError("the turns are not sorted by episode")
    length = np.bincount(as_codes(episode, n_episodes, "episode"), minlength=n_episodes)
    start = np.cumsum(length) - length
    cell = np.arange(n_turns)
    cell -= np.repeat(start, length)
    if not (length.all() and np.array_equal(turn, cell)):
        raise ValueError("the turns of each episode are not 0, 1, 2, ...")

    group = as_codes(group, n_episodes, "group")
    reach = np.zeros(n_episodes, np.intp)  # turns of each group's longest episode
    np.maximum.at(reach, group, length)
    cell += np.repeat((np.cumsum(reach) - reach)[group], length)

    last = start + length - 1
    return Layout(
        episode=as_codes(episode, n_episodes, "episode"),
        cell=cell,
        group=group,
        last=last,
        last_by_length=last[np.argsort(-length, kind="stable")],
        n_longer=n_episodes - np.cumsum(np.bincount(length))[:-1],
    )


def advantages(
    reward: Floats, outcome: Floats, layout: Layout, config: AdvantageConfig
) -> Advantages:
    """Advantage of each turn under the estimator of `config`, with its parts.

    Where the sources are silent: `normalise` says what r and R are held against, while o always
    stays within its group, each episode once: a harder task is no fault of its episodes. With
    `last_turn_reward=False` the last turn of an episode is in no set of mt-grpo, and its r is 0 in
    the returns of gtpo and hybrid.

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E].
        layout: of these N turns and E episodes.
        config: the estimator and its choices.

    Returns:
        Dimensionless advantage and parts; mean and std in the unit of what was normalised. The std
        is NaN for a value alone in its set, both are NaN for a last turn in no set of mt-grpo.

    Raises:
        ValueError: the shapes are not those of the layout.
    """
    if (reward.shape, outcome.shape) != (layout.episode.shape, layout.group.shape):
        raise ValueError(f"reward {reward.shape} or outcome {outcome.shape} not as in the layout")

    outcome_weight = {"gtpo": 0.0, "hybrid": config.outcome_weight}.get(config.estimator, 1.0)
    by_episode = normalised(outcome, layout.group, config.eps)
    outcome_part = (outcome_weight * by_episode.score)[layout.episode]
    if config.estimator == "grpo":
        return_part = np.zeros(reward.shape)
        mean, std = by_episode.mean[layout.episode], by_episode.std[layout.episode]
    elif config.estimator == "mt-grpo":
        score, mean, std = _normalised_rewards(reward, layout, config)
        return_part = _suffix_sums(score, 1.0, layout)
    else:  # gtpo, hybrid
        return_part, mean, std = normalised(
            _returns(reward, outcome, layout, config), _sets(layout, config), config.eps
        )
    return Advantages(return_part + outcome_part, return_part, outcome_part, mean, std)


def normalised(x: Floats, code: Codes, eps: float) -> Normalised:
    """Group normalisation, GN(x) = (x - mean) / (std + eps) with std of ddof=1, of each set.

    Args:
        x: values, shape [N].
        code: set of each value, small and >= 0, shape [N].
        eps: > 0, in the unit of x.

    Returns:
        The score, mean and std of each value in its set. The score is exactly 0 where all values
        of the set are equal, and for a value alone, whose std is NaN.

    Source: arXiv 2402.03300, section 4.1.2, without eps there; ddof and eps as in docs/method.md,
    "Advantages".
    """
    n = np.bincount(code)
    # Measured from one of the set's own values, equal values deviate by exactly 0, and a large
    # common offset costs the mean no digits.
    origin = np.zeros(n.size)
    origin[code] = x
    # Memory fresh from the system costs more than the arithmetic: hence the reuse (`out=`) below.
    # Codes are valid by now, and only mode="clip" writes straight into `out`.
    deviation = origin.take(code)
    np.subtract(x, deviation, out=deviation)
    mean = origin + np.bincount(code, deviation) / np.maximum(n, 1)
    mean_of = mean.take(code)
    np.subtract(x, mean_of, out=deviation)
    work = deviation * deviation
    std = np.sqrt(np.bincount(code, work) / np.maximum(n - 1, 1))
    score = np.divide(deviation, (std + eps).take(code, out=work, mode="clip"), out=deviation)
    std[n < 2] = np.nan
    return Normalised(score, mean_of, std.take(code, out=work, mode="clip"))


def as_codes(code: Ints, n_codes: int, name: str) -> Codes:
    """Return codes as indices, after a check that all are in range.

    Args:
        code: codes, shape [N].
        n_codes: number of codes there are.
        name: name of the codes in the error.

    Returns:
        The same codes, shape [N].

    Raises:
        ValueError: a code is not in 0..n_codes-1.
    """
    if code.size and not 0 <= code.min() <= code.max() < n_codes:
        raise ValueError(f"a code of {name} is not in 0..{n_codes - 1}")
    return code.astype(np.intp, copy=False)


def _returns(reward: Floats, outcome: Floats, layout: Layout, config: AdvantageConfig) -> Floats:
    """R[i,k] of gtpo: the outcome counts as a reward of the last turn."""
    reward = reward.astype(np.float64)  # a copy
    if not config.last_turn_reward:
        reward[layout.last] = 0
    reward[layout.last] += outcome
    return _suffix_sums(reward, config.gamma, layout)


def _normalised_rewards(reward: Floats, layout: Layout, config: AdvantageConfig) -> Normalised:
    """GN_l(r[.,l]) of mt-grpo; 0 for a last turn that carries no reward."""
    sets = _sets(layout, config)
    if config.last_turn_reward:
        return normalised(reward, sets, config.eps)
    sets = sets.copy()
    sets[layout.last] = sets.max(initial=0) + 1  # out of everyone's way
    score, mean, std = normalised(reward, sets, config.eps)
    score[layout.last] = 0
    mean[layout.last] = std[layout.last] = np.nan
    return Normalised(score, mean, std)


def _sets(layout: Layout, config: AdvantageConfig) -> Codes:
    """The set that each turn is normalised in, [N]."""
    match config.normalise:
        case "turn":
            return layout.cell
        case "group":
            return layout.group[layout.episode]
        case "batch":
            return np.zeros_like(layout.episode)


def _suffix_sums(x: Floats, gamma: float, layout: Layout) -> Floats:
    """Replace each x[k] by the sum over l >= k of gamma^(l-k) x[l] in its episode; return x.

    All episodes walk back from their last turns together; the shorter ones drop out first.
    """
    at = layout.last_by_length
    later = x[at]
    for n in layout.n_longer[1:]:
        at = at[:n] - 1
        later = x[at] + gamma * later[:n]
        x[at] = later
    return x
