"""Matplotlib figures of calibrations and loops; needs the extra `plot`.

Figures are readable without colour, by markers, hatching and direct labels. The same results give
the same bytes.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from stages.calibration.estimate import Calibration, chosen_r
from stages.calibration.online import Event
from stages.check import CheckResult, Direction
from stages.core.printable import printable
from stages.tables.files import whole_file

FORMATS = ("png", "svg")
WIDTH, ROW = 8.0, 0.32  # inches; width of a figure, and height of a tier's row
DPI = 120
DARK, MIDDLE, LIGHT = "#1b1b1b", "#8fb0d3", "#f0f3f7"
MARKERS = "osD^vPX*<>"
LONGEST = 60  # most characters of a name
BEFORE, AFTER = "rewards as scored", "calibrated values"


class RateInterval(NamedTuple):
    """A pass rate with its interval."""

    rate: float
    low: float
    high: float


def calibration_figures(
    calibration: Calibration, judged: tuple[CheckResult, CheckResult] | None
) -> dict[str, Figure]:
    """Return the figures of a calibration by name.

    Args:
        calibration: the calibration.
        judged: the checks of the rewards as scored and the calibrated ones; None: only the figure
            of the tiers is drawn.

    Returns:
        Figures by name.
    """
    figures = {"tiers": tiers_figure(calibration)}
    if judged:
        figures["advantages"] = advantages_figure(*judged)
        figures["gradient-mass"] = gradient_mass_figure(*judged)
    return figures


def tiers_figure(calibration: Calibration) -> Figure:
    """Draw a forest plot: each tier's correlation with the outcome, and its 95 % interval."""
    known = {tier: chosen_r(tier, calibration) for tier in calibration.tiers}
    tiers = sorted(calibration.tiers, key=lambda t: (known[t] is not None, known[t] or 0.0))
    figure, axes = _rows([tier.tier for tier in tiers])
    axes.axvline(0, color=DARK, linewidth=0.8)
    for y, tier in enumerate(tiers):
        r = known[tier]
        note = f"value {tier.value:+.2f}" if tier.value else tier.status
        axes.annotate(
            note, (1, y), (4, 0), ("axes fraction", "data"), textcoords="offset points", va="center"
        )
        if r is None:
            continue
        if tier.ci_low is not None and tier.ci_high is not None:
            axes.plot([tier.ci_low, tier.ci_high], [y, y], color=DARK, linewidth=1.5)
        inside = DARK if tier.status == "discriminative" else "white"
        axes.plot(r, y, "o", markeredgecolor=DARK, markerfacecolor=inside)
    axes.set_xlim(-1, 1)
    name = "r within tasks" if calibration.correlation == "within" else "r pooled"
    name = f"excess of {name}" if calibration.adjust == "length" else name
    axes.set_xlabel(f"{name}, with its 95 % interval; filled: tells success from failure")
    axes.set_title(f"{calibration.episodes:,} episodes of {calibration.tasks:,} tasks", loc="left")
    return figure


