"""Whose gradient points where the pass rate rises? Estimators compared without training.

Run as `python -m examples.study.gradients` (`make gradients`). A policy plays train tasks, and
its episodes are split into B batches of the size of a loop iteration. In batch b the estimator
under test, calibrated on that batch alone, has the gradient g[b]. REINFORCE with a leave-one-out
baseline (RLOO, arXiv 2402.14740) has s[b], an unbiased estimate of the gradient of the pass rate.
The mean rise of the pass rate per unit step along g is

    rise = mean of <g[b], s[c]> over b != c  /  sqrt(mean of |g[b]|^2)

and `agreement` is rise / |E s|, with |E s|^2 the mean of <s[b], s[c]> over b != c: 1 if g were the
true gradient. AdamW scales the step of each weight separately. So `adamw` divides each weight's g
by its own root mean square over the batches. Errors are jackknife standard errors over batches.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as List
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import orjson
import polars as pl
import torch
import yaml

from examples.study.runs import TimeBudget, call
from stages.calibrate import calibrate
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.sums import lay_out, sum_turns
from stages.core.advantages import AdvantageConfig
from stages.core.payment import Values
from stages.loop import as_args
from stages.policy_registry import SEED_POLICY
from stages.tables.artifacts import TURNS
from stages.tables.files import whole_file
from stages.tables.table_file import read_table
from stages.tables.turn_arrays import (
    fitted_critic,
    tier_rewards,
    turn_advantages,
    turn_arrays,
    turn_rewards,
)
from stages.training.batches import Pack
from stages.training.inputs import read_rollouts
from stages.training.model import learner, load_model
from stages.training.packing import packs
from stages.training.sequences import Example, TokenSequence, sequences

HERE = Path(__file__).parent
TIERS = "extended"  # the default of `irc-cli score`
RLOO = "RLOO"  # name of the reference
PACK_TOKENS = 16_384
RESAMPLES = 100  # for intervals, which are not used here

Floats: TypeAlias = npt.NDArray[np.float64]
Gradients: TypeAlias = npt.NDArray[np.float32]  # [B, P]: of B batches, by P weights
Weights: TypeAlias = Mapping[tuple[str, int], float]  # of each turn, by its episode and number


class PlayedBatches(NamedTuple):
    """Episodes of one policy, in batches."""

    model: str
    episodes: dict[str, list[Example]]
    turns: dict[str, pl.DataFrame]  # TURNS by the tiers they were scored with
    batches: list[list[str]]  # groups of each


def play(study: Mapping[str, Any], model: str, folder: Path) -> PlayedBatches:
    """Roll out and score, unless that was done."""
    folder.mkdir(parents=True, exist_ok=True)
    rollouts = folder / "rollouts.jsonl"
    if not rollouts.exists():
        options = study["rollout"] | {"env": "airline-mini", "split": "train", "model": model}
        call(["rollout", *as_args(options), "--out", str(rollouts), "--resume"], TimeBudget(None))
    turns = {}
    for tiers in {TIERS} | {told.get("tiers", TIERS) for told in study["estimators"].values()}:
        path = folder / f"turns-{tiers}.parquet"
        if not path.exists():
            call(["score", str(rollouts), "--tiers", tiers, "--out", str(path)], TimeBudget(None))
        turns[tiers] = read_table(TURNS, str(path))
    episodes: dict[str, list[Example]] = {}
    for sequence in sequences(read_rollouts(str(rollouts)).tokens):
        episodes.setdefault(sequence.episode_id, []).append(example_of(sequence))
    groups, size = turns[TIERS]["group_id"].unique(maintain_order=True).to_list(), study["batch"]
    starts = range(0, len(groups) - size + 1, size)
    return PlayedBatches(model, episodes, turns, [groups[at : at + size] for at in starts])


def example_of(sequence: TokenSequence) -> Example:
    """Return a sequence as what a model learns from; who weighs its tokens comes later."""
    n = int(sequence.written.sum())
    return Example(sequence, np.zeros(n, "f4"), np.zeros(n, "i4"), np.ones(n, "f4"))


def weights_of(turns: pl.DataFrame, told: Mapping[str, Any]) -> Weights:
    """Return the advantages that an estimator of gradients.yaml gives to the turns of a batch."""
    arrays = turn_arrays(turns)
    values = calibrated(turns, told) if told.get("rewards") == "calibrated" else Values({})
    config = AdvantageConfig(
        told["advantage"],
        told.get("gamma", AdvantageConfig.gamma),
        told.get("lambda", AdvantageConfig.outcome_weight),
        told.get("normalise", AdvantageConfig.normalise),
        gae_lambda=told.get("gae-lambda", AdvantageConfig.gae_lambda),
    )
    if told["advantage"] == "potential":
        values = Values(values, critic=fitted_critic(arrays))
    reward = turn_rewards(arrays, values, config)
    if told.get("rewards") == "naive":
        reward = arrays.frame["reward"].to_numpy()
    advantage = turn_advantages(arrays, reward, config).advantage
    if told.get("only-valued"):
        advantage = advantage * (tier_rewards(arrays, Values(values, "turn")) != 0)
    keys = arrays.frame.select("episode_id", "turn").iter_rows()
    return dict(zip(keys, advantage.tolist(), strict=True))


def calibrated(turns: pl.DataFrame, told: Mapping[str, Any]) -> Values:
    """Return what calibration on these turns alone says that the tiers are worth."""
    measure = told.get("measure", CalibrateConfig.measure)
    correlation = told.get("correlation", CalibrateConfig.correlation)
    pay = told.get("pay", CalibrateConfig.pay)
    settings = CalibrateConfig(measure, correlation, resamples=RESAMPLES, pay=pay)
    sums = lay_out(sum_turns(turns.lazy(), measure, "a batch").sums, measure)
    return calibrate(sums, 0, settings, np.random.default_rng(0)).values()


def reinforce(turns: pl.DataFrame) -> Weights:
    """Return each turn's outcome against the mean of the other episodes of its group."""
    outcome, group = pl.col("outcome"), "group_id"
    others = (outcome.sum().over(group) - outcome) / (pl.len().over(group) - 1)
    first = turns.filter(pl.col("turn") == 0).select("episode_id", outcome - others)
    by_episode = dict(first.iter_rows())
    keys = turns.select("episode_id", "turn").iter_rows()
    return {(episode, turn): by_episode[episode] for episode, turn in keys}


