"""The report of the study: tables, the record of all runs, and a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import orjson
from scipy import stats

from examples.study.runs import Study, TrainingRun, learning_curve, played
from stages.plots import arms_figure, write_figure

RECORD = "runs.jsonl"
LEVEL = 0.95  # of all intervals
HEAD = (
    "| arm | rate | seeds | test pass rate | gain | area | turns | gold writes | forbidden |",
    "| --- " * 9 + "|",
)
COMPARISONS = (
    "| comparison | seeds | at the end | p | Holm's p | area | p | Holm's p |",
    "| --- " * 8 + "|",
)
Results = Sequence[Mapping[str, Any]]
Rates = Mapping[str, float | None]


class MeanDifference(NamedTuple):
    """The difference of two means with its interval and p-value."""

    mean: float
    low: float
    high: float
    p: float

    def __str__(self) -> str:
        low, high = 100 * self.low, 100 * self.high
        return f"{100 * self.mean:+.1f} ({low:+.1f} to {high:+.1f})"


def write_report(
    study: Study, rates: Rates, references: Mapping[str, Mapping[str, Any]], out: Path, docs: Path
) -> None:
    """Write `table.md`, `runs.jsonl` and the figure `arms` from the finished runs.

    Args:
        study: arms.yaml.
        rates: learning rate of each arm; None if not chosen yet.
        references: test results of policies that are not trained here.
        out: folder of the runs.
        docs: folder to write to.
    """
    docs.mkdir(parents=True, exist_ok=True)
    start = references.get("seed policy", {}).get("pass_rate")
    lines = [*COMPARISONS, *_comparisons(study, rates, out), "", *HEAD]
    lines += [_line(name, None, [known], [], None) for name, known in references.items()]
    tests = {arm: tested(study, arm, lr, out) for arm, lr in rates.items()}
    tests = {arm: runs for arm, runs in tests.items() if runs}
    for arm, runs in tests.items():
        results = [played(study, run, "test", out) or {} for run in runs]
        lines.append(_line(arm, rates[arm], results, [area(run, out) for run in runs], start))
    lines += ["", "Mean pass rate on dev of the seeds that choose the rate:", ""]
    lines += _dev_rates(study, out)
    (docs / "table.md").write_text("\n".join(lines) + "\n")
    (docs / RECORD).write_bytes(b"".join(_raw(study, rates, out)))
    by_arm = {arm: _ends(study, runs, out) for arm, runs in tests.items()}
    if by_arm:
        write_figure(arms_figure(by_arm, start), str(docs / "arms"), force=True)


def welch(higher: Sequence[float], lower: Sequence[float]) -> MeanDifference:
    """Compare two means of independent runs.

    Args:
        higher: a figure of each run of one arm, at least two.
        lower: ... and of the other arm.

    Returns:
        The difference of the means, its t interval and the two-sided p, without the assumption of
        equal variances.

    Source: Welch (1947), Biometrika 34(1-2), 28-35.
    """
    return _difference(stats.ttest_ind(higher, lower, equal_var=False), higher, lower)


def paired(higher: Sequence[float], lower: Sequence[float]) -> MeanDifference:
    """Compare two means of paired runs.

    Args:
        higher: a figure of each run of one arm, at least two.
        lower: ... and of the other arm's run with the same seed.

    Returns:
        The mean of the differences, its t interval and the two-sided p.

    Source: Student (1908), Biometrika 6(1), 1-25, section IX.
    """
    return _difference(stats.ttest_rel(higher, lower), higher, lower)


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values for multiple tests, controlling the family-wise error rate.

    Args:
        p: of each test.

    Returns:
        Adjusted p-values: the lowest level at which Holm's procedure rejects each test.

    Source: Holm (1979), Scand. J. Statist. 6(2), 65-70.
    """
    order = sorted(range(len(p)), key=p.__getitem__)
    corrected, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min((len(p) - rank) * p[place], 1.0))
        corrected[place] = largest
    return corrected


def _difference(test: Any, higher: Sequence[float], lower: Sequence[float]) -> MeanDifference:
    """Return the result of a t test of scipy."""
    interval = test.confidence_interval(LEVEL)
    difference = mean(higher) - mean(lower)
    return MeanDifference(difference, float(interval.low), float(interval.high), float(test.pvalue))


def half_interval(figures: Sequence[float]) -> float:
    """Return half the t interval of the mean."""
    error = stdev(figures) / sqrt(len(figures))
    return float(stats.t.ppf((1 + LEVEL) / 2, len(figures) - 1) * error)


def area(run: TrainingRun, out: Path) -> float:
    """Return the area under a run's learning curve: its mean from the second iteration on."""
    return mean(learning_curve(run, out)[1:])


def tested(study: Study, arm: str, lr: float | None, out: Path) -> list[TrainingRun]:
    """Return the runs of an arm that have a test result."""
    runs = [TrainingRun(arm, lr, seed) for seed in study["seeds"] if lr is not None]
    return [run for run in runs if played(study, run, "test", out)]


