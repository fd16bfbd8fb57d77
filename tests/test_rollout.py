"""Playing episodes, and the command that does."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irc_cli import rollout as command
from stages.core.seeds import derived_seed
from stages.envs.env import Task, User, UserError
from stages.errors import InputError
from stages.messages.message import Message
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.rollout import Config, Played, plan, token_rows
from stages.traces import open_trace
from tests.conftest import Cli
from tests.till import SAYS, Adder, Till, TillSession, TillUser, play

ROLLOUT = ("rollout", "--env", "airline-mini", "--policy", "expert", "--split", "dev")
FILES = ("r.jsonl", "r.meta.json", "r.timing.jsonl", "r.tokens.parquet")


class Fails(Adder):
    """Raises at its second message."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def answer(self, messages: Sequence[Message], seed: int) -> Action:
        if len(messages) > 1:
            raise self.error
        return super().answer(messages, seed)


class MuteUser(TillUser):
    def reply(self, agent: str, history: Sequence[Message]) -> str:
        raise UserError("lost its voice")


def rows(path: str | Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in Path(path).read_bytes().splitlines()]


def by_task(played: list[Played]) -> dict[str, Played]:
    return {one.row["task_id"]: one for one in played}


def test_an_episode_is_played_to_its_end() -> None:
    (row,) = [one.row for one in play(Adder()) if one.row["episode_id"] == "run/t2/3"]
    roles = [message["role"] for message in row["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert (row["status"], row["ended"], row["outcome"]) == ("ok", "done", 1.0)
    assert (row["task_id"], row["trial"], row["group_id"]) == ("t2", 3, "run/t2")
    assert [m["n_tokens"] for m in row["messages"] if m["role"] == "assistant"] == [2, 2, 2]
    assert row["tokens_recorded"]
    assert row["tools"][0]["function"]["x-kind"] == "write"  # the domain does not ship


def test_policies_do_not_see_the_kinds_of_tools() -> None:
    seen: list[dict[str, Any]] = []

    class Looks(Adder):
        async def act(self, *args: Any, **named: Any) -> Action:
            seen.extend(args[2])
            return await super().act(*args, **named)

    play(Looks())
    assert seen
    assert all("x-kind" not in tool["function"] for tool in seen)


def test_at_most_so_many_episodes_are_live() -> None:
    policy = Adder(pause_s=0.001)
    assert len(play(policy, concurrency=3)) == 12
    assert policy.most_live == 3


def test_max_turns_cut_an_episode_and_the_world_judges_it() -> None:
    found = by_task(play(Adder(), config=Config(group_size=1, max_turns=2)))
    endings = {name: (one.row["status"], one.row["ended"]) for name, one in found.items()}
    assert endings == {
        "t0": ("ok", "done"),
        "t1": ("ok", "done"),
        "t2": ("truncated", "max-turns"),
    }
    assert found["t2"].row["outcome"] == 1.0  # it had done it all, and not yet said so


@pytest.mark.parametrize(
    ("error", "status", "ended", "outcome"),
    [
        (ContextOverflowError(), "truncated", "context", 0.0),
        (PolicyError("out of memory"), "error", "policy: out of memory", None),
    ],
)
def test_failures_of_the_policy(
    error: Exception, status: str, ended: str, outcome: float | None
) -> None:
    row = by_task(play(Fails(error), config=Config(group_size=1)))["t2"].row
    assert (row["status"], row["ended"], row["outcome"]) == (status, ended, outcome)
    assert len(row["messages"]) == 3  # what there was is kept


def test_failures_of_the_user_are_no_zero() -> None:
    played = play(Adder(), new_user=lambda task, seed: MuteUser(int(task.scenario)))
    assert {one.row["status"] for one in played} == {"error"}
    assert {one.row["ended"] for one in played} == {"user: lost its voice"}
    assert {one.row["outcome"] for one in played} == {None}


def test_a_user_who_cannot_even_begin() -> None:
    class Silent(TillUser):
        def open(self) -> str:
            raise UserError("no line")

    played = play(Adder(), new_user=lambda task, seed: Silent(0))
    assert all(one.row["status"] == "error" and one.row["messages"] == [] for one in played)
    assert not any(one.row["tokens_recorded"] for one in played)


def test_users_wait_side_by_side() -> None:
    together = threading.Barrier(12, timeout=10)

    class Slow(TillUser):
        def reply(self, agent: str, history: Sequence[Message]) -> str:
            together.wait()  # all twelve are here at once, or this breaks
            return super().reply(agent, history)

    new_user = lambda task, seed: Slow(int(task.scenario))  # noqa: E731 - the shape of a factory
    played = play(Adder(), new_user=new_user, concurrency=12)
    assert [one.row["status"] for one in played] == ["ok"] * 12


def test_bad_input_ends_the_run() -> None:
    class Refuses(Till):
        def reset(self, task: Task, seed: int, user: User | None = None) -> TillSession:
            raise InputError("till", "has no scripted user", "choose the user 'llm'")

    with pytest.raises(InputError, match="no scripted user"):
        play(Adder(), Refuses())


def test_unknown_tokens_are_marked() -> None:
    class Forgets(Adder):
        def answer(self, messages: Sequence[Message], seed: int) -> Action:
            action = super().answer(messages, seed)
            return Action(SAYS, n_tokens=5) if action.message == SAYS else action

    one = by_task(play(Forgets()))["t1"]
    assert not one.row["tokens_recorded"]
    assert [row["turn"] for row in one.tokens] == [0]
    assert one.row["messages"][-1]["n_tokens"] == 5


def test_a_message_cut_at_max_tokens_says_so() -> None:
    class Cut(Adder):
        def answer(self, messages: Sequence[Message], seed: int) -> Action:
            return Action(SAYS, finish="length")

    assert play(Cut())[0].row["messages"][-1]["finish"] == "length"


IDS = st.lists(st.integers(0, 3), max_size=4)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.tuples(IDS, IDS, st.booleans()), max_size=6))
def test_token_rows_give_back_every_prompt(turns: list[tuple[list[int], list[int], bool]]) -> None:
    """Each turn adds to the one before, or, as a template may, begins anew."""
    end: list[int] = []
    actions = []
    for added, sampled, anew in turns:
        prompt = added if anew else end + added
        actions.append(Action(SAYS, prompt, sampled))
        end = prompt + sampled
    end = []
    for action, row in zip(actions, token_rows("e", actions), strict=True):
        prompt = (end if row["appended"] else []) + row["prompt_ids"]
        assert prompt == action.prompt_ids
        end = prompt + row["token_ids"]


