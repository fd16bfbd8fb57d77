"""Shared by the commands that read traces: opening them, domains, bad lines and lineage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import orjson
import typer

from irc_cli import options
from irc_cli.console import note, progress
from stages.errors import InputError
from stages.settings import Setting
from stages.tables.files import digest, refuse_existing, whole_file
from stages.tables.inputs import keep
from stages.tiers.domains import SHIPPED, Domain, load_domain
from stages.tiers.toolsets import Toolsets
from stages.traces.copies import Copies
from stages.traces.episode import Episode
from stages.traces.folders import trace_files
from stages.traces.formats import ReadOptions
from stages.traces.given import Given, named
from stages.traces.identity import SPLIT_GROUPS, SPLIT_TASKS, Identities, Renamed
from stages.traces.opening import open_trace, source_name

INPUT = "Input"  # panel of the help
_WHAT = (
    "Traces: results of tau-bench or tau2-bench, rollouts.jsonl, chat messages, or exports of an "
    "observability platform; '-' for standard input."
)
Paths = Annotated[list[str], typer.Argument(metavar="TRACES...", help=_WHAT)]
OptionalPaths = Annotated[list[str] | None, typer.Argument(metavar="[TRACES...]", help=_WHAT)]


@dataclass(frozen=True)
class RecordOptions:
    """Where records hold which field."""

    fields: Annotated[
        tuple[str, ...],
        Setting(
            "Dotted path to a field of the records: outcome=info.reward. May be repeated.",
            INPUT,
            option="map",
            metavar="FIELD=PATH,...",
        ),
    ] = ()
    gold: Annotated[
        str | None,
        Setting("Gold actions by task id: JSON, JSON lines or YAML.", INPUT, metavar="FILE"),
    ] = None
    score: Annotated[
        str | None,
        Setting("Score to use as the outcome, if traces have several.", INPUT, metavar="NAME"),
    ] = None

    @property
    def named(self) -> dict[str, Any]:
        """The options by the names of TraceReader's fields; None: not given."""
        return {"fields": list(self.fields) or None, "gold": self.gold, "score": self.score}

    @property
    def settings(self) -> dict[str, Any]:
        """The options by the names that artifacts record; None: not given."""
        return {"map": list(self.fields) or None, "gold": self.gold, "score": self.score}


@dataclass(frozen=True)
class ReadingOptions:
    """How traces of any format are read."""

    domain: Annotated[
        str | None,
        Setting(
            f"Tool kinds and comparison rules: {', '.join(SHIPPED)} or a file; default: found "
            "from the trace.",
            INPUT,
            metavar="NAME|FILE.yaml",
        ),
    ] = None
    skip_bad: Annotated[
        bool,
        Setting("Skip bad lines of JSONL traces, and write them to OUT.bad.jsonl.", INPUT),
    ] = False

    @property
    def named(self) -> dict[str, Any]:
        """The options on records by the names of TraceReader's fields: here none."""
        return {}

    def reader(self, paths: list[str], *, quiet: bool, **more: Any) -> TraceReader:
        """Return a reader of these paths; `more` are other fields of TraceReader."""
        return TraceReader(paths, self.domain, self.skip_bad, quiet, **self.named | more)


@dataclass(frozen=True)
class TraceOptions(RecordOptions, ReadingOptions):
    """How traces are read, and where their records hold which field."""


@dataclass(frozen=True)
class LoggedTraceOptions(TraceOptions):
    """TraceOptions, and how text that trainers logged is cut into turns."""

    tokenizer: Annotated[
        str | None,
        Setting(
            "Tokenizer whose chat template splits text logged by TRL or verl into turns.",
            INPUT,
            metavar="NAME|DIR",
        ),
    ] = None

    @property
    def named(self) -> dict[str, Any]:
        """The options by the names of TraceReader's fields; None: not given."""
        return super().named | {"tokenizer": self.tokenizer}


