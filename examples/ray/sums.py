"""`irc-cli calibrate --partial` as a Ray Data job: a task sums a file, here they are added up.

    python examples/ray/sums.py s3://bucket/turns/ sums.parquet
    irc-cli calibrate --merge sums.parquet -o calibration.yaml

Ray finds the cluster that RAY_ADDRESS names, or starts one on this machine. Its workers need
irc-cli and access to the files. Needs `pip install 'ray[data]'`.
"""

from __future__ import annotations

import io
import sys
from typing import Any

import polars as pl
import ray

from stages.calibration.shards import add_up, sum_file, summary
from stages.calibration.sums import Summed
from stages.tables.artifacts import SUMS, write_table
from stages.tables.paths import files_of

MEASURE = "presence"


def sums_of(row: dict[str, Any]) -> dict[str, Any]:
    """Sum one file of turns, on whatever machine Ray chose."""
    one = sum_file(row["path"], MEASURE)
    sums = io.BytesIO()
    one.sums.write_ipc(sums)
    return {"sums": sums.getvalue(), "excluded": one.excluded}


def main(turns: str, out: str) -> None:
    """Sum a folder or a pattern of turns, and write the sums of all."""
    files = ray.data.from_items([{"path": path} for path in files_of([turns])])
    shards = files.map(sums_of).iter_rows()
    summed = add_up(Summed(pl.read_ipc(one["sums"]), one["excluded"]) for one in shards)
    made_by = {"command": "examples/ray/sums.py", "summary": summary(summed, MEASURE)}
    write_table(SUMS, summed.sums, out, made_by, force=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
