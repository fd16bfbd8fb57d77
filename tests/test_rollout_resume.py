"""A run that was cut off is completed as if nothing had happened."""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import orjson
import pytest

from irc_cli import rollout as command
from stages.messages.message import Message
from stages.policies.policy import Action, PolicyError
from stages.tables.files import alone
from stages.tables.paths import RunFiles
from tests import slow_rollout
from tests.conftest import Cli
from tests.till import Adder, Till

ROLLOUT = ("rollout", "--env", "airline-mini", "--policy", "expert", "--group-size", "6")
SAME = ("r.jsonl", "r.tokens.parquet", "r.meta.json")
KILLS = 20


class Stops(Adder):
    """Works for so many messages; then it fails, or this process does."""

    def __init__(self, messages: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error = messages, error

    def answer(self, messages: Sequence[Message], seed: int) -> Action:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().answer(messages, seed)


def use(monkeypatch: pytest.MonkeyPatch, policy: Adder) -> None:
    monkeypatch.setattr(command, "open_policy", lambda name, options: policy)
    monkeypatch.setattr(command, "open_env", lambda name: Till(4))


def artifacts(folder: Path = Path()) -> list[bytes]:
    return [(folder / name).read_bytes() for name in SAME]


@pytest.fixture
def undisturbed(run: Cli, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What a run makes that nobody disturbs; its files are gone."""
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "-o", "r.jsonl").code == 0
    made = artifacts()
    for path in Path().iterdir():
        path.unlink()
    return made


def cut_off(run: Cli, monkeypatch: pytest.MonkeyPatch, messages: int) -> None:
    """Leave a journal behind."""
    use(monkeypatch, Stops(messages, KeyboardInterrupt()))
    found = run(*ROLLOUT, "--concurrency", "3", "-o", "r.jsonl")
    assert found.code == 130
    kept = RunFiles("r.jsonl").partial.read_bytes().count(b"\n") - 1
    assert f"interrupted: {kept} of 24 episodes are kept; go on with --resume" in found.err
    assert not Path("r.jsonl").exists()
    use(monkeypatch, Adder())


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is of POSIX")
def test_killed_twenty_times(tmp_path: Path) -> None:
    # Forked off a process that has imported everything: starting Python 22 times takes long.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.slow_rollout"])
    rng = random.Random(0)

    def start(out: str) -> ForkServerProcess:
        args = [*ROLLOUT, "--concurrency", "3", "--resume", "--quiet", "-o", str(tmp_path / out)]
        process = context.Process(target=slow_rollout.play, args=(args,))
        process.start()
        return process

    def finish(out: str) -> None:
        process = start(out)
        process.join(60)
        assert process.exitcode == 0

    finish("whole.jsonl")
    partial = tmp_path / "r.jsonl.partial"
    sizes = []
    for _ in range(KILLS):
        process = start("r.jsonl")
        before = partial.stat().st_size if partial.exists() else 0
        while process.is_alive() and (not partial.exists() or partial.stat().st_size <= before):
            time.sleep(0.001)  # it begins to play
        time.sleep(rng.uniform(0, 0.01))
        process.kill()
        process.join(60)
        sizes.append(partial.stat().st_size if partial.exists() else 0)
    assert sum(size > 0 for size in sizes) >= KILLS // 2  # else it was over too soon
    finish("r.jsonl")
    assert not partial.exists()
    for name in SAME:
        one = (tmp_path / name).read_bytes()
        assert one == (tmp_path / name.replace("r.", "whole.", 1)).read_bytes()
    timing = (tmp_path / "r.timing.jsonl").read_bytes().splitlines()
    assert len(timing) == 8 * 6


def test_an_interrupted_run_is_completed(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    cut_off(run, monkeypatch, messages=30)
    found = run(*ROLLOUT, "--resume", "-o", "r.jsonl")
    assert found.code == 0
    assert "24 episodes (24 ok)" in found.out.decode()
    assert artifacts() == undisturbed


class Mistaken(Adder):
    """Fails in one episode as our own code may, while others are live."""

    async def act(self, episode_id: str, *rest: Any) -> Action:
        if episode_id.endswith("/t1/2"):
            raise ZeroDivisionError("a line\nand another")
        return await super().act(episode_id, *rest)


def test_a_mistake_of_our_own_loses_no_other_episode(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    use(monkeypatch, Mistaken(pause_s=0.001))
    found = run(*ROLLOUT, "--concurrency", "3", "-o", "r.jsonl")
    assert RunFiles("r.jsonl").partial.read_bytes().count(b"\n") - 1 == 8  # all that had begun
    episode = found.err.partition("episode '")[2].partition("'")[0]
    assert episode.endswith("/t1/2")
    assert found.code == 2
    line = found.err.partition("test_rollout_resume.py:")[2].partition(",")[0]
    what = f"irc-cli failed at test_rollout_resume.py:{line}, ZeroDivisionError: a line and another"
    assert found.err == (
        "interrupted: 8 of 24 episodes are kept; go on with --resume\n"
        f"error: episode '{episode}': {what}; report it\n"
    )
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed


def test_two_runs_do_not_write_one_file(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    cut_off(run, monkeypatch, messages=12)
    line = "error: r.jsonl: another process is writing it; wait for it, or stop it\n"
    for flag in ("--resume", "--force"):
        with alone("r.jsonl"):
            found = run(*ROLLOUT, flag, "-o", "r.jsonl")
        assert (found.code, found.err) == (2, line)
    Path("r.jsonl.lock").touch()  # as a killed process leaves it
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed
    assert not Path("r.jsonl.lock").exists()


def test_a_torn_last_line_is_repaired(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    cut_off(run, monkeypatch, messages=12)
    journal = RunFiles("r.jsonl").partial
    whole = journal.read_bytes()
    last = whole.rstrip(b"\n").rindex(b"\n") + 1
    for cut in (last, last + 1, last + 100, len(whole) - 2, len(whole) - 1):
        journal.write_bytes(whole[:cut])
        assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
        assert artifacts() == undisturbed
        Path("r.jsonl").unlink()
    journal.write_bytes(whole[:last] + b"\0" * 50)  # as after a loss of power
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed


def test_a_torn_first_line_begins_anew(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    RunFiles("r.jsonl").partial.write_bytes(b'{"irc_cli"')
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed


def test_a_broken_line_in_the_middle_is_refused(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_off(run, monkeypatch, messages=12)
    journal = RunFiles("r.jsonl").partial
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"broken\n", *lines[1:]]))
    found = run(*ROLLOUT, "--resume", "-o", "r.jsonl")
    assert (found.code, found.err) == (2, "error: r.jsonl.partial:2: broken; delete the line\n")


def test_failed_episodes_are_played_again(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    use(monkeypatch, Stops(30, PolicyError("the server is gone")))
    first = run(*ROLLOUT, "-o", "r.jsonl")
    assert first.code == 0
    assert "error, policy: the server is gone: " in first.out.decode()
    kept = [line for line in Path("r.jsonl").read_bytes().splitlines() if b'"ok"' in line]
    assert 0 < len(kept) < 24
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed
    assert len(Path("r.timing.jsonl").read_bytes().splitlines()) == 24


def test_an_episode_with_ids_that_no_table_holds_is_played_again(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    """An earlier version kept what a server gave, and could then not finish."""
    cut_off(run, monkeypatch, 8)
    journal = RunFiles("r.jsonl").partial
    header, first, *rest = journal.read_bytes().splitlines()
    played = orjson.loads(first)
    played["tokens"][0]["token_ids"] = [2**31]
    journal.write_bytes(b"".join(b"%s\n" % line for line in (header, orjson.dumps(played), *rest)))
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "-o", "r.jsonl", "--resume").code == 0
    assert artifacts() == undisturbed


def test_a_complete_run_stays_as_it_is(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    assert run(*ROLLOUT, "-o", "r.jsonl").code == 0
    timing = Path("r.timing.jsonl").read_bytes()
    use(monkeypatch, Stops(0, AssertionError("there is nothing to play")))
    assert run(*ROLLOUT, "--resume", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed
    assert Path("r.timing.jsonl").read_bytes() == timing


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("args", "difference"),
    [
        (("--temperature", "0.5"), "temperature 1.0, not 0.5"),
        (("--seed", "7"), "seed 0, not 7"),
        (("--group-size", "2"), "group_size 6, not 2"),
    ],
)
def test_other_settings_are_refused(
    run: Cli,
    monkeypatch: pytest.MonkeyPatch,
    complete: bool,
    args: tuple[str, ...],
    difference: str,
) -> None:
    if complete:
        use(monkeypatch, Adder())
        assert run(*ROLLOUT, "-o", "r.jsonl").code == 0
    else:
        cut_off(run, monkeypatch, messages=12)
    found = run(*ROLLOUT, *args, "--resume", "-o", "r.jsonl")
    todo = "resume with the same settings, or pass --force"
    assert (found.code, found.err) == (2, f"error: r.jsonl: was made with {difference}; {todo}\n")


def test_an_unfinished_run_is_not_lost_by_accident(
    run: Cli, monkeypatch: pytest.MonkeyPatch, undisturbed: list[bytes]
) -> None:
    cut_off(run, monkeypatch, messages=12)
    found = run(*ROLLOUT, "-o", "r.jsonl")
    todo = "pass --resume to complete it, or --force to start over"
    line = f"error: r.jsonl: an unfinished run lies beside it; {todo}\n"
    assert (found.code, found.err) == (2, line)
    assert run(*ROLLOUT, "--force", "-o", "r.jsonl").code == 0
    assert artifacts() == undisturbed


def test_rollouts_without_their_provenance_are_not_resumed(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, Adder())
    assert run(*ROLLOUT, "-o", "r.jsonl").code == 0
    Path("r.meta.json").unlink()
    found = run(*ROLLOUT, "--resume", "-o", "r.jsonl")
    assert found.err.startswith("error: r.meta.json: missing or broken: what made the rollouts ")


def test_a_run_that_never_began_leaves_nothing(run: Cli) -> None:
    found = run("rollout", "--env", "airline-mini", "--policy", "replay", "-o", "r.jsonl")
    assert found.code == 2
    assert list(Path().iterdir()) == []


def test_outputs_are_checked_before_a_model_is_loaded(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("r.jsonl").write_text("mine")
    monkeypatch.setattr(command, "open_policy", lambda name, options: pytest.fail("loaded"))
    assert run(*ROLLOUT, "-o", "r.jsonl").err.startswith("error: r.jsonl: exists already")


def test_a_journal_of_something_else(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFiles("r.jsonl").partial.write_bytes(b"my notes\n")
    found = run(*ROLLOUT, "--resume", "-o", "r.jsonl")
    assert found.err == "error: r.jsonl.partial: not a journal of a run; delete it\n"


def test_the_journal_holds_one_line_for_each_episode(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_off(run, monkeypatch, messages=12)
    first, *lines = RunFiles("r.jsonl").partial.read_bytes().splitlines()
    assert orjson.loads(first)["command"] == "rollout"
    keys: list[Any] = [orjson.loads(line)["row"]["episode_id"] for line in lines]
    assert len(set(keys)) == len(keys) > 3