@dataclass
class TraceReader:
    """Reads traces one after another, and collects digests, notes, domains and bad lines."""

    paths: list[str]
    domain: str | None = None
    skip_bad: bool = False
    quiet: bool = False
    identities: Identities = field(default_factory=Identities)  # may be shared with another reader
    fields: list[str] | None = None  # --map
    gold: str | None = None  # the file of --gold
    score: str | None = None  # --score
    tokenizer: str | None = None  # --tokenizer
    digests: dict[str, str] = field(default_factory=dict)  # sha256 by path, --gold's too
    notes: Counter[str] = field(default_factory=Counter)
    domains: dict[str, dict[str, int]] = field(default_factory=dict)  # episodes by path and domain
    envs: set[str | None] = field(default_factory=set)  # played environments; None: unknown
    bad: list[bytes] = field(default_factory=list)  # a JSON line for each bad line
    copies: Copies | None = None  # refuses episodes that would count twice; None: not checked
    _taken: dict[str, str] = field(default_factory=dict)  # path by episode id

    def __post_init__(self) -> None:
        keep(self.paths)
        self.paths = [file for path in self.paths for file in trace_files(path)]

    def __iter__(self) -> Iterator[tuple[Episode, Domain]]:
        """Yield every episode with the tools that its agent had."""
        self.begin()
        for source, path in self.sources.items():
            for episode, tools in self.read(source, path):
                self.place(path, episode)
                yield episode, tools
        self.end()

    def begin(self) -> None:
        """Check all inputs before any trace is read."""
        read = [*self.paths, *([self.gold] if self.gold else [])]
        options.refuse_twice(read)
        keep(read)  # also inputs that no option names: turns record their traces
        _ = self.tools, self.of_records  # these read files too
        if self.gold:
            self.digests[self.gold] = digest(self.gold)

    def end(self) -> None:
        """Check, once all traces are read, that the options on records fitted some of them."""
        self.of_records.check(self.paths)
        if self.copies:
            self.copies.check()

    def read(self, source: str, path: str) -> Iterator[tuple[Episode, Domain]]:
        """Yield a trace's episodes and their tools, without regard to other traces.

        Another process may therefore do this.
        """
        trace = open_trace(
            path,
            source=source,
            skip_bad=self._keep_bad(path) if self.skip_bad else None,
            options=ReadOptions(tokenizer=self.tokenizer),
            given=self.of_records,
        )
        toolsets, met = Toolsets(self.tools), Counter[str]()
        episodes = progress(trace, f"reading {path}", quiet=self.quiet)
        for episode, tools in toolsets.assign(episodes):
            self.envs.add(f"tau2-{episode.domain}" if trace.format == "tau2" else episode.env)
            met[tools.name] += 1
            yield episode, tools
        self.domains[path] = dict(met)
        self.digests[path] = trace.sha256
        self.notes += trace.notes + toolsets.notes

    def place(self, path: str, episode: Episode) -> None:
        """Give an episode's task and group names that are unique among all traces.

        Raises:
            InputError: an episode of another trace has the same id.
        """
        if len(self.paths) > 1:  # within a single trace, its reader checks this
            _refuse_copy(episode, path, self._taken)
        if self.copies:
            self.copies.add(path, episode)
        self.identities.place(path, episode, self.tools.name if self.tools else None)

    def alone(self, path: str) -> TraceReader:
        """Return a reader of one of the traces, for another process."""
        fields = (self.fields, self.gold, self.score, self.tokenizer)
        return TraceReader([path], self.domain, self.skip_bad, True, Identities(), *fields)

    def add(self, other: TraceReader) -> None:
        """Add what a reader in another process collected."""
        self.digests |= other.digests
        self.notes += other.notes
        self.domains |= other.domains
        self.envs |= other.envs
        self.bad += other.bad
        self.of_records.add(other.of_records)

    @cached_property
    def tools(self) -> Domain | None:
        """The domain of --domain; None: not given."""
        return given_domain(self.domain) if self.domain else None

    @cached_property
    def of_records(self) -> Given:
        """The options on records: --map, --gold and --score."""
        return named(self.fields, self.gold, self.score)

    @property
    def named(self) -> dict[str, Any]:
        """The options on records by the names that artifacts record."""
        return {
            "map": self.fields,
            "gold": self.gold,
            "score": self.score,
            "tokenizer": self.tokenizer,
        }

    def renamed(self) -> Renamed:
        """Return the tasks renamed after all traces were read, and note the split ones."""
        renamed = self.identities.renamed(self.sources)
        # A task "5#2" of one trace may turn out to be "5" of the others, which is not a split.
        split = {name for (_, had), name in renamed.items() if had.rpartition("#")[0] != name}
        self._note(SPLIT_TASKS, len(split))
        return renamed

    def note_groups(self) -> None:
        """Note the groups that had to be split; only figures that compare groups need this."""
        self._note(SPLIT_GROUPS, self.identities.split_groups())

    def _note(self, text: str, count: int) -> None:
        if count:
            self.notes[text] += count

    @property
    def sources(self) -> dict[str, str]:
        """Each path by its name in tables: the file's name, or the whole path if names clash."""
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
        """Return the path of the bad lines: beside the output, else in the working directory."""
        if out and out != "-":
            return f"{out}.bad.jsonl"
        return f"{source_name(self.paths[0])}.bad.jsonl"

    def write_bad(self, out: str | None, *, force: bool) -> None:
        """Write the bad lines, if there are any, and print a note."""
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


def _refuse_copy(episode: Episode, path: str, taken: dict[str, str]) -> None:
    """Raise InputError if an episode of another trace has the same id."""
    if (other := taken.setdefault(episode.episode_id, path)) != path:
        what = f"both have an episode '{episode.episode_id}'"
        todo = "give every episode an 'episode_id' of its own, or read the files separately"
        raise InputError(f"{other}, {path}", what, todo)
