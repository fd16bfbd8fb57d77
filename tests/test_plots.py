from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from irc_cli.calibrate import FIGURES
from stages.calibration.estimate import Calibration
from stages.calibration.online import Event
from stages.check import BothChecks, check_both
from stages.core.advantages import AdvantageConfig
from stages.tables.turn_arrays import turn_arrays
from tests.builders import FEW, calibrated
from tests.conftest import Cli
from tests.test_calibrate import PLANTED

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from stages.plots import (
    RateInterval,
    advantages_figure,
    gates_figure,
    gradient_mass_figure,
    pass_rate_figure,
    tiers_figure,
    values_figure,
    write_figure,
)


@pytest.fixture(scope="module")
def result() -> Calibration:
    return calibrated(PLANTED)


@pytest.fixture(scope="module")
def judged(result: Calibration) -> BothChecks:
    return check_both(turn_arrays(PLANTED), result, FEW, AdvantageConfig(), 0)


def axes_of(figure: Figure, panel: int = 0) -> Any:
    """Axes, whose artists the stubs of matplotlib know too little of."""
    return figure.axes[panel]


def texts(figure: Figure) -> list[str]:
    """Every text that stands in the axes of a figure."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def rows(figure: Figure) -> list[str]:
    """The labels of the rows, from the top."""
    return [label.get_text() for label in axes_of(figure).get_yticklabels()][::-1]


def lengths(figure: Figure, panel: int = 0) -> list[float]:
    """The lengths of the bars in the order they were drawn."""
    return [bar.get_width() for bar in axes_of(figure, panel).patches]


def test_the_forest_orders_tiers_and_says_what_they_are_worth(result: Calibration) -> None:
    figure = tiers_figure(result)
    assert rows(figure) == ["good", "rare", "noise", "bad", "always"]
    notes = dict(zip(rows(figure)[::-1], texts(figure), strict=True))
    assert notes["good"] == "value +1.00"
    assert notes["always"] == "constant"
    points = [line for line in axes_of(figure).lines if line.get_marker() == "o"]
    drawn = sorted(float(line.get_xdata()[0]) for line in points)
    assert drawn == sorted(t.excess for t in result.tiers if t.excess is not None)
    filled = {line.get_markerfacecolor() != "white" for line in points}
    assert filled == {True, False}, "told apart without colour"


def test_advantages_are_split_into_their_parts(judged: BothChecks) -> None:
    figure = advantages_figure(judged.before, judged.after)
    assert rows(figure) == [row.tier for row in judged.before.direction]
    for panel, judgement in enumerate((judged.before, judged.after)):
        parts = [
            part
            for row in reversed(judgement.direction)
            for part in (row.return_part, row.outcome_part)
        ]
        assert lengths(figure, panel) == pytest.approx(parts)
        hatches = [bar.get_hatch() for bar in axes_of(figure, panel).patches]
        assert hatches == [None, "////"] * len(judgement.direction)


def test_advantages_without_parts_and_misaligned_ones_are_drawn(judged: BothChecks) -> None:
    rows = [
        row._replace(return_part=None, outcome_part=None, verdict="misaligned")
        for row in judged.before.direction
    ]
    bare = judged.before._replace(direction=rows)
    figure = advantages_figure(bare, judged.after)
    assert lengths(figure, 0) == []
    markers = {line.get_marker() for line in axes_of(figure).lines}
    assert "X" in markers
    assert "D" not in markers


def test_the_gradient_mass_of_both_sides_stands_in_pairs(judged: BothChecks) -> None:
    figure = gradient_mass_figure(judged.before, judged.after)
    names = rows(figure)[::-1]
    both = [
        judgement.gradient_mass[name] or 0.0
        for judgement in (judged.before, judged.after)
        for name in names
    ]
    assert lengths(figure) == pytest.approx(both)
    assert texts(figure) == [f"{share:.0%}" for share in both]


def test_values_are_named_at_their_ends() -> None:
    values = [{"gold": 1.0, "soft": 0.0, "idle": 0.0}, {"gold": 0.5, "soft": -0.3}]
    figure = values_figure(values)
    assert texts(figure) == ["soft -0.30", "gold +0.50"]
    assert axes_of(figure).get_title(loc="left") == "always 0: idle"
    lines = [list(line.get_ydata()) for line in axes_of(figure).lines]
    assert [1.0, 0.5] in lines
    markers = [line.get_marker() for line in axes_of(figure).lines[1:]]
    assert len(set(markers)) == 2


def test_labels_keep_their_distance() -> None:
    figure = values_figure([dict.fromkeys("abcde", 0.5)])
    heights = [text.xyann[1] for text in axes_of(figure).texts]
    assert min(b - a for a, b in pairwise(heights)) > 0.1


def test_pass_rates_have_intervals_and_may_have_gaps() -> None:
    rates: dict[str, list[RateInterval | None]] = {
        "train": [RateInterval(0.3, 0.2, 0.4), RateInterval(0.5, 0.4, 0.6)],
        "dev": [None, RateInterval(0.4, 0.1, 0.7)],
        "test": [None],
    }
    figure = pass_rate_figure(rates, first=3)
    assert texts(figure) == ["dev 40.0%", "train 50.0%"]
    train, dev = axes_of(figure).containers
    assert list(train[0].get_xdata()) == pytest.approx([3, 4], abs=0.2)
    assert list(dev[0].get_xdata()) == pytest.approx([4], abs=0.2)
    (segment,) = dev[2][0].get_segments()
    assert [y for _, y in segment] == pytest.approx([0.1, 0.7])


def test_gates_are_bars_from_opening_to_closing() -> None:
    events = [
        Event(1, "gold", "opened", 0.5, 0.0),
        Event(3, "soft", "opened", -0.3, 0.0),
        Event(4, "gold", "turned", -0.2, 0.0),
        Event(5, "soft", "closed", -0.01, 0.4),
    ]
    figure = gates_figure(events, 6)
    assert rows(figure) == ["gold", "soft"]
    bars = [(bar.get_x(), bar.get_width(), bar.get_hatch()) for bar in axes_of(figure).patches]
    assert bars == [(2.5, 2, "////"), (0.5, 3, None), (3.5, 3, "////")]
    assert texts(figure) == ["\N{MINUS SIGN}", "+", "\N{MINUS SIGN}"]
    assert gates_figure([], 6).axes[0].patches[:] == []


def test_equal_results_make_equal_bytes(
    result: Calibration, judged: BothChecks, tmp_path: Path
) -> None:
    for name in "ab":
        write_figure(
            advantages_figure(judged.before, judged.after), str(tmp_path / name), force=False
        )
    for ending in ("png", "svg"):
        written = [(tmp_path / f"{name}.{ending}").read_bytes() for name in "ab"]
        assert written[0] == written[1]
        assert b"date" not in written[0].lower()


def test_calibrate_writes_figures(run: Cli, turns: Path) -> None:
    command = ("calibrate", turns, "--plots", "figures", "--quiet", "--resamples", "100")
    assert run(*command) == (0, b"", "")
    names = {f"{name}.{ending}" for name in FIGURES for ending in ("png", "svg")}
    assert {path.name for path in Path("figures").iterdir()} == names
    assert Path("figures/tiers.png").read_bytes().startswith(b"\x89PNG")
    line = "error: figures/tiers.png: exists already; pass --force to replace it\n"
    assert run(*command) == (2, b"", line)
    run("calibrate", turns, "--partial", "-o", "sums")
    assert run("calibrate", "--merge", "sums", "--plots", "merged", "--quiet").code == 0
    assert {path.name for path in Path("merged").iterdir()} == {"tiers.png", "tiers.svg"}


def test_figures_that_cannot_be(run: Cli, turns: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").write_text("mine")
    for folder, line in {
        "taken": "taken: can't be a directory: file exists; name another one",
        "no/folder": "no/folder: can't be a directory: no such file or directory; name another one",
    }.items():
        assert run("calibrate", turns, "--plots", folder) == (2, b"", f"error: {line}\n")
    partial: Any = ("calibrate", turns, "--plots", "p", "--partial", "-o", "sums")
    line = "--plots: sums of one shard are no figures yet; plot with --merge"
    assert run(*partial) == (2, b"", f"error: {line}\n")
    for module in [name for name in sys.modules if name == "stages.plots"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = "--plots: needs the package 'matplotlib'; pip install 'irc-cli[plot]'"
    assert run("calibrate", turns, "--plots", "p") == (2, b"", f"error: {line}\n")
    assert not Path("p").exists()
