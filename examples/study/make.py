"""Make the study: every arm from the same seed policy, at the best of several learning rates.

Run as `python -m examples.study.make` (`make study`). What is done is skipped and what was cut off
goes on, so that a study may take its hours in pieces: `--budget` minutes end it with the figures
known so far. All arms run with all seeds at the middle learning rate; the other rates are tried
with the first seed, and an arm that does better on dev with one of them runs its seeds with that.
Controls stay at the middle rate, and are held against their arm there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from examples.study.report import middle, write_report
from examples.study.runs import Study, TimeBudget, TrainingRun, align, measure, played, references

HERE = Path(__file__).parent


def make(study: Study, out: Path, docs: Path, budget: TimeBudget, jobs: int) -> None:
    """Run what the budget allows, widest first, and write what is known."""
    out.mkdir(parents=True, exist_ok=True)
    limits = (out, budget, jobs)
    arms, seeds = study["arms"], study["seeds"]
    usual = middle(study)
    naive = TrainingRun(study["align"], usual, seeds[0])
    measure(study, [naive], "test", *limits)
    wrong = align(naive, out)
    first = study["compared"]
    for some in (first, [arm for arm in arms if arm not in first]):
        measure(
            study,
            [TrainingRun(arm, usual, seed) for seed in seeds for arm in some],
            "test",
            *limits,
        )
    tries = [arm for arm, told in arms.items() if not told.get("control")]
    rates = sorted(study["learning_rates"], key=lambda lr: lr != usual)
    tried = [TrainingRun(arm, lr, seeds[0]) for lr in rates for arm in tries]
    measure(study, tried, "dev", *limits)
    chosen = [TrainingRun(arm, best(study, arm, out), seeds[0]) for arm in arms]
    runs = [run._replace(seed=seed) for seed in seeds for run in chosen]
    measure(study, runs, "test", *limits)
    write_report(study, chosen, references(study, out, budget), wrong, out, docs)


def best(study: Study, arm: str, out: Path) -> float:
    """Return the learning rate of an arm that does best on dev; the middle, until all are known."""
    if study["arms"][arm].get("control"):
        return middle(study)
    runs = [TrainingRun(arm, lr, study["seeds"][0]) for lr in study["learning_rates"]]
    known = [
        (result["pass_rate"], run.lr) for run in runs if (result := played(study, run, "dev", out))
    ]
    return max(known)[1] if len(known) == len(runs) else middle(study)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=Path, default=HERE / "arms.yaml")
    parser.add_argument("--out", type=Path, default=Path("out/study"))
    parser.add_argument("--docs", type=Path, default=Path("docs/study"))
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="else all that it takes")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, a core each")
    given = parser.parse_args()
    study = yaml.safe_load(given.arms.read_bytes())
    make(study, given.out, given.docs, TimeBudget(given.budget), given.jobs)
    sys.stderr.write(f"the table and the raw figures lie in {given.docs}\n")


if __name__ == "__main__":
    main()
