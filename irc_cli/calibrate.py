"""`irc-cli calibrate`: turns in, what each tier is worth and where advantages push out."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import polars as pl
import typer

from irc_cli import console, estimator, method, options
from irc_cli.calibrate_report import print_online, print_report, print_test
from irc_cli.notes import Strict, check_notes, show_notes
from irc_cli.plots import check_figures, write_figures
from stages.calibrate import calibrate
from stages.calibration.estimate import (
    ADJUSTMENTS,
    CORRELATIONS,
    PAYMENTS,
    STRATA,
    CalibrateConfig,
    Calibration,
    Payment,
    with_landmark,
)
from stages.calibration.file import read_previous, strata_rows, write_calibration
from stages.calibration.landmark import landmark
from stages.calibration.online import HALF_LIFE, Online, add, read_online, write_online
from stages.calibration.shards import add_up, read_sums, sum_file, summary, unseen
from stages.calibration.sums import UNITS, Summed, lay_out, sum_turns
from stages.carry_over import Elsewhere, carry_over
from stages.check import (
    BothChecks,
    Changes,
    CheckResult,
    changes_since,
    check_both,
    given_advantages,
    objections,
)
from stages.core.advantages import AdvantageConfig
from stages.core.forgetting import GateConfig
from stages.errors import InputError, few
from stages.tables.artifacts import (
    ADVANTAGES,
    SUMS,
    TURNS,
    read_columns,
    read_table,
    write_table,
)
from stages.tables.files import digest, refuse_existing
from stages.tables.paths import files_of, remote
from stages.tables.turn_arrays import TurnArrays, advantage_frame, turn_arrays
from stages.tables.yamlfile import nearest
from stages.tiers.file import load_tiers
from stages.traces.notes import left_out

_C = CalibrateConfig
FIGURES = ("tiers", "advantages", "gradient-mass")  # of calibration_figures
_MEASURES = tuple(UNITS)


def command(
    ctx: typer.Context,
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="TURNS...",
            help="Turns of irc-cli score, with --merge sums of shards: files, folders, patterns, "
            "s3:// or gs:// addresses; '-' for standard input.",
        ),
    ],
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Write the calibration (YAML) here, and advantages.parquet beside it.",
        ),
    ] = None,
    measure: Annotated[
        str, typer.Option(metavar="|".join(_MEASURES), help="Of a tier in an episode.")
    ] = _C.measure,
    correlation: Annotated[
        str, typer.Option(metavar="|".join(CORRELATIONS), help="Which one sets the values.")
    ] = _C.correlation,
    adjust: Annotated[
        str,
        typer.Option(
            metavar="|".join(ADJUSTMENTS),
            help="Value what a tier tells beyond the length of episodes; none: all that it tells.",
        ),
    ] = _C.adjust,
    delta: Annotated[
        float, typer.Option(help="Correlation up to which a tier is worth nothing.")
    ] = _C.delta,
    fdr: Annotated[float, typer.Option(help="False discovery rate over the tiers.")] = _C.fdr,
    min_support: Annotated[
        int, typer.Option(min=0, help="Episodes needed with a tier, and without it.")
    ] = _C.min_support,
    effect: Annotated[
        float, typer.Option(help="Smallest correlation that matters; neutral tiers rule it out.")
    ] = _C.effect,
    alpha: Annotated[
        float | None,
        typer.Option(help="Value of a correlation of 1; default: the largest value is 1."),
    ] = _C.alpha,
    zero: Annotated[
        list[str] | None,
        typer.Option(metavar="TIER", help="Worth nothing whatever it tells; may be repeated."),
    ] = None,
    pay: Annotated[
        str,
        typer.Option(
            metavar="|".join(PAYMENTS),
            help="Which turns earn a tier's value: every one, or the first in an episode; auto: "
            "once where presence is measured.",
        ),
    ] = _C.pay,
    strata: Annotated[
        str,
        typer.Option(
            metavar="|".join(STRATA),
            help="Turns of several policies or domains: values that hold over these; none: over "
            "all episodes together.",
        ),
    ] = _C.strata,
    method_name: method.Method = None,
    resamples: Annotated[
        int, typer.Option(min=100, help="Bootstrap resamples of the tasks, at least.")
    ] = _C.resamples,
    advantage: estimator.Advantage = estimator.DEFAULT.estimator,
    gamma: estimator.Gamma = estimator.DEFAULT.gamma,
    outcome_weight: estimator.OutcomeWeight = estimator.DEFAULT.outcome_weight,
    normalise: estimator.Against = estimator.DEFAULT.normalise,
    last_turn_reward: estimator.LastTurnReward = estimator.DEFAULT.last_turn_reward,
    advantages: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Judge these (episode_id, turn, advantage) instead of ours."
        ),
    ] = None,
    keep_rewards: Annotated[
        bool, typer.Option("--keep-rewards", help="Judge the rewards in the turns as they are.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Exit with 1 if misaligned, not converged or farmable.")
    ] = False,
    eta: Annotated[
        float,
        typer.Option(help="Converged: mean reward and outcome surely correlate by more."),
    ] = _C.eta,
    min_tasks: Annotated[int, typer.Option(help="Fewer tasks never pass --check.")] = _C.min_tasks,
    previous: Annotated[
        str | None,
        typer.Option(metavar="FILE.yaml", help="An earlier calibration: show what changed."),
    ] = None,
    test: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TURNS", help="Judge the values on these other turns; may be repeated."
        ),
    ] = None,
    landmark_at: Annotated[
        int | None,
        typer.Option(
            "--landmark",
            metavar="K",
            min=1,
            help="Landmark r: of the first K turns; default: the median length.",
        ),
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Only write the sums of this shard to --out.")
    ] = False,
    merge_shards: Annotated[
        bool, typer.Option("--merge", help="The inputs are sums written by --partial.")
    ] = False,
    stream: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Sum turns as they are read, any number in little memory; no advantages.",
        ),
    ] = False,
    online: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            help="Calibrate while the policy trains: add these turns to this file, which forgets.",
        ),
    ] = None,
    half_life: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help=f"Online: episodes after which one weighs half. [default: {HALF_LIFE:g}]",
        ),
    ] = None,
    open_p: Annotated[
        float, typer.Option(help="Online: p below which a tier gets its value.")
    ] = GateConfig.open_p,
    close_p: Annotated[
        float, typer.Option(help="Online: p above which a tier loses it again.")
    ] = GateConfig.close_p,
    plots: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write figures here, as PNG and SVG.")
    ] = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Measure which tiers tell success from failure, and check where advantages push.

    Example: irc-cli calibrate turns.parquet -o calibration.yaml
    """
    method.check_method(ctx, method_name)
    settings = CalibrateConfig(
        options.one_of("measure", measure, _MEASURES),
        options.one_of("correlation", correlation, CORRELATIONS),
        options.one_of("adjust", adjust, ADJUSTMENTS),
        options.within("delta", delta, 0, 1),
        options.within("fdr", fdr, 0, 1),
        min_support,
        options.within("effect", effect, 0, options.BELOW_ONE),
        None if alpha is None else options.within("alpha", alpha, 0, sys.float_info.max),
        resamples,
        options.within("eta", eta, -1, 1),
        min_tasks,
        tuple(zero or ()),
        cast(Payment, options.one_of("pay", pay, PAYMENTS)),
        options.one_of("strata", strata, STRATA),
    )
    judged_by = estimator.chosen(advantage, gamma, outcome_weight, normalise, last_turn_reward)
    gate = GateConfig(
        options.within("open-p", open_p, 0, 1), options.within("close-p", close_p, open_p, 1)
    )
    if half_life is not None and not online:
        raise InputError("--half-life", "does nothing by itself", "give --online STATE")
    if online and method_name:
        what = f"follows the correlation within tasks, --method {method_name} the pooled one"
        raise InputError("--online", what, "drop one of them")
    if online and correlation == "pooled":
        raise InputError("--online", "follows the correlation within tasks", "drop --correlation")
    modes = {"--partial": partial, "--merge": merge_shards, "--stream": stream}
    of_sums = [option for option, given in modes.items() if given]
    if len(of_sums) > 1:
        raise InputError(of_sums[0], f"can't go with {of_sums[1]}", "use one of them")
    if partial and plots:
        raise InputError("--plots", "sums of one shard are no figures yet", "plot with --merge")
    if partial and not out:
        raise InputError("--partial", "nothing to write the sums to", "name a file with --out")
    if of_sums and landmark_at:
        what = "sums hold no turns to tell the first of"
        raise InputError(of_sums[0], what, "calibrate the turns themselves for --landmark")
    if of_sums and (check or advantages or previous or keep_rewards or online or test):
        what = "sums hold no turns to judge advantages by"
        raise InputError(of_sums[0], what, "calibrate the turns themselves for that")
    inputs = files_of(inputs)
    tests = {name: files_of([name]) for name in test or []}
    beside = None if of_sums else _beside(out)
    outputs = [path for path in (out, beside, online) if path and path != "-"]
    for files in (inputs, [advantages] if advantages else []):
        options.refuse_twice([*files, *outputs])
    if online and any(map(remote, inputs)):
        what = "knows turns again by their sha256, which takes a file"
        raise InputError("--online", what, "copy them from the object store first")
    if plots:
        check_figures(plots, FIGURES[:1] if of_sums else FIGURES, force=force)
    options.check_outputs([out, beside], as_json=as_json, force=force)
    state = _open_online(online, settings.measure, half_life) if online else None
    made_with: dict[str, Any] = {"calibrate": asdict(settings), "advantage": asdict(judged_by)}
    if state:
        made_with["online"] = {"half_life": state.half_life} | asdict(gate)
    read = [*inputs, previous, advantages, online if state and state.additions else None]
    read += [path for paths in tests.values() for path in paths]
    # What lies in an object store would have to be fetched twice.
    digests = {path: None if remote(path) else digest(path) for path in read if path}
    origin = console.made_by("calibrate", made_with, seed, digests)
    turns: TurnArrays | None = None
    if of_sums:
        read_one = read_sums if merge_shards else sum_file
        summed = add_up(read_one(path, settings.measure) for path in inputs)
    else:
        summed, turns = _sum_turns(inputs, settings.measure)
    notes = left_out({"crashed or without an outcome": summed.excluded})
    if partial:
        check_notes(notes, strict=strict)
        recorded = summary(summed, settings.measure)
        write_table(SUMS, summed.sums, str(out), origin | {"summary": recorded}, force=force)
        if as_json:
            console.print_json(recorded | {"notes": dict(notes)})
        elif not quiet:
            text = f"sums of {recorded['episodes']:,} episodes of {recorded['tasks']:,} tasks"
            console.heading(f"{text}; {recorded['excluded']:,} left out", stderr=out == "-")
            show_notes(notes)
        return

    rng = np.random.default_rng(seed)
    _check_outcomes(summed, inputs, any_will_do=state is not None)
    _check_tiers(zero or [], summed)
    if state:
        if _lone_episodes(summed.sums):
            notes["tasks of one episode, which tell --online nothing of the tiers"] = summed.sums[
                "task_id"
            ].n_unique()
        added = {path: str(digests[path]) for path in inputs}
        state, result = add(state, summed, added, settings, gate, rng)
    else:
        result = calibrate(lay_out(summed.sums, settings.measure), summed.excluded, settings, rng)
    judged: BothChecks | None = None
    changes: Changes | None = None
    others = [_carried(result, *other, settings, judged_by, seed) for other in tests.items()]
    if turns is not None:
        result = with_landmark(
            result,
            landmark(turns.frame, settings.measure, result.correlation, landmark_at),
        )
        given = (
            given_advantages(turns, read_columns(advantages), advantages) if advantages else None
        )
        judged = check_both(
            turns, result, settings, judged_by, seed, keep_rewards=keep_rewards, given=given
        )
        if previous:
            changes = changes_since(read_previous(previous), result, turns, judged_by)
    if settings.correlation == "auto" and result.correlation == "pooled":
        notes["tasks pooled, for too few have mixed outcomes"] = result.tasks
    if method_name == method.PAPER_TIERS:
        notes += _tiers_of_others(result)
    check_notes(notes, strict=strict)
    following = state.document() if state else None
    if out:
        write_calibration(result, out, origin, following, force=force)
    if judged and turns is not None and beside:
        frame = advantage_frame(turns, judged.reward, judged.advantages)
        write_table(ADVANTAGES, frame, beside, origin, force=force)
    if plots:
        from stages.plots import calibration_figures

        both = judged and (judged.before, judged.after)
        write_figures(plots, calibration_figures(result, both), force=force)
    if state and online:
        write_online(state, online, origin)  # last: until then the command may be run again
    found = objections(result, judged.chosen, settings) if judged else []
    if as_json:
        document = _document(result, judged, changes, settings, found)
        document |= {"test": [_tested(one) for one in others]} if others else {}
        document |= {"online": following} if following else {}
        console.print_json(document | {"notes": dict(notes)})
    elif not quiet:
        if state:
            print_online(state, stderr=out == "-")
        both = judged and (judged.before, judged.after)
        print_report(result, both, changes, settings, stderr=out == "-")
        for other in others:
            print_test(other, stderr=out == "-")
        show_notes(notes)
    if check and found:
        for objection in found:
            console.note(f"check failed: {objection}")
        raise typer.Exit(1)


