"""Measure how well tiers separate success from failure, and set values (TURNS -> Calibration).

There is one function per kind of input: `calibrate_turns` for a table, `stream_turns` for files of
any size, `sum_shard` and `merge_shards` for separate machines, `calibrate_online` during training.
All of them sum the turns and pass the sums to `calibrate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from stages.calibration.estimate import (
    CalibrateConfig,
    Calibration,
    Evidence,
    describe,
    mixed_tasks,
    weigh,
    with_landmark,
)
from stages.calibration.fingerprint import joined, refuse_doubles
from stages.calibration.landmark import landmark
from stages.calibration.online import Online, add
from stages.calibration.sample import LIMIT, Sample, sample_groups
from stages.calibration.shards import Turns, add_up, as_turns, read_sums, sum_file
from stages.calibration.strata import OverStrata, over_strata
from stages.calibration.sums import Summed, TierSums, lay_out, sum_turns
from stages.core.correlation import Bools, Floats, Which, benjamini_hochberg
from stages.core.forgetting import GateConfig
from stages.core.lengths import length_terms, stratum_terms
from stages.errors import InputError, few
from stages.tables.artifacts import COUNTS
from stages.tables.turn_arrays import fitted_critic, turn_arrays
from stages.tables.yamlfile import nearest
from stages.traces.notes import GIVE_OUTCOME


def calibrate_turns(
    turns: Turns | pl.DataFrame,
    config: CalibrateConfig,
    seed: int = 0,
    landmark_at: int | None = None,
) -> Calibration:
    """Calibrate the tiers of some turns (TURNS -> Calibration).

    Args:
        turns: all turns of each episode, with episodes in any order.
        config: how statistics become values.
        seed: seed of the resamples.
        landmark_at: number of first turns for the landmark r; None: the median episode length.

    Returns:
        Statistics and value of each tier.

    Raises:
        InputError: a row breaks a rule of TURNS, an episode counts twice, all episodes fail or
            succeed, or a tier of `config.zero` is unknown.
    """
    turns = as_turns(turns)
    result = calibrate_sums(_summed(turns, config.measure), config, seed, where=turns.where)
    return _with_order(result, turns, config, landmark_at)


def _summed(turns: Turns, measure: str) -> Summed:
    summed = sum_turns(turns.frame.lazy(), measure, turns.where)
    return summed._replace(excluded=summed.excluded + turns.without_turns)


def _with_order(
    result: Calibration, turns: Turns, config: CalibrateConfig, at: int | None
) -> Calibration:
    """Add what needs the order of turns, which sums lack: the landmark r and the critic."""
    counts = COUNTS & pl.col("success").is_not_null()
    counting = turns.frame.filter(counts)
    result = with_landmark(result, landmark(counting, config.measure, result.correlation, at))
    return result._replace(critic=fitted_critic(turn_arrays(turns.frame)))


class Streamed(NamedTuple):
    """The calibration of files of turns, and a sample of turns to check advantages on."""

    calibration: Calibration
    sample: Sample


def stream_turns(
    paths: Sequence[str], config: CalibrateConfig, seed: int = 0, sampled: int = LIMIT
) -> Streamed:
    """Calibrate files of turns in a stream, with little memory (TURNS -> Calibration, TURNS).

    Args:
        paths: files of turns, possibly in an object store.
        config: how statistics become values.
        seed: seed of the resamples.
        sampled: most turns in the sample of whole groups.

    Returns:
        The calibration and the sample.

    Raises:
        InputError: as for `calibrate_turns`.
    """
    summed = sum_shard(paths, config.measure)
    calibration = calibrate_sums(summed, config, seed, where=few(paths))
    return Streamed(calibration, sample_groups(summed.sums, paths, sampled))


def sum_shard(paths: Sequence[str], measure: str) -> Summed:
    """Sum files of turns as input of `merge_shards` (TURNS -> SUMS).

    Args:
        paths: files of turns, possibly in an object store.
        measure: presence | count | share of the tier in an episode.

    Returns:
        The sums.

    Raises:
        InputError: a row breaks a rule of TURNS, or an episode counts twice.
    """
    return add_up((sum_file(path, measure) for path in paths), paths)


def merge_shards(paths: Sequence[str], config: CalibrateConfig, seed: int = 0) -> Calibration:
    """Calibrate from the sums of shards (SUMS -> Calibration).

    Args:
        paths: files of sums.
        config: how statistics become values.
        seed: seed of the resamples.

    Returns:
        The calibration.

    Raises:
        InputError: sums are impossible, or an episode is in two shards.
    """
    return calibrate_sums(read_shards(paths, config.measure), config, seed, where=few(paths))


def read_shards(paths: Sequence[str], measure: str) -> Summed:
    """Read the sums of shards and add them up (SUMS -> SUMS).

    Args:
        paths: files of sums.
        measure: measure that the sums must have.

    Returns:
        The total.

    Raises:
        InputError: sums are impossible, or an episode is in two shards.
    """
    return add_up((read_sums(path, measure) for path in paths), paths)


def calibrate_sums(
    summed: Summed, config: CalibrateConfig, seed: int = 0, *, where: str = "sums"
) -> Calibration:
    """Calibrate the tiers from their sums (SUMS -> Calibration).

    Args:
        summed: sums of distinct episodes.
        config: how statistics become values.
        seed: seed of the resamples.
        where: name of the sums in errors.

    Returns:
        The calibration.

    Raises:
        InputError: an episode counts twice, all episodes fail or succeed, or a tier of
            `config.zero` is unknown.
    """
    return calibrate_summed(summed, config, np.random.default_rng(seed), where=where)


def calibrate_summed(
    summed: Summed, config: CalibrateConfig, rng: np.random.Generator, *, where: str
) -> Calibration:
    """Calibrate like `calibrate_sums`, with a given source of randomness."""
    _check_summed(summed, config, where)
    _check_both_outcomes(summed, where)
    return calibrate(lay_out(summed.sums, config.measure), summed.excluded, config, rng)


class OnlineResult(NamedTuple):
    """The state and the calibration after an iteration's turns."""

    state: Online
    calibration: Calibration
    notes: Counter[str]  # oddities


