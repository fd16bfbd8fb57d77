"""The terminal report of a calibration."""

from __future__ import annotations

from typing import Any

from rich.text import Text

from irc_cli import console
from stages.calibration.estimate import CalibrateConfig, Calibration, TierStatistics, chosen_r
from stages.calibration.online import Online
from stages.calibration.sample import Sample
from stages.carry_over import Elsewhere
from stages.check import Changes, CheckResult, Direction
from stages.core.critic import MOST_REPEATS, Critic, gains

# Columns from r = -1 to r = 1; odd, so that 0 has one.
_FOREST_WIDTH, _NARROW_FOREST_WIDTH = 25, 15
_WIDE = 130  # terminal width for the full tables
_MEDIUM = 100  # terminal width for the held-out and landmark columns
_STRATA_SHOWN = 8  # policies or domains shown per tier; the others are in --json
_STATUS_STYLE = {"discriminative": "green", "undecided": "yellow"}
_VERDICT_STYLE = {"aligned": "green", "misaligned": "red", "undecided": "yellow"}


def print_report(
    result: Calibration,
    checks: tuple[CheckResult, CheckResult] | None,
    changes: Changes | None,
    settings: CalibrateConfig,
    *,
    critic: bool,
    stderr: bool,
) -> None:
    """Print the tiers, the advantage checks before and after, and the next step."""
    out = console.console(stderr=stderr)
    console.heading(
        f"{result.episodes:,} episodes of {result.tasks:,} tasks ({result.mixed_tasks:,} mixed), "
        f"pass rate {result.pass_rate:.1%}; {result.excluded:,} episodes left out",
        stderr=stderr,
    )
    wide = out.width >= _WIDE
    out.print(_tier_table(result, wide=wide, medium=out.width >= _MEDIUM))
    for tier in result.tiers:
        if tier.sign_reversed:
            out.print(
                f"Simpson's paradox: '{tier.tier}' points one way over all episodes "
                f"({_signed(tier.r_pooled)}) and the other within tasks ({_signed(tier.r_within)})",
                style="yellow",
            )
        if tier.necessary:
            out.print(
                f"Necessary by definition: no success lacks '{tier.tier}' where one has "
                "it, so its r is no discovery",
                style="yellow",
            )
    if result.strata:
        out.print(_strata_table(result))
    if critic and result.critic:
        out.print(_critic_table(result.critic))
    if checks:
        out.print(_direction_table(*checks, wide=wide))
        for name, judgement in zip(("before", "after"), checks, strict=True):
            out.print(_summary(name, judgement, settings))
            if idle := _pushed_without_value(judgement):
                out.print(f"  pushed without a value: {', '.join(idle)}")
        out.print(_farming_table(*checks))
        out.print("A mean over a tier is a diagnosis, not proof of causal credit.", style="dim")
    if changes:
        out.print(_changes_table(changes))
        out.print(f"{changes.flipped_advantages:,} of {changes.turns:,} advantages change sign")
    out.print(f"Next: {next_step(result, checks, settings)}", style="bold")


def print_sample(sample: Sample, *, stderr: bool) -> None:
    """Print which share of the turns the advantage checks cover."""
    text = (
        f"advantages are checked on {sample.groups:,} of {sample.of_groups:,} groups, chosen at "
        f"random: {sample.turns.height:,} of {sample.of_turns:,} turns"
    )
    console.console(stderr=stderr).print(text)


