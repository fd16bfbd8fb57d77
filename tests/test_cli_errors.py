"""Bad input, one case each: the whole line on standard error, exit code 2, nothing written."""

from __future__ import annotations

import errno
import gzip
import os
import shlex
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from irc_cli.app import app
from tests.conftest import Cli, exit_code

LONG = "x" * 256  # longer than the name of a file may be
TOO_LONG = f"{LONG}: file name too long; check the path"
KNOWN = "give a format of docs/formats.md, such as chat messages or tau-bench results"

# What every reader of traces says.
TRACES = [
    ("missing.json", "missing.json: no such file; check the path"),
    ("empty.json", "empty.json: is empty; give a trace file"),
    ("blank.json", "blank.json: is empty; give a trace file"),
    (
        "folder",
        "folder: is a directory without traces; give a file or a results folder",
    ),
    ("binary.json", f"binary.json: is a binary file, not a trace; {KNOWN}"),
    ("prose.json", "prose.json:byte 0: broken JSON; copy or download the file again"),
    ("cut.json", "cut.json:byte 501: the JSON is cut off; copy or download the file again"),
    ("cut.gz", "cut.gz: the gzip data is cut off; copy or download the file again"),
    ("bad.jsonl", "bad.jsonl:2: broken JSON at byte 15; repair the line or pass --skip-bad"),
    (
        "other.json",
        f"other.json: is no known trace: an object with the keys 'a', 'b'; {KNOWN}",
    ),
    ("few.jsonl few.jsonl", "few.jsonl: given twice; name each file once"),
    ("few.jsonl ./few.jsonl", "./few.jsonl: given twice; name each file once"),
    (
        "few.jsonl --domain airlin",
        "--domain: unknown name 'airlin', and no such file; did you mean 'airline'?",
    ),
    ("-", "standard input: is empty; give a trace file"),
    ("- -", "-: given twice; name each file once"),
    (LONG, TOO_LONG),
    (f"few.jsonl --domain {LONG}", TOO_LONG),
]

ANY_COMMAND = [
    ("-o none/out", "none/out: no directory 'none'; create it first"),
    ("-o folder", "folder: is a directory; name a file to write"),
    (f"-o {LONG}", TOO_LONG),
    ("-o taken", "taken: exists already; pass --force to replace it"),
    ("-o - --json", "--json: standard output is taken by '-o -'; use one of them"),
    ("--config missing.yaml", "missing.yaml: no such file; check the path"),
    ("--config typo.yaml", "typo.yaml:2:1: unknown key 'quite'; did you mean 'quiet'?"),
    ("--config list.yaml", "list.yaml:1:7: expected a single value; correct the file"),
    (
        "--config broken.yaml",
        "broken.yaml:2:1: not good YAML (did not find expected ',' or ']'); correct it",
    ),
    (
        "--config empty.yaml",
        "empty.yaml:1:1: expected keys and values, found nothing; correct the file",
    ),
]

SAME_ID = (
    "few.jsonl, won.jsonl: both have an episode 'bags-0/0'; "
    "give every episode an 'episode_id' of its own, or read the files separately"
)

