"""Fingerprints of the episodes behind sums, so that no episode counts twice.

An episode is identified by a 64-bit hash of its id: 8 bytes per episode, less than the sums take if
groups are small. Among ten million episodes two ids share a hash with a probability below 1e-3, so
honest shards are not rejected.

Ids are not enough: the ids of a copied trace start with the name of its own file. So each file also
has a digest of its episodes' tiers and successes that ignores ids and order. Identical episodes are
counted on a sample of up to a million, those with the smallest hashes.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from stages.calibration.blocks import Block
from stages.core.correlation import Ints
from stages.errors import InputError

Hashes: TypeAlias = npt.NDArray[np.uint64]

# If s of n episodes are unique, the next episode is unlike all of them with a probability near
# s / n (Good 1953, Biometrika 40, 237-264). So n further episodes are all identical to known ones
# with a probability near e^-s: 3e-4 for s = 8.
TELLING = 8
LIKES = 1 << 20  # most episodes in the sample that counts identical ones
_AT_ONCE = 1 << 17  # bytes hashed at once; as integers they fit the cache
_TODO = "count each episode once"


class Part(NamedTuple):
    """The content of one file's episodes, independent of their ids."""

    episodes: int
    content: int  # sum over the episodes of a 64-bit hash of tiers and success
    single: int  # sampled episodes that are identical to no other one of their task


class Fingerprint(NamedTuple):
    """The identity of the episodes that sums cover."""

    ids: Hashes  # [E] hashes of the ids, sorted
    parts: tuple[Part, ...]  # one per file
    doubled: bool = False  # whether each episode occurs twice, under two ids

    def document(self) -> dict[str, Any]:
        """Return the fingerprint as JSON values."""
        ids = b64encode(self.ids.astype("<u8").tobytes()).decode()
        return {"ids": ids, "parts": [part._asdict() for part in self.parts]}


NOTHING = Fingerprint(np.zeros(0, np.uint64), ())


def read_fingerprint(document: Any, where: str) -> Fingerprint:
    """Read a fingerprint from a document.

    Args:
        document: JSON values, as `Fingerprint.document` returns them.
        where: name of the file in errors.

    Returns:
        The fingerprint.

    Raises:
        InputError: the document is not a fingerprint.
    """
    try:
        ids = np.frombuffer(b64decode(document["ids"], validate=True), "<u8")
        rows = [[int(part[name]) for name in Part._fields] for part in document["parts"]]
    except (TypeError, KeyError, ValueError, OverflowError):
        what, todo = "its record of episodes is damaged", "rerun irc-cli calibrate --partial"
        raise InputError(where, what, todo) from None
    return Fingerprint(np.sort(ids.astype(np.uint64)), tuple(Part(*row) for row in rows))


class Fingerprinter:
    """Builder of the fingerprint of one file's episodes, block by block."""

    def __init__(self) -> None:
        self._ids: Hashes = np.zeros(0, np.uint64)
        self._likes = Smallest(LIKES)  # hashes of task, tiers and success
        self._content = 0
        self._copies = 0  # ids with "#": `score` writes "id#2" for the second use of an id
        self._tasks: set[int] = set()

    def add(self, block: Block, tiers: list[str]) -> None:
        """Add whole episodes.

        Args:
            block: turns of whole episodes.
            tiers: names of the tiers, indexed by the turns' codes.
        """
        turns, episodes = block.turns, block.episodes
        position = turns["turn"].to_numpy()
        terms = text_hashes(pl.Series(tiers))[turns["code"].to_numpy()]
        terms *= _multipliers(int(position.max()) + 1)[position]
        content = np.add.reduceat(terms, block.begins)
        content = _mixed(content + episodes["success"].to_numpy().astype(np.uint64))
        runs = episodes["task_id"].rle().struct.unnest()
        tasks = text_hashes(runs["value"])
        self._tasks.update(tasks.tolist())
        self._likes.add(_mixed(content ^ np.repeat(tasks, runs["len"].to_numpy())))
        self._content = (self._content + int(content.sum())) % 2**64
        _append(self._ids, text_hashes(episodes["episode_id"]))
        self._copies += int(episodes["episode_id"].str.contains("#", literal=True).sum())

    def taken(self) -> Fingerprint:
        """Return the fingerprint of the episodes so far."""
        ids = self._ids
        if not len(ids):
            return NOTHING
        ids.sort()
        _, alike = np.unique(self._likes.kept(), return_counts=True)
        part = Part(len(ids), self._content, int(np.count_nonzero(alike == 1)))
        return Fingerprint(ids, (part,), self._doubled(len(ids), alike))

    def _doubled(self, episodes: int, alike: Ints) -> bool:
        """Return whether each episode occurs twice, given the counts of identical episodes.

        Identical trials of a task alone are no sign of copies, because a deterministic policy
        repeats itself. Tasks played in several ways, each an even number of times, are a sign.
        """
        pairs = np.count_nonzero(alike == 2)
        if pairs < TELLING or (alike % 2).any():
            return False
        several = len(alike) / self._likes.share - len(self._tasks)
        return several >= TELLING or 2 * self._copies >= episodes


