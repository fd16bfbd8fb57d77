"""Files of turns: read, summed one after another, and files of such sums added up.

Memory grows with the groups and by 8 bytes per episode, not with the turns or the files.
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
    """Turns of whole episodes, checked."""

    frame: pl.DataFrame  # TURNS, those of an episode together
    without_turns: int  # episodes that were left out before they became rows
    where: str  # name of the turns in errors


def read_turns(paths: Sequence[str]) -> Turns:
    """Read files of turns into one table, in the order of their episodes (TURNS).

    Args:
        paths: files, at least one.

    Raises:
        InputError: a file is no table of turns, or an episode counts twice.
    """
    frames = [read_table(TURNS, path) for path in paths]
    where, frame = few(paths), pl.concat(frames)
    if len(paths) > 1:
        TURNS.check_rows(frame, where)
        refuse_doubles([_fingerprint(part) for part in frames], paths)
    return Turns(in_order(frame), sum(unseen(path) for path in paths), where)


def as_turns(turns: Turns | pl.DataFrame, where: str = "turns") -> Turns:
    """Return a table of turns as if it were read.

    Args:
        turns: TURNS, all of each episode.
        where: name of the turns in errors.
    """
    return turns if isinstance(turns, Turns) else Turns(in_order(turns), 0, where)


def in_order(turns: pl.DataFrame) -> pl.DataFrame:
    """Return turns with those of each episode together; sorted only if they are not."""
    together = pl.struct("episode_id").rle_id().n_unique() == pl.col("episode_id").n_unique()
    return turns if turns.select(together).item() else turns.sort("episode_id", "turn")


def _fingerprint(turns: pl.DataFrame) -> Fingerprint:
    # An episode may go on in another file, so its turns are numbered anew.
    number = pl.int_range(pl.len(), dtype=pl.Int32).over("episode_id")
    numbered = in_order(turns).with_columns(turn=number)
    return sum_turns(numbered.lazy(), "presence", "turns").fingerprint or joined([])


def sum_file(path: str, measure: str) -> Summed:
    """Sum a measure of the tiers over one file (TURNS -> SUMS).

    Args:
        path: of the turns.
        measure: presence | count | share of the tier in an episode.

    Raises:
        InputError: the file is no table of turns, or an episode's turns do not stand together.
    """
    lazy = scan_table(TURNS, path)
    turns = read_table(TURNS, path).lazy() if lazy is None else lazy
    summed = reading(path, partial(sum_turns, turns, measure, path))
    return summed._replace(excluded=summed.excluded + unseen(path))


def read_sums(path: str, measure: str) -> Summed:
    """Read sums that `write_sums` wrote (SUMS).

    Args:
        path: of the sums.
        measure: that they must be of.

    Raises:
        InputError: the file is no table of sums, no turns can have such sums, or they are of
            another measure.
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
    """Add up sums (SUMS -> SUMS) as they come, in the memory of two.

    Args:
        shards: sums of different episodes.
        places: names of the shards in errors; None: they are numbered.

    Raises:
        InputError: an episode counts twice.
    """
    sums, excluded, covered, known = SUMS.empty(), 0, list[Fingerprint | None](), dict[str, int]()
    for number, shard in enumerate(shards):
        if shard.fingerprint is None and shard.sums.height:  # else all of it is compared
            same = known.setdefault(_digest(shard.sums), number)
            if same != number:
                names = [_name(at, places) for at in (number, same)]
                what = f"holds the same sums as '{names[1]}'"
                raise InputError(names[0], what, "count each episode once")
        covered.append(shard.fingerprint)
        sums = merge([sums, shard.sums]) if sums.height else shard.sums
        excluded += shard.excluded
    told = [(part, _name(at, places)) for at, part in enumerate(covered) if part is not None]
    fingerprints = [part for part, _ in told]
    refuse_doubles(fingerprints, [name for _, name in told])
    return Summed(sums, excluded, joined(fingerprints) if len(told) == len(covered) else None)


def _name(number: int, places: Sequence[str] | None) -> str:
    return places[number] if places else f"shard {number + 1}"


def _digest(sums: pl.DataFrame) -> str:
    from hashlib import sha256

    return sha256(sums.sort(SUMS.key).write_ndjson().encode()).hexdigest()


def summary(summed: Summed, measure: str) -> dict[str, Any]:
    """Return what a file of sums records of what they cover.

    Args:
        summed: the sums.
        measure: that they are of.
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
    """Write sums with what `read_sums` needs besides (SUMS).

    Args:
        summed: the sums.
        measure: that they are of.
        path: where to write; `-`: to standard output, which has no room for what they cover.
        made_by: what the file records of its making.
        force: replace a file that exists.
    """
    recorded = made_by | {"summary": summary(summed, measure)}
    if summed.fingerprint is not None:
        recorded["fingerprint"] = summed.fingerprint.document()
    write_table(SUMS, summed.sums, path, recorded, force=force)


def unseen(path: str) -> int:
    """Return how many episodes a file of turns left out before they became rows."""
    return int(made_by(path).get("summary", {}).get("excluded_without_turns", 0))