def print_test(test: Elsewhere, *, stderr: bool) -> None:
    """Print the test of the values on other turns."""
    out = console.console(stderr=stderr)
    console.heading(
        f"on {test.turns}: {test.episodes:,} episodes of {test.tasks:,} tasks, "
        f"pass rate {test.pass_rate:.1%}",
        stderr=stderr,
    )
    table = console.table("tier", "value", "r there", "carries over?", left=(0, 3))
    for row in test.tiers:
        r = _with_interval(row.r, row.ci_low, row.ci_high)
        table.add_row(row.tier, _value(row.value, ""), r, row.verdict or "")
    table.caption = f"r there: {test.correlation}, as the value is set, with its 95 % interval"
    out.print(table)
    r = _with_interval(test.reward_outcome_correlation, test.ci_low, test.ci_high)
    farmable = ", ".join(f"{n} x {tier}" for tier, n in test.farmability.farmable().items())
    out.print(
        f"{test.followed} by this calibration and outcome correlate by {r}; "
        f"farmable: {farmable or 'no'}",
    )


def print_online(state: Online, *, stderr: bool) -> None:
    """Print the newest addition, and the gates that it opened or closed."""
    number = len(state.additions)
    console.heading(
        f"iteration {number:,}: {state.additions[-1].episodes:,} episodes more, at a half-life of "
        f"{state.half_life:,g} worth {state.effective_episodes:,.0f} in all",
        stderr=stderr,
    )
    for event in state.events:
        if event.iteration == number:
            console.console(stderr=stderr).print(
                f"  gate {event.event}: {event.tier} ({_signed(event.r)})"
            )


def next_step(
    result: Calibration, checks: tuple[CheckResult, CheckResult] | None, settings: CalibrateConfig
) -> str:
    """Return the recommended next step as one sentence."""
    telling = [tier for tier in result.tiers if tier.status == "discriminative"]
    undecided = [tier for tier in result.tiers if tier.status == "undecided"]
    more = min((tier.more_episodes for tier in undecided if tier.more_episodes), default=0)
    if not telling:
        if more:
            return f"no tier has a value yet; collect about {more:,} more episodes and recalibrate."
        return "no tier separates success from failure; reward the outcome alone, or split tiers."
    if checks is None:
        return "score the turns with these values (irc-cli score --rewards) and calibrate them."
    before, after = checks
    if after.misaligned:
        tiers = ", ".join(after.misaligned)
        return f"split or drop tiers that are pushed the wrong way even when calibrated: {tiers}."
    if farmable := after.farmability.farmable():
        tiers = ", ".join(farmable)
        return f"pay each value once per episode (--pay once): repeating a tier pays: {tiers}."
    if after.undecided(settings.eta):
        return "too few episodes to say if the values follow outcomes; collect more."
    if not after.converged(settings.eta):
        return "the values follow outcomes too weakly; collect more episodes or split the tiers."
    if before.misaligned:
        tiers = ", ".join(before.misaligned)
        return f"train with the calibrated values; the scored rewards push the wrong way: {tiers}."
    return "train with the calibrated values; every tier with a value is pushed as intended."


def _strata_table(result: Calibration) -> Any:
    """Return a table of each tier's r by policy or domain, and of their mean."""
    table = console.table("tier", "policy or domain", "r", "I2", "they", left=(0, 1, 4))
    for tier in result.strata:
        if tier.mean is not None:
            disagree = f"{tier.i2:.0%} [{tier.i2_low:.0%}, {tier.i2_high:.0%}]"
            mean = _with_interval(tier.mean, tier.ci_low, tier.ci_high)
            named = f"mean over {tier.counted:,}"
            table.add_row(tier.tier, named, mean, disagree, tier.reading)
        name = tier.tier if tier.mean is None else ""
        known = [stratum for stratum in tier.strata if stratum.r is not None]
        for at, stratum in enumerate(known[:_STRATA_SHOWN]):
            r = _with_interval(stratum.r, stratum.ci_low, stratum.ci_high)
            table.add_row("" if at else name, stratum.stratum, r)
    table.caption = (
        "random-effects means and 95 % intervals; from three on, a value needs the mean's to "
        "exclude 0, and from two their signs to agree"
    )
    return table


