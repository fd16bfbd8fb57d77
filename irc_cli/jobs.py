"""Read and score traces in several processes, with the result of a single one.

Work that depends on earlier traces (names of tasks and groups, copies of an episode) is done in
this process, in the order of the traces. Workers hand over scored episodes in files, so that no
process holds a whole trace in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import NamedTuple, TypeAlias

from irc_cli.console import progress
from irc_cli.traces import TraceReader
from stages.errors import InputError
from stages.score import Scored, ScoredTurns, Scorer
from stages.tables.files import TEMPORARY, TMPDIR, temporary_folder, writing
from stages.tables.inputs import keep, keeping, kept
from stages.tiers.rules import Tiers
from stages.traces.episode import Episode

BATCH = 256  # episodes per hand-over

Batch: TypeAlias = list[tuple[Episode, ScoredTurns]]


class End(NamedTuple):
    """A worker's record after the last episode of a trace."""

    reader: TraceReader
    notes: Counter[str]
    failures: Counter[str]
    read: tuple[str, ...]  # files that were read beside the trace


def score_apart(reader: TraceReader, tiers: Tiers, jobs: int) -> Scored:
    """Score traces in parallel, with the result of `Scorer.add` on one after another.

    Args:
        reader: reader of the traces.
        tiers: tiers to assign.
        jobs: number of processes; 0: one per core.

    Returns:
        The scored turns of all traces.

    Raises:
        InputError: the first faulty trace's error, as with one process.
    """
    scored = Scored()
    reader.begin()
    with temporary_folder() as folder, _workers(jobs) as pool:
        with _blocking_sigint():
            parts = {
                path: pool.submit(_score, reader.alone(path), source, tiers, f"{folder}/{number}")
                for number, (source, path) in enumerate(reader.sources.items())
                if _regular(path)
            }
        paths = progress(reader.sources.items(), "reading traces", quiet=reader.quiet)
        for number, (source, path) in enumerate(paths):
            handed_over = Path(folder, str(number))
            if path in parts:
                _result(parts[path], path)
            else:  # a pipe, which only this process can read
                _score(reader.alone(path), source, tiers, str(handed_over))
            _take(handed_over, path, reader, scored)
            handed_over.unlink()
    reader.end()
    return scored


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _workers(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a process pool whose workers end with this block, even on an exception."""
    # A forked child would inherit polars' locks without the threads that hold them.
    spawn = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(jobs or cores(), spawn, _end_with_parent)
    with _ignoring_broken_pipes():
        try:
            yield pool
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _blocking_sigint() -> Iterator[None]:
    """Block SIGINT while workers start; Ctrl-C then ends only this process, which ends them.

    Workers inherit the signal mask of this thread. Another thread may still receive SIGINT
    meanwhile; it is handled after the start, because a half-started worker would print a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if received and callable(handler):
        handler(received[0], None)


@contextmanager
def _ignoring_broken_pipes() -> Iterator[None]:
    """Ignore SIGPIPE: a broken pipe to a killed worker raises an error and ends no process."""
    if not hasattr(signal, "SIGPIPE"):
        yield
        return
    before = signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, before)


def _end_with_parent() -> None:
    """Start a thread that ends this process when its parent dies, even if it is killed."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    Thread(target=watch, daemon=True).start()


def _regular(path: str) -> bool:
    return path != "-" and (Path(path).is_file() or Path(path).is_dir())


def _result(part: Future[None], path: str) -> None:
    try:
        part.result()
    except BrokenProcessPool:
        what = "a process that reads traces was killed, possibly for lack of memory"
        raise InputError(path, what, "pass fewer --jobs") from None


def _score(reader: TraceReader, source: str, tiers: Tiers, handed_over: str) -> None:
    """Score one trace; write its batches to a file, then an End or the error."""
    [path], scorer, batch = reader.paths, Scorer(tiers), Batch()
    with keeping([]), writing(TEMPORARY, TMPDIR), Path(handed_over).open("wb") as file:
        try:
            for episode, domain in reader.read(source, path):
                batch.append((_light(episode), scorer.score(episode, domain)))
                if len(batch) == BATCH:
                    pickle.dump(batch, file)
                    batch = []
            scored = scorer.scored
            end: End | InputError = End(reader, scored.notes, scored.failures, kept())
        except InputError as error:
            end = error
        pickle.dump(batch, file)
        pickle.dump(end, file)


def _light(episode: Episode) -> Episode:
    """Return an episode with only the fields that ids and columns need."""
    gold, opening = episode.gold, episode.opening
    if episode.domain is not None and gold is not None:
        gold, opening = (), None
    return replace(
        episode, turns=[], gold=gold, opening=opening, messages=[], tools=None, user_calls=[]
    )


def _take(handed_over: Path, path: str, reader: TraceReader, scored: Scored) -> None:
    """Add the scored episodes that a worker handed over."""
    with handed_over.open("rb") as file:
        while isinstance(part := pickle.load(file), list):
            for episode, turns in part:
                reader.place(path, episode)
                scored.add(episode, turns)
    if isinstance(part, InputError):
        raise part
    reader.add(part.reader)
    scored.notes.update(part.notes)
    scored.failures.update(part.failures)
    keep(part.read)