def _beside(out: str | None) -> str | None:
    return str(Path(out).with_name("advantages.parquet")) if out and out != "-" else None


def _sum_turns(inputs: list[str], measure: str) -> tuple[Summed, TurnArrays | None]:
    """Sum turns, and lay them out; None: no episode counts."""
    frame, without_rows = _read_turns(inputs)
    summed = sum_turns(frame.lazy(), measure, few(inputs))
    summed = summed._replace(excluded=summed.excluded + without_rows)
    return summed, turn_arrays(frame) if summed.sums.height else None


def _read_turns(inputs: list[str]) -> tuple[pl.DataFrame, int]:
    """Read turns in the order of their episodes, and count the episodes without rows."""
    where = few(inputs)
    frame = pl.concat([read_table(TURNS, path) for path in inputs])
    if len(inputs) > 1:
        TURNS.check_rows(frame, where)
    ordered = pl.struct("episode_id").rle_id().n_unique() == pl.col("episode_id").n_unique()
    if not frame.select(ordered).item():
        frame = frame.sort("episode_id", "turn")
    return frame, sum(unseen(path) for path in inputs)


def _carried(
    result: Calibration,
    name: str,
    paths: list[str],
    settings: CalibrateConfig,
    judged_by: AdvantageConfig,
    seed: int,
) -> Elsewhere:
    """Judge the values on other turns."""
    rng = np.random.default_rng(seed)
    summed, turns = _sum_turns(paths, settings.measure)
    _check_outcomes(summed, paths, any_will_do=False)
    there = calibrate(lay_out(summed.sums, settings.measure), summed.excluded, settings, rng)
    if turns is None:
        raise AssertionError("episodes have outcomes, so they have turns")
    return carry_over(result, name, turns, there, settings, judged_by, rng)


