"""`irc-cli score`: traces in, turns out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from irc_cli import console, options
from irc_cli.traces import DomainOption, Paths, SkipBad, TraceReader
from stages.artifacts import TURNS, write_table
from stages.core.tiers import Tiers
from stages.errors import InputError
from stages.files import digest
from stages.score import Scored, Scorer
from stages.tiersfile import SHIPPED, load_tiers, use_rewards


def command(
    traces: Paths,
    out: options.Out = None,
    tiers: Annotated[
        str,
        typer.Option(metavar="NAME|FILE.yaml", help=f"Tiers: {', '.join(SHIPPED)} or a file."),
    ] = "extended",
    rewards: Annotated[
        str | None,
        typer.Option(metavar="FILE.yaml", help="Take the rewards from a calibration."),
    ] = None,
    domain: DomainOption = None,
    skip_bad: SkipBad = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Class every turn of traces into a reward tier, by its calls and the task's gold actions.

    Example: irc-cli score traces.json -o turns.parquet
    """
    options.check_outputs([out], as_json=as_json, force=force)
    tier_set = load_tiers(options.name_or_file("tiers", tiers, SHIPPED))
    inputs = {} if tiers in SHIPPED else {tiers: digest(tiers)}
    unseen: list[str] = []
    if rewards:
        tier_set, unseen = use_rewards(tier_set, rewards)
        inputs[rewards] = digest(rewards)
    reader = TraceReader(traces, domain, skip_bad, quiet)
    reader.check_sidecar(out, force=force)
    scorer = Scorer(tier_set)
    for episodes, found in reader:
        scorer.add(episodes, found)
    scored = scorer.scored
    _check(scored, traces)
    _check_ids(scored, reader.sources)
    summary = _summary(scored, reader)
    if out:
        settings = {"tiers": tiers, "rank": tier_set.rank, "rewards": rewards, "domain": domain}
        settings["pay"] = tier_set.pay
        made_by = console.made_by("score", settings, seed, inputs | reader.digests)
        write_table(TURNS, scored.frame(), out, made_by | {"summary": summary}, force=force)
    reader.write_bad(out, force=force)
    if as_json:
        console.print_json(summary)
    elif not quiet:
        _report(summary, tier_set, unseen, stderr=out == "-")


def _check(scored: Scored, traces: list[str]) -> None:
    where = ", ".join(traces)
    if not scored.episodes:
        raise InputError(where, "no episode that counts", "give traces with finished episodes")
    if not scored.known_gold:
        todo = "add 'gold_actions' to the episodes: tiers compare calls with them"
        raise InputError(where, "no gold actions anywhere", todo)


def _check_ids(scored: Scored, files: dict[str, str]) -> None:
    """Raise InputError if two files, given by source, have the same episode."""
    if len(files) == 1:  # whose reader has seen to it
        return
    ids, sources = scored.columns["episode_id"], scored.columns["source"]
    first: dict[str, str] = {}
    for episode_id, source in zip(ids, sources, strict=True):
        if (other := first.setdefault(episode_id, source)) != source:
            what = f"both have an episode '{episode_id}'"
            todo = "give every episode an 'episode_id' of its own, or score the files apart"
            raise InputError(f"{files[other]}, {files[source]}", what, todo)


def _summary(scored: Scored, reader: TraceReader) -> dict[str, Any]:
    return {
        "episodes": scored.episodes,
        "excluded": scored.excluded.total(),
        "turns": sum(scored.tiers().values()),
        "calls": scored.calls,
        "tiers": scored.tiers(),
        "excluded_because": dict(scored.excluded),
        "excluded_without_turns": scored.without_turns,
        "notes": dict(scored.notes + reader.notes),
        "domains": reader.domains,
    }


def _report(summary: dict[str, Any], tiers: Tiers, unseen: list[str], *, stderr: bool) -> None:
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
    for domain in sorted(set(summary["domains"].values())):
        console.note(f"tool kinds: {domain}")
    for reason, episodes in summary["excluded_because"].items():
        console.note(f"left out, {reason}: {episodes:,}")
    for text, count in summary["notes"].items():
        console.note(f"{text}: {count:,}")
    if unseen:
        console.note(f"no calibrated reward, so 0: {', '.join(unseen)}")
