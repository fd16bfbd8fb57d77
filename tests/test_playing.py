"""`irc-cli eval` against a policy, and what rollouts tell it beyond other traces."""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import orjson
import pytest

from irc_cli import evaluate, rollout
from tests.builders import SHARED, needs_shared
from tests.conftest import Cli

PLAY = (
    *("--env", "airline-mini", "--policy", "expert", "--noise", "0.3"),
    *("--split", "test", "--max-tasks", "24", "--group-size", "2"),
)


@pytest.fixture
def rollouts(run: Cli) -> Path:
    """Episodes of 24 tasks of airline-mini, played by `rollout`."""
    assert run("rollout", *PLAY, "-o", "r.jsonl", "--quiet").code == 0
    return Path("r.jsonl")


def test_playing_is_rollout_and_eval_in_one(run: Cli, rollouts: Path) -> None:
    read = run("eval", rollouts, "--json")
    played = run("eval", *PLAY, "--json")
    assert (played.code, played.out) == (0, read.out)
    assert "48 episodes (48 ok)" in played.err
    quiet = run("eval", *PLAY, "--quiet", "-o", "eval.json")
    assert quiet == (0, b"", "")
    document = orjson.loads(Path("eval.json").read_bytes())
    made_by = document.pop("made_by")
    assert document == read.json()
    assert made_by["settings"]["rollout"]["settings"]["noise"] == 0.3
    assert [entry["path"] for entry in made_by["inputs"]] == ["rollouts.jsonl"]
    other = run("eval", *PLAY, "--json", "--seed", "1")
    assert other.json() != document, "the seed is that of the episodes"
    assert sorted(path.name for path in Path().iterdir() if path.name.startswith("r.")) == [
        *("r.jsonl", "r.meta.json", "r.timing.jsonl", "r.tokens.parquet")
    ]


def test_played_episodes_can_be_kept_and_resumed(run: Cli, rollouts: Path) -> None:
    kept = ("--keep-rollouts", "kept.jsonl")
    assert run("eval", *PLAY, *kept, "--quiet").code == 0
    assert Path("kept.jsonl").read_bytes() == rollouts.read_bytes()
    line = "error: kept.jsonl: exists already; pass --force to replace it\n"
    assert run("eval", *PLAY, *kept) == (2, b"", line)
    again = run("eval", *PLAY, *kept, "--resume", "-o", "e.json", "--json")
    assert again.code == 0
    made_by = orjson.loads(Path("e.json").read_bytes())["made_by"]
    assert [entry["path"] for entry in made_by["inputs"]] == ["kept.jsonl"]


def test_every_option_of_rollout_is_one_of_eval() -> None:
    """Or is a plan, which eval has none of."""
    of_rollout = set(signature(rollout.command).parameters)
    of_eval = set(signature(evaluate.command).parameters)
    assert of_rollout - of_eval == {"dry_run"}


def test_the_old_name_of_kept_episodes_is_refused(run: Cli) -> None:
    line = "error: --rollouts: was renamed; use --keep-rollouts\n"
    assert run("eval", *PLAY, "--rollouts", "kept.jsonl") == (2, b"", line)


def test_rollouts_tell_families_and_pressure(run: Cli, rollouts: Path) -> None:
    document = run("eval", rollouts, "--json").json()
    rows = [orjson.loads(line) for line in rollouts.read_bytes().splitlines()]
    assert document["families"].keys() == {row["family"] for row in rows}
    pressed = [row["outcome"] for row in rows if row["family"] == "pressure"]
    assert document["pressure"]["pass_rate"] == sum(pressed) / len(pressed)
    assert document["pressure"].keys() == {
        *("episodes", "tasks", "pass_rate", "ci_low", "ci_high"),
        *("forbidden_share", "forbidden_low", "forbidden_high"),
    }
    shown = run("eval", rollouts).out.decode()
    assert "under pressure: pass rate" in shown
    assert "episodes with a forbidden write" in shown


