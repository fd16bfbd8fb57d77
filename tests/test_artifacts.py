from __future__ import annotations

import errno
import hashlib
import io
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.tables import files
from stages.tables.artifacts import ADVANTAGES, EPISODES, PAIRS, SUMS, TOKENS, TURNS
from stages.tables.files import digest, refuse_existing, whole_file
from stages.tables.table import Table
from stages.tables.table_file import (
    ROW_GROUP,
    made_by,
    read_columns,
    read_table,
    scan_table,
    write_blocks,
    write_table,
)
from tests.builders import Tiered, line_of, turn_frame

FRAME = turn_frame([Tiered("t", 1.0, "ab"), Tiered("u", 0.0, "c")])
ORIGIN = {"version": "1", "settings": {"tiers": "flat"}, "inputs": {"é.json": "00"}}


def written(folder: Path, frame: pl.DataFrame = FRAME) -> str:
    """A Parquet file as another program would write it."""
    path = folder / "turns.parquet"
    frame.write_parquet(path)
    return str(path)


def lines(folder: Path, rows: list[Any]) -> str:
    """A JSONL file of rows; bytes stand as they are."""
    path = folder / "turns.jsonl"
    path.write_bytes(b"\n".join(r if isinstance(r, bytes) else orjson.dumps(r) for r in rows))
    return str(path)


def error_of(path: str, table: Table = TURNS) -> str:
    """The error of reading a table, without the folder."""
    with pytest.raises(InputError) as caught:
        read_table(table, path)
    return line_of(caught).replace(f"{Path(path).parent}/", "")


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("table", [TURNS, ADVANTAGES, SUMS, EPISODES, PAIRS], ids=lambda t: t.name)
def test_a_table_comes_back_as_written(table: Table, tmp_path: Path) -> None:
    values: dict[Any, list[Any]] = {
        pl.String(): ["ok", 'é\n"', "", None],
        pl.Boolean(): [True, False, True, None],
        pl.List(pl.String()): [[], ["a", "b"], ["a"], None],
    }
    frame = table.frame(
        {name: values.get(to, [0, 1, 2, None]) for name, to in table.columns.items()}
    )
    frame = frame[: 1 if table is TURNS else 3]  # the other texts are no status of a turn
    path = str(tmp_path / "t.parquet")
    write_table(table, frame, path, ORIGIN, force=False)
    assert frame.schema == table.columns
    assert read_table(table, path).equals(frame)
    assert made_by(path) == ORIGIN
    as_lines = tmp_path / "t.jsonl"
    as_lines.write_bytes(frame.write_ndjson().encode())
    assert read_table(table, str(as_lines)).equals(frame)
    assert made_by(str(as_lines)) == {}


