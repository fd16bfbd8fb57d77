"""Opening a trace: what format it is, from its content, and its episodes one by one."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import InputError
from stages.tables.files import reachable
from stages.tables.near import description, near_format
from stages.traces import messages, parquet, tau2, tau_bench
from stages.traces.episode import Episode
from stages.traces.fields import BadItemError
from stages.traces.stream import NOT_STANDARD, BrokenJsonError, Stream, parse, parse_document

if TYPE_CHECKING:
    from hashlib import _Hash

KNOWN = "give tau-bench results, tau2-bench results, or OpenAI-style messages"
SKIPPED = "bad record left out"
REPAIR = "repair the line or pass --skip-bad"
HEADER = "results.json"  # in a tau2-bench folder: everything but the simulations

SkipBad = Callable[[int, bytes, str], None]
Read = Callable[[dict[str, Any]], Episode]


class Trace:
    """One opened trace, to be iterated once.

    Attributes:
        source: short name for tables: the file's name without its endings, or "stdin".
        format: "tau-bench", "tau2" or "messages".
        domain: the name that the trace itself states.
        notes: what had to be repaired or skipped, counted; complete once iterated.
    """

    def __init__(
        self,
        source: str,
        format: str,
        domain: str | None,
        notes: Counter[str],
        digest: _Hash,
        episodes: Iterator[Episode],
    ) -> None:
        self.source, self.format, self.domain, self.notes = source, format, domain, notes
        self._digest, self._episodes = digest, episodes

    @property
    def sha256(self) -> str:
        """Of the bytes as stored (a folder: of its files, one after another); once iterated."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Episode]:
        return self._episodes


def open_trace(path: str, *, source: str | None = None, skip_bad: SkipBad | None = None) -> Trace:
    """Open a trace of any known format, plain or gzip.

    JSONL is read line by line and a tau2-bench folder file by file; anything else as a whole.

    Args:
        path: a file, a tau2-bench results folder, or "-" for standard input.
        source: what tables call it; by default `source_name(path)`.
        skip_bad: called with (number, raw record, reason) for each bad line, item, row or
            simulation, which is then left out; without it the first one raises.

    Raises:
        InputError: the trace is missing, empty, broken or of no known format. Single records
            are checked while iterating.
    """
    with reachable(path):
        is_folder = path != "-" and Path(path).is_dir()
    if is_folder:
        return _open_folder(Path(path), source, skip_bad)
    stream = Stream(path)
    try:
        return _open_stream(stream, path, source or source_name(path), skip_bad)
    except InputError:
        stream.close()
        raise


def source_name(path: str) -> str:
    """Short name of a trace: its file name without .json, .jsonl, .parquet, .gz."""
    return "stdin" if path == "-" else re.sub(r"(\.(jsonl?|parquet|gz))+$", "", Path(path).name)


def _open_stream(stream: Stream, path: str, source: str, skip_bad: SkipBad | None) -> Trace:
    """The trace in one file, by the first bytes, the first lines, or the whole document."""
    if stream.head.startswith(parquet.MAGIC):
        return _open_parquet(stream, source, skip_bad)
    if b"\0" in stream.head:
        raise InputError(stream.where, "is a binary file, not a trace", KNOWN)
    if stream.head.lstrip().startswith(b"["):
        return _open_document(stream, path, source, stream.read(), skip_bad)
    lines = stream.lines()
    opening: list[tuple[int, bytes]] = []
    # A JSONL shows itself by a whole record on its first line, or, if that is broken, its second.
    for number, line in lines:
        opening.append((number, line))
        record = _record_or_none(line)
        if format := _format_of(record):
            assert record is not None
            lines = chain(opening, lines)
            return _open_lines(stream, source, lines, format, record, skip_bad)
        if record is not None and not _is_results(record):
            raise _unknown(record, stream.where)
        if record is not None or len(opening) == 2:
            break
    data = b"".join([line for _, line in opening]) + stream.read()
    return _open_document(stream, path, source, data, skip_bad)


def _open_lines(
    stream: Stream,
    source: str,
    lines: Iterable[tuple[int, bytes]],
    format: str,
    first: dict[str, Any],
    skip_bad: SkipBad | None,
) -> Trace:
    """JSONL: one record a line, all of the format of the first."""
    notes = Counter[str]()
    read = _reader(format, source, notes)

    def episodes() -> Iterator[Episode]:
        with closing(stream):
            for number, line in lines:
                try:
                    yield _read_line(line, read, notes)
                except BadItemError as bad:
                    if skip_bad is None:
                        raise InputError(f"{stream.where}:{number}", bad.what, bad.todo) from None
                    skip_bad(number, line, bad.what)
                    notes[SKIPPED] += 1

    return Trace(source, format, _stated_domain(first), notes, stream.digest, episodes())


