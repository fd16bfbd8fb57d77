"""`irc-cli eval`: traces in, how well the policy does out."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import orjson
import polars as pl
import typer
from rich.markup import escape

from irc_cli import console, options
from irc_cli.notes import check_notes, show_notes
from irc_cli.playing import played, refuse_play_options
from irc_cli.rollout import PlayOptions
from irc_cli.traces import OptionalPaths, ReadingOptions, TraceOptions, TraceReader
from stages.envs.registry import ENVS, open_env
from stages.errors import InputError, few
from stages.evaluate import (
    PUBLISHED,
    PUBLISHED_ENV,
    Measurer,
    PolicyDifference,
    by_family,
    by_policy,
    compare,
    compare_policies,
    evaluate,
    task_table,
    transfer,
    under_pressure,
)
from stages.policy_registry import POLICIES
from stages.replay import Replay, Replayer
from stages.settings import Setting
from stages.tables.files import whole_file
from stages.tables.yamlfile import nearest
from stages.traces.episode import SUCCESS
from stages.traces.identity import Identities
from stages.traces.notes import NO_OUTCOME, note_left_out, why_none

PUBLISHED_SOURCE, PUBLISHED_NOTE = "arXiv 2604.02869", "published, not measured here"
SHOWN_DIFFERENCES = 5  # of a replay, on the screen
SHOWN_BEFORE, SHOWN_TEXT = 20, 60  # characters before and after where texts start to differ
COMPARISON, PLAYING = "Comparison", "Playing"  # panels of the help
SIDES = (("recorded", "replayed"), ("replayed", "recorded"))


@dataclass(frozen=True)
class Measuring:
    """What is measured, and held against what."""

    against: Annotated[
        tuple[str, ...],
        Setting("Compare with these traces, task by task.", COMPARISON, metavar="TRACES"),
    ] = ()
    by_task: Annotated[bool, Setting("Show every task.", options.OUTPUT)] = False
    trained_on: Annotated[
        tuple[str, ...],
        Setting(
            "Family that was trained on: compare with the others; may be repeated.",
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
            "Make the recorded calls again in --env; exit with 1 if anything differs.", PLAYING
        ),
    ] = False
    env: Annotated[
        str | None,
        Setting("Environment for --policy or --replay.", PLAYING, metavar="|".join(ENVS)),
    ] = None
    policy: Annotated[
        str | None,
        Setting(
            "Policy that plays episodes, in place of traces.", PLAYING, metavar="|".join(POLICIES)
        ),
    ] = None
    keep_rollouts: Annotated[
        str | None, Setting("File to keep the played episodes in.", PLAYING, metavar="FILE")
    ] = None

    def settings(self, domain: str | None) -> dict[str, Any]:
        """What the document records of it."""
        against, trained_on = list(self.against) or None, list(self.trained_on) or None
        return {"against": against, "domain": domain, "by_task": self.by_task} | {
            "env": self.env,
            "trained_on": trained_on,
            "published": self.published,
        }


class _Side(NamedTuple):
    """Traces that were read and measured."""

    paths: list[str]
    reader: TraceReader
    measured: Measurer

    @property
    def notes(self) -> Counter[str]:
        """On reading and on measuring."""
        return self.reader.notes + self.measured.notes


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
    if asked.against:  # first: a mistake shows before all is played
        reader = source.reader(list(asked.against), quiet=printing.quiet, **named)
        other = _Side(reader.paths, reader, _measure(reader))
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
        reader = of_records.reader(traces, quiet=printing.quiet, **named)
        reader.check_sidecar(out, force=printing.force)
        this = _Side(traces, reader, _measure(reader, replayer))
    document = _document(this, other, asked)
    replayed = replayer.replay() if replayer else None
    if replayed:
        document |= _replayed(replayed)
    read = this.notes + (other.notes if other else Counter())
    check_notes(read, strict=printing.strict)
    document["notes"] = dict(notes + read)
    _write_files(document, this, other, asked, settings, play.config.seed, out, printing)
    _show(document, replayed, read, out, printing)


def _document(this: _Side, other: _Side | None, asked: Measuring) -> dict[str, Any]:
    """Return what is measured, and how it compares."""
    episodes = this.measured.frame(this.reader.renamed())
    document = _results(episodes, this.paths, this.reader.notes)
    document |= {"failures": dict(this.measured.failures.most_common())}
    document["policies"] = _policies(episodes)
    if asked.by_task:
        document["by_task"] = task_table(episodes).to_dicts()
    if asked.trained_on:
        document["transfer"] = _transfer(episodes, list(asked.trained_on))
    if asked.published:
        _check_published(this.reader.envs)
        document["published"] = _published()
    if other:
        other_episodes = other.measured.frame(other.reader.renamed())
        document["against"] = _results(other_episodes, other.paths, other.reader.notes)
        document["against"]["policies"] = _policies(other_episodes)
        document["difference"] = _compare(episodes, other_episodes, other.paths)._asdict()
        document["differences"] = _differences(episodes, other_episodes)
    return document


def _replayed(replayed: Replay) -> dict[str, Any]:
    """Return what came of making the recorded calls again."""
    return {
        "replay": replayed.counts(),
        "replay_differences": replayed.differences,
        "rescored": replayed.rescored,
    }


def _write_files(
    document: dict[str, Any],
    this: _Side,
    other: _Side | None,
    asked: Measuring,
    settings: dict[str, Any],
    seed: int,
    out: str | None,
    printing: options.Writing,
) -> None:
    """Write the document, and the bad lines of the traces."""
    if out:
        digests = this.reader.digests | (other.reader.digests if other else {})
        if asked.policy and not asked.keep_rollouts:  # a temporary path tells nothing
            digests = {Path(path).name: digest for path, digest in digests.items()}
        made_by = console.made_by("eval", settings, seed, digests)
        _write(document | {"made_by": made_by}, out, force=printing.force)
    if other:
        this.reader.bad += other.reader.bad
    this.reader.write_bad(out, force=printing.force)


def _show(
    document: dict[str, Any],
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
        console.print_json(document)
    elif not printing.quiet:
        _report(document, stderr=out == "-")
        show_notes(notes)  # `rollout` has shown its own
    if replayed:
        if not (printing.as_json or printing.quiet):
            _report_replay(replayed, stderr=out == "-")
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
            raise InputError("--resume", "there is nothing to go on with", todo)
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
    """Raise InputError for options on traces where none are read."""
    if asked.policy and not asked.against:
        for name, value in source.settings.items():
            if value:
                what = "does nothing for played episodes"
                raise InputError(f"--{name}", what, "leave it out")


def _check_before_playing(asked: Measuring, split: str) -> None:
    """Raise InputError now for what would be found wrong when all is played."""
    env, trained_on = str(asked.env), list(asked.trained_on)
    if asked.published:
        _check_published({env})
    families = {task.family for task in open_env(env).tasks(split)} if trained_on else set()
    _check_families(trained_on, sorted(families - {""}))


def _measure(reader: TraceReader, replayer: Replayer | None = None) -> Measurer:
    measurer = Measurer()
    for episode, tools in reader:
        note_left_out(episode, reader.notes, outcome=True)
        measurer.add(replayer.watch([episode]) if replayer else [episode], tools)
    return measurer


def _results(episodes: pl.DataFrame, traces: list[str], notes: Counter[str]) -> dict[str, Any]:
    try:
        return _figures(episodes)
    except ValueError as error:
        unknown = any(text.endswith(NO_OUTCOME) for text in notes)
        todo = f"{'name it by --map outcome=PATH, or ' * unknown}give traces with finished episodes"
        raise InputError(few(traces), f"{error}{why_none(notes)}", todo) from None


def _policies(episodes: pl.DataFrame) -> list[dict[str, Any]]:
    """Return the figures of each policy; of one without an episode that counts, only how many."""
    policies = []
    for policy, part in by_policy(episodes).items():
        try:
            figures = _figures(part)
        except ValueError:
            figures = {"episodes": 0, "tasks": 0, "excluded": part.height}
        policies.append({"policy": policy} | figures)
    return policies


def _differences(episodes: pl.DataFrame, against: pl.DataFrame) -> list[dict[str, Any]]:
    """Return how each policy differs from that of the other traces which it is held against."""
    none = dict.fromkeys(PolicyDifference._fields) | {"tasks": 0}
    return [
        {"policy": policy, "against": other} | (difference._asdict() if difference else none)
        for policy, other, difference in compare_policies(episodes, against)
    ]


def _figures(episodes: pl.DataFrame) -> dict[str, Any]:
    measures = evaluate(episodes)
    families = {name: rate._asdict() for name, rate in by_family(episodes).items()}
    pressed = under_pressure(episodes)
    return measures._asdict() | {
        "families": families,
        "pressure": pressed._asdict() if pressed else None,
    }


def _transfer(episodes: pl.DataFrame, trained_on: list[str]) -> dict[str, Any]:
    """Return the trained families against the others."""
    _check_families(trained_on, list(by_family(episodes)))
    try:
        transferred = transfer(episodes, trained_on)
    except ValueError:
        todo = "leave out a family, or add episodes of others"
        raise InputError("--trained-on", "names every family that is here", todo) from None
    sides = {"trained": transferred.trained._asdict(), "others": transferred.others._asdict()}
    return {"families": trained_on} | transferred._asdict() | sides


def _check_families(wanted: list[str], known: list[str]) -> None:
    for family in wanted:
        if family not in known:
            todo = nearest(family, known) if known else "give rollouts, which name families"
            raise InputError("--trained-on", f"no episode of family '{family}'", todo)


def _check_published(envs: set[str | None]) -> None:
    if envs != {PUBLISHED_ENV}:
        these_envs = few(sorted(env or "an unknown environment" for env in envs))
        what = f"the published figures are of {PUBLISHED_ENV}, and this is {these_envs}"
        raise InputError("--published", what, "leave it out")


def _published() -> dict[str, Any]:
    """Return what others measured."""
    rows = [{"model": model, "low": low, "high": high} for model, (low, high) in PUBLISHED.items()]
    return {
        "env": PUBLISHED_ENV,
        "source": PUBLISHED_SOURCE,
        "note": PUBLISHED_NOTE,
        "pass_rates": rows,
    }


def _compare(episodes: pl.DataFrame, theirs: pl.DataFrame, against: list[str]) -> PolicyDifference:
    try:
        return compare(episodes, theirs)
    except ValueError:
        todo = "compare traces of the same tasks"
        raise InputError(few(against), "no task is shared", todo) from None


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
    if len(document["policies"]) > 1:
        screen.print(_policy_rows(document["policies"]))
    if len(document.get("differences", ())) > 1:
        screen.print(_difference_rows(document["differences"]))
    if document["families"]:
        screen.print(_family_rows(document["families"]))
    if pressed := document["pressure"]:
        screen.print(f"under pressure: pass rate {_interval(pressed, 'pass_rate')}")
        if pressed["forbidden_share"] is not None:
            share = pressed["forbidden_share"], pressed["forbidden_low"], pressed["forbidden_high"]
            screen.print(f"  episodes with a forbidden write {_range(*share)}")
    if moved := document.get("transfer"):
        screen.print(f"families trained on: {_interval(moved['trained'], 'pass_rate')}")
        screen.print(f"  others: {_interval(moved['others'], 'pass_rate')}")
        screen.print(f"  difference {_interval(moved, 'difference', sign='+')}")
    if others := document.get("published"):
        screen.print(_published_rows(others))
    if "by_task" in document:
        screen.print(_task_rows(document["by_task"]))
    for rule, results in document["failures"].items():
        console.note(f"failed tool results, {rule}: {results:,}")


def _report_replay(replayed: Replay, *, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    for what, equal, differ in (
        ("results", replayed.results_equal, replayed.results_differ),
        ("outcomes", replayed.outcomes_equal, replayed.outcomes_differ),
    ):
        screen.print(f"replay: {equal:,} of {equal + differ:,} {what} equal the recorded ones")
    for row in replayed.differences[:SHOWN_DIFFERENCES]:
        place = f" turn {row['turn']} {row['tool']}" if row["what"] == "result" else " outcome"
        sides = [_around_difference(row[side], row[other]) for side, other in SIDES]
        why = f" ({row['why']})" if row["why"] else ""
        text = f"  {row['episode_id']}{place}: recorded {sides[0]}, replayed {sides[1]}{why}"
        screen.print(escape(text))
    if len(replayed.differences) > SHOWN_DIFFERENCES:
        screen.print(f"  and {len(replayed.differences) - SHOWN_DIFFERENCES:,} more; see --json")
    if replayed.rescored:
        passed = sum(row["replayed"] >= SUCCESS for row in replayed.rescored)
        screen.print(f"{len(replayed.rescored):,} stale episodes re-scored: {passed:,} pass")
    if replayed.unjudged or replayed.unknown:
        screen.print(
            f"not compared: {replayed.unjudged:,} outcomes of unfinished episodes, "
            f"{replayed.unknown:,} episodes of tasks that the environment lacks"
        )


def _around_difference(recorded: Any, other: Any) -> str:
    """The first place where a text differs from another, with a little before it."""
    recorded, other = str(recorded), str(other)
    pairs = enumerate(zip(recorded, other, strict=False))
    differs = next((place for place, (left, right) in pairs if left != right), len(other))
    start = max(0, differs - SHOWN_BEFORE)
    return repr(("..." if start else "") + recorded[start : start + SHOWN_TEXT])


def _interval(run: dict[str, Any], name: str, sign: str = "") -> str:
    return _range(run[name], run["ci_low"], run["ci_high"], sign)


def _range(value: float, low: float, high: float, sign: str = "") -> str:
    return f"{value:{sign}.1%} (95 % interval {low:{sign}.1%} to {high:{sign}.1%})"


def _pass_k(run: dict[str, Any], k: str) -> str:
    if k not in run["pass_k"]:
        return "-"
    tasks = run["pass_k_tasks"][k]
    ragged = f" ({tasks:,} tasks)" if tasks < run["tasks"] else ""
    return f"{run['pass_k'][k]:.4f}{ragged}"


def _known(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _policy_rows(policies: list[dict[str, Any]]) -> Any:
    ks = sorted({int(k) for policy in policies for k in policy.get("pass_k", ())} - {1})
    pass_k = [f"pass^{k}" for k in ks]
    table = console.table("policy", "episodes", "tasks", "pass rate", "95 % interval", *pass_k)
    for row in policies:
        counts = escape(row["policy"]), f"{row['episodes']:,}", f"{row['tasks']:,}"
        if row["episodes"]:
            interval = f"{row['ci_low']:.1%} to {row['ci_high']:.1%}"
            trials = [_pass_k(row, str(k)) for k in ks]
            table.add_row(*counts, f"{row['pass_rate']:.1%}", interval, *trials)
        else:
            table.add_row(*counts, *["-"] * (2 + len(ks)))
    return table


def _difference_rows(differences: list[dict[str, Any]]) -> Any:
    table = console.table(
        "policy", "against", "shared tasks", "difference", "95 % interval", left=(0, 1)
    )
    for row in differences:
        names = escape(row["policy"]), escape(row["against"]), f"{row['tasks']:,}"
        if row["tasks"]:
            interval = f"{row['ci_low']:+.1%} to {row['ci_high']:+.1%}"
            table.add_row(*names, f"{row['difference']:+.1%}", interval)
        else:
            table.add_row(*names, "-", "-")
    return table


def _family_rows(rates: dict[str, dict[str, Any]]) -> Any:
    table = console.table("family", "episodes", "tasks", "pass rate", "95 % interval")
    for family, rate in rates.items():
        table.add_row(
            escape(family),
            f"{rate['episodes']:,}",
            f"{rate['tasks']:,}",
            f"{rate['pass_rate']:.1%}",
            f"{rate['ci_low']:.1%} to {rate['ci_high']:.1%}",
        )
    return table


def _published_rows(published: dict[str, Any]) -> Any:
    table = console.table(f"other models on {published['env']}", "pass rate")
    for row in published["pass_rates"]:
        both = dict.fromkeys(f"{row[end]:.1%}" for end in ("low", "high"))
        table.add_row(row["model"], " to ".join(both))
    table.caption = f"{published['note']}: {published['source']}"
    return table


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