def _open_online(path: str, measure: str, half_life: float | None) -> Online:
    """Read the state, or begin one."""
    if half_life is not None and not half_life > 0:
        raise InputError("--half-life", f"{half_life:g} is out of range", "use a number above 0")
    refuse_existing(path, force=True)  # says now if it can't be written
    if not Path(path).exists():
        return Online(measure, HALF_LIFE if half_life is None else half_life)
    state = read_online(path)
    for option, old, new in (
        ("half-life", f"{state.half_life:g}", half_life and f"{half_life:g}"),
        ("measure", state.measure, measure),
    ):
        if new not in (None, old):
            todo = f"pass --{option} {old}, or begin another state"
            raise InputError(path, f"was begun with --{option} {old}, not {new}", todo)
    return state


def _lone_episodes(sums: pl.DataFrame) -> bool:
    """Return whether each group has a single episode."""
    totals = sums.filter(pl.col("tier").is_null()).group_by("task_id", "group_id")
    return totals.agg(pl.col("episodes").sum())["episodes"].max() == 1


def _check_outcomes(summed: Summed, inputs: list[str], *, any_will_do: bool) -> None:
    """Raise InputError where no calibration is possible."""
    where = few(inputs)
    totals = summed.sums.filter(pl.col("tier").is_null())
    episodes, successes = int(totals["episodes"].sum()), int(totals["successes"].sum())
    if episodes < 2:
        found = "no episode with an outcome" if episodes == 0 else "one episode only"
        raise InputError(where, found, "collect at least two, with different outcomes")
    if successes in (0, episodes) and not any_will_do:
        found = "failures" if successes == 0 else "successes"
        todo = "collect episodes of both kinds: nothing tells them apart yet"
        raise InputError(where, f"all {episodes:,} episodes are {found}", todo)


