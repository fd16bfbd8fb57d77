"""The policy behind a server, and servers at their worst."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
import polars as pl
import pytest

from stages.envs.registry import open_env
from stages.errors import InputError
from stages.policies.openai_policy import OpenAIPolicy, action_of, sendable
from stages.policies.policy import Action
from stages.rollout import Config, Played, Run, plan, rollout
from stages.training.tiny_model import END, SCAFFOLD, tiny_tokenizer
from tests.conftest import Cli
from tests.mock_openai import Body, MockServer, Reply, calls, completion, fails, says
from tests.till import Till

pytest.importorskip("openai", reason="the extra [openai] is not installed")

TIMEOUT_S = 30.0  # never reached on a busy machine, either,
SLOW = {"hangs": 1.0, "drips": 1.0}  # but by these faults
RETRIES = 2
EPISODES = 6  # 3 tasks x 2


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def play(
    *servers: MockServer,
    tokenizer: Any = None,
    environment: Any = None,
    max_turns: int = 5,
    group_size: int = 2,
    timeout_s: float = TIMEOUT_S,
) -> list[Played]:
    """All episodes of a run with the servers."""

    async def played() -> list[Played]:
        urls = [server.base_url for server in servers]
        policy = OpenAIPolicy("tiny", urls, timeout_s, RETRIES, 0.01, tokenizer)
        config = Config(group_size=group_size, max_turns=max_turns)
        run = Run("run", environment or Till(), policy, config, "tiny")
        pairs = plan(run.environment.tasks("train")[:3], group_size)
        try:
            return [one async for one in rollout(run, pairs, 32)]
        finally:
            await policy.close()

    return asyncio.run(played())


def good(body: Body, number: int = 0) -> Reply:
    """Plays the till to its end."""
    wanted = int(body["messages"][0]["content"].removeprefix("Make it ").removesuffix("."))
    added = sum(message["role"] == "tool" for message in body["messages"])
    prompt = list(range(100 + 2 * added))
    more: Body = {"prompt_token_ids": prompt, "token_ids": [100 + 2 * added, 101 + 2 * added]}
    more["logprobs"] = {"content": [{"logprob": -0.5}, {"logprob": -0.25}]}
    return calls("add", "{}", **more) if added < wanted else says("Done.", **more)


def statuses(played: Sequence[Played]) -> dict[str, int]:
    return dict(Counter(one.row["status"] for one in played))


def test_a_good_server() -> None:
    with MockServer(good) as server:
        played = play(server)
    assert {one.row["outcome"] for one in played} == {1.0}
    assert len(server.requests) == sum(len(one.timing["turn_seconds"]) for one in played) == 12
    body = server.requests[0]
    assert (body["model"], body["temperature"], body["top_p"]) == ("tiny", 1.0, 1.0)
    assert body["max_tokens"] == 512
    assert body["logprobs"] is body["return_token_ids"] is True
    assert "x-kind" not in body["tools"][0]["function"]
    assert len({body["seed"] for body in server.requests}) == 12
    turns = {quote(one.row["episode_id"]): len(one.timing["turn_seconds"]) for one in played}
    assert Counter(server.sessions) == turns


def test_token_ids_and_logprobs_as_the_server_tells_them() -> None:
    with MockServer(good) as server:
        two = next(one for one in play(server) if one.row["task_id"] == "t2")
    assert two.row["tokens_recorded"]
    found = [(row["appended"], row["prompt_ids"], row["token_ids"]) for row in two.tokens]
    whole = list(range(100))
    assert found == [(False, whole, [100, 101]), (True, [], [102, 103]), (True, [], [104, 105])]
    assert two.tokens[0]["logprobs"] == [-0.5, -0.25]


def test_a_server_that_tells_no_ids() -> None:
    with MockServer(lambda body, number: says("Done.", usage={"completion_tokens": 7})) as server:
        played = play(server)
    assert not any(one.row["tokens_recorded"] or one.tokens for one in played)
    assert played[0].row["messages"][-1]["n_tokens"] == 7


def test_a_server_that_does_not_know_our_extras() -> None:
    def answer(body: Body, number: int) -> Reply:
        if "return_token_ids" in body:
            return fails(400, "Unrecognized request argument supplied: return_token_ids")
        return good(body)

    with MockServer(answer) as server:
        played = play(server)
    assert statuses(played) == {"ok": EPISODES}
    refused = sum("return_token_ids" in body for body in server.requests)
    assert refused <= EPISODES  # at most once by each episode that was live then
    assert all("logprobs" in body for body in server.requests)


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 2048 tokens. However, you requested 2300 tokens",
        "Input length (3000) exceeds model's maximum context length (2048).",
        "The decoder prompt (length 300) is longer than the context window",
    ],
)
def test_a_full_context_is_no_error(message: str) -> None:
    with MockServer(lambda body, number: fails(400, message)) as server:
        played = play(server)
    assert {(one.row["status"], one.row["ended"]) for one in played} == {("truncated", "context")}
    assert len(server.requests) == EPISODES


FAULTS: dict[str, Reply] = {
    "429": fails(429, "slow down"),
    "500": fails(500),
    "503": fails(503),
    "hangs": Reply(delay_s=60),
    "drips": Reply(b'{"choices": []}' * 100, drip_s=0.05),
    "cuts the stream": Reply(b'{"choices": [{"mess', missing=1000),
    "closes": Reply(b"", missing=1000),
    "invalid JSON": Reply(b'{"choices": [{"message": '),
    "no JSON": Reply(b"<html>busy</html>", headers={"content-type": "text/html"}),
    "nothing": Reply(b""),
    "null": Reply(b"null"),
    "no choices": Reply(b'{"choices": []}'),
    "no message": Reply(b'{"choices": [{"message": null}]}'),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_the_status_of_each_episode(fault: str) -> None:
    with MockServer(lambda body, number: FAULTS[fault]) as server:
        began = time.monotonic()
        played = play(server, timeout_s=SLOW.get(fault, TIMEOUT_S))
        seconds = time.monotonic() - began
    assert statuses(played) == {"error": EPISODES}
    assert all(one.row["ended"].startswith("policy: ") for one in played)
    assert len(server.requests) == EPISODES * (RETRIES + 1)
    if fault in SLOW:  # all wait side by side
        assert seconds < EPISODES * (RETRIES + 1) * SLOW[fault]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_not_seen(fault: str) -> None:
    failed: set[bytes] = set()

    def answer(body: Body, number: int) -> Reply:
        request = orjson.dumps(body)  # differs by its seed
        if request in failed:
            return good(body)
        failed.add(request)
        return FAULTS[fault]

    with MockServer(answer) as server:
        played = play(server, timeout_s=SLOW.get(fault, TIMEOUT_S))
    assert {one.row["outcome"] for one in played} == {1.0}
    # On a busy machine a good answer may come too late as well, where the time is short.
    assert len(server.requests) == 24 or (fault in SLOW and len(server.requests) > 24)


@pytest.mark.parametrize("status", [401, 403, 404, 422])
def test_a_refusal_is_not_repeated(status: int) -> None:
    with MockServer(lambda body, number: fails(status, "go away")) as server:
        played = play(server)
    assert statuses(played) == {"error": EPISODES}
    assert f"HTTP {status}" in played[0].row["ended"]
    assert len(server.requests) == EPISODES


def test_a_server_that_is_not_there() -> None:
    with MockServer(good) as server:
        pass
    assert statuses(play(server)) == {"error": EPISODES}


def test_retry_after_is_heeded() -> None:
    def answer(body: Body, number: int) -> Reply:
        return fails(429, retry_after="0.3") if number == 0 else good(body)

    with MockServer(answer) as server:
        played = play(server, group_size=1, environment=Till(1))
    assert statuses(played) == {"ok": 1}
    assert 0.3 <= server.times[1] - server.times[0] < 1.5


def test_an_episode_stays_on_its_server() -> None:
    def slow(body: Body, number: int) -> Reply:
        return Reply(good(body).body, delay_s=0.02)

    with MockServer(slow) as one, MockServer(slow) as two:
        played = play(one, two, group_size=4)
    assert statuses(played) == {"ok": 12}
    # A turn after the first has a tool's result, and the server knows the turn before it.
    for server in (one, two):
        firsts = Counter(body["messages"][0]["content"] for body in server.requests)
        assert sum(len(body["messages"]) == 1 for body in server.requests) == 6
        for text, requests in firsts.items():
            turns = 1 + int(text.removeprefix("Make it ").removesuffix("."))
            assert requests % turns == 0


WRITTEN: dict[str, Callable[[], Reply]] = {
    "an unknown tool": lambda: calls("launch_rocket", "{}"),
    "an empty name": lambda: calls("", "{}"),
    "100 kB of arguments": lambda: calls("get_user", '{"user_id": "' + "x" * 100_000 + '"}'),
    "arguments that are not JSON": lambda: calls("get_user", '{"user_id": '),
    "arguments that are a list": lambda: calls("get_user", "[1, 2]"),
    "arguments that are an object": lambda: calls("get_user", {"user_id": "a"}),
    "no arguments": lambda: calls("get_user", None),
    "half a surrogate pair": lambda: calls("get_user", '{"user_id": "\\ud800"}'),
    "arguments as deep as JSON goes": lambda: calls("get_user", "[" * 9999),
    "a number of 9,999 digits": lambda: calls("get_user", '{"user_id": ' + "9" * 9999 + "}"),
    "a name of control codes": lambda: calls("get\x1b[31m\n", "{}"),
    "an empty text": lambda: says(""),
    "a refusal": lambda: completion({"role": "assistant", "refusal": "I can't."}),
    "text in parts": lambda: completion({"content": [{"type": "text", "text": "Hello."}]}),
}


@pytest.mark.parametrize("written", WRITTEN)
def test_whatever_a_model_writes_is_played(written: str) -> None:
    with MockServer(lambda body, number: WRITTEN[written]()) as server:
        played = play(server, environment=open_env("airline-mini"), max_turns=4, timeout_s=30)
    assert set(statuses(played)) <= {"ok", "truncated"}
    assert {one.row["outcome"] for one in played} <= {0.0, 1.0}
    assert len(server.requests) == sum(len(one.timing["turn_seconds"]) for one in played)
    assert orjson.dumps([one.row for one in played])
    for body in server.requests:  # what we send back, any server can take
        sent = [call for message in body["messages"] for call in message.get("tool_calls", [])]
        assert all(isinstance(orjson.loads(call["function"]["arguments"]), dict) for call in sent)


def test_a_lone_surrogate_is_replaced() -> None:
    answer = {"choices": [{"message": {"content": "a\ud800b"}}]}
    assert action_of(answer, 1).message["content"] == "a?b"


def test_ids_of_calls_are_ours() -> None:
    """The server's are drawn at random, so that no two runs would have the same bytes."""
    answer = orjson.loads(calls("add", "{}").body)
    action = action_of(answer, 4)
    assert action.message["tool_calls"][0]["id"] == "call_4_0"