def test_appended_prompts_are_stored_once() -> None:
    actions = [Action(SAYS, [1, 2], [3]), Action(SAYS, [1, 2, 3, 4], [5]), Action(SAYS, [9], [1])]
    found = [(row["appended"], row["prompt_ids"]) for row in token_rows("e", actions)]
    assert found == [(False, [1, 2]), (True, [4]), (False, [9])]


def test_derived_seeds_differ_and_fit_json() -> None:
    seeds = {
        derived_seed(seed, task, trial) for seed in range(5) for task in "ab" for trial in (0, 1)
    }
    assert len(seeds) == 20
    assert max(seeds) < 2**53
    assert derived_seed(1, "2") != derived_seed("1", 2)


def test_the_plan_is_ordered_by_task_and_trial() -> None:
    keys = [pair.key for pair in plan(Till(2).tasks("train"), 2)]
    assert keys == [("t0", 0), ("t0", 1), ("t1", 0), ("t1", 1)]


# The command.


def test_the_expert_plays_and_score_reads_it(run: Cli) -> None:
    assert run(*ROLLOUT, "--max-tasks", "5", "-o", "r.jsonl").code == 0
    assert sorted(path.name for path in Path().iterdir()) == sorted(FILES)
    found = rows("r.jsonl")
    assert [(row["task_id"], row["trial"]) for row in found[:5]] == [
        (found[0]["task_id"], trial) for trial in range(4)
    ] + [(found[4]["task_id"], 0)]
    assert {row["outcome"] for row in found} == {1.0}
    assert {row["domain"] for row in found} == {"airline-mini"}
    assert "tools" not in found[0]
    assert len(list(open_trace("r.jsonl"))) == 20
    scored = run("score", "r.jsonl", "--json").json()
    assert scored["episodes"] == 20
    assert scored["notes"] == {}


