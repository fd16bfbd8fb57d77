"""Advantages of turns under each estimator, over ragged groups of episodes.

For turn k = 1..K of episode i, with rewards r, outcome o, discount g and GN as in `normalised`:

    grpo       A[i,k] = GN(o)[i]
    mt-grpo    A[i,k] = sum over l >= k of GN_l(r[.,l])[i]  +  GN(o)[i]
    gtpo       A[i,k] = GN_k(R[.,k])[i],  R[i,k] = sum over l >= k of g^(l-k) r[i,l] + g^(K-k) o[i]
    hybrid     A[i,k] = GN_k(R[.,k])[i]  +  lambda GN(o)[i]
    rloo       A[i,k] = S[i,k] - mean of S[j,min(k,K_j)],  S[i,k] = sum over l >= k of r[i,l] + o[i]
    potential  A[i,k] = sum over l >= k of h^(l-k) d[i,l],  d = r, at the last turn r + o[i] - b[i]

In the last two, means are over the other episodes j of the group, b[i] is the mean of their
outcomes, h is GAE's lambda, and nothing is normalised: see `stages.core.leave_one_out`.

Sources: GRPO arXiv 2402.03300, MT-GRPO arXiv 2505.11821, GTPO arXiv 2511.14846, the hybrid
arXiv 2604.02869, RLOO arXiv 2402.14740, GAE arXiv 1506.02438. Where they leave a choice, see
docs/method.md, "Advantages".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np

from stages.core.layout import Codes, Floats, Layout, suffix_sums, without_last
from stages.core.leave_one_out import gae_parts, rloo_parts
from stages.settings import Setting, check_settings

Estimator: TypeAlias = Literal["grpo", "mt-grpo", "gtpo", "hybrid", "rloo", "potential"]
Normalise: TypeAlias = Literal["turn", "group", "batch"]

PANEL = "Advantage"  # of the options in --help


@dataclass(frozen=True)
class AdvantageConfig:
    """The advantage estimator and its parameters."""

    estimator: Annotated[
        Estimator, Setting("Estimator of the advantages.", PANEL, option="advantage")
    ] = "hybrid"
    gamma: Annotated[
        float,
        Setting("Discount of rewards and outcome per turn (gtpo, hybrid).", PANEL, low=0, high=1),
    ] = 0.9
    outcome_weight: Annotated[
        float, Setting("Weight of the normalised outcome (hybrid).", PANEL, low=0, option="lambda")
    ] = 0.3
    normalise: Annotated[
        Normalise,
        Setting(
            "Turns that a return is normalised over: those at its index in the group, the group's, "
            "or all (mt-grpo, gtpo, hybrid).",
            PANEL,
        ),
    ] = "turn"
    last_turn_reward: Annotated[
        bool, Setting("Include the reward of an episode's last turn.", PANEL)
    ] = True  # False: the last turn's r does not count, as in IRC
    gae_lambda: Annotated[
        float,
        Setting(
            "Lambda of GAE: 1 uses outcomes only, 0 the critic only (potential).",
            PANEL,
            low=0,
            high=1,
        ),
    ] = 0.5
    eps: float = 1e-6  # added to each std

    def __post_init__(self) -> None:
        check_settings(self)
        if not 0 < self.eps < np.inf:
            raise ValueError(f"eps {self.eps} is not finite and > 0")


class Normalised(NamedTuple):
    """Values normalised within their set, each [N]."""

    score: Floats
    mean: Floats
    std: Floats


class Advantages(NamedTuple):
    """The advantage of each turn and its parts, each [N]."""

    advantage: Floats  # return_part + outcome_part
    return_part: Floats
    outcome_part: Floats
    group_mean: Floats  # baseline: of o (grpo, potential), r (mt-grpo), R (gtpo, hybrid), S (rloo)
    group_std: Floats


def advantages(
    reward: Floats, outcome: Floats, layout: Layout, config: AdvantageConfig
) -> Advantages:
    """Compute the advantage of each turn under the estimator of `config`, with its parts.

    The sources leave two choices open. `normalise` sets the scope over which r and R are
    normalised; o is always normalised within its group, each episode counting once, so that a hard
    task does not penalise its episodes. With `last_turn_reward=False` the last turn of an episode
    is in no set of mt-grpo, and its r is 0 in the returns of gtpo, hybrid and rloo; potential
    ignores the flag, because its rewards must telescope.

    Args:
        reward: r of each turn, shape [N], any unit.
        outcome: o of each episode, shape [E].
        layout: layout of the N turns and E episodes.
        config: the estimator and its parameters.

    Returns:
        Advantage and parts are dimensionless, or in the unit of the outcome (rloo, potential); mean
        and std are in the unit of the normalised quantity. The std is NaN for a value alone in its
        set and for rloo and potential; mean and std are NaN for a last turn in no set of mt-grpo.

    Raises:
        ValueError: the shapes are not those of the layout.
    """
    if (reward.shape, outcome.shape) != (layout.episode.shape, layout.group.shape):
        raise ValueError(f"reward {reward.shape} or outcome {outcome.shape} not as in the layout")

    if config.estimator in ("rloo", "potential"):
        return _leave_one_out(reward, outcome, layout, config)
    outcome_weight = {"gtpo": 0.0, "hybrid": config.outcome_weight}.get(config.estimator, 1.0)
    by_episode = normalised(outcome, layout.group, config.eps)
    outcome_part = (outcome_weight * by_episode.score)[layout.episode]
    if config.estimator == "grpo":
        return_part = np.zeros(reward.shape)
        mean, std = by_episode.mean[layout.episode], by_episode.std[layout.episode]
    elif config.estimator == "mt-grpo":
        score, mean, std = _normalised_rewards(reward, layout, config)
        return_part = suffix_sums(score, 1.0, layout)
    else:  # gtpo, hybrid
        return_part, mean, std = normalised(
            _returns(reward, outcome, layout, config), _sets(layout, config), config.eps
        )
    return Advantages(return_part + outcome_part, return_part, outcome_part, mean, std)


def _leave_one_out(
    reward: Floats, outcome: Floats, layout: Layout, config: AdvantageConfig
) -> Advantages:
    """Compute the estimators without normalisation: rloo and potential."""
    if config.estimator == "rloo":
        counted = reward if config.last_turn_reward else without_last(reward, layout)
        made = rloo_parts(counted, outcome, layout)
    else:
        made = gae_parts(reward, outcome, layout, config.gae_lambda)
    unknown = np.full(reward.shape, np.nan)
    return Advantages(made.return_part + made.outcome_part, *made, unknown)


def normalised(x: Floats, code: Codes, eps: float) -> Normalised:
    """Normalise within each set: GN(x) = (x - mean) / (std + eps), std with ddof=1.

    Args:
        x: values, shape [N].
        code: set of each value, small and >= 0, shape [N].
        eps: > 0, in the unit of x.

    Returns:
        Score of each value, and mean and std of its set. The score is exactly 0 if all values of
        the set are equal. The std is NaN for a value alone in its set.

    Source: arXiv 2402.03300, section 4.1.2, which has no eps; ddof and eps as in docs/method.md,
    "Advantages".
    """
    n = np.bincount(code)
    # Deviations are taken from one of the set's own values: equal values then deviate by exactly 0,
    # and a large common offset costs no digits of the mean.
    origin = np.zeros(n.size)
    origin[code] = x
    # Allocating fresh memory costs more than the arithmetic, hence the reuse (`out=`) below. Only
    # mode="clip" writes straight into `out`; the codes are already checked.
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


def _returns(reward: Floats, outcome: Floats, layout: Layout, config: AdvantageConfig) -> Floats:
    """R[i,k] of gtpo: the outcome counts as a reward of the last turn."""
    reward = reward.astype(np.float64) if config.last_turn_reward else without_last(reward, layout)
    reward[layout.last] += outcome  # both branches above made a copy
    return suffix_sums(reward, config.gamma, layout)


def _normalised_rewards(reward: Floats, layout: Layout, config: AdvantageConfig) -> Normalised:
    """GN_l(r[.,l]) of mt-grpo; 0 for a last turn that carries no reward."""
    sets = _sets(layout, config)
    if config.last_turn_reward:
        return normalised(reward, sets, config.eps)
    sets = sets.copy()
    sets[layout.last] = sets.max(initial=0) + 1  # a set of their own, discarded below
    score, mean, std = normalised(reward, sets, config.eps)
    score[layout.last] = 0
    mean[layout.last] = std[layout.last] = np.nan
    return Normalised(score, mean, std)


def _sets(layout: Layout, config: AdvantageConfig) -> Codes:
    """Return the set within which each turn is normalised, [N]."""
    match config.normalise:
        case "turn":
            return layout.cell
        case "group":
            return layout.group[layout.episode]
        case "batch":
            return np.zeros_like(layout.episode)
