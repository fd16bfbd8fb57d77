"""`make study`: what it runs in which order, and what it writes; nothing is trained here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

pytest.importorskip("matplotlib", reason="needs irc-cli[train]")

from examples.study import make as study_make
from examples.study import report, runs
from examples.study.runs import TimeBudget, TrainingRun

ARMS = yaml.safe_load((Path(runs.__file__).parent / "arms.yaml").read_bytes())
LOW, HIGH = sorted(ARMS["learning_rates"])
SEEDS, RATE_SEEDS = ARMS["seeds"], ARMS["rate_seeds"]
COMPARED = list(dict.fromkeys(arm for pair in ARMS["comparisons"] for arm in pair))


class FakeCli:
    """Answers `irc-cli` in the study's place: each arm passes its share of episodes."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.programs: set[tuple[str, str]] = set()  # arm's folder and program of each loop

    def __call__(self, args: list[str], budget: TimeBudget, program: str = runs.CLI) -> bytes:
        if budget.seconds == 0:
            return b""
        self.called.append(args)
        out = Path(args[args.index("--out") + 1])
        match args[0]:
            case "loop":
                self.programs.add((out.parts[-4], program))
                out.mkdir(parents=True)
                wanted = int(args[args.index("--iterations") + 1])
                seed = int(args[args.index("--seed") + 1])
                more = seed % 2 + (seed % 3 if "potential" in out.parts else 0)
                rows = [b'{"played_pass_rate": %.2f}\n' % ((n + more) / 100) for n in range(wanted)]
                (out / "loop.jsonl").write_bytes(b"".join(rows))
            case "eval":
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(orjson.dumps(self.measured(str(out))))
        return b""

    def measured(self, out: str) -> dict[str, Any]:
        """Sparse rewards do best at the low rate, all else at the high one; seeds differ."""
        best = LOW if "sparse-grpo/" in out else HIGH
        rate = 0.6 if f"lr-{best:g}/" in out else 0.4
        rate += 0.1 if "potential/" in out else 0.0
        seed = re.search(r"/seed-(\d+)/", out)
        rate += 0.01 * (int(seed[1]) % 2) if seed else 0.0
        figures: dict[str, Any] = {"pass_rate": rate, "episodes": 800, "made_by": "here"}
        figures |= {"turns_per_episode": 7.0, "write_accuracy": 0.5}
        return figures | {"pressure": {"forbidden_share": 0.25}}


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> FakeCli:
    fake = FakeCli()
    monkeypatch.setattr(runs, "call", fake)
    return fake


def trained(cli: FakeCli) -> list[tuple[str, float, int]]:
    """Arm, learning rate and seed of each loop, in order."""
    loops = [
        Path(args[args.index("--out") + 1]).parts[-4:] for args in cli.called if args[0] == "loop"
    ]
    return [(arm, float(lr[3:]), int(seed[5:])) for arm, lr, seed, _ in loops]


def test_rates_are_chosen_by_seeds_that_are_not_tested(cli: FakeCli, tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    study_make.make(ARMS, out, docs, TimeBudget(None), jobs=1)
    done = trained(cli)
    assert len(done) == len(set(done))
    assert not set(SEEDS) & set(RATE_SEEDS) and len(SEEDS) >= 9
    tried = [run for run in done if run[2] in RATE_SEEDS]
    choosing = [arm for arm, told in ARMS["arms"].items() if "rate_of" not in told]
    assert done[: len(tried)] == tried  # first of all
    assert len(tried) == len(choosing) * len(RATE_SEEDS) * len(ARMS["learning_rates"])
    assert not [run for run in tried if run[0] == "placebo-hybrid"]
    assert {rate for arm, rate, seed in done if arm == "sparse-grpo" and seed in SEEDS} == {LOW}
    assert {rate for arm, rate, _ in done if arm == "placebo-hybrid"} == {HIGH}
    for line in map(orjson.loads, (docs / "runs.jsonl").read_bytes().splitlines()):
        assert line["seed"] in (SEEDS if line["split"] == "test" else RATE_SEEDS)
        assert "made_by" not in line and line["learning_curve"][1] in (0.01, 0.02, 0.03, 0.04)


def test_compared_arms_come_first_a_seed_of_each_in_turn(cli: FakeCli, tmp_path: Path) -> None:
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(None), jobs=1)
    tested = [(arm, seed) for arm, _, seed in trained(cli) if seed in SEEDS]
    first = tested[: len(COMPARED) * len(SEEDS)]
    names = {TrainingRun(arm, LOW, 0).folder(Path()).parts[0] for arm in COMPARED}
    assert {arm for arm, _ in first} == names
    assert [seed for _, seed in first] == [seed for seed in SEEDS for _ in COMPARED]
    later = tested[len(first) :]
    few = sum(told["seeds"] for told in ARMS["arms"].values() if "seeds" in told)
    assert len(later) == few and not {arm for arm, _ in later} & names


