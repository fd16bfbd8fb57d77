"""Measure which tiers tell success from failure, and give each the reward that it is worth.

Two steps, each a function of tables: `calibrate` (SUMS -> tiers with statistics and values) and
`judge` (TURNS and a reward per turn -> ADVANTAGES and whether they push as the values intend).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.artifacts import ADVANTAGES, conformed
from stages.core import direction as directions
from stages.core.advantages import AdvantageConfig, Advantages, Layout, advantages, turn_layout
from stages.core.correlation import (
    Floats,
    Which,
    benjamini_hochberg,
    episodes_to_decide,
    pooled,
    sign_reversed,
    within,
)
from stages.core.permutation import pooled_p, within_p
from stages.core.resampling import bootstrap_interval
from stages.errors import InputError
from stages.sums import Ints, TierSums

CORRELATIONS = ("auto", "within", "pooled")


@dataclass(frozen=True)
class CalibrateConfig:
    """How a tier's statistics become its value, and what counts as converged."""

    measure: str = "presence"  # presence | count | share of the tier in an episode
    correlation: str = "auto"  # within where two tasks or more have mixed outcomes, else pooled
    delta: float = 0.05  # |r| up to which a tier is worth nothing
    fdr: float = 0.05  # false discovery rate over the tiers
    min_support: int = 20  # episodes with the tier, and, for presence, without it
    effect: float = 0.2  # the smallest |r| that matters: neutral is what rules it out
    alpha: float | None = None  # value = alpha * r; None: the largest |value| is 1
    resamples: int = 2000  # of the tasks, for intervals; and permutations, for pooled p
    eta: float = 0.3  # converged: mean reward and outcome correlate by more than this
    min_tasks: int = 2  # fewer tasks never pass a check


class TierStatistics(NamedTuple):
    """One tier's evidence and what follows from it; undefined is None."""

    tier: str
    turns: int
    episodes: int
    r_pooled: float | None
    r_within: float | None
    r_turn: float | None  # a description: turns of an episode share its outcome
    ci_low: float | None  # of the chosen r
    ci_high: float | None
    p: float | None  # of the chosen r
    q: float | None
    value: float
    status: str  # discriminative | neutral | undecided | constant
    more_episodes: int | None  # undecided: how many more would decide at 80 % power, if any number
    sign_reversed: bool  # Simpson: pooled and within tasks point opposite ways


class Calibration(NamedTuple):
    """All that a table of sums says."""

    episodes: int
    excluded: int
    tasks: int
    mixed_tasks: int  # with both successes and failures
    pass_rate: float
    correlation: str  # within | pooled
    tiers: list[TierStatistics]

    def values(self) -> dict[str, float]:
        """Return the calibrated reward of each tier."""
        return {tier.tier: tier.value for tier in self.tiers}


def calibrate(
    sums: TierSums, excluded: int, config: CalibrateConfig, rng: np.random.Generator
) -> Calibration:
    """Calibrate the tiers from their sums (SUMS -> Calibration).

    value = alpha r where |r| > delta, q < fdr and the support is enough, else 0: SPEC section 5.
    """
    tasks = sums.tasks
    mixed = int(((tasks.successes > 0) & (tasks.successes < tasks.episodes)).sum())
    which: Which = "within" if mixed >= 2 else "pooled"
    if config.correlation != "auto":
        which = "within" if config.correlation == "within" else "pooled"
    r = {"pooled": pooled(tasks), "within": within(tasks)}
    chosen = r[which]
    low, high = bootstrap_interval(tasks, which, config.resamples, rng)
    p_within = within_p(tasks)
    p = p_within if which == "within" else pooled_p(tasks, config.resamples, rng)
    q = benjamini_hochberg(p)
    episodes = int(tasks.episodes.sum())
    rarer = sums.episodes
    if config.measure == "presence":  # otherwise a tier may be in every episode, more or less often
        rarer = np.minimum(rarer, episodes - rarer)
    supported = rarer >= config.min_support
    with np.errstate(invalid="ignore"):
        tells = (np.abs(chosen) > config.delta) & (q < config.fdr) & supported
        rules_out = (-config.effect < low) & (high < config.effect) & supported
    status = np.select(
        [np.isnan(chosen), tells, rules_out],
        ["constant", "discriminative", "neutral"],
        "undecided",
    )
    more = _more_episodes(chosen, low, high, rarer, episodes, config)
    values = _values(np.where(tells, chosen, 0.0), config.alpha)
    q_within = benjamini_hochberg(p_within)
    reverses = sign_reversed(r["pooled"], r["within"], q_within, config.delta, config.fdr)
    tiers = [
        TierStatistics(
            tier=tier,
            turns=int(sums.turns[c]),
            episodes=int(sums.episodes[c]),
            r_pooled=_defined(r["pooled"][c]),
            r_within=_defined(r["within"][c]),
            r_turn=_turn_correlation(sums, c),
            ci_low=_defined(low[c]),
            ci_high=_defined(high[c]),
            p=_defined(p[c]),
            q=_defined(q[c]),
            value=float(values[c]),
            status=str(status[c]),
            more_episodes=_whole(more[c]) if status[c] == "undecided" else None,
            sign_reversed=bool(reverses[c]),
        )
        for c, tier in enumerate(sums.tiers)
    ]
    pass_rate = float(tasks.successes.sum() / episodes)
    return Calibration(episodes, excluded, len(tasks.episodes), mixed, pass_rate, which, tiers)


