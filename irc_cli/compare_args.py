"""`irc-cli compare-args`: two values, or the calls of traces and their gold actions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.markup import escape

from irc_cli import console, options
from irc_cli.notes import Strict, tell
from irc_cli.traces import DomainOption, SkipBad, TraceReader, given_domain
from stages.core.arguments import (
    MODES,
    NO_RULES,
    Difference,
    Mode,
    ToolRules,
    differences,
    parse_arguments,
)
from stages.errors import InputError
from stages.yamlfile import nearest


def command(
    traces: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TRACES...]", help="Traces, in the place of two values."),
    ] = None,
    expected: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE|-", help="The expected arguments or call.")
    ] = None,
    actual: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE|-", help="The actual arguments or call.")
    ] = None,
    mode: Annotated[
        str, typer.Option(metavar="|".join(MODES), help="How two values are compared.")
    ] = "deep",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show each difference and the rule that decided.")
    ] = False,
    tool: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Two values: apply this tool's rules of the --domain."),
    ] = None,
    tool_rules: Annotated[
        bool,
        typer.Option("--tool-rules", help="Traces: apply the domain's rules for each tool."),
    ] = False,
    domain: DomainOption = None,
    out: options.Out = None,
    skip_bad: SkipBad = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
    strict: Strict = False,
    force: options.Force = False,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Compare tool-call arguments by what they mean, and explain each difference.

    Two values exit with 1 if they differ.

    Example: irc-cli compare-args --expected '{"bags": 2}' --actual '{"bags": "2.0"}' --explain
    """
    values = expected is not None or actual is not None
    if values == bool(traces):
        todo = "give --expected and --actual, or traces"
        raise InputError("compare-args", "wants two values or traces", todo)
    _refuse({"--out": out, "--tool-rules": tool_rules} if values else {"--tool": tool}, values)
    if values:
        if expected is None or actual is None:
            missing = "--expected" if expected is None else "--actual"
            raise InputError(missing, "is missing", "give both values")
        chosen = cast(Mode, options.one_of("mode", mode, MODES))
        rules = _rules(tool, domain)
        found = _compare_values(expected, actual, chosen, rules)
        _report_values(found, chosen, explain=explain, as_json=as_json, quiet=quiet)
        raise typer.Exit(1 if found else 0)
    from stages.artifacts import PAIRS, write_table  # two values do without polars
    from stages.compare_args import Comparison
    from stages.notes import watched

    options.check_outputs([out], as_json=as_json, force=force)
    reader = TraceReader(traces or [], domain, skip_bad, quiet)
    reader.check_sidecar(out, force=force)
    comparison = Comparison(tool_rules=tool_rules)
    for episodes, found_domain in reader:
        comparison.add(watched(episodes, reader.notes), found_domain)
    notes = tell(reader.notes + comparison.notes, strict=strict, quiet=quiet or as_json)
    summary = comparison.summary() | {"notes": notes}
    if out:
        settings = {"tool_rules": tool_rules, "domain": domain}
        made_by = console.made_by("compare-args", settings, seed, reader.digests)
        write_table(PAIRS, comparison.frame(), out, made_by, force=force)
    reader.write_bad(out, force=force)
    if as_json:
        console.print_json(summary)
    elif not quiet:
        _report_traces(summary, explain=explain, stderr=out == "-")


def _refuse(given: dict[str, Any], values: bool) -> None:
    """Raise InputError for an option that would do nothing."""
    for option in [name for name, value in given.items() if value]:
        what, todo = ("two values", "traces") if values else ("traces", "two values")
        raise InputError(option, f"does nothing for {what}", f"leave it out or give {todo}")


def _rules(tool: str | None, domain: str | None) -> ToolRules:
    if tool is None:
        return NO_RULES
    if domain is None:
        raise InputError("--tool", "names a tool of no domain", "add --domain")
    known = given_domain(domain)
    if tool not in known.kinds:
        raise InputError("--tool", f"'{tool}' is no tool of '{domain}'", nearest(tool, known.kinds))
    return known.rules.get(tool, NO_RULES)


