from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.calibration.sums import UNITS, sum_turns
from stages.calibration.whole_sums import check_sums
from stages.errors import InputError
from stages.tables.artifacts import SUMS
from stages.tables.table_file import made_by, write_table
from tests.builders import Tiered, line_of, turn_frame
from tests.conftest import Cli


def sums_of(measure: str = "presence") -> pl.DataFrame:
    rng = np.random.default_rng(0)
    episodes = [
        Tiered(f"t{i % 3}", float(rng.integers(2)), [*rng.choice([*"abc"], rng.integers(1, 5))])
        for i in range(60)
    ]
    return sum_turns(turn_frame(episodes).lazy(), measure, "turns").sums


@pytest.mark.parametrize("measure", list(UNITS))
def test_what_turns_add_up_to_is_possible(measure: str) -> None:
    check_sums(sums_of(measure), measure, "sums")


IMPOSSIBLE = [
    ("successes", lambda row: row["episodes"] + 1),
    ("successes", lambda row: -1),
    ("episodes", lambda row: 0),
    ("episodes", lambda row: 2**50),
    ("turns", lambda row: row["turns"] + 1),
    ("turns", lambda row: None),
    ("turns_in_successes", lambda row: row["turns_in_successes"] - 1),
    ("length", lambda row: 0),
    ("length", lambda row: None),
    ("x", lambda row: row["x"] + 1),
    ("xx", lambda row: -1),
    ("xo", lambda row: None),
]


@pytest.mark.parametrize(("column", "value"), IMPOSSIBLE, ids=lambda value: str(value)[:12])
@pytest.mark.parametrize("total", [True, False], ids=["total", "tier"])
def test_impossible_sums_are_refused(column: str, value: object, total: bool) -> None:
    rows = sums_of().to_dicts()
    at = next(i for i, row in enumerate(rows) if (row["tier"] is None) == total)
    rows[at][column] = value(rows[at])  # type: ignore[operator]
    with pytest.raises(InputError):
        check_sums(pl.DataFrame(rows, schema=SUMS.columns), "presence", "sums")


def test_tiers_add_up_to_their_total() -> None:
    sums = sums_of()
    first = sums.row(0, named=True)
    cell = (pl.col("task_id") == first["task_id"]) & (pl.col("length") == first["length"])
    for broken in (
        sums.filter(~(cell & pl.col("tier").is_null())),  # no total
        sums.filter(~(cell & pl.col("tier").is_not_null())),  # no tiers
        sums.filter(~(cell & (pl.col("tier") == "a"))),  # one tier is missing
    ):
        with pytest.raises(InputError) as caught:
            check_sums(broken, "presence", "sums")
        assert line_of(caught) == (
            f"sums: the tiers of task '{first['task_id']}' at length {first['length']} do not add "
            "up to its total; rerun irc-cli calibrate --partial"
        )


def test_a_record_of_other_episodes_is_refused(run: Cli, tmp_path: Path) -> None:
    turn_frame([Tiered("t", float(i % 2), "ab") for i in range(8)]).write_parquet("turns.parquet")
    assert run("calibrate", "turns.parquet", "--partial", "-o", "sums").code == 0
    origin, sums = made_by("sums"), pl.read_parquet("sums")
    none = {"fingerprint": {"ids": "", "parts": []}}
    write_table(SUMS, sums, "sums", origin | none, force=True)
    line = "sums: its record of episodes is of other sums; rerun irc-cli calibrate --partial"
    assert run("calibrate", "sums", "--merge") == (2, b"", f"error: {line}\n")
