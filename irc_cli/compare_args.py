"""`irc-cli compare-args`: compare two values, or the calls of traces with their gold actions."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from irc_cli import console, options
from irc_cli.notes import check_notes, show_notes
from irc_cli.traces import INPUT, LoggedTraceOptions, given_domain
from stages.core.arguments import (
    MODES,
    NO_RULES,
    PYTHON_REPR,
    Difference,
    Mode,
    Parsed,
    ToolRules,
    differences,
    parse_arguments,
)
from stages.errors import InputError, few
from stages.settings import Setting
from stages.tables.files import together
from stages.tables.pipes import content
from stages.tables.yamlfile import nearest
from stages.traces.calls import UnreadableCallError
from stages.traces.copies import Copies
from stages.traces.notes import GIVE_GOLD, READ_AS_PYTHON, note_left_out
from stages.traces.pasted import unwrapped

VALUES = "Two values"  # panel of the help


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how."""

    expected: Annotated[
        str | None,
        Setting("Expected arguments or call.", VALUES, metavar="JSON|@FILE|-"),
    ] = None
    actual: Annotated[
        str | None, Setting("Actual arguments or call.", VALUES, metavar="JSON|@FILE|-")
    ] = None
    mode: Annotated[Mode, Setting("Comparison of two values.", VALUES, choices=MODES)] = "deep"
    tool: Annotated[
        str | None,
        Setting("Tool whose rules in --domain apply to two values.", VALUES, metavar="NAME"),
    ] = None
    raw: Annotated[
        bool, Setting("Compare two values literally, calls with all their keys.", VALUES)
    ] = False
    tool_rules: Annotated[
        bool, Setting("Apply the domain's rules for each tool to the calls of traces.", INPUT)
    ] = False
    explain: Annotated[
        bool, Setting("Show each difference and the rule that decided it.", options.OUTPUT)
    ] = False

    @property
    def of_values(self) -> bool:
        """Whether two values are compared instead of traces."""
        return self.expected is not None or self.actual is not None


@options.expanded()
def command(
    *,
    traces: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TRACES...]",
            help="Traces, or two JSON values.",
        ),
    ] = None,
    source: LoggedTraceOptions,
    asked: CompareOptions,
    out: options.Out = None,
    printing: options.Writing,
    seed: options.Seed = 0,
    config: options.Config = None,
) -> None:
    """Compare tool-call arguments by meaning, and explain each difference.

    The exit code is 1 if two values differ. A value is either arguments or a call in an API's form
    (OpenAI, Anthropic, Gemini, Bedrock, LangChain, MCP), alone or in a message. An object that
    has only a name, an arguments object and ids is a call. Any other object is arguments, even with
    a key 'name'. Two calls are compared by name and arguments; a call and arguments, by arguments.

    Example: irc-cli compare-args --expected '{"bags": 2}' --actual '{"bags": "2.0"}' --explain
    """
    if traces and len(traces) == 2 and all(map(_is_json, traces)):
        asked, traces = replace(asked, expected=traces[0], actual=traces[1]), None
    if asked.of_values == bool(traces):
        todo = "give --expected and --actual, or traces"
        raise InputError("compare-args", "wants two values or traces", todo)
    of_traces = {"--out": out, "--tool-rules": asked.tool_rules, "--map": source.fields}
    of_traces |= {"--gold": source.gold, "--score": source.score, "--tokenizer": source.tokenizer}
    of_values = {"--tool": asked.tool, "--raw": asked.raw}
    _refuse(of_traces if asked.of_values else of_values, asked.of_values)
    if asked.of_values:
        _compare_two(asked, source.domain, printing)
    else:
        _compare_traces(traces or [], source, asked, out, printing, seed)


def _compare_two(asked: CompareOptions, domain: str | None, printing: options.Writing) -> None:
    """Compare two values; exit with 1 if they differ."""
    if asked.expected is None or asked.actual is None:
        missing = "--expected" if asked.expected is None else "--actual"
        raise InputError(missing, "is missing", "give both values")
    rules = _rules(asked.tool, domain)
    sides = _sides(asked.expected, asked.actual, raw=asked.raw)
    notes = +Counter({READ_AS_PYTHON: sum(side.repaired for side in sides)})
    check_notes(notes, strict=printing.strict)
    differing = _compare_values(*sides, asked.mode, rules)
    if printing.as_json:
        _print_values(differing, asked.mode, sides, notes)
    elif not printing.quiet:
        _report_values(differing, asked.mode, sides, explain=asked.explain)
        show_notes(notes)
    raise typer.Exit(1 if differing else 0)


def _compare_traces(
    traces: list[str],
    source: LoggedTraceOptions,
    asked: CompareOptions,
    out: str | None,
    printing: options.Writing,
    seed: int,
) -> None:
    """Compare the calls of traces with their gold actions."""
    from stages.compare_args import Comparison
    from stages.tables.artifacts import PAIRS
    from stages.tables.table_file import write_table

    options.check_outputs([out], as_json=printing.as_json, force=printing.force)
    reader = source.reader(traces, quiet=printing.quiet, copies=Copies())
    reader.check_sidecar(out, force=printing.force)
    comparison = Comparison(tool_rules=asked.tool_rules)
    for episode, domain in reader:
        note_left_out(episode, reader.notes)
        comparison.add([episode], domain)
    if comparison.episodes and not comparison.known_gold:
        raise InputError(few(traces), "no gold actions anywhere", GIVE_GOLD)
    renamed = reader.renamed()
    notes = reader.notes + comparison.notes
    check_notes(notes, strict=printing.strict)
    summary = comparison.summary() | {"notes": dict(notes)}
    with together():
        if out:
            settings = {"tool_rules": asked.tool_rules, "domain": source.domain} | reader.named
            made_by = console.made_by("compare-args", settings, seed, reader.digests)
            write_table(PAIRS, comparison.frame(renamed), out, made_by, force=printing.force)
        reader.write_bad(out, force=printing.force)
    if printing.as_json:
        console.print_json(summary)
    elif not printing.quiet:
        _report_traces(summary, explain=asked.explain, stderr=out == "-")
        show_notes(notes)


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