SCORE = [
    (
        "few.jsonl --map outcom=reward",
        "--map: unknown field 'outcom'; did you mean 'outcome'?",
    ),
    (
        "few.jsonl --map outcome",
        "--map: 'outcome' is not FIELD=PATH; as outcome=info.reward",
    ),
    (
        "few.jsonl --map outcome=a,outcome=b",
        "--map: 'outcome' is named twice; name it once",
    ),
    (
        "few.jsonl --map outcome=info.won",
        "--map outcome: 'info.won' is in no record of few.jsonl; "
        "give the dotted path of a field of records",
    ),
    (
        "scores.jsonl --score polite --map outcome=rewards.right",
        "--score: '--map outcome' names the outcome too; use one of them",
    ),
    ("few.jsonl --gold few.jsonl", "few.jsonl: given twice; name each file once"),
    ("few.jsonl --gold missing.json", "missing.json: no such file; check the path"),
    (
        "few.jsonl --gold other.json",
        "other.json: 'a' has no list of actions; "
        "give {task_id: [actions]}, or records with 'task_id' and 'gold_actions'",
    ),
    (
        "few.jsonl --gold elsewhere.yaml",
        "elsewhere.yaml: names no task of few.jsonl (its first task is 'elsewhere'); "
        "give gold actions by the task ids of the traces",
    ),
    ("few.jsonl --score safety", "--score: no score 'safety' in few.jsonl; leave it out"),
    (
        "scores.jsonl",
        "scores.jsonl:1: has several scores: 'right', 'polite'; name the outcome by --score NAME",
    ),
    (
        "scores.jsonl --score polit",
        "--score: no score 'polit' in scores.jsonl; did you mean 'polite'?",
    ),
    (
        "crashed.jsonl",
        "crashed.jsonl: no episode that counts: 8 crashed or cut by infrastructure; "
        "give traces with finished episodes",
    ),
    (
        "few.jsonl --tiers extend",
        "--tiers: unknown name 'extend', and no such file; did you mean 'extended'?",
    ),
    (
        "few.jsonl --tiers nothing",
        "--tiers: unknown name 'nothing', and no such file; "
        "use 'paper' or 'extended' or 'flat' or 'goldless'",
    ),
    (f"few.jsonl --tiers {LONG}", TOO_LONG),
    ("few.jsonl --rewards missing.yaml", "missing.yaml: no such file; check the path"),
    (
        "few.jsonl --rewards tier.yaml",
        "tier.yaml:3:3: reward for unknown tier 'gold_wrote'; use a tier of 'extended'",
    ),
    (
        "few.jsonl --rewards typo.yaml",
        "typo.yaml: has no 'rewards'; give a calibration.yaml of irc-cli calibrate",
    ),
    (
        "bad.jsonl --skip-bad",
        "bad.bad.jsonl: exists already; pass --force to replace it",
    ),
    ("few.jsonl -o few.jsonl", "few.jsonl: is read by this command; write to another file"),
    (
        "few.jsonl won.jsonl -o turns.parquet",
        SAME_ID,
    ),
]

