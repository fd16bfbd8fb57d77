"""Online calibration: sums with forgetting, and gates (SUMS, state -> Calibration).

This is "Empirical Discriminative Gating". Each iteration adds its episodes to sums that forget
older episodes with a half-life, counted in episodes. A tier has a value while its gate is open.
Sums are centred on a task's episodes *within one addition*, because these are the groups that
training sees. Otherwise a policy that improves and calls a tool more often at the same time would
show a correlation that no group has. So only tasks with two episodes or more in one addition are
informative.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypedDict

import numpy as np
import polars as pl

from stages.calibration.estimate import (
    MOST_RESAMPLES,
    CalibrateConfig,
    Calibration,
    Evidence,
    describe,
    weigh,
)
from stages.calibration.fingerprint import NOTHING, Fingerprint, read_fingerprint
from stages.calibration.sums import UNITS, Grid, Summed, TierSums, lay_out, tier_sums
from stages.core.forgetting import GateConfig, effective_size, gates, kept_weight
from stages.core.lengths import length_terms
from stages.errors import InputError
from stages.tables.artifacts import ONLINE, SUMS
from stages.tables.files import refuse_existing
from stages.tables.state import check_rows, check_types
from stages.tables.table_file import made_by, read_table, write_table

HALF_LIFE = 1000.0  # episodes: eight iterations of 16 tasks x 8
FORGOTTEN = 1e-3  # a task is dropped when its episodes together weigh less than this

_SQUARED = ("squares",)  # sums of w^2; all other columns are sums of w


class Event(NamedTuple):
    """A change of a tier's gate."""

    iteration: int  # 1-based
    tier: str
    event: str  # opened | closed | turned (reopened at once with the other sign)
    r: float | None
    p: float | None


class Addition(NamedTuple):
    """One iteration's episodes, and the tiers' values after them."""

    inputs: dict[str, str]  # sha256 by path
    episodes: int
    excluded: int
    tasks: int
    pass_rate: float
    values: dict[str, float]


class _State(TypedDict):
    """The fields of a state file beside its sums and its fingerprint."""

    measure: Literal["presence", "count", "share"]
    half_life: float
    signs: dict[str, Literal[-1, 0, 1]]
    additions: list[dict[str, Any]]
    events: list[dict[str, Any]]


@dataclass(frozen=True)
class Online:
    """The state of online calibration."""

    measure: str
    half_life: float  # episodes
    sums: pl.DataFrame = field(default_factory=ONLINE.empty)  # ONLINE
    signs: dict[str, int] = field(default_factory=dict)  # sign of r of each open gate
    additions: tuple[Addition, ...] = ()
    events: tuple[Event, ...] = ()
    known: Fingerprint = field(default=NOTHING, compare=False)  # of all added episodes

    @property
    def effective_episodes(self) -> float:
        """The effective number of episodes, (sum w)^2 / sum w^2."""
        totals = self.sums.filter(pl.col("tier").is_null())
        sums = (totals[name].to_numpy().sum(keepdims=True) for name in ("episodes", "squares"))
        return float(effective_size(*sums)[0])

    def document(self) -> dict[str, Any]:
        """Return the state's summary for reports and for the calibration file."""
        return {
            "half_life": self.half_life,
            "iteration": len(self.additions),
            "effective_episodes": self.effective_episodes,
            "open": sorted(self.signs),
            "events": [event._asdict() for event in self.events],
        }