def measured(study: Mapping[str, Any], played: PlayedBatches, folder: Path) -> dict[str, Gradients]:
    """Return the gradients of RLOO and all estimators, each [B, P]; what is on disk is read."""
    model = learner(load_model(played.model)[0]).eval()
    rows_by_name: dict[str, list[npt.NDArray[np.float32]]] = {}
    for number, groups in enumerate(played.batches):
        path = folder / f"gradients-{number:02d}.npz"
        known = dict(np.load(path)) if path.exists() else {}
        mine = {
            tiers: turns.filter(pl.col("group_id").is_in(groups))
            for tiers, turns in played.turns.items()
        }
        lacking = {
            name: weights_of(mine[told.get("tiers", TIERS)], told)
            for name, told in study["estimators"].items()
            if name not in known
        }
        if RLOO not in known:
            lacking[RLOO] = reinforce(mine[TIERS])
        if lacking:
            ids = mine[TIERS]["episode_id"].unique(maintain_order=True)
            examples = [example for episode in ids for example in played.episodes[episode]]
            known |= dict(
                zip(lacking, gradients(model, examples, [*lacking.values()]), strict=True)
            )
            with whole_file(str(path), force=True) as file:
                np.savez(file, **known)
        for name in (RLOO, *study["estimators"]):
            rows_by_name.setdefault(name, []).append(known[name])
    return {name: np.stack(rows) for name, rows in rows_by_name.items()}