CALIBRATE = [
    ("missing.parquet", "missing.parquet: no such file; check the path"),
    ("folder", "folder: a folder without Parquet files; check the path"),
    ("empty.json", "empty.json: empty; rerun irc-cli score"),
    ("-", "standard input: empty; rerun irc-cli score"),
    (LONG, TOO_LONG),
    (
        "prose.json",
        "prose.json:1: not JSON: unexpected character, expected a JSON value; fix the line",
    ),
    (
        "columns.parquet",
        "columns.parquet: not a turns table: no column 'tier', 'reward'; rerun irc-cli score",
    ),
    (
        "outcome.parquet",
        "outcome.parquet:row 2: breaks rule 'outcome within [0, 1]' (3 of 5); rerun irc-cli score",
    ),
    (
        "one.parquet",
        "one.parquet: one episode only; collect at least two, with different outcomes",
    ),
    (
        "won.parquet",
        "won.parquet: all 8 episodes are successes; collect both successes and failures",
    ),
    (
        "lost.parquet",
        "lost.parquet: all 8 episodes are failures; collect both successes and failures",
    ),
    (
        "open.parquet",
        "open.parquet: no episode with an outcome; "
        "rerun irc-cli score with --map outcome=PATH, or collect episodes that have one",
    ),
    ("few.parquet few.parquet", "few.parquet: given twice; name each file once"),
    (
        "few.parquet copy.parquet",
        "few.parquet, copy.parquet:row 31: breaks rule 'unique episode_id and turn' (30 of 60); "
        "rerun irc-cli score",
    ),
    (
        "few.parquet --previous typo.yaml",
        "typo.yaml: has no 'rewards' and 'tiers'; give a calibration.yaml of irc-cli calibrate",
    ),
    (
        "few.parquet --online folder",
        "folder: is a directory; name a file to write",
    ),
    ("few.parquet --online none/state", "none/state: no directory 'none'; create it first"),
    (
        "few.parquet --online copy.parquet",
        "copy.parquet: not a state of online calibration; "
        "name a state of calibrate --online, or a new file",
    ),
    (
        "few.parquet --online state",
        "few.parquet: was added before, in iteration 1; add each iteration's turns once",
    ),
    (
        "won.parquet --online state --half-life 7",
        "state: was begun with --half-life 50, not 7; pass --half-life 50, or begin another state",
    ),
    (
        "won.parquet --online state --measure share",
        "state: was begun with --measure presence, not share; "
        "pass --measure presence, or begin another state",
    ),
    (
        "open.parquet --online state",
        "open.parquet: no episode with an outcome; "
        "rerun irc-cli score with --map outcome=PATH, or collect episodes that have one",
    ),
    (
        "few.parquet --online new --half-life 0",
        "--half-life: 0 is out of range; use a number above 0",
    ),
    (
        "few.parquet --online new --close-p 0.0001",
        "--close-p: 0.0001 is out of range; use a number from 0.001 to 1",
    ),
    (
        "few.parquet --online new --correlation pooled",
        "--online: uses the correlation within tasks; drop --correlation",
    ),
    (
        "few.parquet --online new --merge",
        "--merge: sums hold no turns to judge advantages by; "
        "calibrate the turns themselves for that",
    ),
    (
        "few.parquet --half-life 7",
        "--half-life: does nothing by itself; give --online STATE",
    ),
    ("few.parquet --advantages none", "none: no such file; check the path"),
    (
        "few.parquet --advantages prose.json",
        "prose.json: neither Parquet nor JSON lines; write it as one",
    ),
    ("few.parquet --advantages -", "-: neither Parquet nor JSON lines; write it as one"),
    (
        "few.parquet --advantages few.parquet",
        "few.parquet: no column 'advantage'; give episode_id, turn, advantage",
    ),
    (
        "few.parquet --advantages lacking.parquet",
        "lacking.parquet: no advantage for turn 3 of episode 'bags-0/0' (6 lacking); "
        "give one for every turn that counts",
    ),
    (
        "few.parquet --advantages doubled.parquet",
        "doubled.parquet: several advantages for one turn; give one each",
    ),
    (
        "sums.parquet --merge --measure count",
        "sums.parquet: holds sums of measure 'presence', not 'count'; pass --measure presence",
    ),
    (
        "few.parquet --merge",
        "few.parquet: not a sums table but a turns table; "
        "make one with 'irc-cli calibrate --partial few.parquet -o sums.parquet'",
    ),
    ("sums.parquet sums.parquet --merge", "sums.parquet: given twice; name each file once"),
    *(
        (
            f"sums.parquet --merge {option}",
            "--merge: sums hold no turns to judge advantages by; "
            "calibrate the turns themselves for that",
        )
        for option in ("--check", "--keep-rewards", "--previous x", "--advantages x")
    ),
    (
        "few.parquet --partial -o sums --check",
        "--partial: sums hold no turns to judge advantages by; "
        "calibrate the turns themselves for that",
    ),
    (
        "few.parquet --partial",
        "--partial: nothing to write the sums to; name a file with --out",
    ),
    (
        "few.parquet --partial --merge -o sums",
        "--partial: can't go with --merge; use one of them",
    ),
    (
        "few.parquet --stream --merge",
        "--merge: can't go with --stream; use one of them",
    ),
    (
        "few.parquet --stream --advantages few.parquet",
        "--stream: sums hold no turns to judge advantages by; "
        "calibrate the turns themselves for that",
    ),
    (
        "few.parquet -o x.yaml --online x.yaml",
        "x.yaml: given twice; name each file once",
    ),
    (
        "few.parquet -o advantages.parquet",
        "advantages.parquet: given twice; name each file once",
    ),
    (
        "few.parquet -o beside/calibration.yaml",
        "beside/advantages.parquet: exists already; pass --force to replace it",
    ),
    (
        "few.parquet --advantage ppo",
        "--advantage: unknown value 'ppo'; use grpo | mt-grpo | gtpo | hybrid | rloo | potential",
    ),
    (
        "few.parquet --normalise all",
        "--normalise: unknown value 'all'; use turn | group | batch",
    ),
    (
        "few.parquet --advantage mtgrpo",
        "--advantage: unknown value 'mtgrpo'; did you mean 'mt-grpo'?",
    ),
    (
        "few.parquet --zero gold_wrote",
        "--zero: no turn is of tier 'gold_wrote'; did you mean 'gold_write'?",
    ),
    (
        "few.parquet --measure size",
        "--measure: unknown value 'size'; use presence | count | share",
    ),
    (
        "few.parquet --correlation rank",
        "--correlation: unknown value 'rank'; use auto | within | pooled",
    ),
    ("few.parquet --gamma 1.1", "--gamma: 1.1 is out of range; use a number from 0 to 1"),
    ("few.parquet --lambda -1", "--lambda: -1 is out of range; use a number of at least 0"),
    ("few.parquet --alpha nan", "--alpha: nan is out of range; use a number of at least 0"),
    ("few.parquet --delta 2", "--delta: 2 is out of range; use a number from 0 to 1"),
    ("few.parquet --fdr 5", "--fdr: 5 is out of range; use a number from 0 to 1"),
    ("few.parquet --effect -1", "--effect: -1 is out of range; use a number from 0 to below 1"),
    ("few.parquet --effect 1", "--effect: 1 is out of range; use a number from 0 to below 1"),
    ("few.parquet --eta 2", "--eta: 2 is out of range; use a number from -1 to 1"),
]

