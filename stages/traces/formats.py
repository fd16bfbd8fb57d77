"""What a trace format is: how its records are told, and how they become clean records.

A clean record is one episode as a dict: `messages` in OpenAI's form, and beside them what
`messages.FIELDS` names. `messages.reader` reads it into an `Episode`, whatever format it is of.
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
    """What a translator may need beside the record."""

    path: str = "-"  # of the trace; "-": standard input
    tokenizer: str | None = None  # --tokenizer: whose chat template cuts text into turns
    shared: Any = None  # what `Format.whole`, `beside` or `files` gave for all records


class Whole(NamedTuple):
    """What a JSON document that is no single record holds."""

    records: list[Any]
    shared: Any = None  # what it says of all of them
    place: str = "item"  # what errors call a record
    folder: Path | None = None  # the records are the files of this folder instead


class Format(NamedTuple):
    """One trace format; `None` where it has no need of a function.

    Attributes:
        name: what `Trace.format` says.
        accepts: whether a record is of this format, and so of no other.
        translate: yield the clean records of one record, or of one that `gather` made; counts in
            the notes what it repairs. Raises BadItemError where it can't.
        complete: add to an episode what clean records have no field for.
        holds: whether an object is a document that holds records of this format.
        whole: the records of such a document, or what a list of records tells of all of them.
        finish: called with the shared value once all episodes are read.
        beside: given a trace's path, what stands in files beside it: the shared value.
        files: given a folder, each file of records with its shared value; none: another format's.
        gather: make bigger records of the lines of a file, where an episode takes several.
        magic: how a binary file begins; `unpack` then yields (place, record) from its path.
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
