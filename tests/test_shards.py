from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from stages.calibration.sample import sample_groups
from stages.calibration.shards import add_up, read_turns, sum_file
from stages.calibration.sums import lay_out, sum_turns
from stages.core.correlation import pooled, within
from stages.tables.artifacts import COUNTS, SUMS
from stages.tables.table_file import made_by, read_table
from tests.builders import Tiered, turn_frame
from tests.conftest import Cli

ROOT = Path(__file__).resolve().parents[1]
TASKS, EPISODES, TIERS = 12, 400, "abcd"
SHARDS = 10

# A row per tier: r over all episodes, and r after subtracting each task's means.
CORRELATIONS = """
    with turns as (select * from read_parquet(?) where status <> 'error' and success is not null),
    episodes as (
        select task_id, episode_id, any_value(success)::int as o, list(tier) as tiers
        from turns group by all),
    present as (
        select tier, task_id, o, list_contains(tiers, tier)::int as x
        from episodes, (select distinct tier from turns)),
    centred as (
        select tier, x - avg(x) over one as x, o - avg(o) over one as o from present
        window one as (partition by tier, task_id))
    select pooled.tier, pooled.r, within.r
    from (select tier, corr(x, o) as r from present group by tier) as pooled
    join (select tier, corr(x, o) as r from centred group by tier) as within using (tier)
    order by tier
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten files of turns, each with episodes of every task; `c` goes with failure."""
    rng = np.random.default_rng(0)
    episodes = []
    for i in range(EPISODES):
        won = float(rng.random() < (0.3 + 0.4 * (i % TASKS) / TASKS))
        weight = np.array([1 + won, 1, 3 - 2 * won, 1])
        drawn = rng.choice([*TIERS], rng.integers(1, 6), p=weight / weight.sum()).tolist()
        status, outcome = ("error", None) if i % 50 == 7 else ("ok", won)
        episodes.append(Tiered(f"task {i % TASKS}", outcome, drawn, status))
    made = tmp_path_factory.mktemp("turns")
    size = EPISODES // SHARDS
    for k in range(SHARDS):
        shard = turn_frame(episodes[k * size : (k + 1) * size], first=k * size)
        shard.write_parquet(made / f"{k}.parquet")
    return made


def test_duckdb_finds_the_same_correlations(folder: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="needs irc-cli[dev]")
    rows = duckdb.execute(CORRELATIONS, [f"{folder}/*.parquet"]).fetchall()
    summed = add_up(sum_file(str(path), "presence") for path in sorted(folder.iterdir()))
    sums = lay_out(summed.sums, "presence")
    assert [row[0] for row in rows] == sums.tiers == list(TIERS)
    np.testing.assert_allclose(pooled(sums.tasks), [row[1] for row in rows], atol=1e-12)
    np.testing.assert_allclose(within(sums.tasks), [row[2] for row in rows], atol=1e-12)
    assert abs(rows[2][2]) > 0.2  # there is something to find


@pytest.mark.parametrize("measure", ["presence", "count", "share"])
def test_ten_shards_equal_one_run_bit_for_bit(folder: Path, measure: str) -> None:
    paths = sorted(map(str, folder.iterdir()))
    one = sum_turns(pl.scan_parquet(paths), measure, "turns")
    for order in (paths, paths[::-1]):
        shards = add_up(sum_file(path, measure) for path in order)
        assert shards.sums.equals(one.sums)
        assert shards.excluded == one.excluded == EPISODES // 50
    assert add_up([]).sums.equals(SUMS.empty())


def test_a_stream_says_what_the_turns_say(run: Cli, folder: Path) -> None:
    streamed = run("calibrate", folder, "--stream", "--json").json()
    whole = run("calibrate", folder, "--json").json()
    assert whole["landmark"] == 3 and streamed["landmark"] is None
    assert all(tier.pop("r_landmark") is not None for tier in whole["tiers"])
    assert all(tier.pop("r_landmark") is None for tier in streamed["tiers"])
    of_order = {"landmark", "critic"}  # of turns, which sums do not hold
    assert all(streamed[key] == whole[key] for key in whole.keys() - of_order)
    sizes = streamed.pop("sample")
    assert sizes["groups"] == sizes["of_groups"] and sizes["turns"] == sizes["of_turns"]
    run("calibrate", folder / "?.parquet", "--partial", "-o", "sums", "--quiet")
    merged = run("calibrate", "sums", "--merge", "--json").json()
    assert all(tier.pop("r_landmark") is None for tier in merged["tiers"])
    assert merged["before"] is merged["after"] is merged["converged"] is None
    of_turns = {"before", "after", "converged", "objections"}
    assert all(merged[key] == streamed[key] for key in streamed.keys() - of_turns)


@pytest.mark.parametrize("limit", [1, 100, 400])
def test_a_sample_is_of_whole_groups(folder: Path, limit: int) -> None:
    paths = sorted(map(str, folder.iterdir()))
    whole = read_turns(paths)
    summed = add_up(sum_file(path, "presence") for path in paths)
    sample = sample_groups(summed.sums, paths, limit)
    counting = whole.frame.filter(COUNTS)
    chosen = counting.filter(pl.col("group_id").is_in(sample.turns["group_id"].implode()))
    assert sample.turns.equals(chosen.select(sample.turns.columns))
    assert (sample.of_groups, sample.of_turns) == (counting["group_id"].n_unique(), len(counting))
    assert sample.groups == sample.turns["group_id"].n_unique() < sample.of_groups
    assert sample.groups == 1 or len(chosen) <= limit
    # However the groups are spread over files, and whatever else these hold.
    backwards = sample_groups(summed.sums, paths[::-1], limit)
    key = ["episode_id", "turn"]
    assert backwards.turns.sort(key).equals(sample.turns.sort(key))


def test_a_stream_says_on_which_part_it_checks(
    run: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = run("calibrate", folder, "--stream", "--json").json()["sample"]
    monkeypatch.setattr(
        "stages.calibrate.sample_groups", lambda sums, paths, _: sample_groups(sums, paths, 300)
    )
    result = run("calibrate", folder, "--stream", "--json").json()
    part = result["sample"]
    assert part["turns"] <= 300 and part["groups"] < part["of_groups"] == sizes["groups"]
    assert sum(tier["turns"] for tier in result["tiers"]) == sizes["turns"]
    told = run("calibrate", folder, "--stream", "--check")
    line = (
        f"advantages are checked on {part['groups']:,} of {part['of_groups']:,} groups, chosen at "
        f"random: {part['turns']:,} of {part['of_turns']:,} turns"
    )
    assert line in told.out.decode().splitlines()


def test_a_ray_job_makes_the_same_sums(run: Cli, folder: Path, tmp_path: Path) -> None:
    """On a local cluster of two workers, which Ray starts."""
    pytest.importorskip("ray", reason="needs ray")
    script = str(ROOT / "examples/ray/sums.py")
    command = [sys.executable, "-W", "ignore", script, str(folder), "sums"]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, capture_output=True)
    run("calibrate", folder, "--partial", "-o", "ours", "--quiet")
    assert read_table(SUMS, "sums").equals(read_table(SUMS, "ours"))
    assert made_by("sums")["summary"] == made_by("ours")["summary"]
