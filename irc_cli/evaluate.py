"""`irc-cli eval`: traces in, how well the policy does out."""

from __future__ import annotations

from typing import Annotated, Any

import orjson
import polars as pl
import typer
from rich.markup import escape

from irc_cli import console, options
from irc_cli.traces import DomainOption, Paths, SkipBad, TraceReader
from stages.errors import InputError
from stages.evaluate import Difference, Evaluation, compare, evaluate, measure, task_table
from stages.files import whole_file
from stages.replay import Replay, Replayer
from stages.score import SUCCESS
from stages.worlds.registry import WORLDS, open_world

SHOWN_DIFFERENCES = 5  # of a replay, on the screen
SHOWN_BEFORE, SHOWN_TEXT = 20, 60  # characters before and after where texts start to differ
SIDES = (("recorded", "replayed"), ("replayed", "recorded"))


def command(
    traces: Paths,
    out: options.Out = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACES", help="Compare with these traces, task by task."),
    ] = None,
    by_task: Annotated[bool, typer.Option("--by-task", help="Show every task.")] = False,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Make the recorded calls again in --env; exit with 1 if anything differs.",
        ),
    ] = False,
    env: Annotated[
        str | None, typer.Option(metavar="|".join(WORLDS), help="The environment for --replay.")
    ] = None,
    domain: DomainOption = None,
    skip_bad: SkipBad = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Measure pass rate, pass^k, turns, tokens, and the share of gold writes done.

    Example: irc-cli eval traces.json --by-task
    """
    options.check_outputs([out], as_json=as_json, force=force)
    replayer = _replayer(replay, env)
    reader = TraceReader(traces, domain, skip_bad, quiet)
    reader.check_sidecar(out, force=force)
    episodes = _measure(reader, replayer)
    document = _evaluate(episodes, traces)._asdict()
    if by_task:
        document["by_task"] = task_table(episodes).to_dicts()
    found = replayer.found() if replayer else None
    if found:
        document["replay"] = found.counts()
        document["replay_differences"] = found.differences
        document["rescored"] = found.rescored
    digests = dict(reader.digests)
    if against:
        other = TraceReader(against, domain, skip_bad, quiet)
        other_episodes = _measure(other)
        document["against"] = _evaluate(other_episodes, against)._asdict()
        document["difference"] = _compare(episodes, other_episodes, against)._asdict()
        digests |= other.digests
        reader.bad += other.bad
    if out:
        settings = {"against": against, "domain": domain, "by_task": by_task, "env": env}
        made_by = console.made_by("eval", settings, seed, digests)
        _write(document | {"made_by": made_by}, out, force=force)
    reader.write_bad(out, force=force)
    if as_json:
        console.print_json(document)
    elif not quiet:
        _report(document, stderr=out == "-")
    if found:
        if not (as_json or quiet):
            _report_replay(found, stderr=out == "-")
        if found.results_differ or found.outcomes_differ:
            raise typer.Exit(1)


def _replayer(replay: bool, env: str | None) -> Replayer | None:
    if replay != (env is not None):
        raise InputError("eval", "'--replay' and '--env' belong together", "give both or none")
    return Replayer(open_world(env)) if env else None


def _measure(reader: TraceReader, replayer: Replayer | None = None) -> pl.DataFrame:
    return pl.concat(
        [
            measure(replayer.watch(episodes) if replayer else episodes, found)
            for episodes, found in reader
        ]
    )


def _evaluate(episodes: pl.DataFrame, traces: list[str]) -> Evaluation:
    try:
        return evaluate(episodes)
    except ValueError as error:
        todo = "give traces with finished episodes"
        raise InputError(", ".join(traces), str(error), todo) from None


def _compare(one: pl.DataFrame, two: pl.DataFrame, against: list[str]) -> Difference:
    try:
        return compare(one, two)
    except ValueError:
        todo = "compare traces of the same tasks"
        raise InputError(", ".join(against), "no task is shared", todo) from None


def _write(document: dict[str, Any], out: str, *, force: bool) -> None:
    if out == "-":
        console.print_json(document)
        return
    with whole_file(out, force=force) as file:
        file.write(orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _report(document: dict[str, Any], *, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    runs = [document] + ([document["against"]] if "against" in document else [])
    table = console.table("", *(["this", "against"] if len(runs) > 1 else [""]))
    table.show_header = len(runs) > 1
    ks = sorted({int(k) for run in runs for k in run["pass_k"]})
    table.add_row("episodes", *(f"{run['episodes']:,}" for run in runs))
    table.add_row("tasks", *(f"{run['tasks']:,}" for run in runs))
    table.add_row("left out", *(f"{run['excluded']:,}" for run in runs))
    for k in ks:
        table.add_row(f"pass^{k}", *(_pass_k(run, str(k)) for run in runs))
    table.add_row("turns per episode", *(f"{run['turns_per_episode']:.1f}" for run in runs))
    table.add_row(
        "tokens per episode", *(_known(run["tokens_per_episode"], ",.0f") for run in runs)
    )
    table.add_row("gold writes done", *(_known(run["write_accuracy"], ".1%") for run in runs))
    screen.print(table)
    for run, name in zip(runs, ("pass rate", "against"), strict=False):
        screen.print(f"{name} {_interval(run, 'pass_rate')}, clustered by task")
    if "difference" in document:
        shared = document["difference"]
        screen.print(
            f"difference {_interval(shared, 'difference', sign='+')}, "
            f"paired over {shared['tasks']:,} shared tasks"
        )
    if "by_task" in document:
        screen.print(_task_rows(document["by_task"]))


def _report_replay(found: Replay, *, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    for what, equal, differ in (
        ("results", found.results_equal, found.results_differ),
        ("outcomes", found.outcomes_equal, found.outcomes_differ),
    ):
        screen.print(f"replay: {equal:,} of {equal + differ:,} {what} equal the recorded ones")
    for row in found.differences[:SHOWN_DIFFERENCES]:
        place = f" turn {row['turn']} {row['tool']}" if row["what"] == "result" else " outcome"
        sides = [_around_difference(row[side], row[other]) for side, other in SIDES]
        why = f" ({row['why']})" if row["why"] else ""
        text = f"  {row['episode_id']}{place}: recorded {sides[0]}, replayed {sides[1]}{why}"
        screen.print(escape(text))
    if len(found.differences) > SHOWN_DIFFERENCES:
        screen.print(f"  and {len(found.differences) - SHOWN_DIFFERENCES:,} more; see --json")
    if found.rescored:
        passed = sum(row["replayed"] >= SUCCESS for row in found.rescored)
        screen.print(f"{len(found.rescored):,} stale episodes re-scored: {passed:,} pass")
    if found.unjudged or found.unknown:
        screen.print(
            f"not compared: {found.unjudged:,} outcomes of unfinished episodes, "
            f"{found.unknown:,} episodes of tasks that the environment lacks"
        )


def _around_difference(one: Any, other: Any) -> str:
    """The first place where a text differs from another, with a little before it."""
    one, other = str(one), str(other)
    pairs = enumerate(zip(one, other, strict=False))
    differs = next((place for place, (left, right) in pairs if left != right), len(other))
    start = max(0, differs - SHOWN_BEFORE)
    return repr(("..." if start else "") + one[start : start + SHOWN_TEXT])


def _interval(run: dict[str, Any], name: str, sign: str = "") -> str:
    low, high = run["ci_low"], run["ci_high"]
    return f"{run[name]:{sign}.1%} (95 % interval {low:{sign}.1%} to {high:{sign}.1%})"


def _pass_k(run: dict[str, Any], k: str) -> str:
    if k not in run["pass_k"]:
        return "-"
    tasks = run["pass_k_tasks"][k]
    ragged = f" ({tasks:,} tasks)" if tasks < run["tasks"] else ""
    return f"{run['pass_k'][k]:.4f}{ragged}"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _task_rows(rows: list[dict[str, Any]]) -> Any:
    table = console.table("task", "episodes", "successes", "pass rate", "turns per episode")
    for row in rows:
        table.add_row(
            escape(row["task_id"]),
            f"{row['episodes']:,}",
            f"{row['successes']:,}",
            f"{row['pass_rate']:.0%}",
            f"{row['turns_per_episode']:.1f}",
        )
    return table
