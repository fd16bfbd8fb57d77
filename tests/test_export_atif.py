"""`irc-cli export atif`: trajectories that package `atif` takes and that read back the same."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.exports.atif import trajectory, trial_names
from stages.exports.messages import row_of
from stages.tables.artifacts import ADVANTAGES, TURNS
from stages.tables.table_file import read_table
from stages.traces import Episode, atif, messages, open_trace
from stages.traces.formats import ReadOptions
from tests.conftest import Cli, exit_code
from tests.test_detect import EXAMPLES, example_episodes

Json = dict[str, Any]
SAME = ("gold", "outcome", "status", "policy", "family", "env", "trial", "episode_id")


def call(id: str | None, arguments: Any = '{"a":1}', name: str = "look") -> Json:
    function = {"name": name, "arguments": arguments}
    return {"id": id, "type": "function", "function": function}


def said(content: str | None = None, *calls: Json, **more: Any) -> Json:
    message: Json = {"role": "assistant", "content": content} | more
    return message | ({"tool_calls": list(calls)} if calls else {})


def answer(id: str | None, content: str = "x", **more: Any) -> Json:
    base: Json = {"role": "tool", "content": content} | more
    return base | ({"tool_call_id": id} if id else {})


def episode_of(*talk: Json, **more: Any) -> Episode:
    row = {"task_id": "1", "trial": 0, "outcome": 1.0, "messages": list(talk)} | more
    return messages.reader("t", Counter())(row)


def exported(episode: Episode) -> Json:
    return trajectory(row_of(episode, Counter()), episode.turns, {}, Counter())


def back(document: Json) -> Episode:
    record = orjson.loads(orjson.dumps(document))
    [clean] = atif.translate(record, ReadOptions(), Counter())
    return messages.reader("t", Counter())(clean)


def meant(episode: Episode) -> list[Any]:
    """The turns of an episode; arguments by what they mean."""

    def value(arguments: Any) -> Any:
        try:
            return json.loads(arguments) if isinstance(arguments, str) else arguments
        except ValueError:
            return arguments

    return [
        (t.n_tokens, [(c.name, value(c.arguments), c.result, c.flagged) for c in t.calls])
        for t in episode.turns
    ]


@pytest.mark.parametrize("name", list(EXAMPLES))
def test_episodes_of_any_format_read_back_the_same(tmp_path: Path, name: str) -> None:
    for episode in example_episodes(tmp_path, name):
        again = back(exported(episode))
        assert meant(again) == meant(episode)
        for field in SAME:
            assert getattr(again, field) == getattr(episode, field), field
        assert again.tools == (episode.tools or None)


ODD_CALLS = [
    [said(None, call(None), call(None, name="b")), answer(None, "1", name="b"), answer(None, "2")],
    [said(None, call("c"), call("c", name="b")), answer("c", "1"), answer("c", "2")],
    [said(None, call("c"))],
    [said(None, call("c"), call("d")), answer("d", error=True), answer("c", error=False)],
    [said(None, call("c"), call("d")), answer("d")],
    [said(None, call("c")), answer("c", "1"), said("y", call("c")), answer("c", "2")],
    [said(None, call("c"), call("d")), {"role": "user", "content": "?"}, answer("c"), answer("d")],
    [said(None, call("c", "not JSON")), answer("c")],
    [said(None, call("c", '{"n": NaN}')), answer("c")],
    [said(None, call("c", '{"n": 123456789012345678901234567890}')), answer("c")],
    [said(None, call("c", "[1]")), answer("c")],
    [said(None, call("c", {"a": {"b": []}})), answer("c")],
    [said("", sampled=False), said("done", n_tokens=3)],
    [said('<tool_call>{"name": "look", "arguments": {"a": 1}}</tool_call>'), answer(None)],
    [
        said('<tool_call>{"name": "look", "arguments": {"a": 1}}</tool_call>'),
        {"role": "user", "content": "<tool_response>x</tool_response>"},
    ],
]


@pytest.mark.parametrize("talk", ODD_CALLS)
def test_odd_calls_read_back_the_same(talk: list[Json]) -> None:
    episode = episode_of({"role": "user", "content": "a"}, *talk)
    assert meant(back(exported(episode))) == meant(episode)


def test_calls_of_the_user_read_back_the_same() -> None:
    asked = {"role": "user", "content": None, "tool_calls": [call("u")]}
    heard = answer("u", "on", requestor="user")
    episode = episode_of(said("look"), asked, heard, said("done"))
    again = back(exported(episode))
    assert meant(again) == meant(episode)
    assert [(c.name, c.result) for c in again.user_calls] == [("look", "on")]


def test_tokens_read_back_whole() -> None:
    first = {"prompt_ids": [1, 2], "token_ids": [3], "logprobs": [-0.5], "n_tokens": 1}
    more = {"prompt_ids": [4], "token_ids": [5, 6], "appended": True, "n_tokens": 2}
    document = exported(episode_of(said("a", **first), said("b", **more)))
    metrics = [step["metrics"] for step in document["steps"]]
    assert metrics == [
        {
            "completion_tokens": 1,
            "completion_token_ids": [3],
            "prompt_token_ids": [1, 2],
            "prompt_tokens": 2,
            "logprobs": [-0.5],
        },
        {
            "completion_tokens": 2,
            "completion_token_ids": [5, 6],
            "prompt_token_ids": [1, 2, 3, 4],
            "prompt_tokens": 4,
        },
    ]
    kept = [message["token_ids"] for message in back(document).messages]
    assert kept == [[3], [5, 6]]


@pytest.mark.parametrize(
    ("more", "outcome", "status"),
    [
        ({"outcome": 0.25}, 0.25, "ok"),
        ({"outcome": None}, None, "ok"),
        ({"outcome": 0.0, "status": "truncated"}, 0.0, "truncated"),
        ({"outcome": None, "status": "masked"}, None, "masked"),
        ({"outcome": None, "status": "error", "stop": "Crash"}, None, "error"),
        ({"outcome": 1.0, "rewards": {"a": 1.0, "b": 0.5}}, 1.0, "ok"),
    ],
)
def test_endings_read_back_from_a_job(
    run: Cli, more: Json, outcome: float | None, status: str
) -> None:
    row = {"task_id": "1", "messages": [said("x")]} | more
    Path("a.jsonl").write_text(json.dumps(row))
    assert run("export", "atif", "a.jsonl", "-o", "job").code == 0
    [episode] = open_trace("job")
    assert (episode.outcome, episode.status, episode.stop) == (outcome, status, more.get("stop"))
    assert episode.task_id == "1" and len(episode.turns) == 1


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rollouts, their turns and their advantages."""
    folder = tmp_path_factory.mktemp("played")
    rollouts, turns = folder / "rollouts.jsonl", folder / "turns.parquet"
    play = ["rollout", "--env", "airline-mini", "--policy", "expert", "--noise", "0.24"]
    assert exit_code([*play, "--max-tasks", "3", "--group-size", "8", "-o", str(rollouts)]) == 0
    assert exit_code(["score", str(rollouts), "-o", str(turns), "--quiet"]) == 0
    assert exit_code(["calibrate", str(turns), "-o", str(folder / "c.yaml"), "--quiet"]) == 0
    return folder