def _read_line(line: bytes, read: Read, notes: Counter[str]) -> Episode:
    try:
        record, standard = parse(line)
    except BrokenJsonError as error:
        raise BadItemError(f"{error.what} at byte {error.offset}", REPAIR) from None
    if not isinstance(record, dict):
        raise BadItemError("is not a JSON object", REPAIR)
    if not standard:
        notes[NOT_STANDARD] += 1
    return read(record)


def _open_document(
    stream: Stream, path: str, source: str, data: bytes, skip_bad: SkipBad | None
) -> Trace:
    """One JSON document: a list of records, tau2-bench results, or a single record."""
    if data.isspace() or not data:
        raise InputError(stream.where, "is empty", "give a trace file")
    notes = Counter[str]()
    document = parse_document(data, stream.where, notes)
    if _is_results(document):
        simulations = document.get("simulations") or []
        if not simulations and path != "-" and (Path(path).parent / "simulations").is_dir():
            return _open_folder(Path(path).parent, source, skip_bad)
        return _open_tau2(stream, source, notes, document, simulations, skip_bad)
    records = document if isinstance(document, list) else [document]
    formats = (_format_of(record) for record in records if isinstance(record, dict))
    format = next((format for format in formats if format), None)
    if format is None:
        raise _unknown(document, stream.where)
    read = _reader(format, source, notes, records)
    domain = _stated_domain(records[0])
    episodes = _read_all(records, read, f"{stream.where}:item", notes, skip_bad)
    return Trace(source, format, domain, notes, stream.digest, episodes)


def _open_tau2(
    stream: Stream,
    source: str,
    notes: Counter[str],
    header: dict[str, Any],
    simulations: Any,
    skip_bad: SkipBad | None,
) -> Trace:
    """tau2-bench results in one file."""
    if not isinstance(simulations, list) or not simulations:
        raise InputError(stream.where, "holds no simulations", KNOWN)
    ignore_trial = _trials_are_tasks(simulations, notes)
    domain, policy, gold = _header(header, stream.where, notes)
    read = tau2.reader(
        source, notes, gold=gold, domain=domain, policy=policy, ignore_trial=ignore_trial
    )
    episodes = _read_all(simulations, read, f"{stream.where}:simulation", notes, skip_bad)
    return Trace(
        source, "tau2", domain, notes, stream.digest, _and_idle_tasks(episodes, gold, notes)
    )


def _open_folder(folder: Path, source: str | None, skip_bad: SkipBad | None) -> Trace:
    """tau2-bench results with one simulation per file, beside the tasks in results.json."""
    parts = folder / "simulations" if (folder / "simulations").is_dir() else folder
    above = parts.parent / HEADER if parts.name == "simulations" else parts / HEADER
    files = [
        file
        for file in sorted(parts.iterdir())
        if file.name.endswith((".json", ".json.gz")) and file.name != HEADER
    ]
    if not files:
        raise InputError(
            str(folder), "is a directory without simulations", "give a file or a results folder"
        )
    source = source or source_name(str(folder.resolve()))
    notes, digest = Counter[str](), sha256()
    domain: str | None = None
    policy: str | None = None
    gold: tau2.Gold = {}
    if above.is_file():
        stream = Stream(str(above), digest)
        header = parse_document(stream.read(), stream.where, notes)
        domain, policy, gold = _header(header, stream.where, notes)
    read = tau2.reader(source, notes, gold=gold, domain=domain, policy=policy)

    def episodes() -> Iterator[Episode]:
        for number, file in enumerate(files, 1):
            stream = Stream(str(file), digest)
            data = stream.read()
            try:
                yield _read_simulation(data, stream.where, read, notes)
            except InputError as bad:
                if skip_bad is None:
                    raise
                skip_bad(number, data, f"{bad.where}: {bad.what}")
                notes[SKIPPED] += 1

    return Trace(source, "tau2", domain, notes, digest, _and_idle_tasks(episodes(), gold, notes))


def _read_simulation(data: bytes, where: str, read: Read, notes: Counter[str]) -> Episode:
    """The simulation that a file of a results folder holds."""
    simulation = parse_document(data, where, notes)
    if not isinstance(simulation, dict) or not tau2.accepts(simulation):
        raise InputError(
            where,
            f"is not one tau2-bench simulation: {description(simulation)}",
            "give a results folder, or a single results file by its own name",
        )
    try:
        return read(simulation)
    except BadItemError as bad:
        raise InputError(where, bad.what, bad.todo) from None