def _values(r: Floats, alpha: float | None) -> Floats:
    largest = np.abs(r).max(initial=0)
    if alpha is None:
        alpha = 1 / largest if largest else 0.0
    return alpha * r


def _more_episodes(
    r: Floats, low: Floats, high: Floats, rarer: Ints, episodes: int, config: CalibrateConfig
) -> Floats:
    """How many more episodes would decide, with enough support; infinite if nothing tells; [C]."""
    with np.errstate(divide="ignore"):
        width = np.arctanh(high) - np.arctanh(low)
    error = width / (2 * NormalDist().inv_cdf(0.975))
    for_power = episodes_to_decide(r, error, episodes, config.effect)
    for_support = np.ceil(episodes * config.min_support / np.maximum(rarer, 1)) - episodes
    return np.asarray(np.maximum(np.maximum(for_power, for_support), 1), np.float64)


def _turn_correlation(sums: TierSums, c: int) -> float | None:
    """Phi of "the turn has the tier" and "its episode succeeds", from the counts of turns."""
    n, s = sums.all_turns, sums.all_turns_in_successes
    x, xo = int(sums.turns[c]), int(sums.turns_in_successes[c])
    spread = x * (n - x) * s * (n - s)
    return (n * xo - x * s) / float(spread) ** 0.5 if spread else None


def _whole(value: float) -> int | None:
    return int(value) if np.isfinite(value) else None


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


class Direction(NamedTuple):
    """Where the advantages push one tier; undefined is None."""

    tier: str
    mean_advantage: float | None
    return_part: float | None
    outcome_part: float | None
    ci_low: float | None
    ci_high: float | None
    wrong_sign_share: float | None
    verdict: str  # aligned | misaligned | undecided | neutral


class Judgement(NamedTuple):
    """Whether a set of rewards makes advantages that push as the values intend."""

    direction: list[Direction]
    reward_outcome_correlation: float | None
    dead_turn_share: float
    advantage_rms: float
    gradient_mass: dict[str, float | None]
    misaligned: list[str]

    def converged(self, eta: float) -> bool:
        """Return whether no tier is misaligned and rewards follow outcomes closely enough."""
        r = self.reward_outcome_correlation
        return not self.misaligned and r is not None and r > eta


class TurnArrays(NamedTuple):
    """The turns that count, as arrays of the numerical core."""

    frame: pl.DataFrame  # [N] turns, episode after episode
    layout: Layout
    outcome: Floats  # [E]
    tiers: list[str]  # [C]
    tier: Ints  # [N]
    task: Ints  # [N]
    n_tokens: Ints | None  # [N]; None unless all are known


def turn_arrays(turns: pl.DataFrame) -> TurnArrays:
    """Lay out the turns (TURNS) of the episodes that count."""
    counts = (pl.col("status") != "error") & pl.col("outcome").is_not_null()
    frame = turns.filter(counts)
    episode = (frame["episode_id"].rle_id()).to_numpy().astype(np.int64)
    first = frame.filter(pl.col("turn") == 0)
    tiers = frame["tier"].unique().sort()
    tokens = frame["n_tokens"]
    return TurnArrays(
        frame=frame,
        layout=turn_layout(episode, frame["turn"].to_numpy(), _codes(first["group_id"])),
        outcome=first["outcome"].to_numpy(),
        tiers=tiers.to_list(),
        tier=_codes(frame["tier"]),
        task=_codes(frame["task_id"]),
        n_tokens=None if tokens.null_count() else tokens.to_numpy().astype(np.int64),
    )


def _codes(names: pl.Series) -> Ints:
    """Return the position of each name among the sorted names."""
    categories = names.unique().sort()
    return names.cast(pl.Enum(categories)).to_physical().to_numpy().astype(np.int64)


