"""Shared by the formats that convert traces: episodes, names and bad lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from irc_cli import console, options
from irc_cli.exports import writing
from irc_cli.notes import check_notes
from irc_cli.traces import TraceOptions
from stages.errors import InputError, few
from stages.exports.messages import message_rows, settle
from stages.tables.files import together


class Conversion:
    """A conversion of traces to another format.

    Args:
        command: name of the command, such as "export messages".
        traces: paths of the traces.
        source: options of reading them.
        out: path of the output; None: nothing is written.
        printing: what to show, and whether to replace files.

    Attributes:
        episodes: episodes of all traces.
        notes: notes on reading, and on content that the format can't hold.

    Raises:
        InputError: a trace is missing or broken, or there is no episode.
    """

    def __init__(
        self,
        command: str,
        traces: list[str],
        source: TraceOptions,
        out: str | None,
        printing: options.Writing,
    ) -> None:
        self._command, self._source, self._out, self._printing = command, source, out, printing
        self._reader = source.reader(traces, quiet=printing.quiet)
        self._reader.check_sidecar(out, force=printing.force)
        self.episodes = [episode for episode, _ in self._reader]
        if not self.episodes:
            raise InputError(few(traces), "no episode", "give traces with episodes")
        self.notes = self._reader.notes

    def rows(self) -> list[dict[str, Any]]:
        """Return a row per episode, with the ids that tables use; see `message_rows`."""
        rows = message_rows(self.episodes, self.notes)
        settle(rows, [episode.source for episode in self.episodes], self._reader.renamed())
        return rows

    @contextmanager
    def writing(self, seed: int, others: Sequence[str | None] = ()) -> Iterator[dict[str, Any]]:
        """Yield the output's lineage; files written inside appear together with the bad lines.

        Args:
            seed: seed to record.
            others: input files other than the traces.

        Raises:
            InputError: there are notes, and --strict allows none.
        """
        check_notes(self.notes, strict=self._printing.strict)
        settings = {"domain": self._source.domain, **self._source.settings}
        inputs = self._reader.digests | writing.digests([self._source.gold, *others])
        with together():
            yield console.made_by(self._command, settings, seed, inputs)
            self._reader.write_bad(self._out, force=self._printing.force)

    def report(self, document: dict[str, Any], line: str) -> None:
        """Print the counts and the notes; see `writing.report`."""
        printing = self._printing
        writing.report(
            document, self.notes, line, self._out, as_json=printing.as_json, quiet=printing.quiet
        )