def _tier_table(result: Calibration, *, wide: bool, medium: bool) -> Any:
    width = _FOREST_WIDTH if wide else _NARROW_FOREST_WIDTH
    scale = "-1" + "0".center(width - 3) + "1"
    names = ["tier", "turns", "episodes", "pooled", "within", "excess"]
    if not wide:
        names = ["tier", "with it", _name_of_r(result)]
    elsewhere = ["held out", "landmark"] if medium else []
    names += [*elsewhere, scale, "q", "value", "status"]
    table = console.table(*names, left=(0, len(names) - 4, len(names) - 1))
    for tier in sorted(result.tiers, key=lambda tier: -(chosen_r(tier, result) or 0.0)):
        r = chosen_r(tier, result)
        every_r = [tier.r_pooled, tier.r_within, tier.excess] if wide else [r]
        every_r += [tier.r_cv, tier.r_landmark] if medium else []
        table.add_row(
            tier.tier,
            *([f"{tier.turns:,}"] if wide else []),
            f"{tier.episodes:,}",
            *map(_signed, every_r),
            forest(r, tier.ci_low, tier.ci_high, width),
            _small(tier.q),
            f"{tier.value:+.3f}" if tier.value else "0",
            Text(_status(tier, wide=wide), style=_STATUS_STYLE.get(tier.status, "")),
        )
    table.caption = _caption(result, medium=medium)
    return table


def _name_of_r(result: Calibration) -> str:
    return "excess" if result.adjust == "length" else result.correlation


def _caption(result: Calibration, *, medium: bool) -> str:
    paid = {"once": "the first turn in an episode earns it", "turn": "every turn earns it"}
    value = f"; value: {paid[result.pay]}"
    held_out = "; held out: the same on tasks that did not choose the tier" if medium else ""
    if medium and result.landmark:
        held_out += f"; landmark: r of the first {result.landmark:,} turns"
    if result.adjust == "none":
        return f"r with the outcome; 95 % intervals of r {result.correlation}{held_out}{value}"
    return (
        "r with the outcome; excess: what is left of "
        f"r {result.correlation} beyond the length of episodes, with its 95 % interval"
        f"{held_out}{value}"
    )


