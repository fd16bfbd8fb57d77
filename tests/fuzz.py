"""Fuzzing: `python -m tests.fuzz [N] [SEED] [KIND ...]` reads N mutated inputs.

Each must be read, or refused in one line. An input that ends in a traceback, ends this process or
takes longer than TIMEOUT_S is kept in tests/corpus, which `test_corpus.py` reads again. Model
folders need torch.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import cache, partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import orjson
import polars as pl

from irc_cli.report import scored_from
from stages.calibration.file import read_previous
from stages.calibration.online import read_online
from stages.calibration.shards import read_sums, read_turns
from stages.core.arguments import differences, parse_arguments
from stages.errors import InputError
from stages.loop_files import Records
from stages.messages.tool_parser import read_message, recorded_calls
from stages.messages.tool_parsers.families import FAMILIES
from stages.reporting.recorded import read_calibration
from stages.score import Scorer
from stages.serving.answers import AnswerError, checked
from stages.tables.table_file import made_from
from stages.tables.yamlfile import parse_yaml
from stages.tiers.domains import load_domain
from stages.tiers.file import load_tiers
from stages.tiers.toolsets import Toolsets
from stages.traces import open_trace
from tests import model_folders
from tests.test_detect import EXAMPLES

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "corpus"
TRYING = CORPUS / ".trying"  # not named like a failure, so that tests skip it
INPUTS = 20_000
TIMEOUT_S = 10.0
WAITS = 12  # times TIMEOUT_S of wall time, for an input that makes a reader wait
ODD: list[Any] = [
    None, True, False, 0, -1, 1.5, 2**31, 10**30, 10**400, 1e308, "", "x",
    "\x1b[0m", "\u202e", "\ud800", [], {},
    [None], [[]], {"": None}, "9" * 5000, "[" * 300, "{", '{"a": 1}', "../..", "a" * 10_000,
    "2024-13-45T99:99:99Z", {"type": 3}, {"role": "x"}, -(2**63), 2**64, ["x"] * 100,
]  # fmt: skip


class Target(NamedTuple):
    """A reader, and valid inputs for it."""

    read: Callable[[bytes, Path], Any]
    seeds: list[bytes]
    share: int = 3  # relative share of the inputs


def traces(data: bytes, folder: Path) -> None:
    path = folder / "trace.jsonl"
    path.write_bytes(data)
    scorer, toolsets = Scorer(load_tiers("extended")), Toolsets(None)
    for episode, tools in toolsets.assign(open_trace(str(path), skip_bad=lambda *_: None)):
        scorer.add([episode], tools)
    if scorer.scored.episodes:
        scorer.scored.frame()


def tables(data: bytes, folder: Path) -> None:
    path = folder / "turns"
    path.write_bytes(data)
    for read in (lambda at: read_turns([at]), lambda at: read_sums(at, "presence"), read_online):
        refused(read, str(path))


def records_of_tables(frame: pl.DataFrame, data: bytes, folder: Path) -> None:
    """Read a table's recorded lineage. Damaged pages are left out: polars aborts on them."""
    path = folder / "turns.parquet"
    frame.write_parquet(path, metadata={"irc-cli": data.decode(errors="replace")})
    for read in (lambda at: read_turns([at]), read_online, made_from, lambda at: scored_from([at])):
        refused(read, str(path))


def yaml_files(data: bytes, folder: Path) -> None:
    path = folder / "file.yaml"
    path.write_bytes(data)
    for read in (load_tiers, load_domain, read_previous, read_calibration):
        refused(read, str(path))
    refused(lambda text: parse_yaml(text, "--set x").plain(), data.decode(errors="replace"))


def state(data: bytes, folder: Path) -> None:
    (folder / "steps.json").write_bytes(data)
    Records(folder)


def tool_calls(data: bytes, folder: Path) -> None:
    document = orjson.loads(data)
    if not isinstance(document, dict):
        return
    text, tools = str(document.get("text")), document.get("tools")
    tools = tools if isinstance(tools, list) else []
    recorded_calls(text, tools)
    for name in FAMILIES:
        read_message(text, name, tools)


