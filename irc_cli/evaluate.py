"""`irc-cli eval`: traces in, measures of the policy out."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from irc_cli import console, options
from irc_cli.evaluate_json import (
    MeasuredTraces,
    check_families,
    check_published,
    document,
    replay_document,
)
from irc_cli.evaluate_report import print_replay, print_report
from irc_cli.notes import check_notes, show_notes
from irc_cli.playing import played, refuse_play_options
from irc_cli.rollout import PlayOptions
from irc_cli.traces import OptionalPaths, ReadingOptions, TraceOptions, TraceReader
from stages.envs.registry import ENVS, open_env
from stages.errors import InputError
from stages.evaluate import Measurer
from stages.policy_registry import POLICIES
from stages.replay import Replay, Replayer
from stages.settings import Setting
from stages.tables.files import together, whole_file
from stages.traces.copies import Copies
from stages.traces.identity import Identities
from stages.traces.notes import note_left_out

COMPARISON, PLAYING = "Comparison", "Playing"  # panels of the help


@dataclass(frozen=True)
class Measuring:
    """What is measured, and what it is compared with."""

    against: Annotated[
        tuple[str, ...],
        Setting("Compare with these traces, task by task.", COMPARISON, metavar="TRACES"),
    ] = ()
    by_task: Annotated[bool, Setting("Show every task.", options.OUTPUT)] = False
    trained_on: Annotated[
        tuple[str, ...],
        Setting(
            "Task family that was trained on, to compare with the others; may be repeated.",
            COMPARISON,
            metavar="FAMILY",
        ),
    ] = ()
    published: Annotated[
        bool, Setting("Show other models' published figures, for tau2-airline.", COMPARISON)
    ] = False
    replay: Annotated[
        bool,
        Setting(
            "Execute the recorded calls in --env; exit with 1 if a result or outcome differs.",
            PLAYING,
        ),
    ] = False
    env: Annotated[
        str | None,
        Setting("Environment for --policy or --replay.", PLAYING, metavar="|".join(ENVS)),
    ] = None
    policy: Annotated[
        str | None,
        Setting(
            "Policy to play and measure, instead of traces.", PLAYING, metavar="|".join(POLICIES)
        ),
    ] = None
    keep_rollouts: Annotated[
        str | None, Setting("File to write the played episodes to.", PLAYING, metavar="FILE")
    ] = None

    def settings(self, domain: str | None) -> dict[str, Any]:
        """Return the options that the document records."""
        against, trained_on = list(self.against) or None, list(self.trained_on) or None
        return {"against": against, "domain": domain, "by_task": self.by_task} | {
            "env": self.env,
            "trained_on": trained_on,
            "published": self.published,
        }


@options.expanded(renamed={"rollouts": "keep-rollouts"})
def command(
    *,
    traces: OptionalPaths = None,
    source: TraceOptions,
    asked: Measuring,
    play: PlayOptions,
    out: options.Out = None,
    printing: options.Writing,
    config: options.Config = None,
) -> None:
    """Measure pass rate, pass^k, turns, tokens, and the share of gold writes done.

    Example: irc-cli eval traces.json --by-task
    """
    options.check_outputs([out], as_json=printing.as_json, force=printing.force)
    _check_use(traces, asked, play)
    _refuse_named(source, asked)
    named = {"identities": Identities(), "tokenizer": play.policy.tokenizer}
    settings = asked.settings(source.domain)
    settings |= {**source.settings, "tokenizer": play.policy.tokenizer}
    other = None
    if asked.against:  # first, so that a mistake shows before any episode is played
        reader = source.reader(list(asked.against), quiet=printing.quiet, copies=Copies(), **named)
        other = MeasuredTraces(reader.paths, reader, _measure(reader))
    replayer = None
    with ExitStack() as stack:
        notes = Counter[str]()
        if asked.policy and asked.env:
            _check_before_playing(asked, play.tasks.split)
            episodes_of = played(asked.env, asked.policy, asked.keep_rollouts, play, printing)
            path, settings["rollout"], notes = stack.enter_context(episodes_of)
            traces = [path]
        assert traces  # by _check_use
        if asked.replay and asked.env:
            replayer = Replayer(open_env(asked.env))
        # Our own rollouts need no --map: that is for the traces of --against.
        of_records = ReadingOptions(source.domain, source.skip_bad) if asked.policy else source
        reader = of_records.reader(traces, quiet=printing.quiet, copies=Copies(), **named)
        reader.check_sidecar(out, force=printing.force)
        this = MeasuredTraces(traces, reader, _measure(reader, replayer))
    measures = document(
        this, other, asked.trained_on, by_task=asked.by_task, published=asked.published
    )
    replayed = replayer.replay() if replayer else None
    if replayed:
        measures |= replay_document(replayed)
    read = this.notes + (other.notes if other else Counter())
    check_notes(read, strict=printing.strict)
    measures["notes"] = dict(notes + read)
    _write_files(measures, this, other, asked, settings, play.config.seed, out, printing)
    _show(measures, replayed, read, out, printing)


@together()
def _write_files(
    measures: dict[str, Any],
    this: MeasuredTraces,
    other: MeasuredTraces | None,
    asked: Measuring,
    settings: dict[str, Any],
    seed: int,
    out: str | None,
    printing: options.Writing,
) -> None:
    """Write the document, and the bad lines of the traces."""
    if out:
        digests = this.reader.digests | (other.reader.digests if other else {})
        if asked.policy and not asked.keep_rollouts:  # the folder is temporary
            digests = {Path(path).name: digest for path, digest in digests.items()}
        made_by = console.made_by("eval", settings, seed, digests)
        _write(measures | {"made_by": made_by}, out, force=printing.force)
    if other:
        this.reader.bad += other.reader.bad
    this.reader.write_bad(out, force=printing.force)


def _show(
    measures: dict[str, Any],
    replayed: Replay | None,
    notes: Counter[str],
    out: str | None,
    printing: options.Writing,
) -> None:
    """Print the document or the report.

    Raises:
        typer.Exit: a replay differs from what was recorded.
    """
    if printing.as_json:
        console.print_json(measures)
    elif not printing.quiet:
        print_report(measures, stderr=out == "-")
        show_notes(notes)  # `rollout` has shown its own
    if replayed:
        if not (printing.as_json or printing.quiet):
            print_replay(replayed, stderr=out == "-")
        if replayed.results_differ or replayed.outcomes_differ:
            raise typer.Exit(1)


def _check_use(traces: list[str] | None, asked: Measuring, play: PlayOptions) -> None:
    """Raise InputError unless there is one thing to measure: traces, or a policy that plays."""
    if asked.policy:
        if asked.env is None:
            raise InputError("--policy", "has nothing to play", "give --env")
        if traces or asked.replay:
            what = "episodes are played, not read"
            raise InputError("--policy", what, "leave out the traces and --replay")
        if play.resume and not asked.keep_rollouts:
            todo = "give '--keep-rollouts FILE'"
            raise InputError("--resume", "there is nothing to resume", todo)
        return
    if asked.keep_rollouts:
        todo = "give --env and --policy to play"
        raise InputError("--keep-rollouts", "does nothing for traces", todo)
    if not traces:
        raise InputError("eval", "nothing to measure", "name traces, or give --env and --policy")
    if asked.replay != (asked.env is not None):
        raise InputError("eval", "'--replay' and '--env' belong together", "give both or none")
    refuse_play_options(play)


def _refuse_named(source: TraceOptions, asked: Measuring) -> None:
    """Raise InputError for trace options if no traces are read."""
    if asked.policy and not asked.against:
        for name, value in source.settings.items():
            if value:
                what = "does nothing for played episodes"
                raise InputError(f"--{name}", what, "leave it out")


def _check_before_playing(asked: Measuring, split: str) -> None:
    """Raise InputError for mistakes that would otherwise show only after playing."""
    env, trained_on = str(asked.env), asked.trained_on
    if asked.published:
        check_published({env})
    families = {task.family for task in open_env(env).tasks(split)} if trained_on else set()
    check_families(trained_on, sorted(families - {""}))


def _measure(reader: TraceReader, replayer: Replayer | None = None) -> Measurer:
    measurer = Measurer()
    for episode, tools in reader:
        note_left_out(episode, reader.notes, outcome=True)
        measurer.add(replayer.watch([episode]) if replayer else [episode], tools)
    return measurer


def _write(measures: dict[str, Any], out: str, *, force: bool) -> None:
    if out == "-":
        console.print_json(measures)
        return
    with whole_file(out, force=force) as file:
        file.write(orjson.dumps(measures, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
