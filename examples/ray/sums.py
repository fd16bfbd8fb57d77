"""Run `irc-cli calibrate --partial` as a Ray Data job: one task per file, added up here.

    python examples/ray/sums.py s3://bucket/turns/ sums.parquet
    irc-cli calibrate --merge sums.parquet -o calibration.yaml

Ray finds the cluster that RAY_ADDRESS names, or starts one on this machine. Its workers need
irc-cli and access to the files. Needs `pip install 'ray[data]'`.
"""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import polars as pl
import ray

from stages.calibration.shards import add_up, sum_file, write_sums
from stages.calibration.sums import Summed
from stages.tables.paths import files_of

MEASURE = "presence"


def sums_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the sums of one file of turns, serialised; runs on a Ray worker."""
    summed = sum_file(row["path"], MEASURE)
    sums = io.BytesIO()
    summed.sums.write_ipc(sums)
    return {"sums": sums.getvalue(), "rest": pickle.dumps(summed[1:])}


def main(turns: str, out: str) -> None:
    """Sum the turns of a folder or pattern, and write the total."""
    files = ray.data.from_items([{"path": path} for path in files_of([turns])])
    shards = files.map(sums_of).iter_rows()
    summed = add_up(
        Summed(pl.read_ipc(shard["sums"]), *pickle.loads(shard["rest"])) for shard in shards
    )
    write_sums(summed, MEASURE, out, {"command": "examples/ray/sums.py"}, force=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
