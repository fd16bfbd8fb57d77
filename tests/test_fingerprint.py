from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.calibrate import calibrate_turns
from stages.calibration.fingerprint import (
    Fingerprint,
    Smallest,
    joined,
    read_fingerprint,
    refuse_doubles,
    text_hashes,
)
from stages.calibration.sums import sum_turns
from stages.errors import InputError
from tests.builders import FEW, Tiered, line_of, turn_frame
from tests.conftest import Cli


def varied(count: int, seed: int = 0) -> list[Tiered]:
    """Episodes of four trials a task that are played in many ways."""
    rng = np.random.default_rng(seed)
    return [
        Tiered(f"t{i // 4}", float(rng.integers(2)), [*rng.choice([*"abcdef"], rng.integers(4, 9))])
        for i in range(count)
    ]


def renamed(turns: pl.DataFrame, ending: str) -> pl.DataFrame:
    """The same episodes under other ids, in another file, under another policy."""
    return turns.with_columns(
        episode_id=pl.col("episode_id") + ending,
        source=pl.lit("copy"),
        policy=pl.lit("copy"),
        group_id=pl.lit("copy/") + pl.col("group_id"),
    )


def fingerprint(turns: pl.DataFrame) -> Fingerprint:
    taken = sum_turns(turns.lazy(), "presence", "turns").fingerprint
    assert taken is not None
    return taken


def test_hashes_are_the_same_on_every_machine() -> None:
    # SplitMix64 in whole numbers, as its paper has it.
    def mixed(bits: int) -> int:
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB % 2**64
        return bits ^ bits >> 31

    factors = [mixed((i + 1) * 0x9E3779B97F4A7C15 % 2**64) | 1 for i in range(9)]
    texts = ["", "a", "ab", "ba", "a\0", "é"]
    plain = [
        mixed(
            (
                len(text.encode()) * factors[0]
                + sum(byte * factors[1 + i] for i, byte in enumerate(text.encode()))
            )
            % 2**64
        )
        for text in texts
    ]
    assert text_hashes(pl.Series(texts)).tolist() == plain
    assert len({*plain}) == len(texts)
    assert text_hashes(pl.Series([], dtype=pl.String)).tolist() == []


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.text(), unique=True, max_size=50))
def test_different_texts_have_different_hashes(texts: list[str]) -> None:
    hashes = text_hashes(pl.Series(texts, dtype=pl.String))
    assert len(np.unique(hashes)) == len(texts)
    alone = [text_hashes(pl.Series([text]))[0] for text in texts]
    assert hashes.tolist() == alone, "a text's hash does not depend on its neighbours"


def test_a_fingerprint_survives_json_and_merges_in_any_order() -> None:
    turns = turn_frame(varied(40))
    whole = fingerprint(turns)
    parts = [fingerprint(turns.filter(pl.col("trial") % 3 == k)) for k in range(3)]
    for order in ([0, 1, 2], [2, 0, 1]):
        union = joined([parts[k] for k in order])
        assert union.ids.tolist() == whole.ids.tolist()
        assert union.parts == joined(parts).parts
        again = read_fingerprint(union.document(), "x")
        assert (again.ids.tolist(), again.parts) == (union.ids.tolist(), union.parts)
    refuse_doubles(parts, ["0", "1", "2"])


@pytest.mark.parametrize(
    "document", [None, {}, {"ids": "!", "parts": []}, {"ids": "AAAA", "parts": []}]
)
def test_a_damaged_record_is_one_line(document: object) -> None:
    with pytest.raises(InputError) as caught:
        read_fingerprint(document, "sums")
    line = "sums: its record of episodes is damaged; rerun irc-cli calibrate --partial"
    assert line_of(caught) == line


# --- doubles --------------------------------------------------------------------------------------


def test_a_shard_that_shares_an_episode_is_named() -> None:
    turns = turn_frame(varied(40))
    some = [turns.filter(pl.col("trial") < 20), turns.filter(pl.col("trial") >= 19)]
    with pytest.raises(InputError) as caught:
        refuse_doubles([fingerprint(part) for part in some], ["a", "b"])
    line = "b: 1 of its 21 episodes are in 'a' too; count each episode once"
    assert line_of(caught) == line


def test_copies_under_other_ids_are_told_by_what_they_are() -> None:
    turns = turn_frame(varied(40))
    with pytest.raises(InputError) as caught:
        refuse_doubles([fingerprint(turns), fingerprint(renamed(turns, " copy"))], ["a", "b"])
    line = "b: 40 episodes are those of 'a' under other ids; count each episode once"
    assert line_of(caught) == line
    refuse_doubles(
        [fingerprint(turns), fingerprint(turn_frame(varied(40, 1), first=40))], ["a", "b"]
    )


@pytest.mark.parametrize("ending", ["#2", " again"])
def test_each_episode_twice_in_one_table_is_refused(ending: str) -> None:
    turns = turn_frame(varied(40))
    twice = pl.concat([turns, turns.with_columns(episode_id=pl.col("episode_id") + ending)])
    with pytest.raises(InputError) as caught:
        calibrate_turns(twice, FEW)
    line = "turns: each episode occurs twice, under two ids; count each episode once"
    assert line_of(caught) == line