def test_the_report_holds_the_named_comparisons_and_no_other(cli: FakeCli, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    study_make.make(ARMS, tmp_path / "out", docs, TimeBudget(None), jobs=1)
    table = (docs / "table.md").read_text().splitlines()
    compared = [line for line in table if " against " in line]
    assert [line.split(" | ")[0] for line in compared] == [
        f"| {higher} against {lower}" for higher, lower in ARMS["comparisons"]
    ]
    # Both arms alternate between two rates: the difference is 10 points, its standard error
    # 0.01 * sqrt(2 / 9 * 20 / 72), and t has 16 degrees of freedom. The areas of a seed differ by
    # 0, 1 or 2 points: sqrt(3 / 4 / 9) is the standard error, and t has 8 degrees.
    ends, areas = "+10.0 (+9.5 to +10.5) | < .001 | < .001", "+1.0 (+0.3 to +1.7) | 0.009 | 0.034"
    assert compared[0].endswith(f"| 9 and 9 | {ends} | {areas} |")
    assert (
        f"| sparse GRPO | {LOW:g} | 9 | 60.4% +- 0.4 | +20.4 | 4.4% +- 0.4 | 7.0 | 50% | 25% |"
        in (table)
    )
    assert "| seed policy |  |  | 40.0% +- 3.4 |  |  | 7.0 | 50% | 25% |" in table
    assert "| sparse GRPO | 60.5% | 40.5% |" in table
    assert (docs / "arms.png").exists() and (docs / "arms.svg").exists()


def test_welch_s_interval_and_p() -> None:
    """Golden: Wikipedia, "Welch's t-test", example 1: t = -2.46 with 25.0 degrees, p = .021."""
    first = "27.5 21.0 19.0 23.6 17.0 17.9 16.9 20.1 21.9 22.6 23.1 19.6 19.0 21.7 21.4"
    second = "27.1 22.0 20.8 23.4 23.4 23.5 25.8 22.0 24.8 20.2 21.9 22.1 22.9 20.5 24.4"
    difference = report.welch(*([float(x) / 100 for x in of.split()] for of in (first, second)))
    error = difference.mean / -2.46
    assert difference.p == pytest.approx(0.021, abs=5e-4)
    assert (difference.high - difference.low) / 2 == pytest.approx(
        2.06 * error, rel=5e-3
    )  # t of 25
    assert str(difference) == "-2.2 (-4.0 to -0.3)"


def test_pairs_are_compared_by_their_differences() -> None:
    """Golden: Student (1908), section IX, hours of sleep gained: t = 4.06, p = .0028."""
    first = "0.7 -1.6 -0.2 -1.2 -0.1 3.4 3.7 0.8 0.0 2.0"
    second = "1.9 0.8 1.1 0.1 -0.1 4.4 5.5 1.6 4.6 3.4"
    gained = ([float(x) for x in of.split()] for of in (second, first))
    difference = report.paired(*gained)
    assert difference.mean == pytest.approx(1.58)
    assert difference.p == pytest.approx(0.0028, abs=5e-5)
    assert (difference.low, difference.high) == pytest.approx((0.70, 2.46), abs=5e-3)


def test_many_tests_are_corrected_for() -> None:
    """Golden: R's p.adjust(c(.01, .04, .03, .005), "holm")."""
    assert report.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert report.holm([0.9, 0.8]) == [1.0, 1.0]
    assert report.holm([]) == []


def test_what_is_done_is_not_done_again(cli: FakeCli, tmp_path: Path) -> None:
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(None), jobs=2)
    cli.called = []
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(None), jobs=2)
    assert not cli.called


