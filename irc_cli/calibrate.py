"""`irc-cli calibrate`: turns in, tier values and advantage checks out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, NamedTuple

import typer

from irc_cli import calibrate_json, console, method, options
from irc_cli.calibrate_report import print_online, print_report, print_sample, print_test
from irc_cli.calibrate_request import Request, check_local, check_request, with_files
from irc_cli.notes import check_notes, show_notes
from irc_cli.plots import check_figures, write_figures
from stages.calibrate import (
    calibrate_online,
    calibrate_turns,
    merge_shards,
    stream_turns,
    sum_shard,
)
from stages.calibration.estimate import Calibration
from stages.calibration.file import check_critic, read_previous, write_calibration
from stages.calibration.online import Online, open_online, write_online
from stages.calibration.sample import Sample
from stages.calibration.shards import Turns, read_turns, summary, write_sums
from stages.carry_over import Elsewhere, carry_over_turns
from stages.check import (
    BothChecks,
    Changes,
    changes_since,
    check_both,
    given_advantages,
    objections,
)
from stages.tables.artifacts import ADVANTAGES
from stages.tables.files import digest, together
from stages.tables.paths import remote
from stages.tables.table_file import read_columns, write_table
from stages.tables.turn_arrays import TurnArrays, advantage_frame, turn_arrays
from stages.tiers.file import load_tiers
from stages.traces.notes import left_out

FIGURES = ("tiers", "advantages", "gradient-mass")  # of calibration_figures


@options.expanded()
def command(
    *,
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="TURNS...",
            help="Turns of irc-cli score, or with --merge the sums of shards: files, folders, "
            "patterns, s3:// or gs:// addresses; '-' for standard input.",
        ),
    ],
    config: options.Config = None,
    request: Request,
    method_name: method.Method = None,
) -> None:
    """Measure which tiers separate success from failure, and check where advantages push.

    Example: irc-cli calibrate turns.parquet -o calibration.yaml
    """
    method.check_method(ctx, method_name)
    run(with_files(replace(request, method=method_name), inputs))


def run(request: Request) -> None:
    """Check a request, calibrate, write the outputs and report."""
    check_request(request)
    check_local(request)
    if request.plots:
        figures = FIGURES if request.has_checks else FIGURES[:1]
        check_figures(request.plots, figures, force=request.printing.force)
    outs = [request.out, request.beside, request.report, request.markdown]
    options.check_outputs(outs, as_json=request.printing.as_json, force=request.printing.force)
    if request.way == "partial":
        _write_shard(request)
        return
    ways = {"turns": _from_turns, "stream": _from_stream, "merge": _from_sums}
    results = ways[request.way](request)
    check_notes(results.notes, strict=request.printing.strict)
    _write(request, results)
    _report(request, results)
    if request.check and results.objections:
        for objection in results.objections:
            console.note(f"check failed: {objection}")
        raise typer.Exit(1)


class _Results(NamedTuple):
    """The results of one call."""

    calibration: Calibration
    notes: Counter[str]
    origin: dict[str, Any]  # lineage
    read: Turns | None = None  # None: there are only sums
    turns: TurnArrays | None = None  # of the counted episodes
    checks: BothChecks | None = None
    changes: Changes | None = None
    tests: tuple[Elsewhere, ...] = ()
    state: Online | None = None  # of --online
    objections: tuple[str, ...] = ()
    sample: Sample | None = None  # the turns that were checked; None: all


def _write_shard(request: Request) -> None:
    """Write the sums of a shard (--partial)."""
    origin = _origin(request)
    summed = sum_shard(request.inputs, request.config.measure)
    notes = left_out({"crashed or without an outcome": summed.excluded})
    check_notes(notes, strict=request.printing.strict)
    measure = request.config.measure
    write_sums(summed, measure, str(request.out), origin, force=request.printing.force)
    shown = summary(summed, measure)
    if request.printing.as_json:
        console.print_json(shown | {"notes": dict(notes)})
    elif not request.printing.quiet:
        text = f"sums of {shown['episodes']:,} episodes of {shown['tasks']:,} tasks"
        stderr = request.out == "-"
        console.heading(f"{text}; {shown['excluded']:,} left out", stderr=stderr)
        show_notes(notes)


def _from_sums(request: Request) -> _Results:
    """Calibrate the sums of shards (--merge)."""
    origin = _origin(request)
    calibration = merge_shards(request.inputs, request.config, request.seed)
    return _Results(calibration, _notes(request, calibration), origin)


def _from_stream(request: Request) -> _Results:
    """Calibrate a stream of turns, and check the advantages of a sample of groups (--stream)."""
    origin = _origin(request)
    calibration, sample = stream_turns(request.inputs, request.config, request.seed)
    checks, changes = _checked(request, calibration, turn_arrays(sample.turns))
    return _Results(
        calibration,
        _notes(request, calibration),
        origin,
        checks=checks,
        changes=changes,
        sample=sample,
        objections=tuple(objections(calibration, checks.chosen, request.config)),
    )


def _from_turns(request: Request) -> _Results:
    """Calibrate turns, check their advantages, and test the values on other turns."""
    state = None
    if request.online:
        state = open_online(request.online, request.config.measure, request.half_life)
    digests = _digests(request, state)
    origin = _origin(request, state, digests)
    turns = read_turns(request.inputs)
    notes = Counter[str]()
    if state:
        added = {path: str(digests[path]) for path in request.inputs}
        state, calibration, notes = calibrate_online(
            state, turns, added, request.config, request.gate, request.seed, request.landmark
        )
    else:
        calibration = calibrate_turns(turns, request.config, request.seed, request.landmark)
    notes = _notes(request, calibration) + notes
    tests = tuple(
        carry_over_turns(
            calibration, read_turns(paths), request.config, request.estimator, request.seed, name
        )
        for name, paths in request.tests.items()
    )
    arrays = turn_arrays(turns.frame)
    checks, changes = _checked(request, calibration, arrays)
    against = tuple(objections(calibration, checks.chosen, request.config))
    return _Results(
        calibration, notes, origin, turns, arrays, checks, changes, tests, state, against
    )


def _checked(
    request: Request, calibration: Calibration, turns: TurnArrays
) -> tuple[BothChecks, Changes | None]:
    """Check the advantages, and compare the calibration with an earlier one."""
    given = None
    if request.advantages:
        given = given_advantages(turns, read_columns(request.advantages), request.advantages)
    checks = check_both(
        turns,
        calibration,
        request.config,
        request.estimator,
        request.seed,
        keep_rewards=request.keep_rewards,
        given=given,
    )
    if not request.previous:
        return checks, None
    previous = read_previous(request.previous)
    check_critic(previous.values, request.previous, request.estimator)
    return checks, changes_since(previous, calibration, turns, request.estimator)


def _digests(request: Request, state: Online | None = None) -> dict[str, str | None]:
    """Return the sha256 of each input; None in an object store, where hashing needs a download."""
    read = list(request.read)
    if state and state.additions:
        read.append(str(request.online))
    return {path: None if remote(path) else digest(path) for path in read}


def _origin(
    request: Request,
    state: Online | None = None,
    digests: Mapping[str, str | None] | None = None,
) -> dict[str, Any]:
    """Return the lineage that artifacts record."""
    made_with = request.settings()
    if state:
        made_with["online"] = {"half_life": state.half_life} | asdict(request.gate)
    digests = _digests(request) if digests is None else digests
    return console.made_by("calibrate", made_with, request.seed, digests)


def _notes(request: Request, calibration: Calibration) -> Counter[str]:
    """Return notes on excluded episodes, pooled tasks and tiers that the paper lacks."""
    notes = left_out({"crashed or without an outcome": calibration.excluded})
    if request.config.correlation == "auto" and calibration.correlation == "pooled":
        notes["tasks pooled, for too few have mixed outcomes"] = calibration.tasks
    if request.method == method.PAPER_TIERS:
        notes += _tiers_not_in_paper(calibration)
    return notes


def _tiers_not_in_paper(calibration: Calibration) -> Counter[str]:
    """Return notes on the turns of tiers that the paper does not have."""
    ranked = load_tiers(method.PAPER_TIERS).rank
    todo = f"score with --tiers {method.PAPER_TIERS}"
    return Counter(
        {
            f"turns of tier '{tier.tier}', which the paper does not have: {todo}": tier.turns
            for tier in calibration.tiers
            if tier.tier not in ranked
        }
    )


def _write(request: Request, results: _Results) -> None:
    """Write all outputs, so that they appear together."""
    following = results.state.document() if results.state else None
    both = results.checks and (results.checks.before, results.checks.after)
    with together():  # the first file appears last: until then the command can be rerun
        if results.state and request.online:
            write_online(results.state, request.online, results.origin)
        if request.out:
            write_calibration(
                results.calibration,
                request.out,
                results.origin,
                following,
                force=request.printing.force,
            )
        if results.checks and results.turns and request.beside:
            checks = results.checks
            frame = advantage_frame(
                results.turns, checks.reward, checks.advantages, request.estimator
            )
            write_table(
                ADVANTAGES, frame, request.beside, results.origin, force=request.printing.force
            )
        if request.plots:
            from stages.plots import calibration_figures

            figures = calibration_figures(results.calibration, both)
            write_figures(request.plots, figures, force=request.printing.force)
        if request.report or request.markdown:
            _write_report(request, results)


def _write_report(request: Request, results: _Results) -> None:
    """Write the HTML page, and its first screen as Markdown."""
    from irc_cli.report import write_reports
    from stages.report import ReportInputs

    assert results.read and results.turns and results.checks  # `check_request` refuses sums
    known = ReportInputs(
        results.read.frame,
        results.turns,
        results.calibration,
        request.config,
        request.estimator,
        results.checks,
        results.changes,
        results.read.without_turns,
    )
    notes = write_reports(
        known,
        request.inputs,
        request.report,
        request.markdown,
        quiet=request.printing.quiet,
        force=request.printing.force,
    )
    results.notes.update(notes)


def _report(request: Request, results: _Results) -> None:
    """Print the document or the report."""
    stderr = request.out == "-"
    checks = results.checks
    if request.printing.as_json:
        plain = calibrate_json.document(
            results.calibration, checks, results.changes, request.config, list(results.objections)
        )
        if results.sample:
            plain["sample"] = results.sample.document()
        if results.tests:
            plain["test"] = [calibrate_json.tested(elsewhere) for elsewhere in results.tests]
        if results.state:
            plain["online"] = results.state.document()
        console.print_json(plain | {"notes": dict(results.notes)})
    elif not request.printing.quiet:
        if results.state:
            print_online(results.state, stderr=stderr)
        both = checks and (checks.before, checks.after)
        print_report(
            results.calibration,
            both,
            results.changes,
            request.config,
            critic=request.estimator.estimator == "potential",
            stderr=stderr,
        )
        if results.sample and not results.sample.is_all:
            print_sample(results.sample, stderr=stderr)
        for elsewhere in results.tests:
            print_test(elsewhere, stderr=stderr)
        show_notes(results.notes)