def test_copies_among_more_episodes_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.calibration.fingerprint.LIKES", 50)
    turns = turn_frame(varied(400))
    copy = renamed(turns, " copy")
    for other in (copy, copy.sort(pl.col("episode_id").hash(), "turn")):
        with pytest.raises(InputError) as caught:
            refuse_doubles([fingerprint(turns), fingerprint(other)], ["a", "b"])
        line = "b: 400 episodes are those of 'a' under other ids; count each episode once"
        assert line_of(caught) == line
    assert fingerprint(pl.concat([turns, copy])).doubled
    assert not fingerprint(turns).doubled


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 2**64 - 1)), st.integers(0, 9), st.randoms(use_true_random=False))
def test_the_smallest_hashes_depend_on_no_order(
    hashes: list[int], limit: int, draw: random.Random
) -> None:
    at_once, in_parts = Smallest(limit), Smallest(limit)
    at_once.add(np.array(hashes, np.uint64))
    draw.shuffle(hashes)
    for at in range(0, len(hashes), 3):
        in_parts.add(np.array(hashes[at : at + 3], np.uint64))
    kept = sorted(in_parts.kept().tolist())
    assert kept == sorted(at_once.kept().tolist())
    assert kept == sorted(h for h in hashes if h < 2**64 * in_parts.share)
    assert len(kept) <= limit


def test_a_policy_that_always_plays_the_same_is_no_copy() -> None:
    """Deterministic, two trials of each task: all episodes are in pairs."""
    plays = [one._replace(task=f"t{i}") for i, one in enumerate(varied(30))]
    turns = turn_frame([play for play in plays for _ in range(2)])
    assert calibrate_turns(turns, replace(FEW, correlation="pooled")).episodes == 60
    weak = turn_frame([Tiered(f"t{i // 4}", 0.0, "m") for i in range(40)])
    refuse_doubles([fingerprint(weak), fingerprint(renamed(weak, "x"))], ["a", "b"])


@pytest.mark.parametrize("way", [(), ("--stream",), ("--partial", "-o", "sums")])
def test_the_command_counts_each_episode_once(run: Cli, way: tuple[str, ...]) -> None:
    turns = turn_frame(varied(40))
    turns.write_parquet("a.parquet")
    turns[::-1].sort("episode_id", "turn").write_parquet("b.parquet")
    renamed(turns, " copy").write_parquet("c.parquet")
    twice = pl.concat([turns, turns.with_columns(episode_id=pl.col("episode_id") + "#2")])
    twice.write_parquet("d.parquet")
    for files, line in [
        (["a.parquet", "b.parquet"], None),
        (
            ["a.parquet", "c.parquet"],
            "c.parquet: 40 episodes are those of 'a.parquet' under other ids",
        ),
        (["d.parquet"], "d.parquet: each episode occurs twice, under two ids"),
    ]:
        result = run("calibrate", *files, *way)
        assert (result.code, result.out) == (2, b"")
        if line:
            assert result.err == f"error: {line}; count each episode once\n"
    assert not Path("sums").exists()


def test_shards_count_each_episode_once(run: Cli) -> None:
    turns = turn_frame(varied(40))
    turns.write_parquet("a.parquet")
    renamed(turns, " copy").write_parquet("c.parquet")
    turns.filter(pl.col("trial") < 30).write_parquet("few.parquet")
    for name in ("a", "c", "few"):
        assert run("calibrate", f"{name}.parquet", "--partial", "-o", f"{name}.sums").code == 0
    Path("b.sums").write_bytes(Path("a.sums").read_bytes())
    for other, what in [
        ("b", "40 of its 40 episodes are in 'a.sums' too"),
        ("few", "30 of its 30 episodes are in 'a.sums' too"),
        ("c", "40 episodes are those of 'a.sums' under other ids"),
    ]:
        result = run("calibrate", "a.sums", f"{other}.sums", "--merge")
        assert result == (2, b"", f"error: {other}.sums: {what}; count each episode once\n")
    # Without the record of their episodes, as on a pipe, equal sums are told at least.
    rows = run("calibrate", "a.parquet", "--partial", "-o", "-").out
    for name in ("x", "y"):
        Path(f"{name}.jsonl").write_bytes(rows)
    result = run("calibrate", "x.jsonl", "y.jsonl", "--merge")
    line = "error: y.jsonl: holds the same sums as 'x.jsonl'; count each episode once\n"
    assert result == (2, b"", line)


def test_online_adds_an_episode_once(run: Cli) -> None:
    turns = turn_frame(varied(40))
    turns.write_parquet("a.parquet")
    turns.filter(pl.col("trial") < 30).write_ndjson("b.jsonl")  # other bytes, the same episodes
    assert run("calibrate", "a.parquet", "--online", "state").code == 0
    before = Path("state").read_bytes()
    result = run("calibrate", "b.jsonl", "--online", "state")
    line = "b.jsonl: 30 of its 30 episodes are in 'the state' too; count each episode once"
    assert result == (2, b"", f"error: {line}\n")
    assert Path("state").read_bytes() == before
