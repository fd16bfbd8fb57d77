"""`irc-cli loop`: Iterative Reward Calibration from end to end."""

from __future__ import annotations

import io
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NotRequired, TypedDict

import orjson
import typer
from rich.live import Live
from rich.table import Table

from irc_cli import console, options
from irc_cli.extras import LEARNING, needs
from irc_cli.notes import check_notes, show_notes
from irc_cli.plots import write_figures
from stages import loop as stage
from stages.calibration.file import read_previous
from stages.calibration.online import Event
from stages.envs.registry import check_env
from stages.errors import InputError
from stages.loop import LOOP, LoopConfig, LoopStep, Places
from stages.loop_files import Records, check_settings
from stages.serving.address import without_secrets
from stages.tables.files import whole_file
from stages.tables.state import check_rows, read_state
from stages.tables.yamlfile import parse_yaml

if TYPE_CHECKING:
    from stages.plots import RateInterval

SHOWN = 12  # iterations in the live table


class _Played(TypedDict):
    """Fields of `rollout --json` that the loop uses."""

    pass_rate: float | None


class _Measured(TypedDict):
    """Fields of `eval --json` that the loop uses."""

    episodes: int
    pass_rate: float
    ci_low: float
    ci_high: float


class _Pushed(TypedDict):
    tier: str
    verdict: str


class _Judged(TypedDict):
    misaligned: list[str]
    direction: list[_Pushed]


class _Gates(TypedDict):
    events: list[dict[str, Any]]


class _Calibrated(TypedDict):
    """Fields of `calibrate --json` that the loop uses."""

    before: _Judged
    after: _Judged
    online: NotRequired[_Gates | None]


_PRINTED: dict[str, Any] = {"rollout": _Played, "eval": _Measured, "calibrate": _Calibrated}


class Standing(NamedTuple):
    """The results of one iteration."""

    iteration: int
    policy: str  # folder of the policy that the next iteration starts from
    played_pass_rate: float  # of the policy it started from, on tasks of the train split
    values: dict[str, float]  # by tier
    verdicts: dict[str, tuple[str, str]]  # by tier: with the rewards as scored, with the values
    misaligned: list[str]
    gates: list[dict[str, Any]] | None  # online calibration: all gate events so far
    evaluation: dict[str, Any] | None  # of the policy that this iteration trained
    restored: bool  # the best policy replaces the trained one, which is significantly worse
    seconds: float


@options.expanded(renamed={"tasks": "sample-tasks", "rewards": "reward-mode"})
def command(
    *,
    ctx: typer.Context,
    settings: LoopConfig,
    stage_settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.OPTION=VALUE",
            help="Option of a stage, such as train.lr=1e-4; may be repeated, and adds to --config.",
            rich_help_panel=LOOP,
        ),
    ] = None,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="Folder to write the loop to.",
            rich_help_panel=options.OUTPUT,
        ),
    ],
    printing: options.Printing,
    config: options.Config = None,
) -> None:
    """Repeat rollout, score, calibrate and train; an interrupted loop continues.

    Example: irc-cli loop --iterations 20 --set train.lr=3e-4 -o first
    """
    check_env(settings.env)
    given = options.added_to_config(ctx, "stage_settings", stage_settings)
    settings = replace(settings, options=_stage_options(given))
    if settings.forecasts and settings.rewards not in ("calibrated", "online"):
        what = "needs the critic of a calibration"
        raise InputError("--set train.advantage=potential", what, "use --reward-mode calibrated")
    folder = Path(out)
    needs("irc-cli loop", "train", "matplotlib", *LEARNING)
    check_settings(folder, asdict(settings))
    start, standings, notes = _run_loop(settings, folder, printing)
    rows = [standing._asdict() for standing in standings]
    document = {"out": out, "policy": standings[-1].policy, "start": start, "iterations": rows}
    document["notes"] = dict(notes)
    if printing.as_json:
        console.print_json(document)
    elif not printing.quiet:
        _report(out, start, standings)
        show_notes(notes)


def _run_loop(
    settings: LoopConfig, folder: Path, printing: options.Printing
) -> tuple[dict[str, Any] | None, list[Standing], Counter[str]]:
    """Run the iterations, and write all results so far after each.

    Returns:
        The evaluation of the policy to start from, if there is one; the iterations; notes.
    """
    standings: list[Standing] = []
    with _view(settings, standings, quiet=printing.quiet) as show:
        run = Runner(show, strict=printing.strict)
        start = _evaluated(settings, Places(folder, stage.START), settings.model, run)
        for standing in _iterations(settings, folder, start, run):
            standings.append(standing)
            lines = (orjson.dumps(known._asdict()) + b"\n" for known in standings)
            with whole_file(str(folder / "loop.jsonl"), force=True) as file:
                file.writelines(lines)
            _draw(folder, start, standings)
            show("")
    return start, standings, run.notes