def calibrate_online(
    state: Online,
    turns: Turns | pl.DataFrame,
    inputs: Mapping[str, str],
    config: CalibrateConfig,
    gate: GateConfig,
    seed: int = 0,
    landmark_at: int | None = None,
) -> OnlineResult:
    """Add an iteration's turns to the online state (TURNS, state -> state, Calibration).

    Args:
        state: the state so far.
        turns: turns of the new episodes.
        inputs: sha256 of the files of these turns, by path.
        config: how statistics become values; gates replace q.
        gate: thresholds for opening and closing gates.
        seed: seed of the resamples.
        landmark_at: number of first turns for the landmark r; None: the median episode length.

    Returns:
        The new state, its calibration, and notes.

    Raises:
        InputError: inputs or their episodes were added before, or no episode has an outcome.
    """
    turns = as_turns(turns)
    summed = _summed(turns, config.measure)
    _check_summed(summed, config, turns.where)
    known = state.known
    state, result = add(state, summed, inputs, config, gate, np.random.default_rng(seed))
    if summed.fingerprint is not None:
        refuse_doubles([known, summed.fingerprint], ["the state", turns.where])
        state = replace(state, known=joined([known, summed.fingerprint]))
    result = _with_order(result, turns, config, landmark_at)
    return OnlineResult(state, result, _lone_episodes(summed))


def _lone_episodes(summed: Summed) -> Counter[str]:
    """Return a note if every group has a single episode."""
    totals = summed.sums.filter(pl.col("tier").is_null())
    groups = totals.group_by("task_id", "group_id").agg(pl.col("episodes").sum())
    if groups["episodes"].max() != 1:
        return Counter()
    text = "tasks with one episode, which --online cannot learn from"
    return Counter({text: totals["task_id"].n_unique()})


