"""`irc-cli score`: traces in, turns out."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from irc_cli import console, options
from irc_cli.notes import Strict, check_notes, show_notes
from irc_cli.traces import (
    DomainOption,
    GoldOption,
    MapOption,
    Paths,
    ScoreOption,
    SkipBad,
    TraceReader,
)
from stages.errors import InputError, few
from stages.score import Scored, Scorer
from stages.tables.artifacts import TURNS, write_table
from stages.tables.files import digest
from stages.tiers.file import SHIPPED, load_tiers, use_rewards
from stages.tiers.rules import Tiers
from stages.traces.notes import left_out, why_none

DEFAULT, GOLDLESS = "extended", "goldless"  # tiers


def command(
    traces: Paths,
    out: options.Out = None,
    tiers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.yaml",
            help=f"Tiers: {', '.join(SHIPPED)} or a file. Default: extended, and goldless where no "
            "episode has gold actions.",
        ),
    ] = None,
    rewards: Annotated[
        str | None,
        typer.Option(metavar="FILE.yaml", help="Take the rewards from a calibration."),
    ] = None,
    domain: DomainOption = None,
    fields: MapOption = None,
    gold: GoldOption = None,
    score: ScoreOption = None,
    skip_bad: SkipBad = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Class every turn of traces into a reward tier, by its calls and the task's gold actions.

    Example: irc-cli score traces.json -o turns.parquet
    """
    options.check_outputs([out], as_json=as_json, force=force)
    chosen = tiers or DEFAULT
    tier_set = load_tiers(options.name_or_file("tiers", chosen, SHIPPED))
    inputs = {} if chosen in SHIPPED else {chosen: digest(chosen)}
    if gold:
        inputs[gold] = digest(gold)
    unseen: list[str] = []
    if rewards:
        tier_set, unseen = use_rewards(tier_set, rewards)
        inputs[rewards] = digest(rewards)
    reader = TraceReader(
        traces,
        domain,
        skip_bad,
        quiet,
        fields=fields,
        gold=gold,
        score=score,
    )
    reader.check_sidecar(out, force=force)
    scorer = Scorer(tier_set)
    for episode, found in reader:
        scorer.add([episode], found)
    scored = scorer.scored
    scored.renamed = reader.renamed()
    reader.note_groups()
    if not scored.known_gold and tiers is None and not rewards:
        chosen, tier_set = GOLDLESS, load_tiers(GOLDLESS)
        scored.rename_tiers(load_tiers(DEFAULT).as_without_gold(tier_set), tier_set.rewards)
    notes = scored.notes + reader.notes + left_out(scored.excluded) + _unrewarded(scored, unseen)
    _check(scored, traces, notes)
    if not scored.known_gold:
        lacking = ", ".join(_out_of_reach(tier_set))
        notes[f"without gold actions (--gold FILE) no turn is of: {lacking}"] = scored.episodes
    check_notes(notes, strict=strict)
    summary = _summary(scored, reader, notes)
    if out:
        settings = {"tiers": chosen, "rank": tier_set.rank, "rewards": rewards, "domain": domain}
        settings |= {"map": fields, "gold": gold, "score": score}
        settings["pay"] = tier_set.pay
        made_by = console.made_by("score", settings, seed, inputs | reader.digests)
        write_table(TURNS, scored.frame(), out, made_by | {"summary": summary}, force=force)
    reader.write_bad(out, force=force)
    if as_json:
        console.print_json(summary)
    elif not quiet:
        _report(summary, tier_set, stderr=out == "-")
        show_notes(notes)


def _unrewarded(scored: Scored, unseen: list[str]) -> Counter[str]:
    """Note the turns of tiers that the calibration never met: their reward is 0."""
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
