"""Calibrate while the policy trains: sums that forget, and gates (SUMS, state -> Calibration).

"Empirical Discriminative Gating". Each iteration adds its episodes to the sums of `stages.sums`,
which forget the older ones with a half-life, counted in episodes; a tier has a value while its gate
is open. Everything is centred on a task's episodes *within one addition*: those are the groups that
training sees, and a policy that gets better and calls a tool more often at the same time would
otherwise show a correlation that no group has. So only tasks with two episodes or more in one
addition tell anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from stages.artifacts import ONLINE, made_by, read_table, write_table
from stages.calibrate import CalibrateConfig, Calibration, Evidence, describe
from stages.core.correlation import Floats, correlation
from stages.core.forgetting import GateConfig, effective_size, forgetting_p, gates, kept_weight
from stages.core.resampling import correlation_interval
from stages.errors import InputError
from stages.sums import UNITS, Summed, grid, lay_out

HALF_LIFE = 1000.0  # episodes: eight iterations of 16 tasks x 8
FORGOTTEN = 1e-3  # a task whose episodes weigh less than this together is dropped

_SQUARED = ("squares", "variance")  # sums of w^2; all others are sums of w


class Event(NamedTuple):
    """A gate that moved."""

    iteration: int  # 1-based
    tier: str
    event: str  # opened | closed | turned: open again at once, with the other sign
    r: float | None
    p: float | None


class Addition(NamedTuple):
    """One iteration's episodes, and what the tiers were worth after them."""

    inputs: dict[str, str]  # sha256 by path
    episodes: int
    excluded: int
    tasks: int
    pass_rate: float
    values: dict[str, float]


@dataclass(frozen=True)
class Online:
    """All that online calibration remembers."""

    measure: str
    half_life: float
    sums: pl.DataFrame = field(default_factory=ONLINE.empty)  # ONLINE
    signs: dict[str, int] = field(default_factory=dict)  # of the open gates
    additions: tuple[Addition, ...] = ()
    events: tuple[Event, ...] = ()

    @property
    def effective_episodes(self) -> float:
        """How many episodes of weight 1 would tell as much."""
        totals = self.sums.filter(pl.col("tier").is_null())
        sums = (totals[name].to_numpy().sum(keepdims=True) for name in ("episodes", "squares"))
        return float(effective_size(*sums)[0])

    def document(self) -> dict[str, Any]:
        """Return what is reported of it."""
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
    """Forget a little, add an iteration's episodes, and move the gates.

    Args:
        online: what is remembered so far.
        summed: of the new episodes, at least one of which counts.
        inputs: sha256 of the new turns, by path.
        config: as for `calibrate`, but that q sets no value: a gate does.
        gate: when gates open and close.
        rng: for the intervals.

    Raises:
        InputError: some of the inputs were added before.
    """
    _refuse_known(online, inputs)
    totals = summed.sums.filter(pl.col("tier").is_null())
    episodes, successes = (int(totals[name].sum()) for name in ("episodes", "successes"))
    kept = kept_weight(episodes, online.half_life)
    sums = _joined(online.sums, weighted(summed.sums, online.measure), kept)
    tiers, found, gate_signs = _evidence(sums, online, config, gate, rng)
    # The measure's unit is in the sums already, as it is where the measure is presence.
    result = describe(lay_out(sums, "presence"), found, summed.excluded, config)
    signs = {tier: int(sign) for tier, sign in zip(tiers, gate_signs, strict=True) if sign}
    addition = Addition(
        dict(inputs),
        episodes,
        summed.excluded,
        totals.height,
        successes / episodes,
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
    sums: pl.DataFrame,
    before: Online,
    config: CalibrateConfig,
    gate: GateConfig,
    rng: np.random.Generator,
) -> tuple[list[str], Evidence, Floats]:
    """Return the tiers, what the sums (ONLINE) say of each, and the signs of their gates."""
    totals = sums.filter(pl.col("tier").is_null()).sort("task_id")
    tiers, xo = grid(sums, "xo_deviation")
    xx, variance = grid(sums, "xx_deviation")[1], grid(sums, "variance")[1]
    oo = np.broadcast_to(totals["oo_deviation"].to_numpy()[:, None], xx.shape)
    parts = np.stack([xo, xx, oo], axis=1)  # [T, 3, C]
    r = correlation(parts.sum(axis=0))
    low, high = correlation_interval(parts, config.resamples, rng)
    presence = before.measure == "presence"
    p = forgetting_p(xo.sum(axis=0), variance.sum(axis=0), 1.0 if presence else 0.0)
    p[np.isnan(r)] = np.nan
    weights, squares = (grid(sums, name)[1].sum(axis=0) for name in ("episodes", "squares"))
    everyone = [totals[name].to_numpy().sum(keepdims=True) for name in ("episodes", "squares")]
    support = effective_size(weights, squares)
    if presence:  # otherwise a tier may be in every episode, more or less often
        without = effective_size(everyone[0] - weights, everyone[1] - squares)
        support = np.minimum(support, without)
    was = np.array([before.signs.get(tier, 0) for tier in tiers], np.float64)
    signs = gates(was, r, p, support, config.delta, config.min_support, gate)
    episodes = float(effective_size(*everyone)[0])
    return tiers, Evidence("within", r, low, high, p, r, p, episodes, support, signs != 0), signs


