"""`make kill`: kill a command and call it again until it completes; compare what it leaves.

Each command runs once undisturbed. Then it is killed repeatedly: half of the kills come after a
random part of the time that the undisturbed run took, half before a random change of its folder,
such as a rename. The files left in the end must equal those of the undisturbed run, except for
CLOCK, OF_THE_CLOCK and REMAINS.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from rich.console import Console

from irc_cli import console
from tests.killed import WORKLOADS, live, prepare

# Names of values that differ in every run.
CLOCK = {"memory_gb", "seconds", "tokens_per_s", "turn_seconds"}
# Files whose very names hold the time.
OF_THE_CLOCK = re.compile(r"(^|/)tensorboard/")
# Temporary files of a killed process, which no name refers to, and marks of outputs that were all
# renamed.
REMAINS = re.compile(r"(^|/)\.[^/]+\.(irc-[a-z0-9_]{8}|appearing)$")

MOST_KILLS = 5  # per run
LIMIT_S = 600.0  # time in which an undisturbed run ends
DONE = "exists already"  # the error of a command that is called again after it has written all


class Ended(NamedTuple):
    """A process that has ended."""

    code: int | None
    seconds: float
    said: str  # on standard error, the last line


class Moment(NamedTuple):
    """The moment at which a process is killed, unless it ends before."""

    after_s: float
    change: int | None  # it dies before its change of this number, from 0; None: at no change


UNTOUCHED = Moment(LIMIT_S, None)


class Undisturbed(NamedTuple):
    """The result of a run that is not killed."""

    line: str  # of the command
    left: dict[str, Any]
    seconds: float
    changes: int  # of its folder


class Verdict(NamedTuple):
    """The result of a command's killed runs."""

    command: str
    kills: int
    runs: int
    equal: int
    difference: str  # the first one; "": none


class Killer:
    """Starts one command in its own folders, and kills it.

    Args:
        name: name of the command.
        folder: folder for its runs and their inputs.
        seed: seed of the moments.
        forks: context that forks the processes.
    """

    def __init__(self, name: str, folder: Path, seed: int, forks: ForkServerContext) -> None:
        self._name, self._lines = name, WORKLOADS[name].lines
        self._folder = folder / "run"  # the same for every run, because some record its path
        self._draw, self._forks = random.Random(f"{seed} {name}"), forks
        making = forks.Process(target=prepare, args=(name, str(folder)))
        making.start()
        making.join()
        if making.exitcode:
            raise SystemExit(f"{name}: what it reads could not be made")

    def kill(self, kills: int) -> Verdict:
        """Kill so many processes at random moments, a few of them in each run."""
        whole = [self._undisturbed(line) for line in self._lines]
        tally = Verdict(self._name, 0, 0, 0, "")
        while tally.kills < kills:
            turn = whole[tally.runs % len(whole)]
            times = min(kills - tally.kills, self._draw.randint(1, MOST_KILLS))
            tally = self._compared(turn, [self._moment(turn) for _ in range(times)], tally)
        return tally

    def kill_before_each_change(self) -> Verdict:
        """Kill one process before every single change that the undisturbed one makes."""
        tally = Verdict(self._name, 0, 0, 0, "")
        for turn in [self._undisturbed(line) for line in self._lines]:
            for change in range(turn.changes):
                tally = self._compared(turn, [Moment(LIMIT_S, change)], tally)
        return tally

    def _moment(self, whole: Undisturbed) -> Moment:
        if self._draw.random() < 0.5:
            return Moment(self._draw.uniform(0, whole.seconds), None)
        return Moment(LIMIT_S, self._draw.randrange(whole.changes))

    def _compared(self, whole: Undisturbed, moments: Sequence[Moment], tally: Verdict) -> Verdict:
        """Run a command killed at these moments until it ends; return the tally with it."""
        kills, problem = self._run(whole.line, moments)
        problem = problem or difference(whole.left, left_in(self._folder))
        if problem:
            kept = self._folder.rename(self._folder.with_name(f"run-{tally.runs}"))
            problem = f"{kept.name}: {problem}"
        else:
            shutil.rmtree(self._folder)
        equal = tally.equal + (not problem)
        first = tally.difference or problem
        return Verdict(tally.command, tally.kills + kills, tally.runs + 1, equal, first)

    def _undisturbed(self, line: str) -> Undisturbed:
        ended = self._ended(line, UNTOUCHED)
        if ended.code:
            raise SystemExit(f"{line}: {ended.said}")
        left = left_in(self._folder)
        shutil.rmtree(self._folder)
        return Undisturbed(line, left, ended.seconds, int(noted(self._folder, "changes")))

    def _run(self, line: str, moments: Sequence[Moment]) -> tuple[int, str]:
        """Return how often a run was killed before it ended, and what went wrong, or ""."""
        kills, ended = 0, self._ended(line, moments[0])
        for moment in (*moments[1:], UNTOUCHED):
            if ended.code != -signal.SIGKILL:
                break
            kills, ended = kills + 1, self._ended(line, moment)
        if ended.code == 0 or (kills and DONE in ended.said):
            return kills, ""
        return kills, f"ends with {ended.code}: {ended.said}"

    def _ended(self, line: str, moment: Moment) -> Ended:
        """Start a process and kill it at a moment, unless it has ended before."""
        self._folder.mkdir(exist_ok=True)
        process = self._forks.Process(target=live, args=(line, str(self._folder), moment.change))
        process.start()
        began = time.monotonic()
        process.join(moment.after_s)
        process.kill()
        process.join()
        said = noted(self._folder, "stderr").strip().splitlines()
        return Ended(process.exitcode, time.monotonic() - began, said[-1] if said else "")