TASK_NAMES = [f"train-{name}" for name in ("book-0", "multi-1", "certificate-2")]
TASK_NAMES += [f"train-{name}" for name in ("passengers-3", "bags-4", "lookup-5")]

ROLLOUT = [
    (
        "--env airlinemini",
        "--env: no environment 'airlinemini'; did you mean 'airline-mini'?",
    ),
    (
        "--env AIRLINE-MINI --policy expert",
        "--env: no environment 'AIRLINE-MINI'; did you mean 'airline-mini'?",
    ),
    (
        "--env airline-mini --policy expert --tasks 3",
        "--tasks: no task '3' in split 'train' of airline-mini; use "
        + " or ".join(f"'{name}'" for name in TASK_NAMES)
        + " or 1,994 others",
    ),
    (
        "--env airline-mini --policy expert --tasks train-book-0x",
        "--tasks: no task 'train-book-0x' in split 'train' of airline-mini; "
        "did you mean 'train-book-0'?",
    ),
    (
        "--env airline-mini --policy exprt",
        "--policy: unknown value 'exprt'; did you mean 'expert'?",
    ),
    (
        "--env airline-mini --policy expert --user scrpted",
        "--user: unknown value 'scrpted'; did you mean 'scripted'?",
    ),
    (
        "--env airline-mini --policy expert --split trian",
        "airline-mini: no split 'trian'; did you mean 'train'?",
    ),
]

EVAL = [
    (
        "few.jsonl --replay --env airlinemini",
        "--env: no environment 'airlinemini'; did you mean 'airline-mini'?",
    ),
    (
        "crashed.jsonl",
        "crashed.jsonl: no episode with an outcome: 8 crashed or cut by infrastructure; "
        "give traces with finished episodes",
    ),
    (
        "open.jsonl",
        "open.jsonl: no episode with an outcome: 8 no outcome; "
        "name it by --map outcome=PATH, or give traces with finished episodes",
    ),
    ("few.jsonl --score safety", "--score: no score 'safety' in few.jsonl; leave it out"),
    (
        "few.jsonl --map outcome=info.won",
        "--map outcome: 'info.won' is in no record of few.jsonl; "
        "give the dotted path of a field of records",
    ),
    ("few.jsonl --against missing.json", "missing.json: no such file; check the path"),
    (
        "few.jsonl --against other_tasks.jsonl",
        "other_tasks.jsonl: no task is shared; compare traces of the same tasks",
    ),
]