class Smallest:
    """The smallest of many hashes: all below a bound, which is halved when there are too many.

    Equal hashes are kept or dropped together, and the result does not depend on the order.
    """

    def __init__(self, limit: int) -> None:
        """Create an empty collection of at most `limit` hashes."""
        self._limit, self._halved = limit, 0
        self._hashes: Hashes = np.zeros(0, np.uint64)

    @property
    def share(self) -> float:
        """Share of all hashes that are below the bound."""
        return float(0.5**self._halved)

    def add(self, hashes: Hashes) -> None:
        """Add some hashes."""
        _append(self._hashes, self._below(hashes))
        while len(self._hashes) > self._limit and self._halved < 64:
            self._halved += 1
            self._hashes = self._below(self._hashes)

    def kept(self) -> Hashes:
        """Return the hashes below the bound."""
        return self._hashes

    def _below(self, hashes: Hashes) -> Hashes:
        return hashes[hashes >> np.uint64(64 - self._halved) == 0] if self._halved else hashes


def _append(array: Hashes, more: Hashes) -> None:
    """Extend an array in place, without copying it."""
    had = len(array)
    array.resize(had + len(more), refcheck=False)
    array[had:] = more


def refuse_doubles(fingerprints: Sequence[Fingerprint], places: Sequence[str]) -> None:
    """Raise InputError if an episode counts twice.

    Args:
        fingerprints: one fingerprint per file.
        places: name of each file in errors.

    Raises:
        InputError: an episode id is in two files or twice in one file, or the episodes of a file
            equal those of another under other ids.
    """
    for fingerprint, where in zip(fingerprints, places, strict=True):
        if fingerprint.doubled:
            raise InputError(where, "each episode occurs twice, under two ids", _TODO)
    _refuse_equal_ids(fingerprints, places)
    known: dict[Part, str] = {}
    for fingerprint, where in zip(fingerprints, places, strict=True):
        for part in fingerprint.parts:
            other = known.setdefault(part, where)
            if part.single >= TELLING and (other != where or fingerprint.parts.count(part) > 1):
                what = f"{part.episodes:,} episodes are those of '{other}' under other ids"
                raise InputError(where, what, _TODO)


def _refuse_equal_ids(fingerprints: Sequence[Fingerprint], places: Sequence[str]) -> None:
    together = _ids(fingerprints)
    if (together[1:] != together[:-1]).all():
        return
    sizes = [len(fingerprint.ids) for fingerprint in fingerprints]
    ids = np.concatenate([fingerprint.ids for fingerprint in fingerprints])
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    file = np.repeat(np.arange(len(sizes)), sizes)[order]
    earlier, later = file[again], file[again + 1]
    number = later[0]
    count = int(np.count_nonzero(later == number))
    other = "" if earlier[0] == number else f" in '{places[earlier[0]]}' too"
    what = f"{count:,} of its {sizes[number]:,} episodes are{other or ' there twice'}"
    raise InputError(places[number], what, _TODO)


def joined(fingerprints: Sequence[Fingerprint]) -> Fingerprint:
    """Return the fingerprint of all episodes together.

    Args:
        fingerprints: fingerprints of disjoint episodes.

    Returns:
        Their union.
    """
    parts = (part for fingerprint in fingerprints for part in fingerprint.parts)
    return Fingerprint(_ids(fingerprints), tuple(sorted(parts)))


def _ids(fingerprints: Sequence[Fingerprint]) -> Hashes:
    """Return the ids of all episodes, sorted; without a copy for a single file."""
    if len(fingerprints) == 1:
        return fingerprints[0].ids
    ids = np.concatenate([NOTHING.ids, *(fingerprint.ids for fingerprint in fingerprints)])
    ids.sort()
    return ids


def text_hashes(texts: pl.Series) -> Hashes:
    """Hash texts identically on every machine, which polars' own hash does not guarantee.

    h = sum over the bytes b_i of m_i b_i, mod 2^64, with fixed random m_i; then the bits are mixed.
    Two texts share a hash with a probability of at most 2^-57 over the choice of the m_i.

    Args:
        texts: texts without nulls, shape [N].

    Returns:
        Hashes, shape [N].

    Source: Dietzfelbinger et al. (1997), J. Algorithms 25(1), 19-51, for multilinear hashing;
    Steele, Lea and Flood (2014), OOPSLA, for the mixing (SplitMix64).
    """
    lengths = texts.str.len_bytes().to_numpy()
    width = int(lengths.max(initial=0))
    if len(texts) * width > _AT_ONCE and len(texts) > 1:
        half = len(texts) // 2
        return np.concatenate([text_hashes(texts[:half]), text_hashes(texts[half:])])
    data = np.zeros((len(texts), width), np.uint64)
    written = np.frombuffer((texts.str.join().item() or "").encode(), np.uint8)
    data[np.arange(width) < lengths[:, None]] = written
    factors = _multipliers(width + 1)
    return _mixed(data @ factors[1:] + lengths * factors[0])


def _multipliers(count: int) -> Hashes:
    """Return the first `count` odd numbers of a fixed random sequence."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return np.asarray(_mixed(steps) | np.uint64(1), np.uint64)


def _mixed(bits: Hashes) -> Hashes:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)), np.uint64)
