"""What the commands that read traces share: opening them, their domains, bad lines, provenance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Annotated

import orjson
import typer

from irc_cli import options
from irc_cli.console import note, progress
from stages.domains import SHIPPED, Domain, find_domain, load_domain
from stages.files import refuse_existing, whole_file
from stages.traces.detect import Trace, open_trace, source_name
from stages.traces.episode import Episode

_LOOK_AHEAD = 64  # episodes of a trace that show which domain it is from

_TRACES = typer.Argument(
    metavar="TRACES...",
    help="tau-bench or tau2-bench results, rollouts.jsonl, or chat messages; '-' to read them from "
    "standard input.",
)
Paths = Annotated[list[str], _TRACES]
OptionalPaths = Annotated[list[str] | None, _TRACES]
DomainOption = Annotated[
    str | None,
    typer.Option(
        "--domain",
        metavar="NAME|FILE.yaml",
        help="Tool kinds and comparison rules: airline, retail, telecom or a file. Default: found "
        "from the trace.",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Go on past bad lines of JSONL traces; write them to OUT.bad.jsonl."
    ),
]


@dataclass
class TraceReader:
    """Opens traces one after another and remembers what was met."""

    paths: list[str]
    domain: str | None = None
    skip_bad: bool = False
    quiet: bool = False
    digests: dict[str, str] = field(default_factory=dict)  # sha256 by path
    notes: Counter[str] = field(default_factory=Counter)
    domains: dict[str, str] = field(default_factory=dict)  # by path
    envs: set[str | None] = field(default_factory=set)  # that were played; None: unknown
    bad: list[bytes] = field(default_factory=list)  # a JSON line for each bad line

    def __iter__(self) -> Iterator[tuple[Iterator[Episode], Domain]]:
        """Yield the episodes of each trace, to be consumed before the next, and their domain."""
        given = given_domain(self.domain) if self.domain else None
        options.refuse_twice(self.paths)
        for source, path in self.sources.items():
            trace = open_trace(
                path,
                source=source,
                skip_bad=self._keep_bad(path) if self.skip_bad else None,
            )
            episodes = progress(trace, f"reading {path}", quiet=self.quiet)
            first = list(islice(episodes, _LOOK_AHEAD))
            domain = given or _domain_of(trace, first)
            self.domains[path] = domain.name
            self.envs.add(_env_of(trace, first))
            yield chain(first, episodes), domain
            self.digests[path] = trace.sha256
            self.notes += trace.notes

    @property
    def sources(self) -> dict[str, str]:
        """Each path by what tables call it: its name, or where two have the same, all of it."""
        names = Counter(source_name(path) for path in self.paths)
        named = ((source_name(path), path) for path in self.paths)
        return {name if names[name] == 1 else path: path for name, path in named}

    def _keep_bad(self, path: str) -> Callable[[int, bytes, str], None]:
        def keep(line: int, raw: bytes, reason: str) -> None:
            text = raw.decode(errors="replace").rstrip("\n")
            row = {"file": path, "line": line, "reason": reason, "text": text}
            self.bad.append(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))

        return keep

    def sidecar(self, out: str | None) -> str:
        """Return where the bad lines go: beside the output, else beside the user."""
        if out and out != "-":
            return f"{out}.bad.jsonl"
        return f"{source_name(self.paths[0])}.bad.jsonl"

    def write_bad(self, out: str | None, *, force: bool) -> None:
        """Write the bad lines, if there are any, and say so."""
        if self.bad:
            sidecar = self.sidecar(out)
            with whole_file(sidecar, force=force) as file:
                file.writelines(self.bad)
            note(f"{len(self.bad):,} bad lines were skipped; see {sidecar}", quiet=self.quiet)

    def check_sidecar(self, out: str | None, *, force: bool) -> None:
        """Raise InputError before any work if the bad lines could not be written."""
        if self.skip_bad:
            refuse_existing(self.sidecar(out), force=force)


def given_domain(name_or_path: str) -> Domain:
    """Return the domain that --domain names."""
    return load_domain(options.name_or_file("domain", name_or_path, SHIPPED))


def _env_of(trace: Trace, episodes: list[Episode]) -> str | None:
    """Name of the environment that a trace's episodes played, as `rollout` knows it."""
    if trace.format == "tau2":
        return f"tau2-{trace.domain}"
    return episodes[0].env if episodes else None


def _domain_of(trace: Trace, episodes: list[Episode]) -> Domain:
    stated = trace.domain or next((e.domain for e in episodes if e.domain), None)
    names = {call.name for e in episodes for turn in e.turns for call in turn.calls}
    names |= {
        action.name for e in episodes for action in e.gold or () if action.requestor != "user"
    }
    tools = next((e.tools for e in episodes if e.tools), None)
    types = {name: kind for e in episodes for name, kind in (e.tool_types or {}).items()}
    return find_domain(stated, names, tools, types)
