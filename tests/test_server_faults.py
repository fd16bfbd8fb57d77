"""A hundred faults of a server: each is the status of its episode, and of no other."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from typing import Any

import orjson
import pytest

from stages.envs.env import Task, UserError
from stages.envs.llm_user import Budget, LlmUsers
from stages.policies.openai_policy import OpenAIPolicy
from stages.rollout import Config, Played, Run, plan, rollout
from tests.mock_openai import Body, MockServer, Reply, calls, completion, fails, says
from tests.test_openai_policy import good
from tests.till import Till

pytest.importorskip("openai", reason="the extra [openai] is not installed")

from stages.serving import guarded_client  # needs it

TASK = Task("t", "add", "train", (), (), "buy one")
SICK = "Make it 1."  # what the customer wants in the episodes that meet the fault
PARTS = [{"type": "text", "text": "Do"}, {"type": "text", "text": "ne."}]
DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def chosen(**choice: Any) -> Reply:
    """An answer whose choice is otherwise right."""
    return completion({"role": "assistant", "content": "Done."}, **choice)


def written(**message: Any) -> Reply:
    """An answer whose message is otherwise right."""
    return completion({"role": "assistant", "content": "Done.", **message})


def whole(**answer: Any) -> Reply:
    """An answer that is otherwise right."""
    return Reply(orjson.dumps({**orjson.loads(says("Done.").body), **answer}))


def patched(before: bytes, after: bytes) -> Reply:
    """A right answer with other bytes somewhere."""
    body = chosen(
        token_ids=[5], logprobs={"content": [{"logprob": -0.5}]}, usage={"completion_tokens": 7}
    ).body
    assert before in body
    return Reply(body.replace(before, after))


def encoded(body: bytes, encoding: str) -> Reply:
    return Reply(body, headers={"content-encoding": encoding})


def raw(head: str, body: bytes = b"") -> Reply:
    return Reply(raw=head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)


def moved(status: int, place: str) -> Reply:
    return Reply(status=status, headers={"location": place})


CHAT = "/v1/chat/completions"
DONE = says("Done.").body
CALL: Body = {"id": "a", "type": "function", "function": {"name": "add", "arguments": "{}"}}
OF_THE_DATE = "Sun, 06 Nov 100000000000000000000 08:49:37 GMT"

STATUSES: dict[str, Reply] = {
    **{f"HTTP {status}": fails(status) for status in (400, 401, 402, 403, 404, 405, 408, 409)},
    **{f"HTTP {status}": fails(status) for status in (410, 413, 418, 422, 425, 429, 451, 499)},
    **{f"HTTP {status}": fails(status) for status in (500, 501, 502, 503, 504, 507, 520, 529, 599)},
    "HTTP 300": Reply(DONE, 300),
    "HTTP 304": Reply(b"", 304),
    "HTTP 204": Reply(b"", 204),
    "HTTP 999": raw("HTTP/1.1 999 What\ncontent-length: 0"),
    "a status that is no number": raw("HTTP/1.1 OK\ncontent-length: 0"),
    "an error that is a page": Reply(b"<html>Bad gateway</html>", 502, {"content-type": "a/b"}),
    "an error that is not UTF-8": Reply(b"\xff\xfe\xff", 500),
    "an error that is nested deep": Reply(b'{"error": ' + DEEP + b"}", 500),
    "an error of one long line": fails(500, "x" * 1_000_000),
    "an error with control codes": fails(500, "\x1b[31mred\x07\r\nsecond line"),
    "an error with half a surrogate pair": Reply(b'{"error": {"message": "\\ud800"}}', 500),
    "an error whose message is a list": Reply(b'{"error": {"message": [1]}}', 400),
    "an error that is null": Reply(b'{"error": null}', 400),
}
HEADERS: dict[str, Reply] = {
    "a Retry-After in the far future": fails(429, retry_after=OF_THE_DATE),
    "a Retry-After of a year that is none": fails(429, retry_after="Sun, 99 Nov 2024 99:99:99 GMT"),
    "a Retry-After of NaN": fails(429, retry_after="nan"),
    "a Retry-After of infinity": fails(429, retry_after="inf"),
    "a Retry-After below 0": fails(429, retry_after="-1e300"),
    "a Retry-After of words": fails(503, retry_after="soon"),
    "a redirect to another host": moved(307, "http://localhost:9/v1/chat/completions"),
    "a redirect to another port": moved(308, "http://127.0.0.1:9/v1/chat/completions"),
    "a redirect to itself": moved(307, CHAT),
    "a redirect to a file": moved(302, "file:///etc/passwd"),
    "a redirect to nowhere": Reply(status=307),
    "a redirect to no URL": moved(307, "http://[::1"),
    "a redirect that gets the models": moved(303, "/v1/models"),
    "a content-length that is no number": raw("HTTP/1.1 200 OK\ncontent-length: ten", DONE),
    "a header of 200 kB": raw("HTTP/1.1 200 OK\nx: " + "y" * 200_000, DONE),
    "no HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    "HTTP of another time": raw("HTTP/9.9 200 OK\ncontent-length: 2", b"{}"),
    "chunks that are none": raw("HTTP/1.1 200 OK\ntransfer-encoding: chunked", b"zz\r\n{}\r\n"),
    "chunks that are cut": raw("HTTP/1.1 200 OK\ntransfer-encoding: chunked", b"ff\r\n{}"),
    "an upgrade": raw("HTTP/1.1 101 Switching Protocols\nupgrade: h2c\nconnection: upgrade"),
}
BODIES: dict[str, Reply] = {
    "nothing": Reply(b""),
    "less than it promised": Reply(DONE[:20], missing=1000),
    "a closed connection": Reply(raw=b"\r\n"),
    "half of the JSON": Reply(DONE[: len(DONE) // 2]),
    "two documents": Reply(DONE + DONE),
    "a page": Reply(b"<html>busy</html>", headers={"content-type": "text/html"}),
    "a stream of events": Reply(b"data: " + DONE + b"\n\ndata: [DONE]\n\n"),
    "not UTF-8": Reply(DONE.replace(b"Done", b"D\xffne")),
    "UTF-16": Reply(DONE.decode().encode("utf-16")),
    "zeros": Reply(bytes(1000)),
    "gzip that is none": encoded(DONE, "gzip"),
    "gzip that is cut": encoded(gzip.compress(DONE)[:-20], "gzip"),
    "gzip in gzip": encoded(gzip.compress(gzip.compress(DONE)), "gzip, gzip"),
    "brotli, which nobody asked for": encoded(DONE, "br"),
    "zstd, which nobody asked for": encoded(DONE, "zstd"),
    "a bomb of gzip": encoded(gzip.compress(bytes(200_000_000)), "gzip"),
    "a bomb of gzip in an error": Reply(
        gzip.compress(bytes(200_000_000)), 500, {"content-encoding": "gzip"}
    ),
    "null": Reply(b"null"),
    "a number": Reply(b"5"),
    "a text": Reply(b'"Done."'),
    "a list": Reply(b"[" + DONE + b"]"),
    "an empty object": Reply(b"{}"),
    "an error with status 200": Reply(b'{"error": {"message": "overloaded", "code": 503}}'),
    "an error beside the choices": whole(error="overloaded"),
    "nested deep": Reply(DEEP),
    "a number of 5,000 digits": patched(b":7", b":" + b"7" * 5000),
}
ENDS: tuple[Any, ...] = ("error", "abort", "content_filter", "STOPPED", "", 5, [], {}, True)
CONTENTS: tuple[Any, ...] = (5, 0, True, False, {"text": "Done."}, ["Done."], [None], [[]])
NO_CALLS: tuple[Any, ...] = (5, "add", {"0": 1}, [None], [5], [{}], [{"function": None}])
NO_IDS: tuple[Any, ...] = ([2**31], [-1], [1.5], ["a"], [True], [None], [[1]], [], "abc", 7, {})
CHOICES: dict[str, Reply] = {
    "no choices": whole(choices=[]),
    "choices that are null": whole(choices=None),
    "choices that are an object": whole(choices={"0": 1}),
    "choices nested deep": Reply(b'{"choices": ' + DEEP + b"}"),
    "two choices": whole(choices=[{"message": {"content": "a"}}, {"message": {"content": "b"}}]),
    "a choice that is null": whole(choices=[None]),
    "a choice that is a text": whole(choices=["Done."]),
    "a choice with an error": chosen(error={"message": "out of memory"}),
    **{f"finish_reason {reason!r}": chosen(finish_reason=reason) for reason in ENDS},
    "finish_reason tool_calls without a call": chosen(finish_reason="tool_calls"),
}
MESSAGES: dict[str, Reply] = {
    "no message": whole(choices=[{"finish_reason": "stop"}]),
    "a message that is null": chosen(message=None),
    "a message that is a text": chosen(message="Done."),
    "a message that is empty": completion({}),
    "a message of nothing but a role": completion({"role": "assistant"}),
    "a message of the user's": written(role="user"),
    "a message of role 5": written(role=5),
    "no token sampled": completion({"content": ""}, usage={"completion_tokens": 0}),
    **{f"content {content!r}": written(content=content) for content in CONTENTS},
    "content with a picture": written(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    "content whose part has no text": written(content=[{"type": "text", "text": 5}]),
    **{f"tool_calls {given!r}": written(tool_calls=given) for given in NO_CALLS},
    "a call without a name": written(tool_calls=[{**CALL, "function": {"arguments": "{}"}}]),
    "a call of name 5": calls(5, "{}"),
    "a call with a name that is an object": calls({"a": 1}, "{}"),
    "a call with arguments 5": calls("add", 5),
    "a call with arguments in a list": calls("add", [1, 2]),
    "a call beside one that is none": written(tool_calls=[CALL, "add"]),
}
NUMBERS: dict[str, Reply] = {
    **{f"token_ids {given!r}": chosen(token_ids=given) for given in NO_IDS},
    "token_ids of 400 digits": patched(b"[5]", b"[" + b"9" * 400 + b"]"),
    "token_ids of infinity": patched(b"[5]", b"[Infinity]"),
    "prompt ids that are too large": whole(prompt_token_ids=[2**40]),
    "prompt ids that are texts": whole(prompt_token_ids=["a"]),
    "prompt ids that are none": whole(prompt_token_ids=[]),
    **{
        f"completion_tokens {count.decode()[:9]}": patched(b":7", b":" + count)
        for count in (b"1" + b"0" * 30, b"-1", b"1.5", b'"7"', b"true", b"[]", b"NaN", b"1e400")
    },
    "prompt_tokens below 0": whole(usage={"prompt_tokens": -5, "completion_tokens": 1}),
    "usage in a list": whole(usage=[1]),
    **{
        f"a logprob of {logprob.decode()[:9]}": patched(b"-0.5", logprob)
        for logprob in (b"9" * 400, b"-1" + b"0" * 400, b"NaN", b"-Infinity", b"1e400", b"-1e300")
    },
    "a logprob above 0": patched(b"-0.5", b"0.5"),
    "a logprob that is a text": patched(b"-0.5", b'"-0.5"'),
    "a logprob that is true": patched(b"-0.5", b"true"),
}
FAULTS = STATUSES | HEADERS | BODIES | CHOICES | MESSAGES | NUMBERS

# What a server may do otherwise than OpenAI's, and no harm is done.
BEARABLE: dict[str, Reply] = {
    "content in parts": written(content=PARTS),
    "content in a part of output": written(content=[{"type": "output_text", "text": "Done."}]),
    "a refusal beside null": written(content=None, refusal="Done."),
    "no role": completion({"content": "Done."}),
    "no finish_reason": whole(choices=[{"message": {"content": "Done."}}]),
    "finish_reason eos": chosen(finish_reason="eos"),
    "another type of content": Reply(DONE, headers={"content-type": "text/plain; charset=utf-16"}),
    "no usage": whole(usage=None),
    "logprobs in no form we know": chosen(token_ids=[5], logprobs=[1]),
    "gzip": encoded(gzip.compress(DONE), "gzip"),
    "deflate": encoded(zlib.compress(DONE), "deflate"),
    "white space": Reply(b"\n \n" + DONE),
    "more than we know": whole(more={"a": [1, {}]}, choices_of=None),
}


def play(answer: Any, retries: int = 1, **more: Any) -> dict[str, Played]:
    """Play six episodes of three tasks, of which the second meets what the server does to it."""

    async def played() -> dict[str, Played]:
        policy = OpenAIPolicy("tiny", [server.base_url], 30.0, retries, 0.001, **more)
        run = Run("run", Till(), policy, Config(group_size=2, max_turns=5), "tiny")
        try:
            pairs = plan(Till().tasks("train"), 2)
            episodes = [episode async for episode in rollout(run, pairs, 32)]
        finally:
            await policy.close()
        return {episode.row["episode_id"]: episode for episode in episodes}

    with MockServer(answer) as server:
        return asyncio.run(played())


def only_to_the_sick(reply: Reply) -> Any:
    def answer(body: Body, number: int) -> Reply:
        if body["messages"][0]["content"] != SICK:
            return good(body)
        # Where an answer is one that a server may give, a turn of the till comes before it.
        added = len(body["messages"]) > 1
        return calls("add", "{}") if reply in BEARABLE.values() and not added else reply

    return answer


def test_there_are_a_hundred() -> None:
    assert len(FAULTS) >= 100


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_the_status_of_its_episodes_alone(fault: str) -> None:
    played = play(only_to_the_sick(FAULTS[fault]))
    assert len(played) == 6
    for name, episode in played.items():
        row = episode.row
        if "/t1/" in name:
            assert (row["status"], row["outcome"]) == ("error", None), row["ended"]
            assert row["ended"].startswith("policy: ")
            assert row["ended"].isprintable() and len(row["ended"]) < 250
        else:
            assert (row["status"], row["outcome"]) == ("ok", 1.0)
    assert orjson.dumps([episode.row for episode in played.values()])


@pytest.mark.parametrize("habit", BEARABLE)
def test_what_a_server_may_do_is_played(habit: str) -> None:
    for episode in play(only_to_the_sick(BEARABLE[habit])).values():
        assert (episode.row["status"], episode.row["outcome"]) == ("ok", 1.0)
        assert episode.row["messages"][-1]["content"] == "Done."


def test_an_answer_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded_client, "LARGEST_ANSWER", 2**20)
    played = play(only_to_the_sick(Reply(b" " * 2**20 + DONE, missing=2**40)))
    line = "policy: the answer is larger than 1 MiB"
    assert {played[f"run/t1/{trial}"].row["ended"] for trial in (0, 1)} == {line}
    assert sum(episode.row["outcome"] == 1.0 for episode in played.values()) == 4


def test_bombs_take_little_memory() -> None:
    bomb = BODIES["a bomb of gzip"]
    tracemalloc.start()
    try:
        played = play(lambda body, number: bomb, retries=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    line = "policy: the answer is larger than 16 MiB"
    assert {episode.row["ended"] for episode in played.values()} == {line}
    assert peak < 5 * guarded_client.LARGEST_ANSWER


# --- the user's server ----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [*CHOICES, *MESSAGES, *NUMBERS, "nested deep", "a text"])
def test_a_fault_of_the_users_server(fault: str) -> None:
    """Is an error of the user in the thread that waits, and the user's next answer counts."""

    async def asked() -> str:
        users = LlmUsers("tiny", server.base_url, Budget(tokens=100), 30.0, 0)
        user = users.new(TASK, 0)
        try:
            with pytest.raises(UserError):
                await asyncio.to_thread(user.open)
            return await asyncio.to_thread(user.open)
        finally:
            await users.close()

    def answer(body: Body, number: int) -> Reply:
        return FAULTS[fault] if number == 0 else written(content=PARTS)

    with MockServer(answer) as server:
        assert asyncio.run(asked()) == "Done."