@pytest.mark.parametrize("rows", [0, 3 * ROW_GROUP + 5])
def test_blocks_make_the_same_file_whatever_their_size(rows: int, tmp_path: Path) -> None:
    ids = [list(range(n % 7)) for n in range(rows)]
    columns: dict[str, list[Any] | pl.Series] = {
        "episode_id": [str(n // 10) for n in range(rows)],
        "turn": [n % 10 for n in range(rows)],
        "appended": [n % 10 > 0 for n in range(rows)],
        "prompt_ids": ids,
        "token_ids": ids,
        "logprobs": [None if n % 3 else ids[n] for n in range(rows)],
    }
    frame, path = TOKENS.frame(columns), tmp_path / "t.parquet"
    made = set()
    for size in (7, 1024, 10 * ROW_GROUP):
        blocks = (frame[start : start + size] for start in range(0, rows or 1, size))
        write_blocks(TOKENS, blocks, str(path), ORIGIN)
        assert read_table(TOKENS, str(path)).equals(frame)
        assert made_by(str(path)) == ORIGIN
        made.add(path.read_bytes())
    assert len(made) == 1


def test_columns_are_put_in_order_and_the_others_left_out(tmp_path: Path) -> None:
    shuffled = FRAME.select(FRAME.columns[::-1]).with_columns(more=1)
    wide = shuffled.with_columns(pl.col("turn", "trial").cast(pl.Int64), n_tokens=pl.lit(None))
    for path in (written(tmp_path, wide), lines(tmp_path, wide.rows(named=True))):
        assert read_table(TURNS, path).equals(FRAME)


def test_a_file_without_provenance_has_none(tmp_path: Path) -> None:
    assert made_by(written(tmp_path)) == {}
    assert made_by("-") == {}


def test_pipes_carry_json_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_table(TURNS, FRAME, "-", ORIGIN, force=False)
    text = capsys.readouterr().out
    assert len(text.splitlines()) == FRAME.height
    files.standard_input.cache_clear()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    try:
        assert read_table(TURNS, "-").equals(FRAME)
        # Standard input can be read once, but its digest is asked for as well.
        assert digest("-") == hashlib.sha256(text.encode()).hexdigest()
        assert scan_table(TURNS, "-") is None
    finally:
        files.standard_input.cache_clear()


def test_a_scan_reads_only_parquet(tmp_path: Path) -> None:
    lazy = scan_table(TURNS, written(tmp_path))
    assert lazy is not None and lazy.select("tier").collect()["tier"].to_list() == ["a", "b", "c"]
    assert scan_table(TURNS, lines(tmp_path, FRAME.rows(named=True))) is None
    with pytest.raises(InputError) as caught:
        scan_table(SUMS, str(tmp_path / "turns.parquet"))
    assert "turns.parquet: not a sums table but a turns table; make one with '" in line_of(caught)


def test_names_of_files_are_no_patterns(tmp_path: Path) -> None:
    for name in ("a[1].parquet", "*.parquet"):
        FRAME.write_parquet(tmp_path / name)
        assert read_table(TURNS, str(tmp_path / name)).equals(FRAME)
        assert scan_table(TURNS, str(tmp_path / name)) is not None


def test_a_digest_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    assert digest(str(path)) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(InputError) as caught:
        digest(str(tmp_path / "none"))
    assert line_of(caught) == f"{tmp_path}/none: no such file; check the path"


# --- what a table must be -------------------------------------------------------------------------


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    rows = FRAME.rows(named=True)
    rows[row] |= values
    return rows


def renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "turn"} for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("rows", "what"),
    [
        (changed(1, turn=0), ":row 2: breaks rule 'unique episode_id and turn' (1 of 3)"),
        (changed(2, outcome=2.0), ":row 3: breaks rule 'outcome within [0, 1]' (1 of 3)"),
        (changed(0, turn=-1), ":row 1: breaks rule 'turn at least 0' (1 of 3)"),
        (changed(1, tier=None), ":row 2: breaks rule 'tier not null' (1 of 3)"),
        (changed(1, reward=None), ":row 2: breaks rule 'reward not null' (1 of 3)"),
        (changed(1, episode_id=None), ":row 2: breaks rule 'episode_id not null' (1 of 3)"),
        (
            changed(1, status="done"),
            ":row 2: breaks rule 'status is ok, truncated, error or masked' (1 of 3)",
        ),
        (
            [row | {"status": None} for row in FRAME.rows(named=True)],
            ":row 1: breaks rule 'status not null' (3 of 3)",
        ),
        (renamed(FRAME.rows(named=True)), ": not a turns table: no column 'turn'"),
        (
            [{"episode_id": "e"}],
            ": not a turns table: no column 'source', 'task_id', 'trial', 'group_id', 'domain', "
            "'policy', 11 others",
        ),
    ],
)
def test_a_row_that_breaks_a_rule_is_one_line(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], what: str
) -> None:
    if kind == "parquet":
        path = written(tmp_path, pl.DataFrame(rows, infer_schema_length=None))
    else:
        path = lines(tmp_path, rows)
    assert error_of(path) == f"turns.{kind}{what}; rerun irc-cli score"


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_rewards_are_finite(tmp_path: Path, reward: float) -> None:
    frame = FRAME.with_columns(reward=pl.lit(reward))
    assert error_of(written(tmp_path, frame)) == (
        "turns.parquet:row 1: breaks rule 'reward finite' (3 of 3); rerun irc-cli score"
    )