def forest(r: float | None, low: float | None, high: float | None, width: int) -> str:
    """Draw a correlation and its interval on a line from -1 to 1."""

    def column(value: float) -> int:
        return round((min(max(value, -1.0), 1.0) + 1) / 2 * (width - 1))

    cells = [" "] * width
    cells[width // 2] = "│"
    if r is not None:
        if low is not None and high is not None:
            for at in range(column(low), column(high) + 1):
                cells[at] = "─" if cells[at] == " " else "┼"
        cells[column(r)] = "●"
    return "".join(cells)


def _status(tier: TierStatistics, *, wide: bool) -> str:
    if tier.status == "undecided" and wide:
        if tier.more_episodes is None and tier.held_back:
            return "undecided, policies or domains disagree"
        if tier.more_episodes is None:
            return "undecided, in too few tasks"
        high = "more" if tier.more_high is None else f"to {tier.more_high:,} more"
        return f"undecided, {tier.more_low:,} {high}"
    return tier.status


def _direction_table(before: CheckResult, after: CheckResult, *, wide: bool) -> Any:
    table = console.table(
        "tier",
        "before",
        "wrong sign",
        "verdict",
        "after",
        "wrong sign",
        "verdict",
        left=(0, 3, 6),
    )
    for then, now in zip(before.direction, after.direction, strict=True):
        table.add_row(then.tier, *_cells(then, wide=wide), *_cells(now, wide=wide))
    table.caption = "mean advantage; before: the rewards as scored, after: the calibrated values"
    return table


def _cells(row: Direction, *, wide: bool) -> tuple[str, str, Text]:
    mean = _signed(row.mean_advantage)
    if wide and row.ci_low is not None and row.ci_high is not None:
        mean += f" [{row.ci_low:+.2f}, {row.ci_high:+.2f}]"
    wrong = "" if row.wrong_sign_share is None else f"{row.wrong_sign_share:.0%}"
    return mean, wrong, Text(row.verdict, style=_VERDICT_STYLE.get(row.verdict, "dim"))


def _summary(name: str, judgement: CheckResult, settings: CalibrateConfig) -> Text:
    r = _with_interval(judgement.reward_outcome_correlation, judgement.ci_low, judgement.ci_high)
    good = judgement.converged(settings.eta)
    text = (
        f"{name}: {judgement.followed} and outcome correlate by {r} (want > {settings.eta:g}), "
        f"{judgement.dead_turn_share:.0%} dead turns, advantage RMS {judgement.advantage_rms:.2f}"
    )
    if not judgement.misaligned and judgement.undecided(settings.eta):
        return Text(f"{text}: undecided", "yellow")
    return Text(f"{text}: {'converged' if good else 'not converged'}", "green" if good else "red")


def _critic_table(critic: Critic) -> Any:
    """Return a table of what a turn of each tier adds to the forecast of the outcome."""
    table = console.table("tier", "first turn adds", "each repeat adds", left=(0,))
    for row in gains(critic):
        first, again = (f"{gain:+.3f} +- {error:.3f}" for gain, error in (row.first, row.again))
        table.add_row(row.tier, first, again)
    table.caption = (
        f"to the forecast of the outcome, up to {MOST_REPEATS} repeats; errors by jackknife over "
        "folds of the tasks"
    )
    return table


def _farming_table(before: CheckResult, after: CheckResult) -> Any:
    """Return a table of what failures earn by repetition and length, under both reward sets."""
    table = console.table("what rewards pay for", "before", "after", left=(0,))
    farming = (before.farmability, after.farmability)
    sums = (f"{_signed(side.failure_reward)}, {_signed(side.success_reward)}" for side in farming)
    table.add_row("reward sum: failure, success", *sums)
    for tier in before.farmability.extra_turns:
        extra = [side.extra_turns[tier] for side in farming]
        if any(extra) or 0 in extra:
            cells = ("never" if turns is None else f"{turns:,}" for turns in extra)
            table.add_row(f"{tier} repeats to out-earn", *cells)
    lengths = (
        _with_interval(side.length_correlation, side.ci_low, side.ci_high) for side in farming
    )
    table.add_row("r with length, among failures", *lengths)
    bias = (judgement.length_bias for judgement in (before, after))
    bonuses = (_with_interval(side.bonus, side.ci_low, side.ci_high) for side in bias)
    table.add_row("hidden bonus per further turn", *bonuses)
    shares = ("-" if side.reward_share is None else f"{side.reward_share:.0%}" for side in farming)
    table.add_row("share of the return's variance", *shares)
    table.caption = (
        "repeats with which a failure out-earns a success; farmable: at most "
        f"{before.farmability.slack_turns:,}; hidden bonus: the advantages' length bias, in "
        "successes"
    )
    return table


def _with_interval(r: float | None, low: float | None, high: float | None) -> str:
    return _signed(r) + ("" if low is None or high is None else f" [{low:+.2f}, {high:+.2f}]")


def _pushed_without_value(judgement: CheckResult) -> list[str]:
    """Return the tiers of value 0 whose mean advantage has an interval that excludes 0."""
    return [
        row.tier
        for row in judgement.direction
        if row.verdict == "neutral"
        and row.ci_low is not None
        and row.ci_high is not None
        and (row.ci_low > 0 or row.ci_high < 0)
    ]


def _changes_table(changes: Changes) -> Any:
    table = console.table("tier", "value then", "value now", "status then", "status now")
    for row in changes.tiers:
        table.add_row(
            row.tier,
            _value(row.value_then, "new"),
            _value(row.value_now, "gone"),
            row.status_then or "",
            row.status_now or "",
        )
    return table


def _value(value: float | None, missing: str) -> str:
    return missing if value is None else f"{value:+.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _small(value: float | None) -> str:
    if value is None:
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
