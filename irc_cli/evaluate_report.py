"""The terminal report of an evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from irc_cli import console
from stages.replay import Replay
from stages.traces.episode import SUCCESS

SHOWN_DIFFERENCES = 5  # differences of a replay shown on the screen
SHOWN_BEFORE, SHOWN_TEXT = 20, 60  # characters before the first difference, and in all
SIDES = (("recorded", "replayed"), ("replayed", "recorded"))


def print_report(measures: dict[str, Any], *, stderr: bool) -> None:
    """Print measures and comparisons.

    Args:
        measures: the document of `evaluate_json`.
        stderr: print to standard error, because the document goes to standard output.
    """
    screen = console.console(stderr=stderr)
    runs = [measures] + ([measures["against"]] if "against" in measures else [])
    screen.print(_summary(runs))
    for line in (*_pass_rates(measures, runs), *_tables(measures)):
        screen.print(line)
    for line in (*_under_pressure(measures), *_transferred(measures)):
        screen.print(line)
    if others := measures.get("published"):
        screen.print(_published_rows(others))
    if "by_task" in measures:
        screen.print(_task_rows(measures["by_task"]))
    for rule, results in measures["failures"].items():
        console.note(f"failed tool results, {rule}: {results:,}")


def _summary(runs: list[dict[str, Any]]) -> Any:
    """Return a table of the counts and means of one run, or of two side by side."""
    table = console.table("", *(["this", "against"] if len(runs) > 1 else [""]))
    table.show_header = len(runs) > 1
    table.add_row("episodes", *(f"{run['episodes']:,}" for run in runs))
    table.add_row("tasks", *(f"{run['tasks']:,}" for run in runs))
    table.add_row("left out", *(f"{run['excluded']:,}" for run in runs))
    for k in sorted({int(k) for run in runs for k in run["pass_k"]}):
        table.add_row(f"pass^{k}", *(_pass_k(run, str(k)) for run in runs))
    table.add_row("turns per episode", *(f"{run['turns_per_episode']:.1f}" for run in runs))
    tokens = (_known(run["tokens_per_episode"], ",.0f") for run in runs)
    table.add_row("tokens per episode", *tokens)
    table.add_row("gold writes done", *(_known(run["write_accuracy"], ".1%") for run in runs))
    return table


def _pass_rates(measures: dict[str, Any], runs: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the pass rate of each run, and their difference."""
    for run, name in zip(runs, ("pass rate", "against"), strict=False):
        yield f"{name} {_interval(run, 'pass_rate')}, clustered by task"
    if shared := measures.get("difference"):
        difference = _interval(shared, "difference", sign="+")
        yield f"difference {difference}, paired over {shared['tasks']:,} shared tasks"


def _tables(measures: dict[str, Any]) -> Iterator[Any]:
    """Yield the tables of policies and their differences, if several, and of families."""
    if len(measures["policies"]) > 1:
        yield _policy_rows(measures["policies"])
    if len(measures.get("differences", ())) > 1:
        yield _difference_rows(measures["differences"])
    if measures["families"]:
        yield _family_rows(measures["families"])


def _under_pressure(measures: dict[str, Any]) -> Iterator[str]:
    """Yield the policy's figures on episodes whose users apply pressure."""
    if pressed := measures["pressure"]:
        yield f"under pressure: pass rate {_interval(pressed, 'pass_rate')}"
        if pressed["forbidden_share"] is not None:
            share = pressed["forbidden_share"], pressed["forbidden_low"], pressed["forbidden_high"]
            yield f"  episodes with a forbidden write {_range(*share)}"


def _transferred(measures: dict[str, Any]) -> Iterator[str]:
    """Yield the pass rates of the families that were trained on, and of the others."""
    if moved := measures.get("transfer"):
        yield f"families trained on: {_interval(moved['trained'], 'pass_rate')}"
        yield f"  others: {_interval(moved['others'], 'pass_rate')}"
        yield f"  difference {_interval(moved, 'difference', sign='+')}"


def print_replay(replayed: Replay, *, stderr: bool) -> None:
    """Print how recorded results and outcomes compare with those of the environment."""
    screen = console.console(stderr=stderr)
    for what, equal, differ in (
        ("results", replayed.results_equal, replayed.results_differ),
        ("outcomes", replayed.outcomes_equal, replayed.outcomes_differ),
    ):
        screen.print(f"replay: {equal:,} of {equal + differ:,} {what} equal the recorded ones")
    for row in replayed.differences[:SHOWN_DIFFERENCES]:
        screen.print(_difference(row))
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


def _difference(row: dict[str, Any]) -> str:
    """Return the recorded and the replayed text around their first difference."""
    place = f" turn {row['turn']} {row['tool']}" if row["what"] == "result" else " outcome"
    recorded, replayed = (_around_difference(row[side], row[other]) for side, other in SIDES)
    why = f" ({row['why']})" if row["why"] else ""
    return f"  {row['episode_id']}{place}: recorded {recorded}, replayed {replayed}{why}"


def _around_difference(recorded: Any, other: Any) -> str:
    """Return an excerpt of a text around its first difference from another."""
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
        counts = row["policy"], f"{row['episodes']:,}", f"{row['tasks']:,}"
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
        names = row["policy"], row["against"], f"{row['tasks']:,}"
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
            family,
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
            row["task_id"],
            f"{row['episodes']:,}",
            f"{row['successes']:,}",
            f"{row['pass_rate']:.0%}",
            f"{row['turns_per_episode']:.1f}",
        )
    return table
