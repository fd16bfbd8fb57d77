"""Run the study: train every arm from the seed policy and compare the arms.

Run as `python -m examples.study.make` (`make study`). First each arm tries all learning rates on
the dev split, with seeds that are used for nothing else. Then the arms of the named comparisons run
on the test split at their rates, seed by seed; the other arms come last.

Finished runs are skipped, including those in the record in `--docs`. Interrupted runs resume. So a
study can be split: `--budget` stops it after so many minutes and reports what is known.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

import yaml

from examples.study.report import RECORD, write_report
from examples.study.runs import Study, TimeBudget, TrainingRun, measure, played, references, restore

HERE = Path(__file__).parent


def make(study: Study, out: Path, docs: Path, budget: TimeBudget, jobs: int) -> None:
    """Run what the budget allows and write the report."""
    out.mkdir(parents=True, exist_ok=True)
    restore(study, docs / RECORD, out)
    limits = (out, budget, jobs)
    tries = [arm for arm, told in study["arms"].items() if "rate_of" not in told]
    measure(study, rate_runs(study, tries), "dev", *limits)
    rates = {arm: best_rate(study, arm, out) for arm in study["arms"]}
    if None not in rates.values():
        measure(study, test_runs(study, rates), "test", *limits)
    write_report(study, rates, references(study, out, budget), out, docs)


def rate_runs(study: Study, arms: list[str]) -> list[TrainingRun]:
    """Return the runs that choose the learning rates: every rate with every rate seed."""
    rates, seeds = study["learning_rates"], study["rate_seeds"]
    return [TrainingRun(arm, lr, seed) for seed in seeds for lr in rates for arm in arms]


def best_rate(study: Study, arm: str, out: Path) -> float | None:
    """Return the rate with the best mean pass rate on dev; None until all runs are known."""
    arm = study["arms"][arm].get("rate_of", arm)
    by_rate: dict[float, list[float]] = {}
    for run in rate_runs(study, [arm]):
        told = played(study, run, "dev", out)
        if told is None:
            return None
        by_rate.setdefault(run.lr, []).append(told["pass_rate"])
    return max(by_rate, key=lambda lr: mean(by_rate[lr]))


def test_runs(study: Study, rates: dict[str, float | None]) -> list[TrainingRun]:
    """Return the test runs of all arms, seed by seed, starting with the compared arms."""
    compared = {arm for pair in study["comparisons"] for arm in pair}
    runs = []
    for group in (compared, study["arms"].keys() - compared):
        for number, seed in enumerate(study["seeds"]):
            for arm, told in study["arms"].items():
                lr = rates[arm]
                if arm in group and lr is not None and number < told.get("seeds", number + 1):
                    runs.append(TrainingRun(arm, lr, seed))
    return runs


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=Path, default=HERE / "arms.yaml")
    parser.add_argument("--out", type=Path, default=Path("out/study"))
    parser.add_argument("--docs", type=Path, default=Path("docs/study"))
    parser.add_argument("--budget", type=float, metavar="MINUTES", help="default: no limit")
    parser.add_argument("--jobs", type=int, default=2, help="parallel runs, one core each")
    given = parser.parse_args()
    study = yaml.safe_load(given.arms.read_bytes())
    make(study, given.out, given.docs, TimeBudget(given.budget), given.jobs)
    sys.stderr.write(f"tables and raw figures are in {given.docs}\n")


if __name__ == "__main__":
    main()