def p_value(p: float) -> str:
    """Format a p-value."""
    return "< .001" if p < 0.001 else f"{p:.3f}"


def _comparisons(study: Study, rates: Rates, out: Path) -> list[str]:
    """Return a line for each comparison in arms.yaml."""
    pairs = [[tested(study, arm, rates[arm], out) for arm in pair] for pair in study["comparisons"]]
    ends = [_compared_ends(study, runs, out) for runs in pairs]
    areas = [_compared_areas(runs, out) for runs in pairs]
    lines = []
    for pair, runs, *cells in zip(
        study["comparisons"], pairs, _cells(ends), _cells(areas), strict=True
    ):
        seeds = " and ".join(str(len(of_arm)) for of_arm in runs)
        lines.append(f"| {pair[0]} against {pair[1]} | {seeds} | {' | '.join(cells)} |")
    return lines


def _compared_ends(
    study: Study, pair: Sequence[Sequence[TrainingRun]], out: Path
) -> MeanDifference | None:
    """Compare the test pass rates of two arms; None with fewer than two runs."""
    ends = [_ends(study, runs, out) for runs in pair]
    return welch(*ends) if min(map(len, ends)) > 1 else None


def _compared_areas(pair: Sequence[Sequence[TrainingRun]], out: Path) -> MeanDifference | None:
    """Compare the areas of runs with the same seed, which share their train tasks."""
    first, second = ({run.seed: area(run, out) for run in runs} for runs in pair)
    both = first.keys() & second.keys()
    if len(both) < 2:
        return None
    return paired([first[seed] for seed in both], [second[seed] for seed in both])


def _cells(differences: Sequence[MeanDifference | None]) -> list[str]:
    """Return three cells for each comparison: the difference, its p, and Holm's."""
    corrected = iter(holm([difference.p for difference in differences if difference]))
    return [
        f"{each} | {p_value(each.p)} | {p_value(next(corrected))}" if each else "- | - | -"
        for each in differences
    ]


def _ends(study: Study, runs: Sequence[TrainingRun], out: Path) -> list[float]:
    """Return the test pass rates of runs."""
    told = (played(study, run, "test", out) for run in runs)
    return [result["pass_rate"] for result in told if result]


def _line(
    name: str, lr: float | None, known: Results, areas: Sequence[float], start: float | None
) -> str:
    rates = [result["pass_rate"] for result in known]
    end = _mean(rates) if len(rates) > 1 else _single(rates[0], known[0]["episodes"])
    gain = "" if start is None else f"{100 * (mean(rates) - start):+.1f}"
    rate, seeds = ("", "") if lr is None else (f"{lr:g}", str(len(rates)))
    turns, writes = (
        mean(result[key] for result in known) for key in ("turns_per_episode", "write_accuracy")
    )
    forbidden = mean(result["pressure"]["forbidden_share"] for result in known)
    under = _mean(areas) if areas else ""
    shown = f"{turns:.1f} | {writes:.0%} | {forbidden:.0%}"
    return f"| {name} | {rate} | {seeds} | {end} | {gain} | {under} | {shown} |"


def _mean(figures: Sequence[float]) -> str:
    if len(figures) == 1:
        return f"{figures[0]:.1%}"
    return f"{mean(figures):.1%} +- {100 * half_interval(figures):.1f}"


def _single(rate: float, episodes: int) -> str:
    """Format one run's pass rate with its sampling interval."""
    half = stats.norm.ppf((1 + LEVEL) / 2) * sqrt(rate * (1 - rate) / episodes)
    return f"{rate:.1%} +- {100 * half:.1f}"


def _dev_rates(study: Study, out: Path) -> list[str]:
    rates = sorted(study["learning_rates"])
    lines = [
        f"| arm | {' | '.join(f'{lr:g}' for lr in rates)} |",
        "| --- " * (len(rates) + 1) + "|",
    ]
    for arm in (arm for arm, told in study["arms"].items() if "rate_of" not in told):
        cells = []
        for lr in rates:
            runs = (TrainingRun(arm, lr, seed) for seed in study["rate_seeds"])
            known = [told["pass_rate"] for run in runs if (told := played(study, run, "dev", out))]
            cells.append(f"{mean(known):.1%}" if known else "-")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return lines


def _raw(study: Study, rates: Rates, out: Path) -> list[bytes]:
    """Return a line for each measured run, without local paths."""
    splits = (("dev", study["rate_seeds"]), ("test", study["seeds"]))
    runs = (
        (split, TrainingRun(arm, lr, seed))
        for arm in rates
        for split, seeds in splits
        for lr in study["learning_rates"]
        for seed in seeds
    )
    lines = []
    for split, run in runs:
        if told := played(study, run, split, out):
            figures = {key: value for key, value in told.items() if key != "made_by"}
            curve = {"learning_curve": learning_curve(run, out)}
            lines.append(orjson.dumps(run._asdict() | {"split": split} | curve | figures) + b"\n")
    return lines