def test_logprobs_that_do_not_fit_the_ids_are_unknown() -> None:
    answer = orjson.loads(good({"messages": [{"role": "user", "content": "Make it 0."}]}).body)
    answer["choices"][0]["logprobs"]["content"].pop()
    action = action_of(answer, 1)
    assert (action.token_ids, action.logprobs) == ([100, 101], None)


def test_thinking_is_kept_apart() -> None:
    message = {"content": "Yes.", "reasoning_content": "Hm."}
    action = action_of({"choices": [{"message": message, "finish_reason": "length"}]}, 1)
    wanted = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert action == Action(wanted, finish="length")


def test_messages_without_calls_are_sent_as_they_are() -> None:
    message = {"role": "user", "content": "hello"}
    assert sendable(message) is message


def test_the_command_with_a_server(run: Cli) -> None:
    args = ("rollout", "--env", "airline-mini", "--split", "dev", "--max-tasks", "3")
    with MockServer(lambda body, number: says("How may I help you?", token_ids=[1, 2])) as server:
        openai = ("--policy", "openai", "--model", "tiny", "--base-url", server.base_url)
        found = run(*args, *openai, "-o", "r.jsonl", "--json")
    document = found.json()
    assert document["status"]["error"] == 0
    assert document["tokens"] == 2 * len(server.requests)
    row = orjson.loads(Path("r.jsonl").read_bytes().splitlines()[0])
    assert (row["policy"], row["tokens_recorded"]) == ("tiny", False)  # its prompts are unknown
    assert pl.read_parquet("r.tokens.parquet").is_empty()