COMPARE_ARGS = [
    ("", "compare-args: wants two values or traces; give --expected and --actual, or traces"),
    (
        "few.jsonl --expected {} --actual {}",
        "compare-args: wants two values or traces; give --expected and --actual, or traces",
    ),
    ("--expected {}", "--actual: is missing; give both values"),
    ("--actual {}", "--expected: is missing; give both values"),
    (
        "--expected - --actual -",
        "--actual: standard input is taken by --expected; give a file",
    ),
    ("--expected {} --actual @none", "none: no such file or directory; check the path"),
    ("--expected {} --actual @folder", "folder: is a directory; check the path"),
    ("--expected {} --actual @binary.json", "binary.json: not UTF-8 text; give JSON"),
    (
        "--expected {} --actual {} --mode loose",
        "--mode: unknown value 'loose'; use exact | deep | tau2 | bfcl",
    ),
    (
        "--expected {} --actual {} --tool think",
        "--tool: names a tool of no domain; add --domain",
    ),
    (
        "--expected {} --actual {} --tool ponder --domain airline",
        "--tool: 'ponder' is no tool of 'airline'; use 'get_user_details' or "
        "'get_reservation_details' or 'get_flight_status' or 'list_all_airports' or "
        "'search_direct_flight' or 'search_onestop_flight' or 9 others",
    ),
    (
        "--expected {} --actual {} --tool think --domain airlin",
        "--domain: unknown name 'airlin', and no such file; did you mean 'airline'?",
    ),
    (
        "--expected {} --actual {} -o pairs.parquet",
        "--out: does nothing for two values; leave it out or give traces",
    ),
    (
        "no_gold.jsonl",
        "no_gold.jsonl: no gold actions anywhere; "
        "give them by --gold FILE, or name their field by --map gold_actions=PATH",
    ),
    (
        "--expected {} --actual {} --gold few.jsonl",
        "--gold: does nothing for two values; leave it out or give traces",
    ),
    (
        "few.jsonl --tool think",
        "--tool: does nothing for traces; leave it out or give two values",
    ),
]

USAGE = [
    ("scor few.jsonl", "no such command 'scor'; did you mean 'score'? see 'irc-cli --help'"),
    ("plan few.jsonl", "no such command 'plan'; see 'irc-cli --help'"),
    ("--loud", "no such option: --loud; see 'irc-cli --help'"),
    ("score", "missing argument 'TRACES...'; see 'irc-cli score --help'"),
    ("calibrate", "missing argument 'TURNS...'; see 'irc-cli calibrate --help'"),
    (
        "score few.jsonl --loud",
        "no such option: --loud (Possible options: --gold, --out); see 'irc-cli score --help'",
    ),
    ("eval few.jsonl --out", "option '--out' requires an argument; see 'irc-cli --help'"),
    (
        "score few.jsonl --seed soon",
        "invalid value for '--seed': Input should be a valid integer, "
        "unable to parse string as an integer; see 'irc-cli score --help'",
    ),
    (
        "score few.jsonl --seed -1",
        "invalid value for '--seed': Input should be greater than or equal to 0; "
        "see 'irc-cli score --help'",
    ),
    (
        "calibrate few.parquet --resamples 3",
        "invalid value for '--resamples': Input should be greater than or equal to 100; "
        "see 'irc-cli calibrate --help'",
    ),
]

