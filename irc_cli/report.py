"""`irc-cli report`: turns and conversations in, one HTML page out that explains the rewards."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import polars as pl
import typer

from irc_cli import console, options
from irc_cli.calibrate_report import next_step
from irc_cli.notes import check_notes, show_notes
from irc_cli.page.markdown import render_markdown
from irc_cli.page.render import render_page
from irc_cli.traces import INPUT, LoggedTraceOptions, TraceReader
from stages.calibrate import calibrate_turns, check_both_outcomes
from stages.calibration.estimate import CalibrateConfig
from stages.calibration.shards import Turns, read_turns
from stages.check import check_both
from stages.core.advantages import AdvantageConfig
from stages.errors import InputError, few
from stages.loop_report import (
    ROLLOUTS,
    TURNS_FILE,
    is_loop,
    loop_panel,
    newest_calibration,
    shown_iteration,
)
from stages.report import ReportInputs, report, with_conversations
from stages.reporting.conversations import Conversations
from stages.reporting.recorded import Recorded, read_calibration
from stages.settings import Setting
from stages.tables.artifacts import COUNTS
from stages.tables.files import digest, reachable, whole_file
from stages.tables.paths import files_of
from stages.tables.state import check_types
from stages.tables.table_file import made_by, made_from
from stages.tables.turn_arrays import turn_arrays
from stages.tiers.file import SHIPPED, load_tiers
from stages.tiers.rules import Tiers
from stages.traces.notes import GIVE_OUTCOME

PAGE = "report.html"
MAX_EPISODES = 10_000


@dataclass(frozen=True)
class PageOptions:
    """What a page shows in addition to the turns."""

    traces: Annotated[
        tuple[str, ...],
        Setting(
            "Traces that the turns were scored from; may be repeated; default: those recorded in "
            "the turns, if unchanged.",
            INPUT,
            metavar="FILE",
        ),
    ] = ()
    calibration: Annotated[
        str | None,
        Setting("Calibration to show; default: calibrate these turns.", INPUT, metavar="FILE.yaml"),
    ] = None
    max_episodes: Annotated[
        int,
        Setting(
            "Maximum episodes to show conversations of, sampled by task and outcome; figures cover "
            "all.",
            options.OUTPUT,
            low=1,
        ),
    ] = MAX_EPISODES


@options.expanded()
def command(
    *,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="TURNS...|LOOP",
            help="Turns of irc-cli score, or the folder of a loop.",
        ),
    ],
    shown: PageOptions,
    source: LoggedTraceOptions,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.html",
            help=f"Page to write; default: {PAGE}, for a loop in its folder; none with --json.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Write one HTML page that shows why each tier has its value.

    Example: irc-cli report turns.parquet --traces traces.json --calibration calibration.yaml
    """
    quiet, force, as_json = printing.quiet, printing.force, printing.as_json
    traces, calibration = list(shown.traces), shown.calibration
    loop = _loop_of(inputs)
    newest = shown_iteration(loop) if loop else None
    if loop and newest:
        out = out or (None if as_json else str(loop / PAGE))
        inputs, traces = [str(newest / TURNS_FILE)], traces or [str(newest / ROLLOUTS)]
        newest_file = newest_calibration(newest)
        calibration = calibration or (str(newest_file) if newest_file else None)
    out = out or (None if as_json else PAGE)
    options.check_outputs([out], as_json=as_json, force=force)
    known, notes = known_of(files_of(inputs), calibration, seed)
    document = report(known, next_step_of(known), shown.max_episodes)
    if loop and newest:
        document["loop"] = loop_panel(loop, newest)
    asked = Asked(traces or None, source.domain, source.skip_bad, quiet, source.named)
    conversations, of_traces = read_conversations(document, scored_from(inputs), asked)
    notes += of_traces
    check_notes(notes, strict=printing.strict)
    if conversations:
        document = with_conversations(document, known, conversations)
    if out:
        write_page(document, conversations, out, quiet=quiet, force=force)
    if as_json:
        console.print_json(document | {"notes": dict(notes)})
    elif not quiet:
        console.heading(f"{out}: {document['verdict']['sentence']}", stderr=out == "-")
        show_notes(notes)


def _loop_of(inputs: list[str]) -> Path | None:
    """Return the folder of a loop if the input is one, else None."""
    folders = [Path(path) for path in inputs if is_loop(Path(path))]
    if folders and len(inputs) > 1:
        raise InputError(str(folders[0]), "is a loop, beside other inputs", "report it alone")
    return folders[0] if folders else None


def known_of(
    paths: list[str], calibration: str | None, seed: int
) -> tuple[ReportInputs, Counter[str]]:
    """Return turns with their calibration, read or computed, and its checks; and notes."""
    options.refuse_twice(paths)
    turns, notes = read_turns(paths), Counter[str]()
    _check_outcomes(turns)
    arrays = turn_arrays(turns.frame)
    if calibration:
        recorded = read_calibration(calibration)
        if not {digest(path) for path in paths} & {*recorded.inputs.values()}:
            notes["turns that the calibration was not made from"] = turns.frame.height
    else:
        result = calibrate_turns(turns, CalibrateConfig(), seed)
        recorded = Recorded(result, CalibrateConfig(), AdvantageConfig(), seed, {})
    result, settings, estimator = recorded.calibration, recorded.config, recorded.estimator
    checks = check_both(arrays, result, settings, estimator, recorded.seed)
    silent = turns.without_turns
    known = ReportInputs(
        turns.frame, arrays, result, settings, estimator, checks, without_turns=silent
    )
    return known, notes