def advantages_figure(before: CheckResult, after: CheckResult) -> Figure:
    """Draw the mean advantage of each tier with its interval and its two parts."""
    names = [row.tier for row in reversed(before.direction)]
    figure = Figure((WIDTH * 1.25, 1.4 + 1.4 * ROW * len(names)), DPI, layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, judgement, title in zip(panels, (before, after), (BEFORE, AFTER), strict=True):
        axes.axvline(0, color=DARK, linewidth=0.8)
        for y, row in enumerate(reversed(judgement.direction)):
            _advantage_row(axes, y, row)
        axes.set_title(title, loc="left")
        axes.set_xlabel("mean advantage")
        _plain(axes)
    panels[0].set_yticks(range(len(names)), map(_label, names))
    handles, labels = panels[1].get_legend_handles_labels()
    kinds = dict(zip(labels, handles, strict=True))  # each label once
    figure.legend(kinds.values(), kinds.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _advantage_row(axes: Axes, y: float, row: Direction) -> None:
    for at, part, colour, hatch, label in (
        (y + 0.16, row.return_part, MIDDLE, None, "return part"),
        (y - 0.16, row.outcome_part, LIGHT, "////", "outcome part"),
    ):
        if part is not None:
            (bar,) = axes.barh(at, part, 0.3, color=colour, edgecolor=DARK, label=label)
            bar.set(hatch=hatch, linewidth=0.6)
    if row.mean_advantage is None:
        return
    if row.ci_low is not None and row.ci_high is not None:
        axes.plot([row.ci_low, row.ci_high], [y, y], color=DARK, linewidth=1.2)
    marker, size, label = "D", 4, "together, 95 % interval"
    if row.verdict == "misaligned":
        marker, size, label = "X", 8, "misaligned"
    axes.plot(row.mean_advantage, y, marker, color=DARK, markersize=size, label=label)


def gradient_mass_figure(before: CheckResult, after: CheckResult) -> Figure:
    """Draw each tier's share of the gradient mass, the sum of |A| x tokens."""
    names = sorted(after.gradient_mass, key=lambda tier: after.gradient_mass[tier] or 0.0)
    figure, axes = _rows(names, height=1.4)
    sides = ((0.2, before, BEFORE, "white", "////"), (-0.2, after, AFTER, MIDDLE, None))
    for shift, judgement, label, colour, hatch in sides:
        mass = [judgement.gradient_mass[name] or 0.0 for name in names]
        bars = axes.barh(
            [y + shift for y in range(len(names))],
            mass,
            0.38,
            color=colour,
            edgecolor=DARK,
            linewidth=0.6,
            hatch=hatch,
            label=label,
        )
        axes.bar_label(bars, [f"{share:.0%}" for share in mass], padding=3, fontsize=8)
    axes.set_xlim(0, None)
    axes.margins(x=0.1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("share of the gradient mass")
    axes.legend(loc="lower right", frameon=False)
    return figure


def values_figure(values: Sequence[Mapping[str, float]], first: int = 0) -> Figure:
    """Draw the tiers' values by iteration; a missing tier is worth 0."""
    names = sorted({name for iteration in values for name in iteration})
    valued = [name for name in names if any(iteration.get(name) for iteration in values)]
    figure, axes = _iterations(len(values), first)
    axes.axhline(0, color=DARK, linewidth=0.8)
    ends = {}
    for number, name in enumerate(valued):
        line = [iteration.get(name, 0.0) for iteration in values]
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(range(first, first + len(line)), line, marker=marker, color=DARK, linewidth=1)
        ends[f"{_label(name)} {line[-1]:+.2f}"] = line[-1]
    _label_ends(axes, ends, first + len(values) - 1, gap=0.11)
    axes.set_ylim(-1.15, 1.15)
    axes.set_ylabel("value of a tier")
    if silent := [_label(name) for name in names if name not in valued]:
        axes.set_title(f"always 0: {', '.join(silent)}", loc="left", fontsize=8, wrap=True)
    return figure


def pass_rate_figure(rates: Mapping[str, Sequence[RateInterval | None]], first: int = 0) -> Figure:
    """Draw pass rates with their intervals, by iteration.

    Args:
        rates: pass rates of each split or arm, by name; None: not measured in this iteration.
        first: number of the first iteration.

    Returns:
        The figure.
    """
    figure, axes = _iterations(max(map(len, rates.values())), first)
    ends, last = {}, first
    for number, (name, series) in enumerate(rates.items()):
        shift = 0.08 * (number - (len(rates) - 1) / 2)  # places intervals side by side
        measured = [
            (first + i, measured_rate)
            for i, measured_rate in enumerate(series)
            if measured_rate is not None
        ]
        if not measured:
            continue
        axes.errorbar(
            [i + shift for i, _ in measured],
            [measured_rate.rate for _, measured_rate in measured],
            [
                [measured_rate.rate - measured_rate.low for _, measured_rate in measured],
                [measured_rate.high - measured_rate.rate for _, measured_rate in measured],
            ],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=("-", "--", ":", "-.")[number % 4],
            color=DARK,
            linewidth=1,
            capsize=3,
        )
        last, end = max(last, measured[-1][0]), measured[-1][1].rate
        ends[f"{_label(name)} {end:.1%}"] = end
    axes.set_ylim(0, 1)
    _label_ends(axes, ends, last, gap=0.05)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_ylabel("pass rate, 95 % interval")
    return figure


def arms_figure(rates: Mapping[str, Sequence[float]], start: float | None) -> Figure:
    """Draw the pass rate of every run of each arm, and the arm's mean.

    Args:
        rates: pass rates of the runs, by arm.
        start: pass rate of the common starting policy; None: unknown.

    Returns:
        The figure.
    """
    figure, axes = _rows(list(rates)[::-1])
    if start is not None:
        axes.axvline(start, color=DARK, linewidth=0.8, linestyle="--")
    for y, name in enumerate(list(rates)[::-1]):
        runs = rates[name]
        middle = sum(runs) / len(runs)
        axes.plot(runs, [y] * len(runs), "o", markeredgecolor=DARK, markerfacecolor="white")
        axes.plot(middle, y, "|", color=DARK, markersize=16, markeredgewidth=2)
        axes.annotate(
            f"{middle:.1%}",
            (1, y),
            (4, 0),
            ("axes fraction", "data"),
            textcoords="offset points",
            va="center",
        )
    axes.set_xlim(0, None)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("test pass rate; circles: runs; bar: their mean; dashed: before training")
    return figure


def gates_figure(events: Sequence[Event], iterations: int) -> Figure:
    """Draw when each tier's gate was open: solid for positive values, hatched for negative ones."""
    names = sorted({event.tier for event in events}, reverse=True)
    figure, axes = _rows(names)
    for y, name in enumerate(names):
        since: Event | None = None
        closing = Event(iterations + 1, name, "closed", None, None)
        for event in [*(event for event in events if event.tier == name), closing]:
            if since is not None:
                up = (since.r or 0) > 0
                start, end = since.iteration - 0.5, event.iteration - 0.5
                colour, hatch = (MIDDLE, None) if up else ("white", "////")
                axes.barh(y, end - start, 0.6, start, color=colour, hatch=hatch, edgecolor=DARK)
                axes.annotate(
                    "+" if up else "\N{MINUS SIGN}",
                    ((start + end) / 2, y),
                    ha="center",
                    va="center",
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "linewidth": 0},
                )
            since = event if event.event != "closed" else None
    axes.set_xlim(0.5, iterations + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("iteration; solid: open, worth more than 0; hatched: open, worth less")
    return figure


def write_figure(figure: Figure, stem: str, *, force: bool) -> None:
    """Write a figure as STEM.png and STEM.svg, without dates and versions."""
    for name in FORMATS:
        metadata = {"Software": None} if name == "png" else {"Date": None, "Creator": None}
        with (
            matplotlib.rc_context({"svg.hashsalt": "irc-cli"}),
            warnings.catch_warnings(),
            whole_file(f"{stem}.{name}", force=force) as file,
        ):
            warnings.simplefilter("ignore")  # about characters that the font lacks
            figure.savefig(file, format=name, metadata=metadata)


def _label(name: str) -> str:
    """Return a name for matplotlib: printable, shortened, and with escaped dollar signs."""
    shown = printable(name)
    shown = shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 3]}..."
    return shown.replace("$", r"\$")


def _rows(names: Sequence[str], height: float = 1.0) -> tuple[Figure, Axes]:
    """Return a figure with a row for each name, the first one at the bottom."""
    size = (WIDTH, 1.2 + height * ROW * max(len(names), 1))
    figure = Figure(size, DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(len(names)), map(_label, names))
    axes.set_ylim(-0.6, max(len(names), 1) - 0.4)
    _plain(axes)
    return figure, axes


def _iterations(count: int, first: int) -> tuple[Figure, Axes]:
    """Return a figure with a column for each iteration."""
    figure = Figure((WIDTH, 4.5), DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlim(first - 0.3, first + max(count, 2) - 0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("iteration")
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _label_ends(axes: Axes, ends: Mapping[str, float], x: float, gap: float) -> None:
    """Label each line at its end, with labels at least `gap` apart."""
    lowest = float("-inf")
    for text, y in sorted(ends.items(), key=lambda item: item[1]):
        lowest = max(y, lowest + gap)
        axes.annotate(
            text,
            (x, y),
            (1.02, lowest),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": DARK},
        )