CASES = [
    *((f"{command} {args}", line) for args, line in TRACES for command in ("score", "eval")),
    *((f"compare-args {args}", line) for args, line in TRACES),
    *((f"score few.jsonl {args}", line) for args, line in ANY_COMMAND),
    *((f"eval few.jsonl {args}", line) for args, line in ANY_COMMAND),
    *((f"compare-args few.jsonl {args}", line) for args, line in ANY_COMMAND),
    *((f"calibrate few.parquet {args}", line) for args, line in ANY_COMMAND),
    *((f"score {args}", line) for args, line in SCORE),
    *((f"calibrate {args}", line) for args, line in CALIBRATE),
    *((f"eval {args}", line) for args, line in EVAL),
    ("eval few.jsonl won.jsonl", SAME_ID),
    ("compare-args few.jsonl won.jsonl -o pairs.parquet", SAME_ID),
    *((f"compare-args {args}", line) for args, line in COMPARE_ARGS),
    *((f"rollout {args}", line) for args, line in ROLLOUT),
    *USAGE,
]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, example: Path) -> Path:
    """A directory full of files that are wrong in one way each."""
    desk = tmp_path_factory.mktemp("desk")
    lines = example.read_bytes().splitlines(keepends=True)[:8]  # the trials of one task
    texts = {
        "blank.json": "\n\n",
        "prose.json": "Dear reader",
        "other.json": '{"a": 1, "b": [2]}',
        "taken": "mine",
        "bad.bad.jsonl": "mine",
        "typo.yaml": "seed: 3\nquite: true\n",
        "list.yaml": "seed: [3]\n",
        "broken.yaml": "seed: [3\n",
        "empty.yaml": "",
        "elsewhere.yaml": "elsewhere: [{name: look, arguments: {}}]\n",
        "tier.yaml": "rewards:\n  gold_write: 1.0\n  gold_wrote: 1.0\n",
    }
    for name, text in texts.items():
        (desk / name).write_text(text)
    (desk / "folder").mkdir()
    (desk / "beside").mkdir()
    (desk / "beside/advantages.parquet").touch()
    (desk / "empty.json").touch()
    (desk / "binary.json").write_bytes(bytes(range(256)))
    (desk / "cut.json").write_bytes(b"[" + lines[0][:500])
    (desk / "cut.gz").write_bytes(gzip.compress(b"".join(lines))[:-20])
    (desk / "few.jsonl").write_bytes(b"".join(lines))
    (desk / "bad.jsonl").write_bytes(lines[0] + b'{"episode_id": oops}\n' + lines[1])
    variants: dict[str, dict[str, Any]] = {
        "no_gold.jsonl": {"gold_actions": None},
        "scores.jsonl": {"outcome": None, "rewards": {"right": 1, "polite": 0}},
        "crashed.jsonl": {"status": "error"},
        "won.jsonl": {"outcome": 1},
        "lost.jsonl": {"outcome": 0},
        "open.jsonl": {"outcome": None},
        "other_tasks.jsonl": {"task_id": "another"},
    }
    for name, change in variants.items():
        episodes = [orjson.loads(line) | change for line in lines]
        (desk / name).write_bytes(b"\n".join(map(orjson.dumps, episodes)))
    (desk / "one.jsonl").write_bytes(lines[0])
    for name in ("few", "won", "lost", "open", "one"):
        trace, turns = str(desk / f"{name}.jsonl"), str(desk / f"{name}.parquet")
        assert exit_code(["score", trace, "-o", turns, "--quiet"]) == 0
    few = pl.read_parquet(desk / "few.parquet")
    few.write_parquet(desk / "copy.parquet")
    few.drop("tier", "reward").write_parquet(desk / "columns.parquet")
    given = few.select("episode_id", "turn", advantage=pl.lit(1.0))
    given.filter(pl.col("turn") < 3).write_parquet(desk / "lacking.parquet")
    pl.concat([given, given[:1]]).write_parquet(desk / "doubled.parquet")
    five = few[:5].with_columns(outcome=pl.Series([1.0, 7, 1, 2, -1]))
    five.write_parquet(desk / "outcome.parquet")
    sums = ["--partial", "-o", str(desk / "sums.parquet"), "--quiet"]
    assert exit_code(["calibrate", str(desk / "few.parquet"), *sums]) == 0
    online = ["--online", str(desk / "state"), "--half-life", "50", "--quiet"]
    assert exit_code(["calibrate", str(desk / "few.parquet"), *online]) == 0
    return desk


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Every file with its size and the time of its last change."""
    stats = {path: path.stat() for path in folder.rglob("*") if path.is_file()}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.mark.parametrize(("command", "line"), CASES, ids=[command for command, _ in CASES])
def test_bad_input_is_one_line(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, command: str, line: str
) -> None:
    monkeypatch.chdir(desk)
    before = listing(desk)
    assert run(*shlex.split(command)) == (2, b"", f"error: {line}\n")
    assert listing(desk) == before


# --- outputs that can't be written ----------------------------------------------------------------

WRITERS = {
    "score": "score few.jsonl -o full/out",
    "calibrate": "calibrate few.parquet -o full/out",
    "sums": "calibrate few.parquet --partial -o full/out",
    "eval": "eval few.jsonl -o full/out",
    "compare-args": "compare-args few.jsonl -o full/out",
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaced"])
def test_nothing_is_half_written_on_a_full_disk(
    run: Cli,
    monkeypatch: pytest.MonkeyPatch,
    desk: Path,
    tmp_path: Path,
    writer: str,
    replaces: bool,
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "few.jsonl").symlink_to(desk / "few.jsonl")
    (tmp_path / "few.parquet").symlink_to(desk / "few.parquet")
    command = shlex.split(WRITERS[writer])
    if replaces:
        (tmp_path / "full/out").write_text("mine")
        command.append("--force")

    def on_full_disk(descriptor: int, mode: str) -> Any:
        os.close(descriptor)
        return Path("/dev/full").open(mode)

    monkeypatch.setattr(os, "fdopen", on_full_disk)
    code, out, err = run(*command)
    assert (code, out) == (2, b"")
    line = "can't be written: no space left on device; free space or write somewhere else"
    assert err == f"error: full/out: {line}\n"
    left = {path.name: path.read_text() for path in (tmp_path / "full").iterdir()}
    assert left == ({"out": "mine"} if replaces else {})


@pytest.mark.parametrize("writer", WRITERS)
def test_a_target_that_is_read_only(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, tmp_path: Path, writer: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "few.jsonl").symlink_to(desk / "few.jsonl")
    (tmp_path / "few.parquet").symlink_to(desk / "few.parquet")

    def refuse(**_: object) -> Any:  # a mode would not stop root, who runs the tests in containers
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    line = "full/out: can't be written: permission denied; free space or write somewhere else"
    assert run(*shlex.split(WRITERS[writer])) == (2, b"", f"error: {line}\n")
    assert not list((tmp_path / "full").iterdir())


NO_TMP = FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")


@pytest.mark.parametrize("options", [(), ("--jobs", "2")], ids=["alone", "apart"])
def test_no_place_for_temporary_files(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, options: tuple[str, ...]
) -> None:
    def refuse(**_: object) -> Any:
        raise NO_TMP

    monkeypatch.setattr("stages.score.CHUNK", 5)
    monkeypatch.setattr("stages.score.mkdtemp", refuse)
    monkeypatch.setattr("tempfile.TemporaryDirectory", refuse)
    line = (
        "temporary files: can't be written: no usable temporary directory found in ['/tmp']; "
        "free space, or name another folder in TMPDIR"
    )
    files = (desk / "few.jsonl", desk / "won.jsonl")[: 1 + bool(options)]
    assert run("score", *files, "-o", "t.parquet", *options) == (2, b"", f"error: {line}\n")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO])
def test_what_the_system_refuses_is_one_line(
    run: Cli, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise OSError(code, os.strerror(code), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    options = ("--env", "airline-mini", "--model", "none", "--tasks-per-step", "4")
    code_, out, err = run("export", "verl", *options, "-o", "verl")
    reason = os.strerror(code).lower()
    line = f"{Path('verl').absolute()}: {reason}; check its permissions and the disk"
    assert (code_, out, err) == (2, b"", f"error: {line}\n")


def test_an_error_of_ours_is_a_traceback(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Path, **_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(Path, "mkdir", broken)
    options = ("--env", "airline-mini", "--model", "none", "--tasks-per-step", "4")
    with pytest.raises(OSError, match="Bad file descriptor"):
        app(["export", "verl", *options, "-o", "verl"])


def test_an_interrupted_run_writes_nothing(
    run: Cli, monkeypatch: pytest.MonkeyPatch, desk: Path, tmp_path: Path
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pl.DataFrame, "write_parquet", interrupt)
    assert run("score", desk / "few.jsonl", "-o", "turns.parquet") == (130, b"", "")
    assert not list(tmp_path.iterdir())


def test_a_device_is_not_replaced_by_a_file(run: Cli, desk: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "device")
    line = "device: is no regular file; name a file to write, or '-'"
    result = run("score", desk / "few.jsonl", "-o", "device", "--force")
    assert result == (2, b"", f"error: {line}\n")
    assert (tmp_path / "device").is_fifo()
