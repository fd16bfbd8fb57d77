"""Addresses of servers: what of them is sent, and what is shown."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import InputError
from stages.loop import LoopStep
from stages.loop_files import Records, check_settings
from stages.serving.address import Address, shown, without_secrets
from stages.serving.endpoint import Endpoint, EndpointError
from tests.conftest import Cli
from tests.mock_openai import Body, MockServer, Reply, fails, says

USER, PASSWORD, KEY = "ann", "correct horse", "sk-battery-staple-7"
ROLLOUT = (
    *("rollout", "--env", "airline-mini", "--max-tasks", "1", "--group-size", "1"),
    *("--policy", "openai", "--model", "tiny", "--retries", "0"),
)
needs_openai = pytest.mark.skipif(
    find_spec("openai") is None, reason="the extra [openai] is not installed"
)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("url", "public"),
    [
        ("http://host:8000/v1", "http://host:8000/v1"),
        ("http://ann:pw@host/v1", "http://***@host/v1"),
        ("http://token@host/v1", "http://***@host/v1"),
        ("http://a@b:p@w@host/v1", "http://***@host/v1"),
        ("http://ann:p/w@host/v1", "http://***@host/v1"),
        ("http://ann:p?w@host/v1", "http://***"),
        ("http://host/v1?api_key=a@b", "http://***"),
        ("http://host/v1?api_key=K&v=2", "http://host/v1?***"),
        ("http://host/v1#K", "http://host/v1?***"),
        ("ann:pw@host/v1", "***@host/v1"),
        ("http://u:a://b@host/v1", "http://***@host/v1"),
        ("s3://bucket/a/b.jsonl", "s3://bucket/a/b.jsonl"),
        ("a file", "a file"),
    ],
)
def test_what_is_shown_of_a_url(url: str, public: str) -> None:
    assert shown(url) == public


SECRETS = st.text("abcdefXYZ0123456789:/?#@&=%+.-_~", min_size=6).map(lambda text: f"5ecret{text}")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(SECRETS, SECRETS)
def test_no_secret_is_shown(password: str, key: str) -> None:
    url = f"http://ann:{password}@host/v1?key={key}"
    assert "5ecret" not in shown(url)
    assert "5ecret" not in shown(f"ann:{password}@host/v1")
    assert "5ecret" not in without_secrets(f"--set rollout.base-url={url} x")
    assert "5ecret" not in without_secrets(f"--base-url ann:{password}@host/v1 x")


def test_secrets_at_any_depth() -> None:
    url = "http://ann:pw@host/v1"
    given = {"rollout": {"base-url": [url, f"curl {url} now"], "retries": 5, "user": None}}
    told = {"base-url": ["http://***@host/v1", "curl http://***@host/v1 now"]}
    assert without_secrets(given) == {"rollout": {**told, "retries": 5, "user": None}}


@pytest.mark.parametrize(
    "url",
    [
        *("host:8000/v1", "ftp://host/v1", "http://", "http:///v1", "http://host:port/v1"),
        *("http://[::1", "http://ann:pw@host:99999/v1", "http://a b/v1", "http://ann:pw@"),
    ],
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(InputError) as error:
        Address.of(url, "--base-url")
    what = f"'{shown(url)}' is no address of a server; write http://HOST:PORT/v1"
    assert str(error.value) == f"--base-url: {what}"
    assert "pw" not in str(error.value)


def test_an_address_is_read() -> None:
    address = Address.of("http://ann:correct%20horse@host:1/v1/?api_key=K%21&v=2", "--base-url")
    assert (address.url, address.query) == ("http://host:1/v1", "api_key=K%21&v=2")
    basic = b64encode(b"ann:correct horse").decode()
    assert address.authorization == f"Basic {basic}"
    assert set(address.secrets) == {"correct%20horse", "correct horse", basic, "K%21", "K!"}


# --- a run ----------------------------------------------------------------------------------------


def secret_url(server: MockServer) -> str:
    user = f"{USER}:{PASSWORD.replace(' ', '%20')}"
    return server.base_url.replace("://", f"://{user}@") + f"?api_key={KEY}"


def traces(run_err: str, run_out: bytes) -> str:
    """All that a run left behind."""
    files = [path.read_bytes() for path in Path().rglob("*") if path.is_file()]
    return b"\n".join([run_out, run_err.encode(), *files]).decode("utf-8", "replace")


def assert_no_secret(text: str) -> None:
    for secret in (PASSWORD, PASSWORD.replace(" ", "%20"), KEY, "sk-environment"):
        assert secret not in text
    assert b64encode(f"{USER}:{PASSWORD}".encode()).decode() not in text


@needs_openai
def test_secrets_are_sent_and_stand_nowhere(
    run: Cli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    caplog.set_level(logging.DEBUG)
    with MockServer(lambda body, number: says("Sorry.")) as server:
        found = run(*ROLLOUT, "--base-url", secret_url(server), "-o", "r.jsonl")
        public = server.base_url.replace("://", "://***@") + "?***"
    assert found.code == 0
    assert {path.partition("?")[2] for path in server.paths} == {f"api_key={KEY}"}
    basic = b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    assert {headers["authorization"] for headers in server.headers} == {f"Basic {basic}"}
    engine = orjson.loads(Path("r.meta.json").read_bytes())["engine"]
    assert engine["base_url"] == [public]
    assert_no_secret(traces(found.err, found.out) + caplog.text)


ECHOES: dict[str, Reply] = {
    "an error": fails(401, f"no key {KEY} of {USER}:{PASSWORD}; sk-environment"),
    "a redirect": Reply(status=307, headers={"location": f"http://u:{KEY}@a/v1?k={KEY}"}),
    "a finish_reason": says("Sorry.", finish_reason=PASSWORD),
}


@needs_openai
@pytest.mark.parametrize("echo", ECHOES)
def test_a_server_that_repeats_secrets(
    run: Cli, monkeypatch: pytest.MonkeyPatch, echo: str
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-environment")
    with MockServer(lambda body, number: ECHOES[echo]) as server:
        found = run(*ROLLOUT, "--base-url", secret_url(server), "-o", "r.jsonl")
    assert "1 error" in found.out.decode()
    assert_no_secret(traces(found.err, found.out))


@needs_openai
@pytest.mark.parametrize(
    ("key", "kept"), [("sk-environment-12", False), ("not-needed", True), ("EMPTY-KEY", True)]
)
def test_an_answer_that_repeats_a_key(
    run: Cli, monkeypatch: pytest.MonkeyPatch, key: str, kept: bool
) -> None:
    """Is none of the policy's faults. What local servers are given as a key is a word."""
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with MockServer(lambda body, number: says(f"That is {key}, {KEY}.")) as server:
        found = run(*ROLLOUT, "--base-url", secret_url(server), "-o", "r.jsonl", "--json")
    assert found.json()["status"]["error"] == 0
    said = orjson.loads(Path("r.jsonl").read_bytes())["messages"]
    told = [message["content"] for message in said if message["role"] == "assistant"]
    assert set(told) == {f"That is {key if kept else '***'}, ***."}
    assert_no_secret(traces(found.err, found.out))