def _check_tiers(zero: list[str], summed: Summed) -> None:
    """Raise InputError for a tier of --zero that no turn is of."""
    known = summed.sums["tier"].drop_nulls().unique().sort().to_list()
    for tier in zero:
        if tier not in known:
            raise InputError("--zero", f"no turn is of tier '{tier}'", nearest(tier, known))


def _tiers_of_others(result: Calibration) -> Counter[str]:
    """Return notes on the turns of tiers that the paper does not have."""
    ranked = load_tiers(method.PAPER_TIERS).rank
    todo = f"score with --tiers {method.PAPER_TIERS}"
    return Counter(
        {
            f"turns of tier '{tier.tier}', which the paper does not have: {todo}": tier.turns
            for tier in result.tiers
            if tier.tier not in ranked
        }
    )


def _document(
    result: Calibration,
    judged: BothChecks | None,
    changes: Changes | None,
    settings: CalibrateConfig,
    found: list[str],
) -> dict[str, Any]:
    document = result._asdict() | {"tiers": [tier._asdict() for tier in result.tiers]}
    document["strata"] = strata_rows(result)
    document |= {"before": None, "after": None, "converged": None}
    if judged:
        document |= {
            "before": _judgement(judged.before),
            "after": _judgement(judged.after),
            "converged": judged.chosen.converged(settings.eta),
            "objections": found,
        }
    if changes:
        rows = [row._asdict() for row in changes.tiers]
        document["previous"] = changes._asdict() | {"tiers": rows}
    return document


def _tested(test: Elsewhere) -> dict[str, Any]:
    rows = [row._asdict() for row in test.tiers]
    return test._asdict() | {"tiers": rows, "farmability": test.farmability._asdict()}


def _judgement(judgement: CheckResult) -> dict[str, Any]:
    rows = [row._asdict() for row in judgement.direction]
    farmability = judgement.farmability._asdict()
    return judgement._asdict() | {"direction": rows, "farmability": farmability}