def job(run: Cli, folder: Path) -> list[Json]:
    turns, advantages = folder / "turns.parquet", folder / "advantages.parquet"
    given: list[str | Path] = ["--turns", turns, "--advantages", advantages, "-o", "job"]
    ended = run("export", "atif", folder / "rollouts.jsonl", *given)
    assert ended.code == 0, ended.err
    return [
        orjson.loads(path.read_bytes()) for path in sorted(Path("job").rglob("trajectory.json"))
    ]


def test_steps_have_their_tiers_rewards_and_advantages(run: Cli, played: Path) -> None:
    documents = job(run, played)
    turns = read_table(TURNS, str(played / "turns.parquet"))
    advantages = read_table(ADVANTAGES, str(played / "advantages.parquet"))
    known = {(r["episode_id"], r["turn"]): r for r in advantages.iter_rows(named=True)}
    raw = {(r["episode_id"], r["turn"]): r for r in turns.iter_rows(named=True)}
    seen = 0
    for document in documents:
        steps = [step for step in document["steps"] if step["source"] == "agent"]
        for turn, step in enumerate(steps):
            credit, key = step["extra"]["irc_cli"], (document["trajectory_id"], turn)
            assert (credit["turn"], credit["tier"]) == (turn, raw[key]["tier"])
            assert credit["raw_reward"] == raw[key]["reward"]
            for name in ("reward", "advantage", "return_part", "outcome_part"):
                assert credit[name] == known[key][name]
            seen += 1
    assert seen == turns.height > 0


def test_a_job_scores_as_its_traces(run: Cli, played: Path) -> None:
    job(run, played)
    assert run("score", "job", "-o", "back.parquet").code == 0
    first = read_table(TURNS, str(played / "turns.parquet")).drop("source")
    again = read_table(TURNS, "back.parquet").drop("source")
    order = ["episode_id", "turn"]
    assert again.sort(order).equals(first.sort(order))


def test_package_atif_takes_them(run: Cli, played: Path) -> None:
    library = pytest.importorskip("atif", reason="atif is not installed")
    documents = job(run, played)
    documents += [exported(episode_of(*talk)) for talk in ODD_CALLS]
    assert len(documents) == 24 + len(ODD_CALLS)
    for document in documents:
        parsed = library.Trajectory.model_validate(orjson.loads(orjson.dumps(document)))
        assert len(parsed.steps) == document["final_metrics"]["total_steps"]


def test_turns_of_other_traces_are_refused(run: Cli, played: Path, example: Path) -> None:
    turns = played / "turns.parquet"
    code, _, err = run("export", "atif", example, "--turns", turns, "-o", "job")
    assert code == 2 and "has 0 turns of episode" in err and not Path("job").exists()
    code, _, err = run("export", "atif", example, "--advantages", turns, "-o", "job")
    assert (code, err) == (2, "error: --advantages: has no tiers; pass --turns FILE too\n")


def test_a_folder_is_replaced_only_if_it_is_ours(run: Cli, example: Path) -> None:
    assert run("export", "atif", example, "-o", "job").code == 0
    made = orjson.loads(Path("job/irc_cli.meta.json").read_bytes())
    assert made["command"] == "export atif"
    line = "error: job: exists already; pass --force to replace it\n"
    assert run("export", "atif", example, "-o", "job") == (2, b"", line)
    assert run("export", "atif", example, "-o", "job", "--force").code == 0
    Path("mine").mkdir()
    line = "error: mine: exists already; name a folder that does not exist\n"
    assert run("export", "atif", example, "-o", "mine", "--force") == (2, b"", line)
    line = "error: no/job: no directory 'no'; create it first\n"
    assert run("export", "atif", example, "-o", "no/job") == (2, b"", line)


def test_names_of_trials() -> None:
    names = trial_names(["run/a/1", "run/a/1", "RUN/A/1", "..", "", "é/x"])
    assert names == ["run_a_1", "run_a_1-2", "RUN_A_1-3", "trial", "trial-2", "_x"]