def weighted(sums: pl.DataFrame, measure: str) -> pl.DataFrame:
    """Return the sums of new episodes (SUMS) with what forgetting needs besides (ONLINE)."""
    unit = UNITS[measure]
    total = pl.col("tier").is_null()
    by_task = sums.filter(total).select("task_id", n="episodes", s="successes")
    n, s, x = pl.col("n"), pl.col("s"), pl.col("x")
    # n * sum - sum * sum is exact on integers, so that a constant measure gives 0, not rounding.
    deviations = {
        "xo_deviation": (n * pl.col("xo") - x * s) / n / unit,
        "xx_deviation": (n * pl.col("xx") - x * x) / n / unit**2,
        "oo_deviation": s * (n - s) / n,
    }
    variance = pl.col("xx_deviation") * pl.col("oo_deviation") / pl.max_horizontal(n - 1, 1)
    return (
        sums.join(by_task, on="task_id")
        .with_columns(**deviations, squares="episodes")
        .with_columns(
            variance=variance,
            oo_deviation=pl.when(total).then("oo_deviation").otherwise(0.0),
            x=x / unit,
            xx=pl.col("xx") / unit**2,
            xo=pl.col("xo") / unit,
        )
        .select(pl.col(name).cast(to) for name, to in ONLINE.columns.items())
    )


def _joined(old: pl.DataFrame, new: pl.DataFrame, kept: float) -> pl.DataFrame:
    """Return the old sums, their weights multiplied by `kept`, and the new ones together."""
    sums = [name for name in ONLINE.columns if name not in ONLINE.key]
    weights = {name: kept**2 if name in _SQUARED else kept for name in sums}
    faded = old.with_columns(pl.col(name) * weight for name, weight in weights.items())
    total = pl.col("tier").is_null()
    dropped = faded.filter(total & (pl.col("episodes") < FORGOTTEN))["task_id"]
    both = pl.concat([faded.filter(~pl.col("task_id").is_in(dropped.implode())), new])
    # At most two rows a key, and a + b is b + a: the same bits in any order.
    return both.group_by(ONLINE.key).agg(pl.col(sums).sum()).sort(ONLINE.key)


def _moved(
    iteration: int, before: Mapping[str, int], after: Mapping[str, int], result: Calibration
) -> list[Event]:
    found = {tier.tier: tier for tier in result.tiers}
    events = []
    for tier in sorted({*before, *after}):
        was, is_now = before.get(tier, 0), after.get(tier, 0)
        if was != is_now:
            event = "closed" if not is_now else "turned" if was else "opened"
            now = found.get(tier)
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
    """Write the state, whole, in the place of the one before."""
    state = {
        "measure": online.measure,
        "half_life": online.half_life,
        "signs": online.signs,
        "additions": [addition._asdict() for addition in online.additions],
        "events": [event._asdict() for event in online.events],
    }
    write_table(ONLINE, online.sums, path, origin | {"online": state}, force=True)


def read_online(path: str) -> Online:
    """Read a state.

    Raises:
        InputError: the file is none.
    """
    state = made_by(path).get("online")
    if state is None:
        todo = "name a state of calibrate --online, or a new file"
        raise InputError(path, "not a state of online calibration", todo)
    return Online(
        measure=state["measure"],
        half_life=state["half_life"],
        sums=read_table(ONLINE, path),
        signs=state["signs"],
        additions=tuple(Addition(**addition) for addition in state["additions"]),
        events=tuple(Event(**event) for event in state["events"]),
    )
