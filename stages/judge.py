"""Whether rewards make advantages that push as the calibrated values intend (TURNS -> ADVANTAGES).

SPEC section 7, for the rewards as scored (`before`) and for the calibrated values (`after`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.artifacts import ADVANTAGES, conformed
from stages.calibrate import CalibrateConfig, Calibration, defined
from stages.calibration_file import Previous
from stages.core import direction as directions
from stages.core.advantages import AdvantageConfig, Advantages, Layout, advantages, turn_layout
from stages.core.correlation import Floats, Ints
from stages.errors import InputError


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
        reward_outcome_correlation=defined(follows),
        dead_turn_share=directions.dead_turn_share(judged.advantage),
        advantage_rms=directions.rms(judged.advantage),
        gradient_mass={tier: defined(mass[c]) for c, tier in enumerate(turns.tiers)},
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


class Judged(NamedTuple):
    """The rewards as scored, the calibrated ones, and those of the two that a check looks at."""

    before: Judgement
    after: Judgement
    chosen: Judgement
    reward: Floats  # [N], of the chosen
    advantages: Advantages  # of the chosen


def judge_both(
    turns: TurnArrays,
    calibration: Calibration,
    config: CalibrateConfig,
    estimator: AdvantageConfig,
    seed: int,
    *,
    keep_rewards: bool = False,
    given: Advantages | None = None,
) -> Judged:
    """Judge the rewards as scored and the calibrated ones.

    Args:
        turns: the turns that count.
        calibration: of these turns.
        config: how it was calibrated.
        estimator: of the advantages.
        seed: of the resamples, the same for both, so that they differ only where the rewards do.
        keep_rewards: the rewards as scored are the chosen ones.
        given: advantages of another program, in the place of ours for the chosen rewards.
    """
    values = calibration.values()
    rewards = {"before": turns.frame["reward"].to_numpy(), "after": tier_rewards(turns, values)}
    made = {name: turn_advantages(turns, reward, estimator) for name, reward in rewards.items()}
    chosen = "before" if keep_rewards else "after"
    if given is not None:
        made[chosen] = given
    judged = {
        name: judge(turns, rewards[name], made[name], values, config, np.random.default_rng(seed))
        for name in rewards
    }
    return Judged(judged["before"], judged["after"], judged[chosen], rewards[chosen], made[chosen])


def objections(calibration: Calibration, chosen: Judgement, config: CalibrateConfig) -> list[str]:
    """Return why a check says no; empty if it says yes."""
    found = []
    if chosen.misaligned:
        found.append(f"misaligned: {', '.join(chosen.misaligned)}")
    r = chosen.reward_outcome_correlation
    if r is None:
        found.append("the mean reward of an episode does not vary with its outcome")
    elif not r > config.eta:
        found.append(f"mean reward and outcome correlate by {r:.3f}, not more than {config.eta:g}")
    if calibration.tasks < config.min_tasks:
        found.append(f"{calibration.tasks} tasks, fewer than {config.min_tasks}")
    return found


class TierChange(NamedTuple):
    """What became of one tier; None: it is new, or gone."""

    tier: str
    value_then: float | None
    value_now: float | None
    status_then: str | None
    status_now: str | None


class Changes(NamedTuple):
    """A calibration against an earlier one."""

    tiers: list[TierChange]
    flipped_advantages: int  # turns that the two push opposite ways
    turns: int


def changes_since(
    previous: Previous, calibration: Calibration, turns: TurnArrays, estimator: AdvantageConfig
) -> Changes:
    """Hold a calibration against an earlier one, on the same turns."""
    now = {tier.tier: tier for tier in calibration.tiers}
    rows = [
        TierChange(
            tier=tier,
            value_then=previous.values.get(tier),
            value_now=now[tier].value if tier in now else None,
            status_then=previous.statuses.get(tier),
            status_now=now[tier].status if tier in now else None,
        )
        for tier in dict.fromkeys([*now, *previous.values])
    ]
    made = [
        turn_advantages(turns, tier_rewards(turns, values), estimator)
        for values in (previous.values, calibration.values())
    ]
    return Changes(rows, flipped(*made), len(turns.tier))