@pytest.mark.parametrize(
    ("column", "what"),
    [
        (pl.lit("x").alias("turn"), "column 'turn' is String, not Int32"),
        (pl.lit(2**40).alias("turn"), "column 'turn' is Int64, not Int32"),
        (pl.lit("x").alias("tool_names"), "column 'tool_names' is String, not List(String)"),
        (pl.struct("turn").alias("reward"), "column 'reward' is Struct({'turn': Int32}), not "),
    ],
)
def test_a_column_of_another_type_is_named(tmp_path: Path, column: pl.Expr, what: str) -> None:
    line = error_of(written(tmp_path, FRAME.with_columns(column)))
    assert line.startswith(f"turns.parquet: {what}")
    assert line.endswith("; rerun irc-cli score")


ROW = FRAME.row(0, named=True)


@pytest.mark.parametrize(
    ("second", "what"),
    [
        (b'{"source": ', "not JSON: unexpected end of data; fix the line"),
        (b"plain text", "not JSON: unexpected character, expected a JSON value; fix the line"),
        (b"[1, 2]", "not an object; rerun irc-cli score"),
        (ROW | {"turn": "x"}, "'turn' is 'x', not Int32; rerun irc-cli score"),
        (ROW | {"turn": 0.5}, "'turn' is 0.5, not Int32; rerun irc-cli score"),
        (ROW | {"turn": 2**40}, "'turn' is 1099511627776, not Int32; rerun irc-cli score"),
        (ROW | {"reward": "much"}, "'reward' is 'much', not Float64; rerun irc-cli score"),
        (ROW | {"tool_names": "a"}, "'tool_names' is 'a', not List(String); rerun irc-cli score"),
        (ROW | {"success": {"a": 1}}, "'success' is {'a': 1}, not Boolean; rerun irc-cli score"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, second: Any, what: str) -> None:
    assert error_of(lines(tmp_path, [ROW, second, b"worse"])) == f"turns.jsonl:2: {what}"


def test_blank_lines_count_as_lines_and_hold_no_rows(tmp_path: Path) -> None:
    assert error_of(lines(tmp_path, [b"", ROW, b"  ", b"x", ROW])).startswith("turns.jsonl:4: ")
    assert read_table(TURNS, lines(tmp_path, [b"", ROW, b"  "])).equals(FRAME[:1])


def test_an_outcome_may_be_unknown(tmp_path: Path) -> None:
    frame = turn_frame([Tiered("t", None, "a")])
    assert read_table(TURNS, written(tmp_path, frame)).equals(frame)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    whole = Path(written(tmp_path)).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "nothing").write_bytes(b"")
    (tmp_path / "blank").write_bytes(b" \n\n")
    (tmp_path / "binary").write_bytes(b"\x00\x01\x02")
    ends = {
        "cut": "cut: not readable as Parquet: parquet: file out of specification: the file must "
        "end with par1 or pare; write the file again",
        "nothing": "nothing: empty; rerun irc-cli score",
        "blank": "blank: empty; rerun irc-cli score",
        "binary": "binary:1: not JSON: unexpected character, expected a JSON value; fix the line",
        "none": "none: no such file; check the path",
    }
    for name, line in ends.items():
        assert error_of(str(tmp_path / name)) == line
    assert error_of(str(tmp_path)) == f"{tmp_path.name}: is a directory; name a file"


def test_any_columns_of_another_program(tmp_path: Path) -> None:
    frame = pl.DataFrame({"a": [1, 2], "b": ["x", None]})
    frame.write_parquet(tmp_path / "a.parquet")
    frame.write_ndjson(tmp_path / "a.jsonl")
    for name in ("a.parquet", "a.jsonl"):
        assert read_columns(str(tmp_path / name)).equals(frame)
    (tmp_path / "bad").write_bytes(b"x,y\n1,2\n")
    with pytest.raises(InputError) as caught:
        read_columns(str(tmp_path / "bad"))
    assert line_of(caught) == f"{tmp_path}/bad: neither Parquet nor JSON lines; write it as one"


# --- whole or not at all --------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.binary(max_size=50), st.booleans())
def test_a_file_that_exists_is_whole(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, fails: bool
) -> None:
    folder = tmp_path_factory.mktemp("out")
    target = folder / "f"
    target.write_bytes(b"old")
    try:
        with whole_file(str(target), force=True) as file:
            file.write(data)
            assert target.read_bytes() == b"old"
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert target.read_bytes() == (b"old" if fails else data)
    assert names_in(folder) == ["f"]


def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with whole_file(str(tmp_path / "f"), force=False) as file:
            file.write(b"x")
        assert (tmp_path / "f").stat().st_mode & 0o777 == 0o640
    finally:
        assert os.umask(before) == 0o027


def test_what_exists_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    path.write_bytes(b"old")
    with pytest.raises(InputError) as caught:
        write_table(TURNS, FRAME, str(path), {}, force=False)
    assert line_of(caught) == f"{path}: exists already; pass --force to replace it"
    assert path.read_bytes() == b"old"
    write_table(TURNS, FRAME, str(path), {}, force=True)
    assert read_table(TURNS, str(path)).equals(FRAME)
    assert names_in(tmp_path) == ["f.parquet"]


def test_targets_that_can_be_no_file(tmp_path: Path) -> None:
    for path, line in [
        (tmp_path, f"{tmp_path}: is a directory; name a file to write"),
        (
            tmp_path / "no" / "f",
            f"{tmp_path}/no/f: no directory '{tmp_path}/no'; create it first",
        ),
    ]:
        for force in (False, True):
            with pytest.raises(InputError) as caught:
                refuse_existing(str(path), force=force)
            assert line_of(caught) == line


@contextmanager
def full_disk(room_bytes: int) -> Iterator[None]:
    """Let no file grow beyond this size: a write then fails as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("existing", [False, True])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "f.parquet"
    if existing:
        path.write_bytes(b"old")
    for in_blocks in (False, True):
        with full_disk(100), pytest.raises(InputError) as caught:
            if in_blocks:
                write_blocks(TURNS, iter([FRAME]), str(path), ORIGIN)
            else:
                write_table(TURNS, FRAME, str(path), ORIGIN, force=True)
        line = "can't be written: file too large; free space or write somewhere else"
        assert line_of(caught) == f"{path}: {line}"
    assert names_in(tmp_path) == (["f.parquet"] if existing else [])
    with (
        full_disk(100),
        pytest.raises(InputError) as caught,
        whole_file(str(path), force=True) as f,
    ):
        f.write(b"x" * 10_000)
    assert line_of(caught) == (
        f"{path}: can't be written: file too large; free space or write somewhere else"
    )
    assert names_in(tmp_path) == (["f.parquet"] if existing else [])
    if existing:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.EROFS, "read-only file system"),
        (errno.EACCES, "permission denied"),
        (errno.ENOSPC, "no space left on device"),
    ],
)
def test_a_folder_that_takes_no_files_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, reason: str
) -> None:
    # Simulated: tests may run as root, whom no permission stops.
    def refuse(**_: Any) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    path = tmp_path / "f"
    with pytest.raises(InputError) as caught, whole_file(str(path), force=False):
        pytest.fail("the file can't be open")
    assert line_of(caught) == (
        f"{path}: can't be written: {reason}; free space or write somewhere else"
    )


def test_a_failing_rename_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: Path, target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", refuse)
    path = tmp_path / "f"
    with pytest.raises(InputError) as caught, whole_file(str(path), force=False) as file:
        file.write(b"x")
    assert "can't be written: input/output error" in line_of(caught)
    assert names_in(tmp_path) == []
