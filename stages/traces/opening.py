"""Opening a trace: its episodes one by one, whatever file or folder they are in."""

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
Read = Callable[[dict[str, Any]], list[Episode]]  # the episodes of one record


class Trace:
    """One opened trace, to be iterated once.

    Attributes:
        source: short name for tables: the file's name without its endings, or "stdin".
        format: the name of one of FORMATS.
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


def open_trace(
    path: str,
    *,
    source: str | None = None,
    skip_bad: SkipBad | None = None,
    options: ReadOptions | None = None,
    given: Given | None = None,
) -> Trace:
    """Open a trace of any known format, plain or gzip.

    JSONL is read line by line and a folder file by file; anything else as a whole.

    Args:
        path: a file, a folder of results, or "-" for standard input.
        source: what tables call it; by default `source_name(path)`.
        skip_bad: called with (number, raw record, reason) for each bad line, item, row or
            simulation, which is then left out; without it the first one raises.
        options: what translators may need; `path` and `shared` are filled in here.
        given: fields and gold actions that the user names.

    Raises:
        InputError: the trace is missing, empty, broken or of no known format. Single records
            are checked while iterating.
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
    """Short name of a trace: its file name without .json, .jsonl, .parquet, .eval, .gz."""
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
        """The trace in one file, by the first bytes, the first lines, or the whole document."""
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
        # A JSONL shows itself by a whole record on its first line, or, if that is broken, its
        # second.
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
        """A folder of results, file by file."""
        digest = sha256()
        for format in FORMATS:
            if format.files and (files := format.files(folder, digest, self._notes)):
                episodes = self._files(format, files, digest)
                return self._trace(format, None, digest, episodes, files[0][1])
        raise InputError(
            str(folder), "is a directory without traces", "give a file or a results folder"
        )

    def unpacked(self, format: Format) -> Trace:
        """A binary file that the module of its format unpacks."""
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
        """JSONL: one record a line, all of the format of the first."""
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
        """The records of lines, for a format that makes bigger ones of them."""
        with closing(stream):
            for number, line in lines:
                try:
                    yield _record(line, self._notes)
                except BadItemError as bad:
                    self._bad(bad, f"{stream.where}:{number}", number, line)

    def _document(self, stream: Stream, data: bytes | bytearray) -> Trace:
        """One JSON document: a list of records, a single record, or an object that holds some."""
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
        """Records that are all at hand."""
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
        """Which format a record is of; whatever the user says where it has messages is ours."""
        return MESSAGES if self._given.has_messages(record) else format_of(record)

    def _each(self, records: Iterable[Any], read: Read, place: str) -> Iterator[Episode]:
        """Every record's episodes; errors name the record by its number from 1."""
        numbered = ((f"{place} {number}", record) for number, record in enumerate(records, 1))
        return self._placed(numbered, read)

    def _objects(self, records: Iterable[Any], place: str) -> Iterator[dict[str, Any]]:
        """The records that are objects, for a format that makes bigger ones of them."""
        for number, record in enumerate(records, 1):
            if isinstance(record, dict):
                yield record
            else:
                bad = BadItemError("is not an object", KNOWN)
                self._bad(bad, f"{place} {number}", number, json.dumps(record).encode())

    def _placed(
        self, records: Iterable[tuple[str, Any]], read: Read, path: str = ""
    ) -> Iterator[Episode]:
        """Every record's episodes; errors name its place."""
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
        """Leave a bad record out, or raise."""
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
        """The function that reads one record into its episodes."""
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
    """The record on a line."""
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
    """The place and text of each record of one of a folder's files."""
    if ".jsonl" in file.suffixes:
        yield from ((f"{stream.where}:{number}", line) for number, line in stream.lines())
        stream.close()
    else:
        yield stream.where, stream.read()


def _read_part(
    data: bytes | bytearray, where: str, format: Format, read: Read, notes: Counter[str]
) -> list[Episode]:
    """The episodes of a record in one of a folder's files."""
    record = parse_document(data, where, notes)
    if not isinstance(record, dict) or not format.accepts(record):
        what = f"is not one record of {format.name}: {description(record)}"
        raise InputError(where, what, "give a results folder, or a single file by its own name")
    try:
        return read(record)
    except BadItemError as bad:
        raise InputError(where, bad.what, bad.todo) from None


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