def test_other_traces_tell_none(run: Cli, example: Path) -> None:
    document = run("eval", example, "--json").json()
    assert (document["families"], document["pressure"]) == ({}, None)
    assert b"pressure" not in run("eval", example).out


def test_transfer_to_other_families(run: Cli, rollouts: Path) -> None:
    command = ("eval", rollouts, "--trained-on", "cancel", "--trained-on", "book")
    found = run(*command, "--json").json()["transfer"]
    assert found["families"] == ["cancel", "book"]
    assert found["trained"]["episodes"] + found["others"]["episodes"] == 48
    gap = found["others"]["pass_rate"] - found["trained"]["pass_rate"]
    assert found["difference"] == pytest.approx(gap)
    assert "  difference " in run(*command).out.decode()


def test_published_figures_stand_apart(run: Cli, rollouts: Path) -> None:
    of_tau2 = rollouts.read_bytes().replace(b'"env":"airline-mini"', b'"env":"tau2-airline"')
    Path("tau2.jsonl").write_bytes(of_tau2)
    document = run("eval", "tau2.jsonl", "--published", "--json").json()
    found = document["published"]
    assert (found["env"], found["note"]) == ("tau2-airline", "published, not measured here")
    rates = {row["model"]: (row["low"], row["high"]) for row in found["pass_rates"]}
    # Source: arXiv 2604.02869, abstract.
    assert rates["GPT-4o"] == (0.428, 0.428)
    assert rates["Qwen3-30B-A3B"] == (0.58, 0.695)
    shown = run("eval", "tau2.jsonl", "--published").out.decode()
    assert "published, not measured here: arXiv 2604.02869" in shown
    assert "58.0% to 69.5%" in shown
    assert "published" not in run("eval", "tau2.jsonl", "--json").json()


@needs_shared
def test_tau2_airline_traces_have_published_figures(run: Cli) -> None:
    trace = SHARED / "data/tau2-traces/airline-grok-4.json.gz"
    assert "published" in run("eval", trace, "--published", "--json").json()


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ("", "eval: nothing to measure; name traces, or give --env and --policy"),
        ("--policy expert", "--policy: has nothing to play; give --env"),
        (
            "r.jsonl --policy expert --env airline-mini",
            "--policy: episodes are played, not read; leave out the traces and --replay",
        ),
        (
            "r.jsonl --group-size 2",
            "--group-size: does nothing for traces; give --env and --policy to play",
        ),
        (
            "r.jsonl --base-url http://localhost",
            "--base-url: does nothing for traces; give --env and --policy to play",
        ),
        (
            "r.jsonl --keep-rollouts s.jsonl",
            "--keep-rollouts: does nothing for traces; give --env and --policy to play",
        ),
        (
            "--policy expert --env airline-mini --resume",
            "--resume: there is nothing to resume; give '--keep-rollouts FILE'",
        ),
        (
            "--policy expert --env airline-mini --trained-on cancle",
            "--trained-on: no episode of family 'cancle'; did you mean 'cancel'?",
        ),
        (
            "--policy expert --env airline-mini --published",
            "--published: the published figures are of tau2-airline, and this is airline-mini; "
            "leave it out",
        ),
        (
            "example.jsonl --published",
            "--published: the published figures are of tau2-airline, "
            "and this is an unknown environment; leave it out",
        ),
        (
            "example.jsonl --trained-on cancel",
            "--trained-on: no episode of family 'cancel'; give rollouts, which name families",
        ),
        (
            "cancel.jsonl --trained-on cancel",
            "--trained-on: names every family that is here; leave out a family, "
            "or add episodes of others",
        ),
    ],
)
def test_wrong_use_is_one_line(
    run: Cli, rollouts: Path, example: Path, args: str, line: str
) -> None:
    Path("example.jsonl").symlink_to(example)
    rows = rollouts.read_bytes().splitlines(keepends=True)
    Path("cancel.jsonl").write_bytes(b"".join(row for row in rows if b'"family":"cancel"' in row))
    assert run("eval", *args.split()) == (2, b"", f"error: {line}\n")
