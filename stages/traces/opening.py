"""Open a trace, a file or a folder of any known format, and iterate over its episodes."""

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
from stages.tables.near import description
from stages.traces import messages, parquet
from stages.traces.detect import (
    FORMATS,
    MESSAGES,
    format_held,
    format_of,
    format_of_file,
    unknown_trace,
)
from stages.traces.episode import Episode
from stages.traces.fields import BadItemError
from stages.traces.formats import KNOWN, Format, ReadOptions, Whole
from stages.traces.given import Given
from stages.traces.stream import (
    BUFFER,
    NOT_STANDARD,
    BrokenJsonError,
    Stream,
    parse,
    parse_document,
    readable,
)

if TYPE_CHECKING:
    from hashlib import _Hash

SKIPPED = "bad record left out"
REPAIR = "repair the line or pass --skip-bad"

SkipBad = Callable[[int, bytes, str], None]
Read = Callable[[dict[str, Any]], list[Episode]]  # reads one record into its episodes


class Trace:
    """An open trace. It can be iterated once.

    Attributes:
        source: short name for tables: the file name without its extensions, or "stdin".
        format: the name of one of FORMATS.
        domain: the domain that the trace states; None if it states none.
        notes: counts of what was repaired or skipped; complete after iteration.
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
        """Digest of the stored bytes, concatenated for a folder; complete after iteration."""
        return self._digest.hexdigest()

    def __iter__(self) -> Iterator[Episode]:
        return self._episodes


def open_trace(
    path: str,
    *,
    source: str | None = None,
    skip_bad: SkipBad | None = None,
    options: ReadOptions | None = None,
    given: Given | None = None,
) -> Trace:
    """Open a trace of any known format, plain or gzip.

    JSONL is read line by line, a folder file by file, and anything else as a whole.

    Args:
        path: a file, a results folder, or "-" for standard input.
        source: name of the trace in tables; by default `source_name(path)`.
        skip_bad: called with (number, raw record, reason) for each bad line, item, row or
            simulation, which is then skipped. If None, the first bad record raises.
        options: options of the translators; `path` and `shared` are filled in here.
        given: field mapping and gold actions that the user supplies.

    Returns:
        The open trace. Records are read and checked during iteration.

    Raises:
        InputError: the trace is missing, empty, broken or in no known format.
    """
    with reachable(path):
        is_folder = path != "-" and Path(path).is_dir()
    opening = _Opening(
        path, source or _name(path, is_folder), skip_bad, options or ReadOptions(), given or Given()
    )
    if is_folder:
        return opening.folder(Path(path))
    if format := format_of_file(path):
        return opening.unpacked(format)
    stream = Stream(path)
    try:
        return opening.stream(stream)
    except InputError:
        stream.close()
        raise


def _name(path: str, is_folder: bool) -> str:
    return source_name(str(Path(path).resolve()) if is_folder else path)


def source_name(path: str) -> str:
    """Return the file name of a trace without .json, .jsonl, .parquet, .eval and .gz."""
    return (
        "stdin" if path == "-" else re.sub(r"(\.(jsonl?|parquet|eval|gz))+$", "", Path(path).name)
    )


class _Opening:
    """Opens one trace."""

    def __init__(
        self, path: str, source: str, skip_bad: SkipBad | None, options: ReadOptions, given: Given
    ) -> None:
        self._path, self._source, self._skip_bad = path, source, skip_bad
        self._options = options._replace(path=path)
        self._given = given
        self._notes = Counter[str]()

    def stream(self, stream: Stream) -> Trace:
        """Open one file; detect its format by its first bytes, first lines or whole document."""
        if stream.head.startswith(parquet.MAGIC):
            rows = parquet.read_rows(
                stream.read(), stream.where, lambda row: bool(self._format(row))
            )
            return self._records(stream, self._format(rows[0]) or MESSAGES, rows, None, "row")
        if b"\0" in stream.head:
            raise InputError(stream.where, "is a binary file, not a trace", KNOWN)
        if stream.head.lstrip().startswith(b"["):
            return self._document(stream, stream.read())
        lines = stream.lines()
        opening: list[tuple[int, bytes]] = []
        # The file is JSONL if its first line, or its second if the first is broken, is a record.
        for number, line in lines:
            opening.append((number, line))
            record = _record_or_none(line)
            if record is not None and (format := self._format(record)):
                return self._lines(stream, chain(opening, lines), format, record)
            if record is not None and not format_held(record):
                raise unknown_trace(record, stream.where)
            if record is not None or len(opening) == 2:
                break
        return self._document(stream, b"".join([line for _, line in opening]) + stream.read())

    def folder(self, folder: Path) -> Trace:
        """Open a results folder, which is read file by file."""
        digest = sha256()
        for format in FORMATS:
            if format.files and (files := format.files(folder, digest, self._notes)):
                episodes = self._files(format, files, digest)
                return self._trace(format, None, digest, episodes, files[0][1])
        raise InputError(
            str(folder), "is a directory without traces", "give a file or a results folder"
        )

    def unpacked(self, format: Format) -> Trace:
        """Open a binary file, which its format's module unpacks."""
        assert format.unpack is not None
        digest = sha256()
        with readable(self._path), Path(self._path).open("rb") as file:
            while block := file.read(BUFFER):
                digest.update(block)
        read = self._reader(format, None)
        episodes = self._placed(format.unpack(Path(self._path)), read, self._path)
        return self._trace(format, None, digest, episodes, None)

    def _lines(
        self,
        stream: Stream,
        lines: Iterable[tuple[int, bytes]],
        format: Format,
        first: dict[str, Any],
    ) -> Trace:
        """Open JSONL: one record per line, all in the format of the first."""
        shared = self._beside(format, stream)
        read = self._reader(format, shared)
        if format.gather:
            records = format.gather(self._parsed(stream, lines))
            episodes = self._each(records, read, f"{stream.where}:conversation")
        else:
            episodes = self._episodes_of_lines(stream, lines, read)
        return self._trace(format, first, stream.digest, episodes, shared)

    def _episodes_of_lines(
        self, stream: Stream, lines: Iterable[tuple[int, bytes]], read: Read
    ) -> Iterator[Episode]:
        with closing(stream):
            for number, line in lines:
                try:
                    episodes = read(_record(line, self._notes))
                except BadItemError as bad:
                    self._bad(bad, f"{stream.where}:{number}", number, line)
                    continue
                yield from episodes

    def _parsed(
        self, stream: Stream, lines: Iterable[tuple[int, bytes]]
    ) -> Iterator[dict[str, Any]]:
        """Yield the records of the lines, for a format that gathers them into larger records."""
        with closing(stream):
            for number, line in lines:
                try:
                    yield _record(line, self._notes)
                except BadItemError as bad:
                    self._bad(bad, f"{stream.where}:{number}", number, line)

    def _document(self, stream: Stream, data: bytes | bytearray) -> Trace:
        """Open a JSON document: a list of records, one record, or an object that holds records."""
        if data.isspace() or not data:
            raise InputError(stream.where, "is empty", "give a trace file")
        document = parse_document(data, stream.where, self._notes)
        listed = document if isinstance(document, list) else [document]
        formats = (self._format(record) for record in listed if isinstance(record, dict))
        format = next(filter(None, formats), None)
        try:
            if format is not None:
                whole = format.whole(listed, self._path, self._notes) if format.whole else None
                return self._records(
                    stream,
                    format,
                    listed,
                    whole.shared if whole else self._beside(format, stream),
                )
            if format := format_held(document):
                assert format.whole is not None
                return self._whole(stream, format, format.whole(document, self._path, self._notes))
        except BadItemError as bad:
            raise InputError(stream.where, bad.what, bad.todo) from None
        raise unknown_trace(document, stream.where)

    def _whole(self, stream: Stream, format: Format, whole: Whole) -> Trace:
        if whole.folder:
            self._source = _name(str(whole.folder), is_folder=True)
            return self.folder(whole.folder)
        if not whole.records:
            raise InputError(stream.where, f"holds no {whole.place}s", KNOWN)
        return self._records(stream, format, whole.records, whole.shared, whole.place)

    def _records(
        self, stream: Stream, format: Format, records: list[Any], shared: Any, place: str = "item"
    ) -> Trace:
        """Open a list of records in memory."""
        named = self._given.fields.keys() & {"task_id", "trial"}
        ignore_trial = not named and _trials_are_tasks(records, self._notes)
        read = self._reader(format, shared, ignore_trial=ignore_trial)
        each, first = records, records[0]
        if format.gather:
            objects = self._objects(records, f"{stream.where}:{place}")
            each, place = list(format.gather(objects)), "conversation"
        episodes = self._each(each, read, f"{stream.where}:{place}")
        return self._trace(format, first, stream.digest, episodes, shared)

    def _files(
        self, format: Format, files: list[tuple[Path, Any]], digest: _Hash
    ) -> Iterator[Episode]:
        clean = messages.reader(self._source, self._notes, gaps=format is MESSAGES)
        number = 0
        for file, shared in files:
            read = self._reader(format, shared, clean=clean)
            stream = Stream(str(file), digest)
            for place, data in _parts(stream, file):
                number += 1
                try:
                    episodes = _read_part(data, place, format, read, self._notes)
                except InputError as bad:
                    if self._skip_bad is None:
                        raise
                    self._skip_bad(number, bytes(data), f"{bad.where}: {bad.what}")
                    self._notes[SKIPPED] += 1
                    continue
                yield from episodes

    def _format(self, record: dict[str, Any]) -> Format | None:
        """Return MESSAGES if the user maps the record's messages, else the detected format."""
        return MESSAGES if self._given.has_messages(record) else format_of(record)

    def _each(self, records: Iterable[Any], read: Read, place: str) -> Iterator[Episode]:
        """Yield the episodes of every record; errors name the record by its number from 1."""
        numbered = ((f"{place} {number}", record) for number, record in enumerate(records, 1))
        return self._placed(numbered, read)

    def _objects(self, records: Iterable[Any], place: str) -> Iterator[dict[str, Any]]:
        """Yield the records that are objects, for a format that gathers them into larger ones."""
        for number, record in enumerate(records, 1):
            if isinstance(record, dict):
                yield record
            else:
                bad = BadItemError("is not an object", KNOWN)
                self._bad(bad, f"{place} {number}", number, json.dumps(record).encode())

    def _placed(
        self, records: Iterable[tuple[str, Any]], read: Read, path: str = ""
    ) -> Iterator[Episode]:
        """Yield the episodes of every record; errors name the record by its place."""
        for number, (place, record) in enumerate(records, 1):
            try:
                if not isinstance(record, dict):
                    raise BadItemError("is not an object", KNOWN)
                episodes = read(record)
            except BadItemError as bad:
                where = f"{path}:{place}" if path else place
                self._bad(bad, where, number, json.dumps(record, default=str).encode())
                continue
            yield from episodes

    def _bad(self, bad: BadItemError, where: str, number: int, raw: bytes) -> None:
        """Skip a bad record, or raise InputError."""
        if self._skip_bad is None:
            raise InputError(where, bad.what, bad.todo) from None
        self._skip_bad(number, raw, bad.what)
        self._notes[SKIPPED] += 1

    def _beside(self, format: Format, stream: Stream) -> Any:
        if format.beside is None or self._path == "-":
            return None
        return format.beside(Path(self._path), stream.digest, self._notes)

    def _reader(
        self,
        format: Format,
        shared: Any,
        *,
        ignore_trial: bool = False,
        clean: Callable[[dict[str, Any]], Episode] | None = None,
    ) -> Read:
        """Return a function that reads one record into its episodes."""
        notes, options = self._notes, self._options._replace(shared=shared)
        read_clean = clean or messages.reader(
            self._source, notes, ignore_trial=ignore_trial, gaps=format is MESSAGES
        )
        translate, complete, given = format.translate, format.complete, self._given

        def read(record: dict[str, Any]) -> list[Episode]:
            episodes = [
                read_clean(given.apply(record, item)) for item in translate(record, options, notes)
            ]
            if complete is not None:
                for episode in episodes:
                    complete(episode, record, options, notes)
            return episodes

        return read

    def _trace(
        self,
        format: Format,
        first: Any,
        digest: _Hash,
        episodes: Iterator[Episode],
        shared: Any,
    ) -> Trace:
        if format.finish and shared is not None:
            episodes = _finished(episodes, format.finish, shared, self._notes)
        domain = _stated_domain(first) or getattr(shared, "domain", None)
        return Trace(self._source, format.name, domain, self._notes, digest, episodes)


