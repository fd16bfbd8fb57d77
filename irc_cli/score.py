"""`irc-cli score`: traces in, turns out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

from irc_cli import console, options
from irc_cli.notes import check_notes, show_notes
from irc_cli.traces import INPUT, LoggedTraceOptions, Paths, TraceReader
from stages.errors import InputError, few
from stages.score import Scored, Scorer
from stages.settings import Setting
from stages.tables.artifacts import TURNS
from stages.tables.files import digest, together
from stages.tables.table_file import write_lazy, write_table
from stages.tables.yamlfile import Node, read_yaml
from stages.tiers.file import SHIPPED, load_tiers, use_rewards
from stages.tiers.rules import Tiers
from stages.traces.notes import left_out, why_none

DEFAULT, GOLDLESS = "extended", "goldless"  # names of shipped tiers
TIERS = "Tiers"  # panel of the help


@dataclass(frozen=True)
class TierOptions:
    """The tiers and their rewards."""

    tiers: Annotated[
        str | None,
        Setting(
            f"Tiers: {', '.join(SHIPPED)} or a file; default: extended, and goldless where no "
            "episode has gold actions.",
            TIERS,
            metavar="NAME|FILE.yaml",
        ),
    ] = None
    rewards: Annotated[
        str | None,
        Setting("Take the rewards from this calibration.", TIERS, metavar="FILE.yaml"),
    ] = None


@dataclass(frozen=True)
class JobOptions:
    """How many processes read and score."""

    jobs: Annotated[
        int,
        Setting("Processes that read and score traces in parallel; 0: one per core.", INPUT, low=0),
    ] = 1


@options.expanded()
def command(
    *,
    traces: Paths,
    source: LoggedTraceOptions,
    given: TierOptions,
    apart: JobOptions,
    out: options.Out = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Assign each turn a reward tier, by comparing its calls with the task's gold actions.

    Example: irc-cli score traces.json -o turns.parquet
    """
    options.check_outputs([out], as_json=printing.as_json, force=printing.force)
    calibration = read_yaml(given.rewards) if given.rewards else None
    chosen = given.tiers or (_valued_by(calibration) if calibration else DEFAULT)
    tier_set = load_tiers(options.name_or_file("tiers", chosen, SHIPPED))
    unseen: list[str] = []
    if calibration and given.rewards:
        tier_set, unseen = use_rewards(tier_set, calibration, given.rewards)
    named = [None if chosen in SHIPPED else chosen, given.rewards]
    inputs = {path: digest(path) for path in named if path}
    reader = source.reader(traces, quiet=printing.quiet)
    reader.check_sidecar(out, force=printing.force)
    scored = _scored(reader, tier_set, apart.jobs)
    if not scored.known_gold and given == TierOptions():
        chosen, tier_set = GOLDLESS, load_tiers(GOLDLESS)
        scored.rename_tiers(load_tiers(DEFAULT).as_without_gold(tier_set), tier_set.rewards)
    notes = scored.notes + reader.notes + left_out(scored.excluded) + _unrewarded(scored, unseen)
    _check(scored, traces, notes)
    if not scored.known_gold and (lacking := ", ".join(_out_of_reach(tier_set))):
        notes[f"without gold actions (--gold FILE) no turn is of: {lacking}"] = scored.episodes
    check_notes(notes, strict=printing.strict)
    summary = _summary(scored, reader, notes)
    settings = _settings(chosen, tier_set, reader, given.rewards)
    made_by = console.made_by("score", settings, seed, inputs | reader.digests)
    with together():
        if out:
            _write(scored, out, made_by | {"summary": summary}, force=printing.force)
        reader.write_bad(out, force=printing.force)
    if printing.as_json:
        console.print_json(summary)
    elif not printing.quiet:
        _report(summary, tier_set, stderr=out == "-")
        show_notes(notes)


def _scored(reader: TraceReader, tiers: Tiers, jobs: int) -> Scored:
    """Read and score all episodes."""
    if jobs != 1 and len(reader.paths) > 1:
        from irc_cli.jobs import score_apart

        scored = score_apart(reader, tiers, jobs)
    else:
        scorer = Scorer(tiers)
        for episode, domain in reader:
            scorer.add([episode], domain)
        scored = scorer.scored
    scored.renamed = reader.renamed()
    reader.note_groups()
    return scored


def _write(scored: Scored, out: str, made_by: dict[str, Any], *, force: bool) -> None:
    if scored.is_large:
        write_lazy(TURNS, scored.lazy(), out, made_by, force=force)
    else:
        write_table(TURNS, scored.frame(), out, made_by, force=force)


def _settings(name: str, tiers: Tiers, reader: TraceReader, rewards: str | None) -> dict[str, Any]:
    """Return the options that the turns record."""
    return (
        {"tiers": name, "rank": tiers.rank, "rewards": rewards, "domain": reader.domain}
        | reader.named
        | {"pay": tiers.pay}
    )


def _valued_by(calibration: Node) -> str:
    """Return the shipped tiers that a calibration values: the default ones, or goldless."""
    node = calibration.fields().get("rewards")
    valued = set(node.fields()) if node else set()
    fits = [name for name in (DEFAULT, GOLDLESS) if valued <= {*load_tiers(name).rank}]
    return fits[0] if fits else DEFAULT


def _unrewarded(scored: Scored, unseen: list[str]) -> Counter[str]:
    """Return notes on turns of tiers that the calibration lacks, whose reward is 0."""
    turns = scored.tiers()
    return Counter({f"no calibrated reward, so 0: {t}": turns[t] for t in unseen if t in turns})


def _check(scored: Scored, traces: list[str], notes: Counter[str]) -> None:
    where = few(traces)
    if not scored.episodes:
        what = f"no episode that counts{why_none(notes)}"
        raise InputError(where, what, "give traces with finished episodes")


def _out_of_reach(tiers: Tiers) -> list[str]:
    """Return the tiers that traces without gold actions can't have."""
    return load_tiers(DEFAULT).need_gold() if tiers.name == GOLDLESS else tiers.need_gold()


def _summary(scored: Scored, reader: TraceReader, notes: Counter[str]) -> dict[str, Any]:
    return {
        "episodes": scored.episodes,
        "tasks": scored.tasks(),
        "excluded": scored.excluded.total(),
        "turns": sum(scored.tiers().values()),
        "calls": scored.calls,
        "tiers": scored.tiers(),
        "failures": dict(scored.failures.most_common()),
        "excluded_because": dict(scored.excluded),
        "excluded_without_turns": scored.without_turns,
        "notes": dict(notes),
        "domains": reader.domains,
    }


def _report(summary: dict[str, Any], tiers: Tiers, *, stderr: bool) -> None:
    console.heading(
        f"{summary['episodes']:,} episodes, {summary['turns']:,} turns, "
        f"{summary['calls']:,} calls; {summary['excluded']:,} episodes left out",
        stderr=stderr,
    )
    table = console.table("tier", "turns", "share", "reward")
    for tier, turns in summary["tiers"].items():
        share = turns / summary["turns"]
        table.add_row(tier, f"{turns:,}", f"{share:.1%}", str(tiers.rewards[tier]))
    console.console(stderr=stderr).print(table)
    if tiers.pay == "once":
        console.note("only the first turn of each tier in an episode earns its reward")
    for domain in sorted({name for names in summary["domains"].values() for name in names}):
        console.note(f"tool kinds: {domain}")
    for rule, results in summary["failures"].items():
        console.note(f"failed tool results, {rule}: {results:,}")