class Runner:
    """Runs steps in this process, so that libraries load only once."""

    def __init__(self, show: Callable[[str], None], *, strict: bool = False) -> None:
        self._show, self._strict = show, strict
        self.notes = Counter[str]()  # of all steps

    def __call__(self, step: LoopStep, folder: Path) -> dict[str, Any]:
        """Run a step unless it is done; return its --json document."""
        records, printed = Records(folder), folder / f"{step.name}.json"
        if not (records.done(step) and printed.exists()):
            self._show(f"{folder.name}: {step.name}")
            Path(step.outputs[0]).parent.mkdir(exist_ok=True)
            again = _again(step)
            if step.renew:
                _renew(*step.renew)
            strict = ["--strict"] if self._strict else []
            text = _call([*step.args, "--json", "--quiet", *strict, *again], step)
            with whole_file(str(printed), force=True) as file:
                file.write(text)
            records.add(step)
        todo = "delete it: the step runs again"
        document: dict[str, Any] = read_state(
            printed, _PRINTED.get(step.args[0], dict[str, Any]), todo
        )
        notes = document.get("notes", {})
        check_notes(notes, strict=self._strict)  # also for steps done earlier without --strict
        self.notes.update(notes)
        return document


def _call(args: Sequence[str], step: LoopStep) -> bytes:
    """Run a command line; return its standard output."""
    from irc_cli.app import app

    stdout = io.TextIOWrapper(io.BytesIO(), write_through=True)
    try:
        with redirect_stdout(stdout):
            app(list(args), prog_name="irc-cli")
    except SystemExit as end:
        if end.code:
            console.note(f"in: {step.command}")
            raise typer.Exit(int(end.code)) from None
    return stdout.buffer.getvalue()


def _renew(source: str | None, target: str) -> None:
    Path(target).unlink(missing_ok=True)
    if source:
        shutil.copyfile(source, target)


def _again(step: LoopStep) -> list[str]:
    """Return `--resume` or `--force` if an earlier attempt at a step left files."""
    out = Path(step.outputs[0])
    if Path(f"{out}.partial").exists() or (out / "checkpoints").exists():
        return ["--resume"]
    return ["--force"] if any(Path(path).exists() for path in step.outputs) else []


def _iterations(
    config: LoopConfig, out: Path, start: dict[str, Any] | None, run: Runner
) -> Iterator[Standing]:
    """Run the iterations; yield the results of each."""
    policy = best_policy = config.model
    best, worse = start, 0
    for number in range(config.iterations):
        began = time.monotonic()
        at = Places(out, number)
        at.folder.mkdir(exist_ok=True)
        played = run(stage.play(config, at, policy), at.folder)
        run(stage.score(config, at), at.folder)
        calibrated = _calibrated(config, at, run)
        values = read_previous(calibrated.path).values if calibrated.path else {}
        fresh = policy == config.model
        run(stage.train(config, at, policy, calibrated.path, first=fresh), at.folder)
        policy, restored, measured = at("policy"), False, None
        if config.eval_every and (number + 1) % config.eval_every == 0:
            measured = _evaluated(config, at, policy, run)
        if measured:
            if best and measured["ci_high"] < best["ci_low"]:
                policy, restored = best_policy, True
            if best is None or measured["pass_rate"] > best["pass_rate"]:
                best, best_policy, worse = measured, policy, 0
            else:
                worse += 1
        yield Standing(
            iteration=number,
            policy=policy,
            played_pass_rate=played["pass_rate"],
            values=values,
            verdicts=calibrated.verdicts,
            misaligned=calibrated.misaligned,
            gates=calibrated.gates,
            evaluation=measured,
            restored=restored,
            seconds=round(time.monotonic() - began, 1),
        )
        if config.patience and worse >= config.patience:
            return


class Found(NamedTuple):
    """The calibration of an iteration, and its verdicts."""

    path: str | None  # None: rewards are not calibrated
    verdicts: dict[str, tuple[str, str]]
    misaligned: list[str]
    gates: list[dict[str, Any]] | None


def _calibrated(config: LoopConfig, at: Places, run: Runner) -> Found:
    """Calibrate until no tier is misaligned, or the rounds are used up."""
    if config.rewards not in ("calibrated", "online"):
        return Found(None, {}, [], None)
    zeroed: tuple[str, ...] = ()
    rounds = 0 if config.forecasts else config.calibration_rounds  # a critic ignores tier values
    while True:
        step = stage.calibrate(config, at, zeroed)
        document = run(step, at.folder)
        misaligned, online = document["after"]["misaligned"], document.get("online")
        if not misaligned or len(zeroed) >= rounds:
            return Found(
                step.outputs[0], _verdicts(document), misaligned, online and online["events"]
            )
        zeroed += (misaligned[0],)


