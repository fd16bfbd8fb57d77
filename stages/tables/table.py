"""The declaration of a table, its columns, key and rules, and the check of every row."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from stages.errors import InputError, few


@dataclass(frozen=True)
class Table:
    """Declaration of a table: its columns, the key of a row, and the rules every row obeys."""

    name: str
    columns: dict[str, pl.DataType]
    key: tuple[str, ...]
    made_by: str  # the command that writes it, named in errors
    made_from: str = ""  # "trace", or the table that the command reads
    rules: dict[str, pl.Expr] = field(default_factory=dict)  # name that users read -> condition

    def frame(self, columns: Mapping[str, list[Any] | pl.Series]) -> pl.DataFrame:
        """Return the columns as a frame with this table's types."""
        return pl.DataFrame(columns, schema=self.columns)

    def empty(self) -> pl.DataFrame:
        """Return this table without rows."""
        return pl.DataFrame(schema=self.columns)

    def conform(self, frame: pl.DataFrame, where: str) -> pl.DataFrame:
        """Return the frame with this table's columns and types, and every row checked.

        Raises:
            InputError: a column is missing or of another type, or a row breaks the key or a rule.
        """
        self.check_columns(frame.schema, where)
        frame = conformed(frame, self.columns, where, self._todo())
        self.check_rows(frame, where)
        return frame

    def check_columns(self, columns: Collection[str], where: str) -> None:
        """Raise InputError unless every column of this table is among those found."""
        if missing := [name for name in self.columns if name not in columns]:
            from stages.tables.recognise import of_columns, wrong_kind

            if kind := of_columns(columns):
                raise InputError(where, *wrong_kind(self, kind, where))
            names = few(f"'{name}'" for name in missing)
            raise InputError(where, f"not a {self.name} table: no column {names}", self._todo())

    def check_rows(self, frame: pl.DataFrame, where: str) -> None:
        """Raise InputError at the first row that breaks the key or a rule."""
        key = {f"unique {' and '.join(self.key)}": pl.struct(self.key).is_first_distinct()}
        self.check_rules(self.rules | key, frame, where)

    def check_rules(
        self, rules: Mapping[str, pl.Expr], frame: pl.DataFrame, where: str, first: int = 0
    ) -> None:
        """Raise InputError at the first row that breaks one of these rules.

        `first` is the number of rows that stand before those of the frame.
        """
        for rule, holds in rules.items():
            broken = frame.select((~holds.fill_null(True)).arg_true()).to_series()
            if len(broken):
                what = f"breaks rule '{rule}' ({len(broken):,} of {frame.height:,})"
                raise InputError(f"{where}:row {first + broken[0] + 1}", what, self._todo())

    def _todo(self) -> str:
        return f"rerun {self.made_by}"


def conformed(
    frame: pl.DataFrame, columns: Mapping[str, pl.DataType], where: str, todo: str
) -> pl.DataFrame:
    """Return these columns of a frame in these types.

    Raises:
        InputError: a column holds values that are not of its type.
    """
    series = []
    for name, to in columns.items():
        given = frame[name]
        try:
            column = given.cast(to)
        except pl.exceptions.PolarsError:
            column = given
        if column.dtype != to:
            raise InputError(where, f"column '{name}' is {given.dtype}, not {to}", todo)
        series.append(column)
    return pl.DataFrame(series)