def tier_rewards(turns: TurnArrays, rewards: Mapping[str, float]) -> Floats:
    """Return the reward of each turn when a tier's turns all get that tier's reward; [N]."""
    by_tier = np.array([rewards.get(tier, 0.0) for tier in turns.tiers])
    return by_tier[turns.tier]


def turn_advantages(turns: TurnArrays, reward: Floats, config: AdvantageConfig) -> Advantages:
    """Return the advantages of the turns under these rewards."""
    return advantages(reward, turns.outcome, turns.layout, config)


def judge(
    turns: TurnArrays,
    reward: Floats,
    judged: Advantages,
    values: Mapping[str, float],
    config: CalibrateConfig,
    rng: np.random.Generator,
) -> Judgement:
    """Hold advantages against the signs that the calibrated values intend. SPEC section 7."""
    intended = np.sign([values.get(tier, 0.0) for tier in turns.tiers]).astype(np.int64)
    by_tier = directions.direction(judged, turns.tier, turns.task, intended, config.resamples, rng)
    rows = [
        Direction(
            tier=tier,
            mean_advantage=_finite(by_tier.mean_advantage[c]),
            return_part=_finite(by_tier.return_part[c]),
            outcome_part=_finite(by_tier.outcome_part[c]),
            ci_low=_finite(by_tier.ci_low[c]),
            ci_high=_finite(by_tier.ci_high[c]),
            wrong_sign_share=_finite(by_tier.wrong_sign_share[c]),
            verdict=str(by_tier.verdict[c]),
        )
        for c, tier in enumerate(turns.tiers)
    ]
    mass = directions.gradient_mass(judged.advantage, turns.tier, len(rows), turns.n_tokens)
    follows = directions.reward_outcome_correlation(reward, turns.outcome, turns.layout.episode)
    return Judgement(
        direction=rows,
        reward_outcome_correlation=_defined(follows),
        dead_turn_share=directions.dead_turn_share(judged.advantage),
        advantage_rms=directions.rms(judged.advantage),
        gradient_mass={tier: _defined(mass[c]) for c, tier in enumerate(turns.tiers)},
        misaligned=[row.tier for row in rows if row.verdict == "misaligned"],
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def advantage_frame(turns: TurnArrays, reward: Floats, made: Advantages) -> pl.DataFrame:
    """Return the advantages as a table (ADVANTAGES)."""
    parts = {name: pl.Series(values).fill_nan(None) for name, values in made._asdict().items()}
    keys = turns.frame.select("episode_id", "group_id", "turn", "tier")
    frame = keys.with_columns(reward=reward, **parts)
    return frame.select(list(ADVANTAGES.columns))


def flipped(one: Advantages, two: Advantages) -> int:
    """Return how many turns two sets of advantages push opposite ways."""
    return int((one.advantage * two.advantage < 0).sum())


def given_advantages(turns: TurnArrays, given: pl.DataFrame, where: str) -> Advantages:
    """Return the advantages of another program for these turns.

    Args:
        turns: the turns that count.
        given: columns episode_id, turn, advantage; return_part and outcome_part where known.
        where: name of the table in errors.

    Raises:
        InputError: a column is missing or of another type, or a turn has no advantage or several.
    """
    parts = [name for name in ("return_part", "outcome_part") if name in given.columns]
    if missing := [n for n in ("episode_id", "turn", "advantage") if n not in given.columns]:
        raise InputError(where, f"no column '{missing[0]}'", "give episode_id, turn, advantage")
    types = {name: ADVANTAGES.columns[name] for name in ("episode_id", "turn", "advantage", *parts)}
    given = conformed(given, types, where, "write it as such")
    keys = turns.frame.select("episode_id", "turn")
    joined = keys.join(given, on=["episode_id", "turn"], how="left", maintain_order="left")
    if joined.height != keys.height:
        raise InputError(where, "several advantages for one turn", "give one each")
    # Other programs write NaN for what is missing.
    lacking = joined.filter(~pl.col("advantage").is_finite().fill_null(False))
    if lacking.height:
        episode, turn = lacking.row(0)[:2]
        what = f"no advantage for turn {turn} of episode '{episode}' ({lacking.height:,} lacking)"
        raise InputError(where, what, "give one for every turn that counts")
    unknown = np.full(keys.height, np.nan)
    columns = {name: joined[name].to_numpy() for name in ("advantage", *parts)}
    return Advantages(
        columns["advantage"],
        columns.get("return_part", unknown),
        columns.get("outcome_part", unknown),
        unknown,
        unknown,
    )