def test_same_seed_same_bytes_whatever_the_concurrency(
    run: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_policy", lambda name, options: Adder(0.0005))
    monkeypatch.setattr(command, "open_env", lambda name: Till(6))
    made = []
    for concurrency in ("1", "7"):
        args = ("--concurrency", concurrency, "-o", "r.jsonl", "--force")
        assert run(*ROLLOUT, *args).code == 0
        made.append([Path(name).read_bytes() for name in ("r.jsonl", "r.tokens.parquet")])
    assert made[0] == made[1]
    other = run(*ROLLOUT, "--seed", "1", "-o", "other.jsonl")
    assert other.code == 0
    ids = {row["episode_id"] for row in rows("r.jsonl")}
    assert ids.isdisjoint(row["episode_id"] for row in rows("other.jsonl"))
    tokens = pl.read_parquet("r.tokens.parquet")
    assert tokens.height == sum(len(row["messages"]) // 2 for row in rows("r.jsonl"))


def test_json_is_one_document(run: Cli) -> None:
    found = run(*ROLLOUT, "--max-tasks", "2", "--json")
    document = found.json()
    assert found.err == ""
    assert document.pop("seconds") > 0
    assert document.pop("turns") > 8
    assert document == {
        "episodes": 8,
        "status": {"ok": 8, "truncated": 0, "error": 0},
        "pass_rate": 1.0,
        "tokens": None,
        "restarts": 0,
        "failures": {},
        "notes": {},
    }
    assert list(Path().iterdir()) == []


def test_dry_run_shows_the_plan_and_writes_nothing(run: Cli) -> None:
    args = (*ROLLOUT, "--max-tasks", "3", "--group-size", "2", "--max-turns", "10", "--dry-run")
    shown = run(*args, "-o", "r.jsonl")
    assert shown.code == 0
    assert shown.out.decode().splitlines()[:2] == [
        "3 tasks x 2 = 6 episodes",
        "at most 60 turns and 30,720 tokens",
    ]
    document = run(*args, "--json").json()
    assert (document["tasks"], document["episodes"], document["most_turns"]) == (3, 6, 60)
    assert list(Path().iterdir()) == []


def test_episodes_to_standard_output(run: Cli) -> None:
    found = run(*ROLLOUT, "--max-tasks", "1", "-o", "-")
    assert len(found.out.splitlines()) == 4
    assert "4 episodes (4 ok)" in found.err
    assert list(Path().iterdir()) == []


def test_replay_plays_the_same_messages_again(run: Cli) -> None:
    noisy = (*ROLLOUT, "--noise", "0.3", "--max-tasks", "8")
    assert run(*noisy, "-o", "r.jsonl").code == 0
    again = ("rollout", "--env", "airline-mini", "--split", "dev", "--max-tasks", "8")
    recording = ("--policy", "replay", "--recording", "r.jsonl")
    assert run(*again, *recording, "-o", "again.jsonl").code == 0
    for one, two in zip(rows("r.jsonl"), rows("again.jsonl"), strict=True):
        assert one["messages"] == two["messages"]
        assert (one["status"], one["outcome"]) == (two["status"], two["outcome"])
    assert orjson.loads(Path("again.meta.json").read_bytes())["inputs"][0]["path"] == "r.jsonl"


def test_replay_of_what_was_not_recorded_is_an_error(run: Cli) -> None:
    assert run(*ROLLOUT, "--max-tasks", "1", "--group-size", "1", "-o", "r.jsonl").code == 0
    again = ("rollout", "--env", "airline-mini", "--split", "dev", "--max-tasks", "1")
    found = run(
        *again, "--group-size", "2", "--policy", "replay", "--recording", "r.jsonl", "--json"
    )
    document = found.json()
    assert document["status"] == {"ok": 1, "truncated": 0, "error": 1}
    assert document["failures"] == {"policy: no such episode in r.jsonl": 1}


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--tasks", "dev-bag-0"), "--tasks: no task 'dev-bag-0' in split 'dev' of airline-mini; "),
        (("--split", "base"), "airline-mini: no split 'base'; use "),
        (
            ("--env", "mars", "--policy", "openai"),
            "--env: no environment 'mars'; use 'airline-mini' or ",
        ),
        (("--env", "tau2-retail"), "--policy: the expert does not know tau2-retail; choose an"),
        (
            ("--policy", "mars"),
            "--policy: unknown value 'mars'; use expert | refuse | hand-off | repl",
        ),
        (("--user", "mars"), "--user: unknown value 'mars'; use scripted | llm"),
        (("--user", "llm"), "--user-model: missing; give the model that plays the user"),
        (("--policy", "replay"), "--recording: missing; give a rollouts file"),
        (("--policy", "openai"), "--model: missing; give the name that the servers know"),
        (("--resume",), "--resume: there is no file to resume; give '-o FILE'"),
        (("--user-cost", "1"), "--user-cost: what a token costs is unknown; give '--user-price "),
        (("--user-price", "1"), "--user-price: '1' is no price; give IN/OUT, such as 0.15/0.6"),
        (("-o", "-", "--json"), "--json: standard output is taken by '-o -'; use one of them"),
        (("-o", "r", "--resume", "--force"), "--resume: '--force' would start over; give one"),
    ],
)
def test_wrong_use(run: Cli, args: tuple[str, ...], line: str) -> None:
    found = run(*ROLLOUT, *args)
    assert found.code == 2
    assert found.err.startswith(f"error: {line}")
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("policy", ["transformers", "vllm"])
def test_without_the_package(run: Cli, monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    monkeypatch.delitem(sys.modules, f"stages.policies.{policy}_policy", raising=False)
    for package in ("torch", "transformers", "vllm"):
        monkeypatch.setitem(sys.modules, package, None)
    found = run(*ROLLOUT[:4], policy, "--model", "tiny")
    assert found.code == 2
    assert found.err.startswith(f"error: --policy {policy}: needs the package '")
    assert found.err.endswith(f"'; pip install 'irc-cli[{policy}]'\n")


def test_a_local_user_without_the_package(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "stages.policies.transformers_policy", raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    Path("tiny").mkdir()
    found = run(*ROLLOUT, "--user", "llm", "--user-model", "tiny")
    line = "error: tiny: needs the package 'torch'; pip install 'irc-cli[transformers]'\n"
    assert (found.code, found.err) == (2, line)


def test_a_terminal_shows_how_it_goes(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "open_policy", lambda name, options: Adder(0.001))
    monkeypatch.setattr(command, "open_env", lambda name: Till())
    quiet = run(*ROLLOUT, "-o", "-").err
    assert "━" not in quiet
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = re.sub(r"\x1b\[[0-9;?]*\w", "", run(*ROLLOUT, "-o", "-").err)  # without colours
    assert "━" in shown
    assert "12/12 pass rate 100.0%, " in shown
    assert "tokens/s, 0 errors" in shown


def test_a_broken_recording(run: Cli) -> None:
    Path("r.jsonl").write_text('{"task_id": "t"}\n')
    found = run(*ROLLOUT, "--policy", "replay", "--recording", "r.jsonl")
    assert found.err == "error: r.jsonl:1: not an episode; give a rollouts file\n"


def test_an_existing_output_is_kept(run: Cli) -> None:
    Path("r.jsonl").write_text("mine")
    found = run(*ROLLOUT, "-o", "r.jsonl")
    assert found.err == "error: r.jsonl: exists already; pass --force to replace it\n"
    assert Path("r.jsonl").read_text() == "mine"


def test_the_sampling_reaches_the_policy(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sampling] = []

    class Looks(Adder):
        async def act(self, *args: Any, **named: Any) -> Action:
            seen.append(args[3])
            return await super().act(*args, **named)

    policy = Looks()
    monkeypatch.setattr(command, "open_policy", lambda name, options: policy)
    monkeypatch.setattr(command, "open_env", lambda name: Till())
    args = ("--temperature", "0.5", "--top-p", "0.9", "--max-tokens", "7")
    assert run(*ROLLOUT, *args, "--json").json()["tokens"] == 4 * 2 * (1 + 2 + 3)
    assert set(seen) == {Sampling(0.5, 0.9, 7)}
    assert policy.closed
