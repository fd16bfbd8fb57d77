"""`make study`: what it runs in which order, and what it writes; nothing is trained here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

pytest.importorskip("matplotlib", reason="needs irc-cli[train]")

from examples.study import make as study_make
from examples.study import runs
from examples.study.runs import TimeBudget, TrainingRun

ARMS = yaml.safe_load((Path(runs.__file__).parent / "arms.yaml").read_bytes())
LOW, MIDDLE, HIGH = sorted(ARMS["learning_rates"])


class FakeCli:
    """Answers `irc-cli` in the study's place: each arm passes its share of episodes."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []

    def __call__(self, args: list[str], budget: TimeBudget) -> bytes:
        if budget.seconds == 0:
            return b""
        self.called.append(args)
        out = Path(args[args.index("--out") + 1]) if "--out" in args else Path()
        match args[0]:
            case "calibrate":
                values = {"gold_write": 1.0, "gold_read": 0.2, "error": -0.1, "read_only": -0.3}
                rows = [{"tier": tier, "value": value} for tier, value in values.items()]
                return orjson.dumps({"tiers": rows})
            case "loop":
                (out / "iter-00").mkdir(parents=True)
                (out / "iter-00" / "turns.parquet").touch()
                wanted = int(args[args.index("--iterations") + 1])
                (out / "loop.jsonl").write_bytes(b"{}\n" * wanted)
            case "eval":
                # Sparse rewards do best at the low rate, all else at the middle one.
                sparse, rate = "sparse-grpo/" in str(out), 0.5
                if f"lr-{MIDDLE:g}" not in str(out):
                    rate = 0.6 if sparse and f"lr-{LOW:g}" in str(out) else 0.4
                found: dict[str, Any] = {"pass_rate": rate, "episodes": 400}
                found |= {"turns_per_episode": 7.0, "write_accuracy": 0.5}
                found["pressure"] = {"forbidden_share": 0.25}
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_bytes(orjson.dumps(found))
        return b""


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


def test_all_arms_run_with_all_seeds_and_the_best_rate_wins(cli: FakeCli, tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs"
    study_make.make(ARMS, out, docs, TimeBudget(None), jobs=1)
    done = trained(cli)
    assert len(done) == len(set(done))
    n_arms, n_seeds = len(ARMS["arms"]), len(ARMS["seeds"])
    controls = sum("control" in told for told in ARMS["arms"].values())
    # Each arm: all seeds at the middle rate, and but for controls one at each other. Then anew:
    # sparse GRPO's other seeds.
    assert len(done) == n_arms * n_seeds + (n_arms - controls) * 2 + n_seeds - 1
    assert ("sparse-grpo", LOW, 2) in done and ("naive-hybrid", LOW, 2) not in done
    assert ("sparse-grpo-valued-turns", LOW, 0) not in done
    compared = {arm for arm, _, _ in done[: len(ARMS["compared"]) * n_seeds]}
    assert compared == {"sparse-grpo", "naive-mt-grpo", "calibrated-hybrid"}
    table = (docs / "table.md").read_text().splitlines()
    for arm, rate, told in (
        ("sparse GRPO", LOW, "60.0% +- 0.0 | +20.0 | 60.0, 60.0, 60.0"),
        ("naive hybrid", MIDDLE, "50.0% +- 0.0 | +10.0 | 50.0, 50.0, 50.0"),
    ):
        assert f"| {arm} | {rate:g} | {told} | 7.0 | 50% | 25% |" in table
    assert "| sparse GRPO | 60.0% | 50.0% | 40.0% |" in table
    assert table[-1] == (
        "Naive rewards that calibration does not bear out at first: gold_other, soft, read_only, "
        "state_change, other, duplicate, unknown_tool."
    )
    raw = [orjson.loads(line) for line in (docs / "runs.jsonl").read_bytes().splitlines()]
    assert {(one["arm"], one["split"]) for one in raw} == {
        (arm, split)
        for arm, told in ARMS["arms"].items()
        for split in (("test",) if "control" in told else ("dev", "test"))
    }
    assert (docs / "arms.png").exists() and (docs / "arms.svg").exists()


def test_what_is_done_is_not_done_again(cli: FakeCli, tmp_path: Path) -> None:
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(None), jobs=2)
    cli.called = []
    study_make.make(ARMS, tmp_path / "out", tmp_path / "docs", TimeBudget(None), jobs=2)
    assert [args[0] for args in cli.called] == ["calibrate"]


def test_more_iterations_go_on_where_it_was(cli: FakeCli, tmp_path: Path) -> None:
    run = TrainingRun("sparse GRPO", MIDDLE, 0)
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
    assert "%" not in (tmp_path / "docs" / "table.md").read_text()


def test_an_arm_is_told_to_the_loop_as_options(tmp_path: Path) -> None:
    line = " ".join(runs.loop_command(ARMS, TrainingRun("naive MT-GRPO, RMS 1", HIGH, 2), tmp_path))
    for part in (
        "--reward-mode naive",
        "--seed 2",
        f"train.lr={HIGH}",
        'train.advantage-scale="rms"',
    ):
        assert part in line
    aligned = runs.loop_command(ARMS, TrainingRun("naive MT-GRPO, aligned", MIDDLE, 0), tmp_path)
    assert f'score.tiers="{tmp_path / runs.ALIGNED}"' in aligned


def test_every_arm_has_a_folder_of_its_own(tmp_path: Path) -> None:
    folders = {TrainingRun(arm, MIDDLE, 0).folder(tmp_path) for arm in ARMS["arms"]}
    assert len(folders) == len(ARMS["arms"])


def test_tiers_that_are_not_borne_out_lose_their_naive_reward(cli: FakeCli, tmp_path: Path) -> None:
    run: Any = TrainingRun(ARMS["align"], MIDDLE, 0)
    runs.measure(ARMS, [run], "test", tmp_path, TimeBudget(None), 1)
    assert "read_only" in runs.align(run, tmp_path)
    rewards = yaml.safe_load((tmp_path / runs.ALIGNED).read_text())["rewards"]
    kept = {tier: one for tier, one in rewards.items() if one}
    assert kept == {"gold_write": 1.0, "gold_read": 1.0, "error": -0.1}
