"""The exports with a reward for each turn: verifiers, NeMo Gym, AReaL and SkyRL."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irc_cli.traces import TraceReader
from stages.errors import InputError
from stages.exports.areal import areal
from stages.exports.atif import trajectory
from stages.exports.credits import Earned, check_sum, earned
from stages.exports.messages import row_of
from stages.exports.nemo_gym import rollout
from stages.exports.sequences import paid_sequences
from stages.exports.sequences import tokens_of as tokens_in
from stages.exports.skyrl import skyrl
from stages.exports.verifiers import traced
from stages.tables.artifacts import ADVANTAGES, TOKENS, TURNS
from stages.tables.table_file import read_table, write_table
from stages.traces import Episode, messages, nemo_gym, open_trace, verifiers
from stages.traces.formats import ReadOptions
from tests.builders import Tiered, turn_frame
from tests.conftest import Cli
from tests.test_detect import EXAMPLES, example_episodes
from tests.test_export_atif import ODD_CALLS, episode_of, meant, said

Json = dict[str, Any]
Writer = Callable[[Json, Earned | None, Counter[str]], Json]
WRITERS = {"verifiers": (traced, verifiers), "nemo-gym": (rollout, nemo_gym)}
SAME = ("outcome", "status", "policy")
REWARD = st.floats(-1, 1, allow_subnormal=False)


def gain(*rewards: float, outcome: float = 1.0) -> Earned:
    tiers = [f"tier{number}" for number in range(len(rewards))]
    return Earned(tiers, [r / 2 for r in rewards], list(rewards), math.fsum(rewards), outcome)


def back(name: str, document: Json) -> Episode:
    record = orjson.loads(orjson.dumps(document))
    reader = WRITERS[name][1]
    assert reader.accepts(record)
    [clean] = reader.translate(record, ReadOptions(), Counter())
    return messages.reader("t", Counter())(clean)


def lines(path: str | Path) -> list[Json]:
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def told(episode: Episode) -> list[Any]:
    """The turns of an episode, but for what neither format holds: token counts and flags."""
    return [[call[:3] for call in calls] for _, calls in meant(episode)]


# --- episodes: verifiers and NeMo Gym -------------------------------------------------------------


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("name", list(EXAMPLES))
def test_episodes_of_any_format_read_back_the_same(tmp_path: Path, name: str, writer: str) -> None:
    for episode in example_episodes(tmp_path, name):
        again = back(writer, WRITERS[writer][0](row_of(episode, Counter()), None, Counter()))
        assert told(again) == told(episode)
        assert (again.episode_id, again.task_id) == (episode.episode_id, episode.task)
        if episode.counts and episode.outcome is not None:
            for field in SAME:
                assert getattr(again, field) == getattr(episode, field), field


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize("talk", ODD_CALLS)
def test_odd_calls_read_back_the_same(talk: list[Json], writer: str) -> None:
    episode = episode_of({"role": "user", "content": "a"}, *talk)
    again = back(writer, WRITERS[writer][0](row_of(episode, Counter()), None, Counter()))
    assert told(again) == told(episode)


@pytest.mark.parametrize("writer", list(WRITERS))
@pytest.mark.parametrize(
    ("more", "outcome", "status"),
    [
        ({"outcome": 0.25}, 0.25, "ok"),
        ({"outcome": 0.0, "status": "truncated"}, 0.0, "truncated"),
        ({"outcome": None}, None, "masked"),  # neither format has an episode without a reward
        ({"outcome": None, "status": "masked"}, None, "masked"),
        ({"outcome": None, "status": "error", "stop": "Crash"}, None, "error"),
        ({"outcome": 1.0, "rewards": {"a": 0.75, "b": 0.25}}, 1.0, "ok"),
    ],
)
def test_endings_read_back(writer: str, more: Json, outcome: float | None, status: str) -> None:
    episode = episode_of(said("x"), **more)
    again = back(writer, WRITERS[writer][0](row_of(episode, Counter()), None, Counter()))
    assert (again.outcome, again.status) == (outcome, status)
    if "rewards" in more:
        assert again.rewards == more["rewards"]


@pytest.mark.parametrize("writer", list(WRITERS))
def test_gold_actions_read_back(writer: str) -> None:
    episode = episode_of(said("x"), gold_actions=[{"name": "look", "arguments": {"at": 1}}])
    again = back(writer, WRITERS[writer][0](row_of(episode, Counter()), None, Counter()))
    assert again.gold == episode.gold and again.gold


@given(st.lists(REWARD, min_size=1, max_size=12))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_differences_of_the_scores_are_the_rewards(rewards: list[float]) -> None:
    episode = episode_of(*[said(str(number)) for number in range(len(rewards))])
    document = traced(row_of(episode, Counter()), gain(*rewards), Counter())
    [clean] = verifiers.translate(document, ReadOptions(), Counter())
    scores = clean["turn_rewards"]
    assert [b - a for a, b in pairwise([0.0, *scores])] == pytest.approx(rewards, abs=1e-12)
    ours = document["traces"][0]["info"]["irc_cli"]
    assert ours["rewards"] == rewards
    assert ours["raw_rewards"] == [reward / 2 for reward in rewards]
    assert ours["total"] == pytest.approx(scores[-1], abs=1e-12)


def test_steps_of_nemo_gym_have_their_rewards() -> None:
    episode = episode_of(said("a"), {"role": "user", "content": "b"}, said("c"))
    document = rollout(row_of(episode, Counter()), gain(0.5, -0.25), Counter())
    assert document["step_rewards"] == [0.5, -0.25]
    assert document["reward"] == 1.0
    assert document["irc_cli"] == {
        "tiers": ["tier0", "tier1"],
        "raw_rewards": [0.25, -0.125],
        "total": 0.25,
    }
    [clean] = nemo_gym.translate(document, ReadOptions(), Counter())
    assert clean["turn_rewards"] == [0.5, -0.25]


TOLD: Json = {"prompt_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5], "n_tokens": 1}
MORE: Json = {"prompt_ids": [4], "token_ids": [5, 6], "appended": True, "n_tokens": 2}


def test_tokens_of_a_trace_are_one_sequence() -> None:
    row = row_of(episode_of(said("a", **TOLD), said("b", **MORE)), Counter())
    nodes = traced(row, None, Counter())["traces"][0]["nodes"]
    assert [node["token_ids"] for node in nodes] == [[1, 2, 3], [4, 5, 6]]
    assert [node["mask"] for node in nodes] == [[False, False, True], [False, True, True]]
    assert nodes[0]["logprobs"] == [-0.5] and "logprobs" not in nodes[1]
    notes = Counter[str]()
    row = row_of(episode_of(said("a", **TOLD), said("b", **MORE | {"appended": False})), notes)
    nodes = traced(row, None, notes)["traces"][0]["nodes"]
    assert not any("token_ids" in node for node in nodes)
    assert notes == {"tokens that are not one sequence, which a trace can't hold: left out": 1}


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_package_verifiers_takes_traces(tmp_path: Path, name: str) -> None:
    package = pytest.importorskip("verifiers.v1.episode", reason="verifiers is not installed")
    for episode in example_episodes(tmp_path, name):
        gains = gain(*[0.5] * len(episode.turns)) if episode.turns else None
        line = orjson.dumps(traced(row_of(episode, Counter()), gains, Counter()))
        read = package.WireEpisode.model_validate_json(line)
        [trace] = read.traces
        assert sum(node.sampled for node in trace.nodes) == len(episode.turns)
        if gains:
            assert len(trace.info["turn_rewards"]) == len(episode.turns)
        if episode.outcome is not None and episode.status != "masked":
            assert trace.reward == pytest.approx(episode.outcome)


@pytest.mark.parametrize("writer", list(WRITERS))
def test_rewards_of_other_turns_are_refused(writer: str) -> None:
    row = row_of(episode_of(said("a"), episode_id="e"), Counter())
    holder = {"verifiers": "trace", "nemo-gym": "rollout"}[writer]
    what = f"has 2 turns, of which a {holder} can tell 1; export its messages"
    with pytest.raises(InputError, match="^episode 'e': " + what + "$"):
        WRITERS[writer][0](row, gain(1, 2), Counter())


@pytest.mark.parametrize("writer", list(WRITERS))
def test_rewards_written_are_those_inspected(
    run: Cli, example: Path, turns: Path, calibration: Path, writer: str
) -> None:
    advantages = calibration.with_name("advantages.parquet")
    given_files = ("--turns", turns, "--advantages", advantages)
    ended = run("export", writer, example, *given_files, "-o", "o.jsonl", "--json")
    assert ended.code == 0, ended.err
    assert {"episodes": 195, "turns_with_reward": 887}.items() <= ended.json().items()
    frame = read_table(ADVANTAGES, str(advantages))
    known = dict(frame.group_by("episode_id").agg("reward").iter_rows())
    seen = 0
    for row in lines("o.jsonl"):
        if writer == "verifiers":
            name, rewards = row["id"], row["traces"][0]["info"].get("irc_cli", {}).get("rewards")
        else:
            name, rewards = row["_ng_rollout_id"], row.get("step_rewards")
        assert rewards == known.get(name)
        seen += len(rewards or [])
    assert seen == frame.height == 887
    first, again = list(open_trace(str(example))), list(open_trace("o.jsonl"))
    assert [e.outcome for e in again if e.counts] == [e.outcome for e in first if e.counts]
    inputs = orjson.loads(Path("o.meta.json").read_bytes())["inputs"]
    assert [file["path"] for file in inputs] == [str(example), str(turns), str(advantages)]


def test_turns_of_other_traces_are_refused(run: Cli, turns: Path) -> None:
    Path("a.jsonl").write_bytes(
        orjson.dumps({"task_id": "1", "outcome": 1, "messages": [said("x")]})
    )
    ended = run("export", "verifiers", "a.jsonl", "--turns", turns, "-o", "o.jsonl")
    assert ended.code == 2 and not Path("o.jsonl").exists()
    assert ended.err == (
        f"error: {turns}: has 0 turns of episode 'a:1:0', which has 1; rerun irc-cli score on "
        "these traces\n"
    )


@pytest.mark.parametrize("name", WRITERS)
def test_an_export_appears_together_with_its_bad_lines(
    run: Cli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise InputError("a.jsonl.bad.jsonl", "can't be written", "free space")

    talk = {"task_id": "1", "outcome": 1, "messages": [said("x")]}
    Path("a.jsonl").write_bytes(orjson.dumps(talk))
    assert run("score", "a.jsonl", "-o", "t.parquet").code == 0
    monkeypatch.setattr(TraceReader, "write_bad", full)
    assert run("export", name, "a.jsonl", "--turns", "t.parquet", "-o", "o.jsonl").code == 2
    assert not Path("o.jsonl").exists()


# --- sequences: AReaL and SkyRL -------------------------------------------------------------------


def tokens_of(name: str, *turns: tuple[int, list[int], list[int], bool]) -> pl.DataFrame:
    """TOKENS of an episode: number, prompt, what was written, and whether it goes on."""
    rows = [
        {"episode_id": name, "turn": turn, "appended": goes_on, "prompt_ids": prompt}
        | {"token_ids": ids, "logprobs": [-0.5] * len(ids)}
        for turn, prompt, ids, goes_on in turns
    ]
    return TOKENS.frame({name: [row[name] for row in rows] for name in TOKENS.columns})


WHOLE = tokens_of("e", (0, [1, 2], [3], False), (1, [4], [5, 6], True), (2, [7], [8, 9], True))
CUT = tokens_of("e", (0, [1, 2], [3], False), (1, [4], [5, 6], False), (2, [7], [8, 9], True))


def test_rows_of_areal() -> None:
    [paid] = paid_sequences(WHOLE, {"e": gain(0.5, -0.25, 0.125)}, "r.jsonl")
    assert areal(paid, "g") == {
        "episode_id": "e",
        "group_id": "g",
        "input_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9],
        "attention_mask": [True] * 9,
        "loss_mask": [0, 0, 1, 0, 1, 1, 0, 1, 1],
        "turn_ids": [-1, -1, 0, -1, 1, 1, -1, 2, 2],
        "rewards": 1.375,
        "turn_rewards": [0.5, -0.25, 1.125],
        "original_rewards": 1.0,
        "raw_turn_rewards": [0.25, -0.125, 1.0625],
        "logprobs": [0, 0, -0.5, 0, -0.5, -0.5, 0, -0.5, -0.5],
    }


def test_rows_of_skyrl() -> None:
    [paid] = paid_sequences(WHOLE, {"e": gain(0.5, -0.25, 0.125)}, "r.jsonl")
    assert skyrl(paid, "g", 3, truncated=True) == {
        "prompt_token_ids": [1, 2],
        "response_ids": [3, 4, 5, 6, 7, 8, 9],
        "rewards": [0.5, 0, 0, -0.25, 0, 0, 1.125],
        "loss_masks": [1, 0, 1, 1, 0, 1, 1],
        "stop_reasons": "length",
        "rollout_logprobs": [-0.5, 0, -0.5, -0.5, 0, -0.5, -0.5],
        "trajectory_ids": {"instance_id": "g", "repetition_id": 3},
        "is_last_step": True,
        "raw_rewards": [0.25, 0, 0, -0.125, 0, 0, 1.0625],
    }


def test_a_rewritten_prompt_begins_another_row() -> None:
    first, second = paid_sequences(CUT, {"e": gain(0.5, -0.25, 0.125)}, "r.jsonl")
    assert [areal(part, "g")["turn_rewards"] for part in (first, second)] == [[0.5], [-0.25, 1.125]]
    assert areal(second, "g")["turn_ids"] == [-1, 0, 0, -1, 1, 1]
    steps = [skyrl(part, "g", 0, truncated=False) for part in (first, second)]
    assert [step["is_last_step"] for step in steps] == [False, True]
    assert steps[1]["rewards"] == [0, -0.25, 0, 0, 1.125]


@given(st.lists(st.tuples(REWARD, st.integers(1, 3), st.booleans()), min_size=1, max_size=9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_rewards_of_tokens_add_up(turns: list[tuple[float, int, bool]]) -> None:
    told = [
        (number, [1], [2] * size, goes_on and number > 0)
        for number, (_, size, goes_on) in enumerate(turns)
    ]
    gains = {"e": gain(*[reward for reward, _, _ in turns], outcome=0.5)}
    parts = paid_sequences(tokens_of("e", *told), gains, "r.jsonl")
    claimed = gains["e"].total + 0.5
    by_token = [skyrl(part, "g", 0, truncated=False) for part in parts]
    by_turn = [areal(part, "g") for part in parts]
    assert math.fsum(r for row in by_token for r in row["rewards"]) == pytest.approx(claimed)
    assert math.fsum(row["rewards"] for row in by_turn) == pytest.approx(claimed)
    for row, sequence in zip(by_token, by_turn, strict=True):
        assert len(row["rewards"]) == len(row["response_ids"]) == len(row["loss_masks"])
        assert [r for r, m in zip(row["rewards"], row["loss_masks"], strict=True) if not m].count(
            0
        ) == row["loss_masks"].count(0)
        assert sequence["rewards"] == pytest.approx(math.fsum(sequence["turn_rewards"]))
        assert max(sequence["turn_ids"]) + 1 == len(sequence["turn_rewards"])


def test_unknown_logprobs_are_left_out() -> None:
    unknown = WHOLE.with_columns(logprobs=pl.lit(None, dtype=TOKENS.columns["logprobs"]))
    [paid] = paid_sequences(unknown, {"e": gain(0, 0, 0)}, "r.jsonl")
    assert "logprobs" not in areal(paid, "g")
    assert skyrl(paid, "g", 0, truncated=False)["rollout_logprobs"] is None


@pytest.mark.parametrize(
    ("tokens", "rewards", "line"),
    [
        (
            WHOLE.filter(pl.col("turn") != 1),
            3,
            "r.jsonl: turn 1 of episode 'e' has no tokens to be paid at; play it with an engine "
            "that tells what it sampled",
        ),
        (
            WHOLE,
            2,
            "r.jsonl: turn 2 of episode 'e' was not scored; rerun irc-cli score on these rollouts",
        ),
    ],
)
def test_turns_without_tokens_or_rewards(tokens: pl.DataFrame, rewards: int, line: str) -> None:
    with pytest.raises(InputError) as caught:
        paid_sequences(tokens, {"e": gain(*[0.5] * rewards)}, "r.jsonl")
    assert str(caught.value) == line


def test_a_sum_that_is_not_the_claimed_one() -> None:
    check_sum([0.1] * 10, 1.0, "e")
    with pytest.raises(InputError) as caught:
        check_sum([0.5, 0.25], 1.0, "e")
    assert str(caught.value) == (
        "episode 'e': its rewards add up to 0.75 as written, not to 1; leave it out, or report "
        "this as a bug"
    )


@pytest.fixture
def played(run: Cli) -> tuple[str, ...]:
    """A group of two episodes, two turns each, and a third that has no outcome."""
    names = ("good", "bad", "unknown")
    rows = [
        {"episode_id": name, "group_id": "g", "status": "ok", "messages": []}
        | {"sampling": {"temperature": 1.0}, "tokens_recorded": True}
        for name in names
    ]
    Path("r.jsonl").write_bytes(b"\n".join(orjson.dumps(row) for row in rows))
    told = [tokens_of(name, (0, [1], [3], False), (1, [2], [4], True)) for name in names]
    write_table(TOKENS, pl.concat(told), "r.tokens.parquet", {}, force=True)
    tiered = [Tiered("g", 1.0, ["gold_write"] * 2), Tiered("g", 0.0, ["error"] * 2)]
    frame = turn_frame(tiered, {"gold_write": 1.0, "error": -0.1})
    names_of = {"e0": "good", "e1": "bad"}
    frame = frame.with_columns(pl.col("episode_id").replace(names_of))
    write_table(TURNS, frame, "t.parquet", {}, force=True)
    return ("r.jsonl", "--turns", "t.parquet")


@pytest.mark.parametrize("name", ["areal", "skyrl"])
def test_sequences_are_written(run: Cli, played: tuple[str, ...], name: str) -> None:
    ended = run("export", name, *played, "-o", "o.jsonl", "--json")
    notes = {"left out, no reward in the turns": 1}
    assert ended.json() == {"rows": 2, "episodes": 2, "notes": notes}
    rewards = [row["rewards"] for row in lines("o.jsonl")]
    sums = rewards if name == "areal" else [math.fsum(several) for several in rewards]
    assert sums == pytest.approx([3.0, -0.2])
    assert run("calibrate", "t.parquet", "-o", "c.yaml", "--quiet").code == 0
    inspected = (*played, "--advantages", "advantages.parquet", "-o", "o.jsonl", "--force")
    assert run("export", name, *inspected).code == 0
    table = read_table(ADVANTAGES, "advantages.parquet")
    shaped = table.filter(pl.col("episode_id") == "good")["reward"].sum()
    [row, _] = lines("o.jsonl")
    total = row["rewards"] if name == "areal" else math.fsum(row["rewards"])
    assert total == pytest.approx(shaped + 1)
    made = orjson.loads(Path("o.meta.json").read_bytes())["inputs"]
    assert [file["path"] for file in made] == [
        *("r.jsonl", "t.parquet", "advantages.parquet", "r.tokens.parquet")
    ]


def test_sequences_of_other_turns_are_refused(
    run: Cli, played: tuple[str, ...], turns: Path
) -> None:
    ended = run("export", "areal", "r.jsonl", "--turns", turns)
    line = f"error: {turns}: has no turns of the episodes of r.jsonl; rerun irc-cli score r.jsonl\n"
    assert (ended.code, ended.err) == (2, line)
    Path("r.jsonl").write_bytes(
        Path("r.jsonl").read_bytes().replace(b'"tokens_recorded":true', b'"tokens_recorded":false')
    )
    ended = run("export", "skyrl", *played)
    line = "error: r.jsonl: 3 of 3 episodes have no recorded tokens; play them with an engine that "
    assert (ended.code, ended.err) == (2, line + "tells what it sampled\n")


def with_tokens(*, prompts: bool = True) -> Episode:
    """An episode of two turns; the prompt of the second goes on where the first ended."""
    asked = {"role": "user", "content": "a"}
    first = said("b") | {"token_ids": [3, 4], "logprobs": [-0.5, -0.25]}
    second = said("d") | {"token_ids": [6], "logprobs": [-1.5], "appended": True}
    if prompts:
        first, second = first | {"prompt_ids": [1, 2]}, second | {"prompt_ids": [5]}
    return episode_of(asked, first, {"role": "user", "content": "c"}, second)


@pytest.mark.parametrize("name", ["verifiers", "atif"])
@pytest.mark.parametrize("export", ["areal", "skyrl"])
def test_traces_of_other_formats_bring_their_tokens(run: Cli, name: str, export: str) -> None:
    row = row_of(with_tokens(), Counter())
    made = (
        traced(row, None, Counter()) if name == "verifiers" else trajectory(row, (), {}, Counter())
    )
    Path("t.jsonl").write_bytes(orjson.dumps(made) + b"\n")
    assert run("score", "t.jsonl", "-o", "t.parquet", "--quiet").code == 0
    ended = run("export", export, "t.jsonl", "--turns", "t.parquet", "-o", "o.jsonl", "--json")
    assert (ended.code, ended.json()["rows"]) == (0, 1)
    [row] = lines("o.jsonl")
    ids = row["input_ids"] if export == "areal" else row["prompt_token_ids"] + row["response_ids"]
    assert ids == [1, 2, 3, 4, 5, 6]
    mask = row["loss_mask"] if export == "areal" else [0, 0, *row["loss_masks"]]
    assert mask == [0, 0, 1, 1, 0, 1]


def test_a_prompt_that_begins_with_all_before_goes_on() -> None:
    whole = with_tokens()
    *_, second = whole.messages
    second |= {"prompt_ids": [1, 2, 3, 4, 5], "appended": False}
    assert tokens_in([whole], "t").equals(tokens_in([with_tokens()], "t"))
    second["prompt_ids"] = [9, 5]
    assert tokens_in([whole], "t")["appended"].to_list() == [False, False]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"token_ids": None},
            "1 of 1 episodes have no recorded tokens; play them with an engine that tells what it "
            "sampled",
        ),
        (
            {"token_ids": ["x", "y"]},
            "turn 0 of episode 'e' has invalid token ids; give the file as it was written",
        ),
        (
            {"token_ids": [1], "logprobs": [0.5]},
            "turn 0 of episode 'e' has an invalid logprob; find out what the engine recorded: "
            "want finite and <= 0",
        ),
    ],
)
def test_traces_without_tokens_are_refused(run: Cli, change: Json, what: str) -> None:
    messages = [{"role": "user", "content": "a"}, said("b") | {"prompt_ids": [1]} | change]
    record = {"episode_id": "e", "task_id": "e", "outcome": 1, "messages": messages}
    Path("t.jsonl").write_bytes(orjson.dumps(record) + b"\n")
    assert run("score", "t.jsonl", "-o", "t.parquet", "--quiet").code == 0
    ended = run("export", "areal", "t.jsonl", "--turns", "t.parquet", "-o", "o.jsonl")
    assert (ended.code, ended.err) == (2, f"error: t.jsonl: {what}\n")


def test_rewards_are_those_of_the_turns_without_advantages(run: Cli) -> None:
    frame = turn_frame([Tiered("g", 0.5, ["a", "b"])], {"a": 0.5, "b": -0.25})
    assert earned(frame, None) == {"e0": Earned(["a", "b"], [0.5, -0.25], [0.5, -0.25], 0.25, 0.5)}