def _verdicts(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Return each tier's verdict with the rewards as scored, and with the values."""
    before, after = (
        {row["tier"]: row["verdict"] for row in document[side]["direction"]}
        for side in ("before", "after")
    )
    return {tier: (before[tier], after[tier]) for tier in after}


def _evaluated(config: LoopConfig, at: Places, policy: str, run: Runner) -> dict[str, Any] | None:
    """Play held-out tasks and measure; return None if evaluation is off."""
    if not config.eval_every:
        return None
    at.folder.mkdir(exist_ok=True)
    playing, measuring = stage.evaluate(config, at, policy)
    run(playing, at.folder)
    return run(measuring, at.folder)


def _draw(out: Path, start: dict[str, Any] | None, standings: Sequence[Standing]) -> None:
    """Write figures of the iterations so far."""
    from stages.plots import gates_figure, pass_rate_figure, values_figure

    held_out = [_interval(start), *(_interval(standing.evaluation) for standing in standings)]
    figures = {}
    if any(held_out):
        figures["pass-rate"] = pass_rate_figure({"held out": held_out})
    if any(standing.values for standing in standings):
        figures["values"] = values_figure([standing.values for standing in standings])
    if standings[-1].gates:
        events = check_rows(standings[-1].gates, Event, str(out), "delete the iteration's .json")
        figures["gates"] = gates_figure(events, len(standings))
    (out / "plots").mkdir(exist_ok=True)
    write_figures(str(out / "plots"), figures, force=True)


def _interval(evaluation: dict[str, Any] | None) -> RateInterval | None:
    from stages.plots import RateInterval

    return (
        RateInterval(evaluation["pass_rate"], evaluation["ci_low"], evaluation["ci_high"])
        if evaluation
        else None
    )


def _stage_options(given: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Read STAGE.OPTION=VALUE; a value is YAML, and a list repeats the option."""
    options_of: dict[str, dict[str, Any]] = {}
    for text in given:
        name, equals, value = text.partition("=")
        stage_name, dot, option = name.partition(".")
        if not (equals and dot and option):
            what = f"'{without_secrets(text)}' is not STAGE.OPTION=VALUE"
            raise InputError("--set", what, "see --help")
        options.one_of("set", stage_name, stage.STAGES)
        options_of.setdefault(stage_name, {})[option] = parse_yaml(value, f"--set {name}").plain()
    return options_of


@contextmanager
def _view(
    config: LoopConfig, standings: Sequence[Standing], *, quiet: bool
) -> Iterator[Callable[[str], None]]:
    """Yield a function that shows the iterations and the current step on standard error."""
    if quiet:
        yield lambda doing: None
        return
    screen = console.console(stderr=True)
    if not sys.stderr.isatty():
        # In a log: one line per finished iteration.
        yield lambda doing: None if doing or not standings else screen.print(_line(standings[-1]))
        return
    with Live(console=screen, transient=True) as live:

        def show(doing: str) -> None:
            table = _table(standings[-SHOWN:])
            table.caption = f"{len(standings)} of {config.iterations} iterations; {doing}"
            live.update(table)

        yield show


def _table(standings: Sequence[Standing]) -> Table:
    table = console.table("iteration", "played", "held out", "95 %", "values", left=(0, 4))
    table.columns[-1].no_wrap = False
    for standing in standings:
        evaluation = standing.evaluation
        rate = f"{evaluation['pass_rate']:.1%}" if evaluation else ""
        interval = (
            f"{evaluation['ci_low']:.1%} to {evaluation['ci_high']:.1%}" if evaluation else ""
        )
        table.add_row(
            str(standing.iteration),
            f"{standing.played_pass_rate:.1%}",
            rate,
            interval,
            _values(standing),
        )
    return table


def _values(standing: Standing) -> str:
    values = ", ".join(f"{tier} {value:+.2f}" for tier, value in standing.values.items() if value)
    wrong = f"; misaligned: {', '.join(standing.misaligned)}" if standing.misaligned else ""
    return values + wrong + ("; restored the best policy" if standing.restored else "")


def _line(standing: Standing) -> str:
    evaluation = standing.evaluation
    held_out = f", held out {evaluation['pass_rate']:.1%}" if evaluation else ""
    return (
        f"iteration {standing.iteration}: played {standing.played_pass_rate:.1%}{held_out}, "
        f"{standing.seconds:.0f} s; {_values(standing)}"
    )


def _report(out: str, start: dict[str, Any] | None, standings: Sequence[Standing]) -> None:
    screen = console.console()
    screen.print(_table(standings))
    if standings[-1].verdicts:
        screen.print(_tiers(standings))
        screen.print("as scored, calibrated: whether these rewards push a tier as its value means")
    if start:
        screen.print(_rate("before", start))
    for standing in reversed(standings):
        if standing.evaluation:
            screen.print(_rate(f"after iteration {standing.iteration}", standing.evaluation))
            break
    screen.print(f"the policy: {standings[-1].policy}; every file: {out}")


def _tiers(standings: Sequence[Standing]) -> Table:
    """Return a table of each tier's first and last value, and its verdicts."""
    first, last = standings[0], standings[-1]
    columns = ("tier", "value at first", "now", "as scored", "calibrated")
    table = console.table(*columns, left=(0, 3, 4))
    for tier, (before, after) in last.verdicts.items():
        values = (f"{standing.values.get(tier, 0.0):+.2f}" for standing in (first, last))
        table.add_row(tier, *values, before, after)
    return table


def _rate(when: str, measured: dict[str, Any]) -> str:
    return (
        f"{when}: pass rate {measured['pass_rate']:.1%} "
        f"({measured['ci_low']:.1%} to {measured['ci_high']:.1%}, "
        f"{measured['episodes']:,} episodes)"
    )