def _open_parquet(stream: Stream, source: str, skip_bad: SkipBad | None) -> Trace:
    """Conversations, one row each."""
    rows = parquet.read_rows(stream.read(), stream.where)
    notes = Counter[str]()
    read = _reader("messages", source, notes, rows)
    episodes = _read_all(rows, read, f"{stream.where}:row", notes, skip_bad)
    return Trace(source, "messages", _stated_domain(rows[0]), notes, stream.digest, episodes)


def _header(
    document: Any, where: str, notes: Counter[str]
) -> tuple[str | None, str | None, tau2.Gold]:
    """Domain, policy and gold actions from what tau2-bench results say beside simulations."""
    try:
        if not isinstance(document, dict):
            raise BadItemError(f"is no results header: {description(document)}", KNOWN)
        domain, gold = tau2.domain_of(document), tau2.gold_of_tasks(document, notes)
        policy = tau2.policy_of(document)
    except BadItemError as bad:
        raise InputError(where, bad.what, bad.todo) from None
    if domain is None:
        notes["no domain name"] += 1
    return domain, policy, gold


def _and_idle_tasks(
    episodes: Iterator[Episode], gold: tau2.Gold, notes: Counter[str]
) -> Iterator[Episode]:
    """The same episodes; afterwards the tasks that none of them ran are noted."""
    idle = set(gold)
    for episode in episodes:
        idle.discard(episode.task_id)
        yield episode
    if idle:
        notes["task never run"] += len(idle)


def _read_all(
    records: Iterable[Any],
    read: Read,
    place: str,
    notes: Counter[str],
    skip_bad: SkipBad | None,
) -> Iterator[Episode]:
    """Every record's episode; errors name the record by its number from 1."""
    for number, record in enumerate(records, 1):
        try:
            if not isinstance(record, dict):
                raise BadItemError("is not an object", KNOWN)
            episode = read(record)
        except BadItemError as bad:
            if skip_bad is None:
                raise InputError(f"{place} {number}", bad.what, bad.todo) from None
            skip_bad(number, json.dumps(record, default=str).encode(), bad.what)
            notes[SKIPPED] += 1
            continue
        yield episode


def _reader(
    format: str, source: str, notes: Counter[str], records: list[Any] | None = None
) -> Read:
    """The function that reads one record; `records` are all of them, where they are at hand."""
    ignore_trial = records is not None and _trials_are_tasks(records, notes)
    if format == "tau-bench":
        return tau_bench.reader(source, notes, ignore_trial=ignore_trial)
    if format == "tau2":
        gold = tau2.gold_of_checks(records or [])
        return tau2.reader(source, notes, gold=gold, ignore_trial=ignore_trial)
    return messages.reader(source, notes, ignore_trial=ignore_trial)


def _trials_are_tasks(records: list[Any], notes: Counter[str]) -> bool:
    """Whether `trial` merely repeats `task_id` in every record, which says nothing."""
    trials = {
        (str(record.get("task_id")), str(record.get("trial")))
        for record in records
        if isinstance(record, dict)
    }
    # One pair alone (0, 0) is the first trial of the first task; null equals null.
    useless = len(trials) > 1 and all(task == trial != "None" for task, trial in trials)
    if useless:
        notes["trial equal to task id"] += len(records)
    return useless


def _format_of(record: dict[str, Any] | None) -> str | None:
    """Which format a single record is of; None where it is none of the known."""
    if record is None:
        return None
    if tau_bench.accepts(record):
        return "tau-bench"
    if tau2.accepts(record):
        return "tau2"
    return "messages" if messages.accepts(record) else None


def _is_results(document: Any) -> bool:
    """Whether a document is tau2-bench results, with or without the simulations themselves."""
    return isinstance(document, dict) and ("simulations" in document or "tasks" in document)


def _unknown(document: Any, where: str) -> InputError:
    """The error for JSON that is no trace, to be raised."""
    from stages.tables.recognise import of_columns  # imports polars

    record = document[0] if isinstance(document, list) and document else document
    if isinstance(record, dict) and (kind := of_columns(record)):
        return InputError(where, f"not a trace but {kind.name}", "give the traces themselves")
    if near := near_format(document):
        several = "a list that begins with " if isinstance(document, list) else ""
        return InputError(where, f"is {several}{near.name}, which is not read", near.todo)
    return InputError(where, f"is no known trace: {description(document)}", KNOWN)


def _record_or_none(line: bytes) -> dict[str, Any] | None:
    """The object that a line holds, if it is one."""
    try:
        value, _ = parse(line)
    except BrokenJsonError:
        return None
    return value if isinstance(value, dict) else None


def _stated_domain(record: Any) -> str | None:
    """The domain of a trace whose records name one each: that of the first."""
    domain = record.get("domain") if isinstance(record, dict) else None
    return domain if isinstance(domain, str) else None