def add(
    online: Online,
    summed: Summed,
    inputs: Mapping[str, str],
    config: CalibrateConfig,
    gate: GateConfig,
    rng: np.random.Generator,
) -> tuple[Online, Calibration]:
    """Down-weight the old episodes, add an iteration's episodes, and update the gates.

    Args:
        online: the state so far.
        summed: sums of the new episodes, at least one of which counts.
        inputs: sha256 of the new turns, by path.
        config: as for `calibrate`, but gates replace q.
        gate: thresholds for opening and closing gates.
        rng: source of randomness of the bootstrap.

    Returns:
        The new state and its calibration.

    Raises:
        InputError: an input was added before.
    """
    _refuse_known(online, inputs)
    new = lay_out(summed.sums, online.measure)
    episodes, successes = new.tasks.episodes.sum(), new.tasks.successes.sum()
    kept = kept_weight(episodes, online.half_life)
    sums = _joined(online.sums, weighted(summed.sums, online.measure), kept)
    finest = min(round(10 / gate.open_p), MOST_RESAMPLES) if gate.open_p else 0
    sampled = replace(config, resamples=max(config.resamples, finest))
    laid_out, evidence = _evidence(sums, sampled, online.measure, rng)
    tiers = laid_out.tiers
    was = np.array([online.signs.get(tier, 0) for tier in tiers], np.float64)
    gate_signs = gates(
        was, evidence.chosen.r, evidence.p, evidence.rarer, config.delta, config.min_support, gate
    )
    result = describe(laid_out, evidence, gate_signs != 0, summed.excluded, config)
    signs = {tier: int(sign) for tier, sign in zip(tiers, gate_signs, strict=True) if sign}
    addition = Addition(
        dict(inputs),
        int(episodes),
        summed.excluded,
        len(new.tasks.episodes),
        float(successes / episodes),
        result.values(),
    )
    number = len(online.additions) + 1
    moved = tuple(_moved(number, online.signs, signs, result))
    after = replace(
        online,
        sums=sums,
        signs=signs,
        additions=(*online.additions, addition),
        events=(*online.events, *moved),
    )
    return after, result


def _evidence(
    sums: pl.DataFrame, config: CalibrateConfig, measure: str, rng: np.random.Generator
) -> tuple[TierSums, Evidence]:
    """Return the sums (ONLINE) as arrays, and the evidence on each tier."""
    grid = Grid(sums, ["task_id"])
    oo = np.repeat(grid.totals["oo_deviation"].to_numpy()[:, None], len(grid.tiers), axis=1)
    raw, excess = (
        np.stack([grid(f"{x}o_deviation"), grid(f"{x}{x}_deviation"), oo], axis=1) for x in "xy"
    )  # [T, 3, C]
    weights, squares = (grid(name).sum(axis=0) for name in ("episodes", "squares"))
    everyone = [grid.totals[name].to_numpy().sum(keepdims=True) for name in ("episodes", "squares")]
    support = effective_size(weights, squares)
    if measure == "presence":  # other measures vary even if every episode has the tier
        without = effective_size(everyone[0] - weights, everyone[1] - squares)
        support = np.minimum(support, without)
    episodes = float(effective_size(*everyone)[0])
    evidence = weigh("within", raw, excess, raw, episodes, support, config, rng)
    # `weighted` has already divided by the measure's unit.
    task = np.arange(grid.totals.height)
    return tier_sums(grid, task, task, np.zeros_like(task), 1), evidence