@needs_openai
@pytest.mark.parametrize("load", [(), ("--load-weights",)])
def test_errors_of_an_address_show_no_secret(run: Cli, load: tuple[str, ...]) -> None:
    Path("tiny").mkdir()
    with MockServer(lambda body, number: says("Sorry.")) as server:
        url = secret_url(server)
        served = run(*ROLLOUT, *load, "--base-url", url)
    gone = run(*ROLLOUT, *load, "--base-url", url)
    wrong = run(*ROLLOUT, *load, "--base-url", url.replace("http://", "ftp://"))
    user = run(*ROLLOUT, "--user", "llm", "--user-model", "m", "--user-base-url", f"x{url}")
    argument = run("rollout", url, "--env", "airline-mini")
    assert wrong.code == user.code == argument.code == 2
    for found in (served, gone, wrong, user, argument):
        assert_no_secret(traces(found.err, found.out))


def test_a_loop_records_no_secret(tmp_path: Path) -> None:
    url = f"http://ann:{PASSWORD}@host/v1?key={KEY}".replace(" ", "%20")
    restart = f"restart --key {KEY}"
    given = {"base-url": [url, f"ann:{KEY}@host/v1"], "restart-command": restart, "retries": 1}
    settings = {"iterations": 2, "options": {"rollout": given}}
    check_settings(tmp_path / "out", settings)
    check_settings(tmp_path / "out", settings)  # is the same loop
    args = ("rollout", "--base-url", url, "--restart-command", restart, "--out", "r.jsonl")
    step = LoopStep("rollout", args, (), ())
    records = Records(tmp_path / "out")
    records.add(step)
    assert records.done(step)
    told = "irc-cli rollout --base-url 'http://***@host/v1?***' --restart-command '***'"
    assert step.command == f"{told} --out r.jsonl"
    for path in (tmp_path / "out").iterdir():
        assert_no_secret(path.read_text())


# --- redirects ------------------------------------------------------------------------------------


def ask(server: MockServer, path: str = "/v1") -> Any:
    async def asked() -> Any:
        url = server.base_url.removesuffix("/v1") + path
        endpoint = Endpoint(url, 30.0, 0, "--base-url")
        try:
            return await endpoint.complete({"messages": []})
        finally:
            await endpoint.close()

    return asyncio.run(asked())


@needs_openai
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_and_no_key_go_to_another_host(status: int) -> None:
    with MockServer(lambda body, number: says("Mine.")) as other:
        place = f"{other.base_url}/chat/completions"
        moved = Reply(status=status, headers={"location": place})
        with (
            MockServer(lambda body, number: moved) as server,
            pytest.raises(EndpointError) as error,
        ):
            ask(server)
        assert str(error.value) == f"HTTP {status}: redirects to {place}, not followed"
    assert not other.paths


@needs_openai
def test_a_redirect_on_the_same_host_is_followed() -> None:
    def answer(body: Body, number: int) -> Reply:
        if server.paths[-1].startswith("/v2/"):
            return says("Done.")
        return Reply(status=307, headers={"location": "/v2/chat/completions"})

    with MockServer(answer) as server:
        answered = ask(server, f"/v1?api_key={KEY}")
    assert answered["choices"][0]["message"]["content"] == "Done."
    paths = [f"/{version}/chat/completions?api_key={KEY}" for version in ("v1", "v2")]
    assert server.paths == paths
    assert server.requests[0] == server.requests[1]