def _check_outcomes(turns: Turns) -> None:
    """Raise InputError unless episodes have outcomes, of both kinds."""
    counted = turns.frame.filter(COUNTS & pl.col("success").is_not_null())
    episodes = counted.unique("episode_id")
    if not episodes.height:
        raise InputError(turns.where, "no episode with an outcome", GIVE_OUTCOME)
    check_both_outcomes(episodes.height, int(episodes["success"].sum()), turns.where)


def write_reports(
    known: ReportInputs,
    inputs: list[str],
    page: str | None,
    markdown: str | None,
    *,
    quiet: bool,
    force: bool,
) -> Counter[str]:
    """Write the report of a calibration as a page and as Markdown; return notes.

    The conversations come from the traces that the turns record, if those are unchanged.
    """
    document, notes = report(known, next_step_of(known), MAX_EPISODES), Counter[str]()
    if markdown:
        with whole_file(markdown, force=force) as file:
            file.write(render_markdown(document).encode())
    if page:
        asked = Asked(None, None, skip_bad=False, quiet=quiet, named={})
        conversations, notes = read_conversations(document, scored_from(inputs), asked)
        if conversations:
            document = with_conversations(document, known, conversations)
        write_page(document, conversations, page, quiet=quiet, force=force)
    return notes


def next_step_of(known: ReportInputs) -> str:
    """Return the recommended next step as one sentence."""
    checks = (known.judged.before, known.judged.after)
    return next_step(known.calibration, checks, known.config)


class ScoredWith(TypedDict, total=False):
    """The recorded options of `score` that a report reads."""

    tiers: str | None
    rewards: str | None
    gold: str | None
    map: list[str] | None
    score: str | None
    tokenizer: str | None
    domain: str | None


class Origin(NamedTuple):
    """The recorded inputs and options that turns were scored with."""

    tiers: Tiers
    traces: list[str]
    digests: dict[str, str | None]  # sha256 of each trace, and of --gold's file, by path
    domain: str | None
    named: dict[str, Any]  # --map, --gold, --score and --tokenizer, as TraceReader takes them


def scored_from(paths: list[str]) -> Origin:
    """Return the tiers, the traces and the options that turns were scored with."""
    recorded = {path: made_by(path) for path in paths}
    with_settings = (path for path, made in recorded.items() if "settings" in made)
    settings: ScoredWith = {}
    if path := next(with_settings, None):
        where = f"{path}: its record"
        settings = check_types(recorded[path]["settings"], ScoredWith, where, "score them again")
    name = settings.get("tiers") or "extended"
    with reachable(name):
        if name not in SHIPPED and not Path(name).is_file():
            name = "extended"
    files = {name: sha256 for path in paths for name, sha256 in made_from(path).items()}
    gold, others = settings.get("gold"), {settings.get("tiers"), settings.get("rewards")}
    digests = {path: sha256 for path, sha256 in files.items() if path not in others}
    traces = [path for path in digests if path != gold]
    named: dict[str, Any] = {"fields": settings.get("map"), "gold": gold}
    named |= {"score": settings.get("score"), "tokenizer": settings.get("tokenizer")}
    return Origin(load_tiers(name), traces, digests, settings.get("domain"), named)


def recorded_traces(origin: Origin) -> list[str]:
    """Return the recorded traces; none if a recorded input is missing or changed."""
    for path, sha256 in origin.digests.items():
        with reachable(path):
            if path == "-" or not Path(path).is_file() or digest(path) != sha256:
                return []
    return origin.traces


class Asked(NamedTuple):
    """Which traces to read, and how."""

    traces: list[str] | None  # None: those that the turns record
    domain: str | None
    skip_bad: bool
    quiet: bool
    named: dict[str, Any]  # --map, --gold, ...; None: as the turns record


def read_conversations(
    document: dict[str, Any], origin: Origin, asked: Asked
) -> tuple[Conversations | None, Counter[str]]:
    """Return the conversations of the shown episodes, and notes; None: no traces are available.

    Raises:
        InputError: the given traces lack an episode.
    """
    paths = asked.traces or recorded_traces(origin)
    if not paths:
        return None, Counter({"no conversations, as their traces are not at hand (--traces)": 1})
    wanted = {row["id"] for row in document["episodes"]}
    conversations = Conversations(origin.tiers)
    named = origin.named | {name: value for name, value in asked.named.items() if value}
    domain = asked.domain or origin.domain
    reader = TraceReader(paths, domain, asked.skip_bad, asked.quiet, **named)
    for episode, tools in reader:
        if episode.episode_id in wanted or not episode.turns:
            conversations.add(episode, tools)
    lacking = [name for name in wanted if name not in conversations.packed]
    if lacking:
        what = f"lacks episode '{min(lacking)}' of the turns ({len(lacking):,} of {len(wanted):,})"
        raise InputError(few(paths), what, "give the traces that the turns were scored from")
    return conversations, Counter()


def write_page(
    document: dict[str, Any],
    conversations: Conversations | None,
    out: str,
    *,
    quiet: bool,
    force: bool,
) -> None:
    """Write the page."""
    parts = render_page(document, conversations)
    with whole_file(out, force=force) as file:
        for part in console.progress(parts, f"writing {out}", quiet=quiet):
            file.write(part.encode())
