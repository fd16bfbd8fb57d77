"""What defines a trace format: how to recognise its records and translate them to clean records.

A clean record is one episode as a dict with `messages` in OpenAI's form and the other fields in
`messages.FIELDS`. `messages.reader` reads clean records of every format into an `Episode`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.traces.episode import Episode

if TYPE_CHECKING:
    from hashlib import _Hash

KNOWN = "give a format of docs/formats.md, such as chat messages or tau-bench results"

Record = dict[str, Any]
Notes = Counter[str]


class ReadOptions(NamedTuple):
    """Options that a translator gets with each record."""

    path: str = "-"  # path of the trace; "-": standard input
    tokenizer: str | None = None  # --tokenizer: its chat template splits text into turns
    shared: Any = None  # the shared value from `Format.whole`, `beside` or `files`


class Whole(NamedTuple):
    """The content of a JSON document that holds several records."""

    records: list[Any]
    shared: Any = None  # information that applies to all records
    place: str = "item"  # the word for a record in errors
    folder: Path | None = None  # if given, the records are in the files of this folder instead


class Format(NamedTuple):
    """One trace format. Functions that a format does not need are None.

    Attributes:
        name: the name in `Trace.format`.
        accepts: returns whether a record is in this format; see `detect.FORMATS` for the order.
        translate: yields the clean records of one record, or of a record that `gather` made. It
            counts repairs in the notes and raises BadItemError if the record can't be translated.
        complete: adds data to an episode that clean records have no field for.
        holds: returns whether an object is a document that holds records of this format.
        whole: returns the records of such a document, or the shared value of a list of records.
        finish: is called with the shared value after all episodes are read.
        beside: returns the shared value from files next to the trace, given the trace's path.
        files: returns the files of records in a folder, each with its shared value; an empty list
            means that the folder is not in this format.
        gather: combines records of a file into larger ones, if an episode spans several.
        magic: first bytes of a binary file of this format.
        unpack: yields (place, record) from the path of such a file.
    """

    name: str
    accepts: Callable[[Record], bool]
    translate: Callable[[Record, ReadOptions, Notes], Iterator[Record]]
    complete: Callable[[Episode, Record, ReadOptions, Notes], None] | None = None
    holds: Callable[[Record], bool] | None = None
    whole: Callable[[Any, str, Notes], Whole] | None = None
    finish: Callable[[Any, Notes], None] | None = None
    beside: Callable[[Path, _Hash, Notes], Any] | None = None
    files: Callable[[Path, _Hash, Notes], list[tuple[Path, Any]]] | None = None
    gather: Callable[[Iterator[Record]], Iterator[Record]] | None = None
    magic: bytes | None = None
    unpack: Callable[[Path], Iterator[tuple[str, Record]]] | None = None