class _Side(NamedTuple):
    """One of two values."""

    value: Any  # for a call: its arguments
    repaired: bool  # read as a Python literal
    name: str | None = None  # of a call
    form: str | None = None  # the API form in which the call was written
    document: Any = None  # the call as it was given


def _is_json(text: str) -> bool:
    """Return whether an argument is a JSON value and not a path."""
    return text.lstrip().startswith(("{", "[")) and not Path(text).exists()


def _sides(expected: str, actual: str, *, raw: bool) -> tuple[_Side, _Side]:
    if expected == actual == "-":
        raise InputError("--actual", "standard input is taken by --expected", "give a file")
    left, right = _side("--expected", expected, raw=raw), _side("--actual", actual, raw=raw)
    return _as_arguments(left, right), _as_arguments(right, left)


def _side(option: str, given: str, *, raw: bool) -> _Side:
    """Read a value; unwrap a call from its API format."""
    parsed = _value(option, given)
    repaired = parsed.problem == PYTHON_REPR
    if raw:
        return _Side(parsed.value, repaired)
    try:
        call = unwrapped(parsed.value)
    except UnreadableCallError as error:
        raise InputError(option, str(error), "give one call in JSON, or pass --raw") from None
    if call is None:
        return _Side(parsed.value, repaired)
    repaired = repaired or call.repaired
    return _Side(call.arguments, repaired, call.name, call.form, parsed.value)


def _as_arguments(side: _Side, other: _Side) -> _Side:
    """Return a side, as plain arguments if its keys are those of the other call's arguments."""
    keys = [value.keys() for value in (other.value, side.document) if isinstance(value, dict)]
    if None in (other.name, side.name) or len(keys) < 2 or keys[0] != keys[1]:
        return side
    return _Side(side.document, side.repaired)


def _compare_values(
    expected: _Side, actual: _Side, mode: Mode, rules: ToolRules
) -> list[Difference]:
    """Compare two calls by name and arguments; otherwise, arguments alone."""
    names = expected.name, actual.name
    if None not in names and names[0] != names[1]:
        return [Difference("$.name", *names, "names equal")]
    return differences(expected.value, actual.value, mode, rules=rules)


def _value(option: str, given: str) -> Parsed:
    where, text = option, given
    try:
        if given == "-":
            where = "standard input"
            text = sys.stdin.read()
        elif given.startswith("@"):
            where = given[1:]
            text = content(where).decode()
    except OSError as error:
        raise InputError(where, str(error.strerror).lower(), "check the path") from None
    except UnicodeDecodeError:
        raise InputError(where, "not UTF-8 text", "give JSON") from None
    parsed = parse_arguments(text)
    if not parsed.readable:
        raise InputError(where, str(parsed.problem), "give JSON; text needs its own quotes")
    return parsed


def _print_values(
    differing: list[Difference], mode: Mode, sides: tuple[_Side, _Side], notes: Counter[str]
) -> None:
    rows = [difference._asdict() for difference in differing]
    document: dict[str, Any] = {"equal": not differing, "mode": mode, "differences": rows}
    document["notes"] = dict(notes)
    if forms := _forms(sides):
        document["unwrapped"] = forms
    console.print_json(document)


def _forms(sides: tuple[_Side, _Side]) -> dict[str, str | None]:
    """Return the API form of each side's call; None: plain arguments. Empty without a call."""
    forms = {name: side.form for name, side in zip(("expected", "actual"), sides, strict=True)}
    return forms if any(forms.values()) else {}


def _report_values(
    differing: list[Difference], mode: Mode, sides: tuple[_Side, _Side], *, explain: bool
) -> None:
    screen = console.console()
    verdict, style = ("different", "red") if differing else ("equal", "green")
    screen.print(f"{verdict} ({mode})", style=style)
    if forms := _forms(sides):
        listed = ", ".join(f"{side} {form or 'arguments'}" for side, form in forms.items())
        compared = "names and arguments" if all(forms.values()) else "arguments only"
        screen.print(f"calls unwrapped: {listed}; {compared} compared")
    if explain and differing:
        table = console.table("path", "expected", "actual", "rule", left=(0, 1, 2, 3))
        for path, left, right, rule in differing:
            pair = (left, "green"), (right, "red")
            cells = [console.styled(console.as_json(value), style) for value, style in pair]
            table.add_row(path, *cells, rule)
        screen.print(table)


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
                screen.print(f"{change['from']} -> {change['to']}: {example['name']}")
                screen.print(f"  gold {example['gold']}")
                screen.print(f"  call {example['arguments']}")
    screen.print(
        f"{summary['unparseable']:,} unparseable, "
        f"{summary['python_repr']:,} read as a Python literal"
    )
    if "recorded" in summary:
        agree, disagree = summary["recorded"]["agree"], summary["recorded"]["disagree"]
        screen.print(f"recorded tau2 verdicts: {agree:,} agree, {disagree:,} disagree")