def arguments(data: bytes, folder: Path) -> None:
    left, right = data.decode(errors="replace"), '{"a": [1, {"b": "2.0"}]}'
    for mode in ("exact", "deep", "bfcl", "tau2"):
        differences(parse_arguments(left).value, parse_arguments(right).value, mode)


def answers(data: bytes, folder: Path) -> None:
    checked(orjson.loads(data), "/chat/completions")


def refused(read: Callable[[Any], Any], given: Any) -> None:
    """Read an input, or accept an error of one line."""
    with suppress(InputError):
        read(given)


@cache
def targets() -> dict[str, Target]:
    """Return all targets by name."""
    records = [orjson.dumps(record) + b"\n" for of in EXAMPLES.values() for record in of]
    example = (ROOT / "data" / "examples" / "airline-24x8.jsonl").read_bytes().splitlines(True)
    shipped = [path.read_bytes() for path in (ROOT / "data").rglob("*.yaml")]
    schema = {"type": "object", "properties": {"a": {"type": ["integer", "null"]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    written = ['<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>', "[f(a=1)]"]
    written += ["<function=f><parameter=a>1</parameter></function>", "{'name': 'f', 'a': 1}"]
    texts = [orjson.dumps({"text": text, "tools": [tool]}) for text in written]
    frame, online = turns_of(example), {"measure": "presence", "half_life": 9.0, "signs": {"a": 1}}
    online |= {"additions": [], "events": [], "known": {"ids": "", "parts": []}}
    summary = {"measure": "presence", "excluded": 0, "excluded_without_turns": 0}
    made = {"tiers": "extended", "gold": None, "map": ["outcome=x"], "domain": None}
    record: dict[str, Any] = {"settings": made, "summary": summary, "online": online}
    record["inputs"] = [{"path": "a", "sha256": None}]
    step = {"score": {"command": "x", "inputs": {"a": "b"}, "outputs": {"a": None}}}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    message = {"role": "assistant", "content": "x", "tool_calls": [call]}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"x": 1}}
    return {
        "traces": Target(traces, [*records, *example[:3]]),
        "tables": Target(tables, [frame.write_ndjson().encode()]),
        "records": Target(partial(records_of_tables, frame), [orjson.dumps(record)]),
        "yaml": Target(yaml_files, [*shipped, b"a: &a [1, 2]\nb: [*a, *a]\n"]),
        "state": Target(state, [orjson.dumps(step)]),
        "tool-calls": Target(tool_calls, texts),
        "arguments": Target(arguments, [b'{"a": [1, {"b": "2.0"}]}', b"{'a': (1, None)}"]),
        "answers": Target(answers, [orjson.dumps(answer)]),
        **models(),
    }


def models() -> dict[str, Target]:
    """Return the target of model folders, if torch is installed."""
    if not find_spec("torch"):
        return {}
    model = model_folders.whole()
    read = partial(model_folders.read, model)
    return {"models": Target(read, model_folders.seeds(model), share=1)}  # slow


def turns_of(lines: list[bytes]) -> pl.DataFrame:
    """Return a small table of turns."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "few.jsonl")
        path.write_bytes(b"".join(lines[:16]))
        scorer = Scorer(load_tiers("extended"))
        for episode, tools in Toolsets(None).assign(open_trace(str(path))):
            scorer.add([episode], tools)
        return scorer.scored.frame()


def mutated(seed: bytes, rng: random.Random) -> bytes:
    """Return an input with some values, or some bytes, changed."""
    try:
        lines = [orjson.loads(line) for line in seed.splitlines()[:8] if line.strip()]
    except orjson.JSONDecodeError:
        return with_bytes_changed(seed, rng)
    if rng.random() < 0.2:
        return with_bytes_changed(seed, rng)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(lines)) if lines else 0
        lines[at : at + 1] = [with_value_changed(lines[at], rng)]
    return b"\n".join(as_bytes(line) for line in lines) + b"\n"


def as_bytes(value: Any) -> bytes:
    import json

    return json.dumps(value).encode()


def with_value_changed(value: Any, rng: random.Random) -> Any:
    """Return a value in which one inner value is replaced, removed, copied or renamed."""
    changed = deepcopy(value)
    places = list(holders(changed))
    if not places:
        return rng.choice(ODD)
    holder, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 5 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == 1:
        other, of = rng.choice(places)
        holder[key] = deepcopy(other[of]) if of in other or isinstance(other, list) else None
    elif kind == 2:
        holder[key] = [holder[key]]
    else:
        holder[key] = rng.choice(ODD)
    return changed


def holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the place of each inner value: its holder and its key."""
    if not isinstance(value, dict | list):
        return
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from holders(value[key])


def with_bytes_changed(seed: bytes, rng: random.Random) -> bytes:
    """Return bytes of which some are changed, removed, repeated or inserted."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            del data[at : at + rng.choice((1, 4, 64))]
        elif kind == 1:
            data[at:at] = data[max(0, at - 32) : at]
        elif kind == 2:
            data[at:at] = rng.choice((b"\x00", b"\xff", b"*a", b"&a ", b"!!int ", b"{", b"- "))
        elif at < len(data):
            data[at] = rng.randrange(256)
    return bytes(data)


class Hang(BaseException):
    """Reading takes too long; a BaseException, so that no reader treats it as a bad input."""


@contextmanager
def in_time() -> Iterator[None]:
    """Raise Hang if reading takes too long."""

    def late(*_: object) -> None:
        raise Hang(f"longer than {TIMEOUT_S:g} s")

    clocks = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, late) for number in clocks}
    signal.setitimer(signal.ITIMER_PROF, TIMEOUT_S)  # CPU time, because the machine may be busy
    signal.setitimer(signal.ITIMER_REAL, WAITS * TIMEOUT_S)
    try:
        yield
    finally:
        for number, clock in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])


def failure(target: Target, data: bytes) -> str | None:
    """Return how reading an input fails; None: it is read, or refused in one line."""
    with TemporaryDirectory() as folder:
        try:
            with in_time():
                target.read(data, Path(folder))
        except InputError as error:
            return "a line break in an error" if "\n" in f"{error.what}{error.todo}" else None
        except (AnswerError, orjson.JSONDecodeError):
            return None
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # polars panics
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "/stages/" in frame.filename] or frames
            place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
            return f"{type(error).__name__} in {place}: {str(error)[:80]!r}"
    return None


def main(inputs: int, seed: int, only: list[str]) -> int:
    """Read mutated inputs of all kinds, or of some; return 1 if any fails."""
    rng, known, failures = random.Random(seed), targets(), Counter[str]()
    counts, began = Counter[str](), time.monotonic()
    names = [name for name in only or known for _ in range(known[name].share)]
    if "models" not in known:
        sys.stdout.write("no model folders: torch is missing\n")
    for number in range(inputs):
        name = names[number % len(names)]
        data = mutated(rng.choice(known[name].seeds), rng)
        counts[name] += 1
        TRYING.write_bytes(data)  # before it is read, which may end this process
        if failed := failure(known[name], data):
            failures[line := f"{name}: {failed}"] += 1
            if failures[line] == 1:
                path = TRYING.replace(CORPUS / f"{name}-{sha256(data).hexdigest()[:8]}")
                sys.stdout.write(f"{path.name}: {line}\n")
                sys.stdout.flush()
    TRYING.unlink(missing_ok=True)
    seconds = time.monotonic() - began
    summary = f"{failures.total():,} failures of {len(failures)} kinds"
    sys.stdout.write(f"seed {seed}: {inputs:,} inputs in {seconds:.0f} s, {summary}\n")
    sys.stdout.write(", ".join(f"{name} {count:,}" for name, count in counts.items()) + "\n")
    return bool(failures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("inputs", nargs="?", type=int, default=INPUTS)
    parser.add_argument("seed", nargs="?", type=int, default=0)
    parser.add_argument("kinds", nargs="*", help="by default all of them")
    given = parser.parse_args()
    sys.exit(main(given.inputs, given.seed, given.kinds))
