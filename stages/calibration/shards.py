"""Files of turns and of sums: turns are read or summed file by file, and sums are added up.

Summing takes memory in proportion to the groups, plus 8 bytes per episode; it does not grow with
the turns or the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import polars as pl

from stages.calibration.fingerprint import (
    Fingerprint,
    joined,
    read_fingerprint,
    refuse_doubles,
)
from stages.calibration.sums import Summed, merge, sum_turns
from stages.calibration.whole_sums import check_sums
from stages.errors import InputError, few
from stages.tables.artifacts import SUMS, TURNS
from stages.tables.table_file import made_by, read_table, reading, scan_table, write_table


class Turns(NamedTuple):
    """Checked turns of whole episodes."""

    frame: pl.DataFrame  # TURNS, each episode contiguous
    without_turns: int  # episodes that were excluded before they became rows
    where: str  # name of the turns in errors


def read_turns(paths: Sequence[str]) -> Turns:
    """Read files of turns into one table (TURNS).

    Args:
        paths: files, at least one.

    Returns:
        The turns, each episode contiguous.

    Raises:
        InputError: a file is not a table of turns, or an episode counts twice.
    """
    frames = [read_table(TURNS, path) for path in paths]
    where, frame = few(paths), pl.concat(frames)
    if len(paths) > 1:
        TURNS.check_rows(frame, where)
        refuse_doubles([_fingerprint(part) for part in frames], paths)
    return Turns(in_order(frame), sum(unseen(path) for path in paths), where)


def as_turns(turns: Turns | pl.DataFrame, where: str = "turns") -> Turns:
    """Wrap a table of turns as `Turns`.

    Args:
        turns: TURNS with all turns of each episode, or `Turns`, which are returned unchanged.
        where: name of the turns in errors.

    Returns:
        The turns, each episode contiguous.
    """
    return turns if isinstance(turns, Turns) else Turns(in_order(turns), 0, where)


def in_order(turns: pl.DataFrame) -> pl.DataFrame:
    """Return turns with each episode contiguous; sort them only if necessary.

    Args:
        turns: TURNS.

    Returns:
        The same rows.
    """
    together = pl.struct("episode_id").rle_id().n_unique() == pl.col("episode_id").n_unique()
    return turns if turns.select(together).item() else turns.sort("episode_id", "turn")


def _fingerprint(turns: pl.DataFrame) -> Fingerprint:
    # An episode may continue in another file, so its turns are renumbered.
    number = pl.int_range(pl.len(), dtype=pl.Int32).over("episode_id")
    numbered = in_order(turns).with_columns(turn=number)
    return sum_turns(numbered.lazy(), "presence", "turns").fingerprint or joined([])


def sum_file(path: str, measure: str) -> Summed:
    """Sum a measure of the tiers over one file (TURNS -> SUMS).

    Args:
        path: path of the turns.
        measure: presence | count | share of the tier in an episode.

    Returns:
        The sums.

    Raises:
        InputError: the file is not a table of turns, or an episode's turns are not contiguous.
    """
    lazy = scan_table(TURNS, path)
    turns = read_table(TURNS, path).lazy() if lazy is None else lazy
    summed = reading(path, partial(sum_turns, turns, measure, path))
    return summed._replace(excluded=summed.excluded + unseen(path))


def read_sums(path: str, measure: str) -> Summed:
    """Read sums written by `write_sums` (SUMS).

    Args:
        path: path of the sums.
        measure: measure that the sums must have.

    Returns:
        The sums, with their fingerprint if the file has one.

    Raises:
        InputError: the file is not a table of sums, its sums are impossible, or they have another
            measure.
    """
    origin = made_by(path)
    recorded = origin.get("summary", {})
    if recorded.get("measure", measure) != measure:
        what = f"holds sums of measure '{recorded['measure']}', not '{measure}'"
        raise InputError(path, what, f"pass --measure {recorded['measure']}")
    where = "standard input" if path == "-" else path
    sums = read_table(SUMS, path)
    check_sums(sums, measure, where)
    fingerprint = None
    if "fingerprint" in origin:
        fingerprint = read_fingerprint(origin["fingerprint"], where)
        totals = sums.filter(pl.col("tier").is_null())
        if len(fingerprint.ids) != totals["episodes"].sum():
            what = "its record of episodes is of other sums"
            raise InputError(where, what, f"rerun {SUMS.made_by}")
    return Summed(sums, recorded.get("excluded", 0), fingerprint)


def add_up(shards: Iterable[Summed], places: Sequence[str] | None = None) -> Summed:
    """Add up sums (SUMS -> SUMS) one by one, with at most two tables in memory.

    Args:
        shards: sums of different episodes.
        places: names of the shards in errors; None: their numbers.

    Returns:
        The total; its fingerprint is None if any shard lacks one.

    Raises:
        InputError: an episode counts twice.
    """
    sums, excluded, covered, known = SUMS.empty(), 0, list[Fingerprint | None](), dict[str, int]()
    for number, shard in enumerate(shards):
        if shard.fingerprint is None and shard.sums.height:  # fingerprints are compared below
            same = known.setdefault(_digest(shard.sums), number)
            if same != number:
                names = [_name(at, places) for at in (number, same)]
                what = f"holds the same sums as '{names[1]}'"
                raise InputError(names[0], what, "count each episode once")
        covered.append(shard.fingerprint)
        sums = merge([sums, shard.sums]) if sums.height else shard.sums
        excluded += shard.excluded
    named = [(part, _name(at, places)) for at, part in enumerate(covered) if part is not None]
    fingerprints = [part for part, _ in named]
    refuse_doubles(fingerprints, [name for _, name in named])
    return Summed(sums, excluded, joined(fingerprints) if len(named) == len(covered) else None)


def _name(number: int, places: Sequence[str] | None) -> str:
    return places[number] if places else f"shard {number + 1}"


def _digest(sums: pl.DataFrame) -> str:
    from hashlib import sha256

    return sha256(sums.sort(SUMS.key).write_ndjson().encode()).hexdigest()


def summary(summed: Summed, measure: str) -> dict[str, Any]:
    """Return the summary that a file of sums records.

    Args:
        summed: the sums.
        measure: measure of the sums.

    Returns:
        JSON values.
    """
    totals = summed.sums.filter(pl.col("tier").is_null())
    return {
        "measure": measure,
        "episodes": int(totals["episodes"].sum()),
        "excluded": summed.excluded,
        "tasks": totals["task_id"].n_unique(),
    }


def write_sums(
    summed: Summed, measure: str, path: str, made_by: dict[str, Any], *, force: bool
) -> None:
    """Write sums with their summary and fingerprint (SUMS).

    Args:
        summed: the sums.
        measure: measure of the sums.
        path: path of the file; `-` for standard output, which carries no metadata.
        made_by: provenance.
        force: replace an existing file.
    """
    recorded = made_by | {"summary": summary(summed, measure)}
    if summed.fingerprint is not None:
        recorded["fingerprint"] = summed.fingerprint.document()
    write_table(SUMS, summed.sums, path, recorded, force=force)


def unseen(path: str) -> int:
    """Return how many episodes a file of turns excluded before they became rows.

    Args:
        path: path of the turns.

    Returns:
        The number that the file records, or 0.
    """
    return int(made_by(path).get("summary", {}).get("excluded_without_turns", 0))