def noted(folder: Path, name: str) -> str:
    """Return the note of the last process in a folder; "" if it did not get that far."""
    path = folder.with_name(f"{folder.name}.{name}")
    return path.read_text(errors="replace") if path.exists() else ""


def left_in(folder: Path) -> dict[str, Any]:
    """Return the content of a folder by path, without times; None for an inner folder."""
    paths = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*"))}
    return {
        name: None if path.is_dir() else _content(path)
        for name, path in paths.items()
        if not (OF_THE_CLOCK.search(name) or REMAINS.search(name))
    }


def _content(path: Path) -> Any:
    if path.suffix == ".json":
        return _timeless(orjson.loads(path.read_bytes()))
    if path.suffix == ".jsonl":
        return [_timeless(orjson.loads(line)) for line in path.read_bytes().splitlines()]
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(part) for name, part in value.items() if name not in CLOCK}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def difference(whole: dict[str, Any], left: dict[str, Any]) -> str:
    """Return the first difference between two folders' contents; "": there is none."""
    for name in sorted(whole.keys() | left.keys()):
        if name not in left:
            return f"{name} is missing"
        if name not in whole:
            return f"{name} is too many"
        if whole[name] != left[name]:
            return f"{name} is another"
    return ""


def verdicts(names: Sequence[str], kills: int, seed: int, folder: Path) -> Iterator[Verdict]:
    """Kill each command, in processes forked from one that has imported everything."""
    forks = multiprocessing.get_context("forkserver")
    modules = [module for name in names for module in WORKLOADS[name].modules]
    forks.set_forkserver_preload(["tests.killed", *modules])
    for name in names:
        yield Killer(name, folder / name, seed, forks).kill(kills)


def main() -> None:
    """Kill the commands and print the results; exit with 1 if anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="of each command")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("commands", nargs="*", help=", ".join(WORKLOADS))
    given = parser.parse_args()
    names = given.commands or list(WORKLOADS)
    os.environ["OMP_NUM_THREADS"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    table = console.table("command", "kills", "runs", "equal", "first difference", left=(0, 4))
    differ = False
    for verdict in verdicts(names, given.kills, given.seed, folder):
        table.add_row(verdict.command, *map(str, verdict[1:4]), verdict.difference)
        differ = differ or verdict.equal < verdict.runs
        console.note(f"{verdict.command}: {verdict.equal} of {verdict.runs} runs are equal")
    Console(width=120).print(table)
    if differ:
        sys.exit(f"the runs lie in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