def _finished(
    episodes: Iterator[Episode],
    finish: Callable[[Any, Counter[str]], None],
    shared: Any,
    notes: Counter[str],
) -> Iterator[Episode]:
    yield from episodes
    finish(shared, notes)


def _record(line: bytes, notes: Counter[str]) -> dict[str, Any]:
    """Parse the record on a line."""
    try:
        record, standard = parse(line)
    except BrokenJsonError as error:
        raise BadItemError(f"{error.what} at byte {error.offset}", REPAIR) from None
    if not isinstance(record, dict):
        raise BadItemError("is not a JSON object", REPAIR)
    if not standard:
        notes[NOT_STANDARD] += 1
    return record


def _parts(stream: Stream, file: Path) -> Iterator[tuple[str, bytes | bytearray]]:
    """Yield (place, text) of each record in one file of a folder."""
    if ".jsonl" in file.suffixes:
        yield from ((f"{stream.where}:{number}", line) for number, line in stream.lines())
        stream.close()
    else:
        yield stream.where, stream.read()


def _read_part(
    data: bytes | bytearray, where: str, format: Format, read: Read, notes: Counter[str]
) -> list[Episode]:
    """Read the episodes of one record in a file of a folder."""
    record = parse_document(data, where, notes)
    if not isinstance(record, dict) or not format.accepts(record):
        what = f"is not one record of {format.name}: {description(record)}"
        raise InputError(where, what, "give a results folder, or a single file by its own name")
    try:
        return read(record)
    except BadItemError as bad:
        raise InputError(where, bad.what, bad.todo) from None


def _trials_are_tasks(records: list[Any], notes: Counter[str]) -> bool:
    """Return whether `trial` repeats `task_id` in every record, and so carries no information."""
    trials = {
        (str(record.get("task_id")), str(record.get("trial")))
        for record in records
        if isinstance(record, dict)
    }
    # A single pair (0, 0) may be the first trial of the first task. Missing values do not count.
    useless = len(trials) > 1 and all(task == trial != "None" for task, trial in trials)
    if useless:
        notes["trial equal to task id"] += len(records)
    return useless


def _record_or_none(line: bytes) -> dict[str, Any] | None:
    """Parse a line; return None unless it holds an object."""
    try:
        value, _ = parse(line)
    except BrokenJsonError:
        return None
    return value if isinstance(value, dict) else None


def _stated_domain(record: Any) -> str | None:
    """Return the domain that a trace's first record states; None if it states none."""
    domain = record.get("domain") if isinstance(record, dict) else None
    return domain if isinstance(domain, str) else None