def _compare_values(expected: str, actual: str, mode: Mode, rules: ToolRules) -> list[Difference]:
    if expected == actual == "-":
        raise InputError("--actual", "standard input is taken by --expected", "give a file")
    one, two = _value("--expected", expected), _value("--actual", actual)
    if _is_call(one) and _is_call(two):
        if one["name"] != two["name"]:
            return [Difference("$.name", one["name"], two["name"], "names equal")]
        one, two = _arguments("--expected", one), _arguments("--actual", two)
    return differences(one, two, mode, rules=rules)


def _value(option: str, given: str) -> Any:
    where, text = option, given
    try:
        if given == "-":
            where = "standard input"
            text = sys.stdin.read()
        elif given.startswith("@"):
            where = given[1:]
            text = Path(where).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(where, str(error.strerror).lower(), "check the path") from None
    except UnicodeDecodeError:
        raise InputError(where, "not UTF-8 text", "give JSON") from None
    parsed = parse_arguments(text)
    if not parsed.readable:
        raise InputError(where, str(parsed.problem), "give JSON; text needs quotes of its own")
    return parsed.value


def _is_call(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("name"), str)
        and ("arguments" in value or "kwargs" in value)
    )


def _arguments(option: str, call: dict[str, Any]) -> Any:
    parsed = parse_arguments(call.get("arguments", call.get("kwargs")))
    if not parsed.readable:
        raise InputError(option, f"arguments {parsed.problem}", "give JSON")
    return parsed.value


def _report_values(
    found: list[Difference], mode: Mode, *, explain: bool, as_json: bool, quiet: bool
) -> None:
    if as_json:
        rows = [difference._asdict() for difference in found]
        console.print_json({"equal": not found, "mode": mode, "differences": rows})
        return
    if quiet:
        return
    screen = console.console()
    verdict, style = ("different", "red") if found else ("equal", "green")
    screen.print(f"{verdict} ({mode})", style=style)
    if explain and found:
        table = console.table("path", "expected", "actual", "rule", left=(0, 1, 2, 3))
        for path, one, two, rule in found:
            row = (escape(path), f"[green]{_shown(one)}[/]", f"[red]{_shown(two)}[/]", rule)
            table.add_row(*row)
        screen.print(table)


def _shown(value: Any) -> str:
    return escape(console.as_json(value))


def _report_traces(summary: dict[str, Any], *, explain: bool, stderr: bool) -> None:
    screen = console.console(stderr=stderr)
    console.heading(
        f"{summary['calls']:,} calls of {summary['episodes']:,} episodes, "
        f"{summary['same_name_calls']:,} of a tool that a gold action names",
        stderr=stderr,
    )
    table = console.table("mode", "calls that match a gold action")
    for mode, calls in summary["matches"].items():
        table.add_row(mode, f"{calls:,}")
    screen.print(table)
    if summary["changed"]:
        table = console.table("class of the call", "becomes", "calls", left=(0, 1))
        for change in summary["changed"]:
            table.add_row(change["from"], change["to"], f"{change['calls']:,}")
        screen.print(table)
    if explain:
        for change in summary["changed"]:
            for example in change["examples"]:
                screen.print(escape(f"{change['from']} -> {change['to']}: {example['name']}"))
                screen.print(escape(f"  gold {example['gold']}\n  call {example['arguments']}"))
    screen.print(
        f"{summary['unparseable']:,} unparseable, "
        f"{summary['python_repr']:,} read as a Python literal"
    )
    if "recorded" in summary:
        agree, disagree = summary["recorded"]["agree"], summary["recorded"]["disagree"]
        screen.print(f"recorded tau2 verdicts: {agree:,} agree, {disagree:,} disagree")