def weighted(sums: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Add the columns that forgetting needs to the sums of new episodes (SUMS -> ONLINE).

    Args:
        sums: SUMS.
        measure: presence | count | share, the measure of the sums.

    Returns:
        ONLINE, each episode with weight 1.
    """
    laid_out = lay_out(sums, measure)
    raw, excess = (
        length_terms(laid_out.cells, "within", measure, adjust=adjust) for adjust in (False, True)
    )
    tasks, tiers = sums["task_id"].unique().sort(), laid_out.tiers
    deviations = {
        "xo_deviation": raw[:, 0],
        "xx_deviation": raw[:, 1],
        "yo_deviation": excess[:, 0],
        "yy_deviation": excess[:, 1],
    }
    of_tiers = pl.DataFrame(
        {"task_id": np.repeat(tasks, len(tiers)), "tier": tiers * len(tasks)}
        | {name: part.ravel() for name, part in deviations.items()}
    )
    of_tasks = pl.DataFrame({"task_id": tasks, "oo_deviation": raw[:, 2, 0]})
    unit, total = UNITS[measure], pl.col("tier").is_null()
    names = [name for name in SUMS.columns if name not in SUMS.key]
    return (
        sums.group_by("task_id", "tier")
        .agg(pl.col(names).sum())
        .join(of_tiers, on=["task_id", "tier"], how="left")
        .join(of_tasks, on="task_id")
        .with_columns(
            pl.col(list(deviations)).fill_null(0.0),
            oo_deviation=pl.when(total).then("oo_deviation").otherwise(0.0),
            squares="episodes",
            x=pl.col("x") / unit,
            xx=pl.col("xx") / unit**2,
            xo=pl.col("xo") / unit,
        )
        .select(pl.col(name).cast(to) for name, to in ONLINE.columns.items())
        .sort(ONLINE.key)
    )


def _joined(old: pl.DataFrame, new: pl.DataFrame, kept: float) -> pl.DataFrame:
    """Return the total of the old sums, their weights multiplied by `kept`, and the new sums."""
    sums = [name for name in ONLINE.columns if name not in ONLINE.key]
    weights = {name: kept**2 if name in _SQUARED else kept for name in sums}
    faded = old.with_columns(pl.col(name) * weight for name, weight in weights.items())
    total = pl.col("tier").is_null()
    dropped = faded.filter(total & (pl.col("episodes") < FORGOTTEN))["task_id"]
    both = pl.concat([faded.filter(~pl.col("task_id").is_in(dropped.implode())), new])
    # Each key has at most two rows, and a + b equals b + a bit for bit, so order does not matter.
    return both.group_by(ONLINE.key).agg(pl.col(sums).sum()).sort(ONLINE.key)


def _moved(
    iteration: int, before: Mapping[str, int], after: Mapping[str, int], result: Calibration
) -> list[Event]:
    tiers = {tier.tier: tier for tier in result.tiers}
    events = []
    for tier in sorted({*before, *after}):
        was, is_now = before.get(tier, 0), after.get(tier, 0)
        if was != is_now:
            event = "closed" if not is_now else "turned" if was else "opened"
            now = tiers.get(tier)
            events.append(Event(iteration, tier, event, now and now.r_within, now and now.p))
    return events


def _refuse_known(online: Online, inputs: Mapping[str, str]) -> None:
    known = {
        sha256: number
        for number, addition in enumerate(online.additions, 1)
        for sha256 in addition.inputs.values()
    }
    for path, sha256 in inputs.items():
        if sha256 in known:
            what = f"was added before, in iteration {known[sha256]}"
            raise InputError(path, what, "add each iteration's turns once")


def write_online(online: Online, path: str, origin: dict[str, Any]) -> None:
    """Replace the state file atomically.

    Args:
        online: the state.
        path: path of the state file.
        origin: provenance.
    """
    state = {
        "measure": online.measure,
        "half_life": online.half_life,
        "signs": online.signs,
        "additions": [addition._asdict() for addition in online.additions],
        "events": [event._asdict() for event in online.events],
        "known": online.known.document(),
    }
    write_table(ONLINE, online.sums, path, origin | {"online": state}, force=True)


def open_online(path: str, measure: str, half_life: float | None) -> Online:
    """Read a state, or begin one if there is no file.

    Args:
        path: path of the state file.
        measure: measure that the state must have.
        half_life: half-life in episodes; None: the state's own, or the default.

    Returns:
        The state.

    Raises:
        InputError: the file is not a state, can't be written, or was begun with another measure or
            half-life.
    """
    if half_life is not None and not half_life > 0:
        raise InputError("--half-life", f"{half_life:g} is out of range", "use a number above 0")
    refuse_existing(path, force=True)  # fails early if the path can't be written
    if not Path(path).exists():
        return Online(measure, HALF_LIFE if half_life is None else half_life)
    state = read_online(path)
    for option, old, new in (
        ("half-life", f"{state.half_life:g}", half_life and f"{half_life:g}"),
        ("measure", state.measure, measure),
    ):
        if new not in (None, old):
            todo = f"pass --{option} {old}, or begin another state"
            raise InputError(path, f"was begun with --{option} {old}, not {new}", todo)
    return state


def read_online(path: str) -> Online:
    """Read a state.

    Args:
        path: path of the state file.

    Returns:
        The state.

    Raises:
        InputError: the file is not a state, or it is damaged.
    """
    state = made_by(path).get("online")
    if state is None:
        todo = "name a state of calibrate --online, or a new file"
        raise InputError(path, "not a state of online calibration", todo)
    todo = "begin another one"
    held = check_types(state, _State, path, todo)
    if not (held["half_life"] > 0 and isfinite(held["half_life"])):
        raise InputError(path, f"damaged: a half-life of {held['half_life']:g}", todo)
    return Online(
        measure=held["measure"],
        half_life=held["half_life"],
        sums=read_table(ONLINE, path),
        signs=dict(held["signs"]),
        additions=check_rows(held["additions"], Addition, path, todo),
        events=check_rows(held["events"], Event, path, todo),
        known=read_fingerprint(state["known"], path) if "known" in state else NOTHING,
    )