def test_a_server_that_comes_back(run: Cli) -> None:
    args = ["rollout", "--env", "airline-mini", "--split", "dev", "--max-tasks", "3", "--json"]
    args += ["--policy", "openai", "--model", "tiny", "--retries", "0", "-o", "r.jsonl"]

    def dies(body: Body, number: int) -> Reply:
        return says("Sorry.") if number < 10 else fails(500)

    with MockServer(dies) as server:
        first = run(*args, "--base-url", server.base_url).json()
    assert first["status"]["error"] > 0
    with MockServer(lambda body, number: says("Sorry.")) as server:
        second = run(*args, "--base-url", server.base_url, "--resume").json()
    assert second["status"] == {"ok": 12, "truncated": 0, "error": 0}


def test_without_the_package(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    found = run("rollout", "--env", "airline-mini", "--policy", "openai", "--model", "tiny")
    todo = "pip install 'irc-cli[openai]'"
    assert found.err == f"error: --policy openai: needs the package 'openai'; {todo}\n"


def test_without_a_key() -> None:
    with pytest.raises(InputError, match=r"no API key for api\.openai\.com"):
        OpenAIPolicy("gpt")


# --- token ids in the place of messages -----------------------------------------------------------


def sampled(ids: list[int] | None, **more: Any) -> Reply:
    """An answer of /completions."""
    choice = {"text": "?", "token_ids": ids, "finish_reason": "stop", **more}
    return Reply(orjson.dumps({"choices": [choice]}))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    pytest.importorskip("transformers", reason="needs irc-cli[transformers]")

    return tiny_tokenizer(["add"])


def test_a_prompt_of_ids_goes_on_where_the_model_stopped(tokenizer: Any) -> None:
    opening, middle, closing = SCAFFOLD[:3]
    text = f"{opening}add{middle}{{}}{closing}"
    ids = tokenizer.convert_tokens_to_ids([opening, *"add", middle, *"{}", closing, END])
    assert tokenizer.decode(ids[:-1]) == text
    assert tokenizer.encode(text) != ids[:-1]  # it knows "add" as one token
    logprobs = {"token_logprobs": [-0.5] * len(ids)}
    with MockServer(lambda body, number: sampled(ids, logprobs=logprobs)) as server:
        played = play(server, tokenizer=tokenizer, max_turns=3)
    assert not any("messages" in body for body in server.requests)
    for one in played:
        assert one.row["messages"][1]["tool_calls"][0]["function"]["name"] == "add"
        assert [row["appended"] for row in one.tokens] == [False, True, True]
        assert all(row["token_ids"] == ids for row in one.tokens)
        assert all(row["logprobs"] == [-0.5] * len(ids) for row in one.tokens)


def test_ids_that_a_server_does_not_tell(tokenizer: Any) -> None:
    with MockServer(lambda body, number: sampled(None)) as server:
        played = play(server, tokenizer=tokenizer)
    assert statuses(played) == {"error": EPISODES}
    assert "the server gives no token ids, which '--tokenizer' needs" in played[0].row["ended"]


def test_a_server_of_chats_alone(tokenizer: Any) -> None:
    with MockServer(lambda body, number: says("hello")) as server:
        played = play(server, tokenizer=tokenizer)
    line = "policy: the answer is no completion: it has no text"
    assert {one.row["ended"] for one in played} == {line}


def test_logprobs_that_a_server_does_not_tell(tokenizer: Any) -> None:
    with MockServer(lambda body, number: sampled([5, 1], logprobs=None)) as server:
        played = play(server, tokenizer=tokenizer)
    assert {row["logprobs"] for one in played for row in one.tokens} == {None}


OPENAI = ("rollout", "--env", "airline-mini", "--policy", "openai", "--model", "m")


def test_a_server_that_makes_the_prompt_may_leave_out_tools(tokenizer: Any) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    alone = OpenAIPolicy("m", ["http://127.0.0.1:9/v1"])
    assert alone.told([tool]) == (
        {"tools": "server", "system": "server"},
        [
            "--policy openai: the server makes the prompt, and may leave out tools that its chat "
            "template ignores; give --tokenizer to make it here"
        ],
    )
    assert alone.told([]).notes == []
    ours = OpenAIPolicy("m", ["http://127.0.0.1:9/v1"], tokenizer=tokenizer)
    assert ours.told([tool]) == ({"tools": "weights", "system": "system"}, [])


def test_prompts_of_ids_are_sampled_without_the_models_own_truncation(tokenizer: Any) -> None:
    with MockServer(lambda body, number: sampled([5, 1])) as server:
        play(server, tokenizer=tokenizer)
    assert {(body["top_k"], body["min_p"]) for body in server.requests} == {(-1, 0)}


def test_a_folder_without_a_tokenizer(run: Cli, tokenizer: Any) -> None:
    Path("empty").mkdir()
    found = run(*OPENAI, "--base-url", "http://127.0.0.1:9/v1", "--tokenizer", "empty")
    assert found.code == 2
    assert found.err.startswith("error: empty: ")
    assert found.err.endswith("; give a folder that holds a tokenizer\n")


def test_a_tokenizer_without_its_package(run: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = run(*OPENAI, "--base-url", "http://127.0.0.1:9/v1", "--tokenizer", "t")
    line = "needs the package 'transformers'; pip install 'irc-cli[transformers]'"
    assert (found.code, found.err) == (2, f"error: --tokenizer: {line}\n")