def _check_summed(summed: Summed, config: CalibrateConfig, where: str) -> None:
    """Raise InputError for repeated episodes, fewer than two, or an unknown tier of `zero`."""
    if summed.fingerprint is not None:
        refuse_doubles([summed.fingerprint], [where])
    episodes = int(summed.sums.filter(pl.col("tier").is_null())["episodes"].sum())
    if episodes < 2:
        if episodes == 0:
            raise InputError(where, "no episode with an outcome", GIVE_OUTCOME)
        raise InputError(where, "one episode only", "collect at least two, with different outcomes")
    known = summed.sums["tier"].drop_nulls().unique().sort().to_list()
    for tier in config.zero:
        if tier not in known:
            raise InputError("--zero", f"no turn is of tier '{tier}'", nearest(tier, known))


def _check_both_outcomes(summed: Summed, where: str) -> None:
    """Raise InputError if all episodes fail or all succeed."""
    totals = summed.sums.filter(pl.col("tier").is_null())
    check_both_outcomes(int(totals["episodes"].sum()), int(totals["successes"].sum()), where)


def check_both_outcomes(episodes: int, successes: int, where: str) -> None:
    """Raise InputError if all episodes fail or all succeed.

    Args:
        episodes: number of episodes.
        successes: number of successes among them.
        where: name of the episodes in errors.

    Raises:
        InputError: there are no successes or no failures.
    """
    if successes in (0, episodes):
        outcomes = "failures" if successes == 0 else "successes"
        todo = "collect both successes and failures"
        raise InputError(where, f"all {episodes:,} episodes are {outcomes}", todo)


def calibrate(
    sums: TierSums, excluded: int, config: CalibrateConfig, rng: np.random.Generator
) -> Calibration:
    """Calibrate the tiers from their sums.

    value = alpha * excess if |excess| > delta, q < fdr and the support suffices, else 0. q controls
    false discoveries: tiers that are uninformative, or informative only through length. With
    several policies or domains the excess is their random-effects mean, if they agree. The raw r
    that `adjust` none uses is over all episodes.

    Args:
        sums: sums of C tiers.
        excluded: number of excluded episodes.
        config: how statistics become values.
        rng: source of randomness.

    Returns:
        The calibration, without landmark r and critic.

    Source: docs/method.md, "Evidence for a tier" and "Values".
    """
    which: Which = "within" if mixed_tasks(sums.cells) >= 2 else "pooled"
    if config.correlation != "auto":
        which = "within" if config.correlation == "within" else "pooled"
    adjusted = config.adjust == "length"
    apart = config.strata == "auto" and len(sums.strata) > 1
    evidence = _evidence(sums, which, config, rng, apart=apart and adjusted)
    over: OverStrata | None = None
    if apart:
        r = evidence.chosen.r
        over = over_strata(sums, which, config.measure, r, config.resamples, rng, adjust=adjusted)
    worth = over.worth if over and adjusted else evidence.chosen.r
    passes = _passes(evidence, worth, config)
    held_back = passes & ~over.agree if over and adjusted else np.zeros_like(passes)
    result = describe(sums, evidence, passes & ~held_back, excluded, config, worth, held_back)
    return result._replace(strata=over.tiers) if over else result


def _evidence(
    sums: TierSums, which: Which, config: CalibrateConfig, rng: np.random.Generator, *, apart: bool
) -> Evidence:
    """Return the evidence on each tier; `apart` centres each stratum on its own means."""
    stratum = sums.stratum if apart else np.zeros_like(sums.stratum)
    raw, excess = (
        stratum_terms(sums.cells, stratum, which, config.measure, adjust=adjust)
        for adjust in (False, True)
    )
    within = raw
    if which == "pooled":
        within = length_terms(sums.cells, "within", config.measure, adjust=False)
    episodes = int(sums.tasks.episodes.sum())
    rarer = sums.episodes
    if config.measure == "presence":  # other measures vary even if every episode has the tier
        rarer = np.minimum(rarer, episodes - rarer)
    return weigh(which, raw, excess, within, episodes, rarer, config, rng)


def _passes(evidence: Evidence, worth: Floats, config: CalibrateConfig) -> Bools:
    """Return whether each tier meets all conditions for a value; [C]."""
    with np.errstate(invalid="ignore"):
        passes = np.abs(worth) > config.delta
        passes &= (benjamini_hochberg(evidence.p) < config.fdr) | (config.fdr == 1)
    return np.asarray(passes & (evidence.rarer >= config.min_support), np.bool_)