def gradients(
    model: Any, examples: List[Example], weights: List[Weights]
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the gradient [P] of the mean weighted log-probability, for each set of weights."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    totals = [torch.zeros(sum(parameter.numel() for parameter in parameters)) for _ in weights]
    n_tokens = sum(len(example.at) for example in examples)
    for chosen in packs([len(example.sequence) for example in examples], PACK_TOKENS):
        batch = [examples[place] for place in chosen]
        logprobs = model(*Pack.of(batch, torch.device("cpu"))).logprobs
        keys = [
            (example.sequence.episode_id, turn)
            for example in batch
            for turn in example.sequence.turn[example.sequence.written].tolist()
        ]
        for total, weight in zip(totals, weights, strict=True):
            each = torch.tensor([weight[key] for key in keys]) / n_tokens
            parts = torch.autograd.grad((each * logprobs).sum(), parameters, retain_graph=True)
            total += torch.cat([part.flatten() for part in parts])
    yield from (total.numpy() for total in totals)


def rises(g: Gradients, s: Gradients) -> Floats:
    """Return how fast a step of length 1 along g makes the pass rate rise: SGD's, and AdamW's."""
    n = len(g)
    along = (g.sum(axis=0) * s.sum(axis=0) - (g * s).sum(axis=0)) / (n * (n - 1))  # [P]
    size = (g * g).mean(axis=0)
    live = size > 0
    adamw = (along[live] / np.sqrt(size[live])).sum()
    return np.array([along.sum() / np.sqrt(size.sum()), adamw], np.float64)


def length(s: Gradients) -> float:
    """Return |E s|, without the part that noise adds."""
    n = len(s)
    return float(np.sqrt((s.sum(axis=0) ** 2 - (s * s).sum(axis=0)).sum() / (n * (n - 1))))


def compared(by_estimator: Mapping[str, Gradients]) -> list[dict[str, Any]]:
    """Hold each estimator against the reference, and against the first estimator."""
    s, first = by_estimator[RLOO], next(name for name in by_estimator if name != RLOO)
    every = np.arange(len(s))
    kept = [every, *(np.delete(every, batch) for batch in every)]  # all, then each left out
    truth = np.array([length(s[keep]) for keep in kept])
    risen = {
        name: np.array([rises(g[keep], s[keep]) for keep in kept])
        for name, g in by_estimator.items()
    }
    rows = []
    for name, mine in risen.items():
        against = mine / risen[first]
        row: dict[str, Any] = {"estimator": name, "batches": len(s)}
        for key, values in (
            ("agreement", mine[:, 0] / truth),
            ("sgd", against[:, 0]),
            ("adamw", against[:, 1]),
        ):
            error = np.sqrt((len(s) - 1) * values[1:].var())
            row |= {key: float(values[0]), f"{key}_error": float(error)}
        rows.append(row)
    return rows


def table(rows: List[Mapping[str, Any]]) -> str:
    """Return rows of one policy as a table, steps in percent of the first estimator's."""
    lines = ["| estimator | agreement | SGD, % | AdamW, % |", "| --- | --- | --- | --- |"]
    for row in rows:
        shares = (
            f"{100 * row[key]:.0f} +- {100 * row[f'{key}_error']:.0f}" for key in ("sgd", "adamw")
        )
        agrees = f"{row['agreement']:.2f} +- {row['agreement_error']:.2f}"
        lines.append(f"| {row['estimator']} | {agrees} | {' | '.join(shares)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=SEED_POLICY, metavar="DIR", help="else the seed policy")
    parser.add_argument(
        "--out", type=Path, default=Path("out/gradients"), help="one for each model"
    )
    parser.add_argument("--docs", type=Path, default=Path("docs/study"))
    given = parser.parse_args()
    study = yaml.safe_load((HERE / "gradients.yaml").read_bytes())
    rows = compared(measured(study, play(study, given.model, given.out), given.out))
    given.docs.mkdir(parents=True, exist_ok=True)
    (given.docs / "gradients.md").write_text(table(rows))
    lines = (orjson.dumps(row) + b"\n" for row in rows)
    (given.docs / "gradients.jsonl").write_bytes(b"".join(lines))


if __name__ == "__main__":
    main()