def test_what_the_record_holds_is_not_done_again(cli: FakeCli, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    study_make.make(ARMS, tmp_path / "out", docs, TimeBudget(None), jobs=1)
    files = {name: (docs / name).read_bytes() for name in ("runs.jsonl", "table.md")}
    cli.called = []
    study_make.make(ARMS, tmp_path / "elsewhere", docs, TimeBudget(None), jobs=1)
    assert {args[args.index("--seed") + 1] for args in cli.called if args[0] == "loop"} == set()
    assert {name: (docs / name).read_bytes() for name in files} == files


def test_a_record_of_another_study_is_left(cli: FakeCli, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    known = {"arm": "sparse GRPO", "lr": LOW, "seed": SEEDS[0], "split": "test", "pass_rate": 1.0}
    for other in ({}, {"learning_curve": [0.5]}, {"arm": "unheard of", "learning_curve": []}):
        (tmp_path / "docs/runs.jsonl").write_bytes(orjson.dumps(known | other))
        runs.restore(ARMS, tmp_path / "docs/runs.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_iterations_go_on_where_it_was(cli: FakeCli, tmp_path: Path) -> None:
    run = TrainingRun("sparse GRPO", HIGH, 0)
    runs.measure(ARMS, [run], "test", tmp_path, TimeBudget(None), 1)
    assert runs.trained(ARMS, run, tmp_path)
    more = ARMS | {"loop": ARMS["loop"] | {"iterations": 99}}
    assert runs.trained(more, run, tmp_path) is None
    assert runs.result_of(more, run, "test", tmp_path) != runs.result_of(
        ARMS, run, "test", tmp_path
    )


def test_a_spent_budget_runs_nothing(cli: FakeCli, tmp_path: Path) -> None:
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(0), jobs=2)
    assert not cli.called
    table = (tmp_path / "docs" / "table.md").read_text()
    assert (
        "%" not in table
        and "| potential against sparse GRPO | 0 and 0 | - | - | - | - | - | - |" in (table)
    )


def test_an_arm_is_told_to_the_loop_as_options(tmp_path: Path) -> None:
    line = " ".join(runs.loop_command(ARMS, TrainingRun("paper's hybrid", HIGH, 2), tmp_path))
    for part in (
        "--reward-mode calibrated",
        "--seed 2",
        "--fresh --group-size",
        f"train.lr={HIGH}",
        'score.tiers="paper"',
        'calibrate.method="paper"',
        "train.last-turn-reward=false",
    ):
        assert part in line
    long = runs.loop_command(ARMS, TrainingRun("sparse GRPO, 10x", LOW, 0), tmp_path)
    assert long[long.index("--iterations") + 1] == "80"


def test_the_placebo_has_a_program_of_its_own(cli: FakeCli, tmp_path: Path) -> None:
    pair = [TrainingRun(arm, LOW, 0) for arm in ("placebo hybrid", "naive hybrid")]
    runs.measure(ARMS, pair, "test", tmp_path, TimeBudget(None), 1)
    assert cli.programs == {
        ("placebo-hybrid", "examples.study.placebo"),
        ("naive-hybrid", "irc_cli"),
    }
    assert "--reward-mode" not in cli.called[0]


def test_every_arm_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {TrainingRun(arm, HIGH, 0).folder(tmp_path) for arm in ARMS["arms"]}
    assert len(folders) == len(ARMS["arms"])
