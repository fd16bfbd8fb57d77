"""Many servers: how episodes spread over them, and what becomes of those whose server dies."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import orjson
import pytest

from stages.errors import InputError
from stages.policies.openai_policy import OpenAIPolicy
from stages.rollout import Config, Played, Run, plan, rollout
from stages.serving import server_pool
from stages.serving.server_pool import addresses
from tests.conftest import Cli
from tests.mock_openai import Body, MockServer, Reply, Routes, fails, says
from tests.test_openai_policy import good, statuses
from tests.till import Till

pytest.importorskip("openai", reason="the extra [openai] is not installed")

GROUP = 16
EPISODES = 3 * GROUP  # of three tasks, with one, two and three turns
EVEN = 0.2


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def slowly(body: Body, number: int = 0) -> Reply:
    return Reply(good(body).body, delay_s=0.005)


def play(
    *servers: MockServer, retries: int = 2, group_size: int = GROUP, **more: Any
) -> list[Played]:
    async def played() -> list[Played]:
        urls = [server.base_url for server in servers]
        policy = OpenAIPolicy("tiny", urls, 30.0, retries, 0.01, check_s=0.01, **more)
        run = Run("run", Till(), policy, Config(group_size=group_size, max_turns=5), "tiny")
        try:
            return [one async for one in rollout(run, plan(Till().tasks("train"), group_size), 8)]
        finally:
            await policy.close()

    return asyncio.run(played())


def by_id(played: list[Played]) -> dict[str, Any]:
    return {one.row["episode_id"]: (one.row, one.tokens) for one in played}


def restarts(played: list[Played]) -> int:
    return sum(one.timing["restarts"] for one in played)


def test_load_is_even() -> None:
    with MockServer(slowly) as one, MockServer(slowly) as two, MockServer(slowly) as three:
        played = play(one, two, three)
        counts = [len(server.requests) for server in (one, two, three)]
    assert statuses(played) == {"ok": EPISODES}
    mean = sum(counts) / len(counts)
    assert all(abs(count - mean) <= EVEN * mean for count in counts), counts
    assert restarts(played) == 0


def test_a_server_that_dies_loses_nothing() -> None:
    with MockServer(slowly) as one:
        undisturbed = by_id(play(one))

    def dies(body: Body, number: int) -> Reply:
        if number == EPISODES // 2:
            one.die()
        return slowly(body)

    with MockServer(dies) as one, MockServer(slowly) as two:
        played = play(one, two)
        assert one.requests
    assert by_id(played) == undisturbed
    assert restarts(played) > 0
    # It was asked once more by each episode that played there, if at all: nobody waited for it.
    assert len(one.requests) <= EPISODES // 2 + 8


def test_a_server_that_breaks_in_any_way_loses_nothing() -> None:
    """Whose requests fail for good, though it says that it is there."""
    with MockServer(lambda body, number: fails(500)) as one, MockServer(slowly) as two:
        played = play(one, two)
    assert statuses(played) == {"ok": EPISODES}
    assert max(one.timing["restarts"] for one in played) == 1


def test_when_all_have_failed_it_is_an_error() -> None:
    with MockServer(lambda *_: fails(500)) as one, MockServer(lambda *_: fails(500)) as two:
        played = play(one, two, retries=0, group_size=2)
    assert statuses(played) == {"error": 6}
    assert {one.row["ended"] for one in played} == {"policy: HTTP 500: no"}
    assert all(one.timing["restarts"] <= 1 for one in played)


def test_a_refusal_is_the_same_everywhere() -> None:
    with MockServer(lambda *_: fails(404, "no such model")) as one, MockServer(slowly) as two:
        played = play(one, two, group_size=2)
    assert statuses(played) == {"error": 3, "ok": 3}
    assert restarts(played) == 0


def test_a_server_that_is_down_from_the_start_gets_nothing() -> None:
    with MockServer(slowly) as one, MockServer(slowly) as two:
        one.lists = False
        played = play(one, two, rejoin=False)
        assert not one.requests
    assert statuses(played) == {"ok": EPISODES}
    assert restarts(played) == 0


@pytest.mark.parametrize("rejoin", [True, False])
def test_a_server_that_comes_back_plays_again_if_it_may(rejoin: bool) -> None:
    def back(body: Body, number: int) -> Reply:
        one.lists = number >= 4
        return slowly(body)

    with MockServer(slowly) as one, MockServer(back) as two:
        one.lists = False
        played = play(one, two, rejoin=rejoin)
        assert bool(one.requests) == rejoin
    assert statuses(played) == {"ok": EPISODES}


def test_a_rate_limit_holds_for_each_server() -> None:
    with MockServer(good) as one, MockServer(good) as two:
        played = play(one, two, group_size=2, rate_limit=20.0)
        for server in (one, two):
            span = server.times[-1] - server.times[0]
            assert len(server.times) >= 4
            # Sent evenly; the first may arrive late on a busy machine.
            assert span > (len(server.times) - 3) / 20
    assert statuses(played) == {"ok": 6}


# --- addresses ------------------------------------------------------------------------------------


def test_addresses_repeated_and_in_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "servers"
    listed.write_text("# two of them\nhttp://a:1/v1\n\n  http://b:2/v1/  \n")
    given = ["http://c:3/v1", str(listed), "http://a:1/v1"]
    assert addresses(given) == ("http://c:3/v1", "http://a:1/v1", "http://b:2/v1")


@pytest.mark.parametrize(
    ("written", "line"),
    [
        (None, "--base-url: 'servers' is no URL, and no file; give http://HOST:PORT/v1, or a file"),
        (b"http://a/v1\nhost:1\n", "servers:2: 'host:1' is no URL; write http://HOST:PORT/v1"),
        (b"\xff\n", "servers: not UTF-8 text; give a file with one URL per line"),
    ],
)
def test_addresses_that_are_none(run: Cli, written: bytes | None, line: str) -> None:
    if written:
        Path("servers").write_bytes(written)
    found = run(*ROLLOUT, "--base-url", "servers")
    assert (found.code, found.out) == (2, b"")
    assert found.err.startswith(f"error: {line}")
    assert found.err.count("\n") == 1


def test_addresses_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        addresses([str(tmp_path)])


# --- new weights ----------------------------------------------------------------------------------

ROLLOUT = (
    *("rollout", "--env", "airline-mini", "--policy", "openai", "--model", "weights"),
    *("--max-tasks", "2", "--group-size", "2", "--json"),
)
LOADS = ("--load-weights", "--served-model-name", "tiny")


def done(body: Body) -> Reply:
    return Reply(b'{"success": true}')


DEV_MODE: Routes = {"/collective_rpc": done, "/reset_prefix_cache": done}


def sorry(body: Body, number: int) -> Reply:
    return says("Sorry.")


@pytest.fixture
def weights(run: Cli) -> Path:
    """A folder that a server could load, in the current one."""
    folder = Path("weights")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_servers_load_weights_before_the_first_turn(run: Cli, weights: Path) -> None:
    with MockServer(sorry, DEV_MODE) as one, MockServer(sorry, DEV_MODE) as two:
        urls = ("--base-url", one.base_url, "--base-url", two.base_url)
        found = run(*ROLLOUT, *LOADS, *urls, "-o", "r.jsonl")
    assert found.json()["status"] == {"ok": 4, "truncated": 0, "error": 0}
    load = {"method": "reload_weights", "kwargs": {"weights_path": str(weights.resolve())}}
    for server in (one, two):
        assert server.controls == [("/collective_rpc", load), ("/reset_prefix_cache", {})]
        assert {body["model"] for body in server.requests} == {"tiny"}
    row = orjson.loads(Path("r.jsonl").read_bytes().splitlines()[0])
    assert row["policy"] == "weights"
    made_by = orjson.loads(Path("r.meta.json").read_bytes())
    assert [entry["path"] for entry in made_by["inputs"]] == ["weights/model.safetensors"]


def test_a_server_that_is_down_is_left_out(run: Cli, weights: Path) -> None:
    with MockServer(sorry, DEV_MODE) as one, MockServer(sorry, DEV_MODE) as two:
        two.lists = False
        urls = ("--base-url", one.base_url, "--base-url", two.base_url)
        found = run(*ROLLOUT, *LOADS, *urls)
    assert found.json()["status"]["error"] == 0
    assert found.json()["notes"][f"left out, {two.base_url} does not answer"] == 1
    assert not two.controls and not two.requests


REFUSALS: dict[str, tuple[Routes, str]] = {
    "no dev mode": (
        {},
        "can't load weights while it runs; start vLLM with VLLM_SERVER_DEV_MODE=1, or give "
        "--restart-command",
    ),
    "no such weights": (
        {**DEV_MODE, "/collective_rpc": lambda body: fails(500, "no such folder")},
        "did not load 'FOLDER': HTTP 500: no such folder; see its log; the folder must be one that "
        "the server sees, of the same architecture",
    ),
    "in use": (
        {**DEV_MODE, "/reset_prefix_cache": lambda body: Reply(b'{"success": false}')},
        "still uses what it computed with the old weights; run again when nobody else plays there",
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_server_that_does_not_load(run: Cli, weights: Path, reason: str) -> None:
    routes, told = REFUSALS[reason]
    with MockServer(sorry, routes) as server:
        found = run(*ROLLOUT, *LOADS, "--base-url", server.base_url, "-o", "r.jsonl")
    told = told.replace("FOLDER", str(weights.resolve()))
    assert (found.code, found.err) == (2, f"error: {server.base_url}: {told}\n")
    assert not server.requests
    assert list(Path().iterdir()) == [weights]


def test_no_server_is_there(run: Cli, weights: Path) -> None:
    with MockServer(sorry) as server:
        pass
    found = run(*ROLLOUT, *LOADS, "--base-url", server.base_url)
    line = "--base-url: no server answers; start them, or give other addresses"
    assert (found.code, found.err) == (2, f"error: {line}\n")


@pytest.mark.parametrize(
    ("args", "line"),
    [
        (("--base-url", "http://a/v1"), "needs a folder; give '--model DIR'"),
        (("--model", "."), "there are no servers; give '--base-url URL'"),
    ],
)
def test_what_loading_needs(run: Cli, args: tuple[str, ...], line: str) -> None:
    found = run(*ROLLOUT, *LOADS, *args)
    assert (found.code, found.err) == (2, f"error: --load-weights: {line}\n")


def info(backend: str) -> Reply:
    return Reply(orjson.dumps({"vllm_config": {"weight_transfer_config": {"backend": backend}}}))


TRANSFERS: Routes = {
    **DEV_MODE,
    "/init_weight_transfer_engine": done,
    server_pool.INFO: lambda body: info("nccl"),
    "/get_world_size": lambda body: Reply(b'{"world_size": 4}'),
}
IPC: Routes = {**TRANSFERS, server_pool.INFO: lambda body: info("ipc")}


@pytest.mark.parametrize(
    ("routes", "able", "sends"),
    [
        (TRANSFERS, True, True),
        (TRANSFERS, False, False),
        (IPC, True, False),
        (DEV_MODE, True, False),
    ],
)
def test_weights_are_sent_where_both_sides_can(
    run: Cli,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    routes: Routes,
    able: bool,
    sends: bool,
) -> None:
    sent = []
    monkeypatch.setattr(server_pool, "can_send", lambda: able)
    monkeypatch.setattr(server_pool, "send_weights", lambda *args: sent.append(args))
    with MockServer(sorry, routes) as server:
        found = run(*ROLLOUT, *LOADS, "--base-url", server.base_url)
        root = server.base_url.removesuffix("/v1")
    assert found.json()["status"]["error"] == 0
    assert sent == ([(root, str(weights.resolve()), 4, server_pool.LOADING_S)] if sends else [])
    asked = [path for path, _ in server.controls]
    assert asked == [*([] if sends else ["/collective_rpc"]), "/reset_prefix_cache"]


CPU: Routes = {
    **DEV_MODE,
    server_pool.INFO: lambda body: Reply(b'{"vllm_config": {"device_config": {"device": "cpu"}}}'),
}


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_is_not_replaced_on_a_cpu(run: Cli, weights: Path, tied: bool) -> None:
    (weights / "config.json").write_bytes(orjson.dumps({"tie_word_embeddings": tied}))
    with MockServer(sorry, CPU) as server:
        found = run(*ROLLOUT, *LOADS, "--base-url", server.base_url)
    if tied:
        what = "would keep the old output layer, tied to the embeddings, on its CPU"
        line = f"error: {server.base_url}: {what}; give --restart-command\n"
        assert (found.code, found.err) == (2, line)
    assert bool(server.requests) == bool(server.controls) == (not tied)


NO_BOOL = "damaged: expected 'bool', got 'str' - at "


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "damaged: no JSON (unexpected end of data)"),
        ("[1]", "damaged: expected 'object', got 'array'"),
        ('{"tie_word_embeddings": "no"}', f"{NO_BOOL}'$.tie_word_embeddings'"),
    ],
)
def test_a_model_whose_config_is_none(run: Cli, weights: Path, text: str, what: str) -> None:
    (weights / "config.json").write_text(text)
    with MockServer(sorry, CPU) as server:
        found = run(*ROLLOUT, *LOADS, "--base-url", server.base_url)
    line = f"error: {weights.resolve()}/config.json: {what}; give a folder that transformers loads"
    assert (found.code, found.err) == (2, f"{line}\n")


RESTART = """
import sys, urllib.request
url, folder = sys.argv[1:]
print("noise")
urllib.request.urlopen(url.removesuffix("/v1") + "/start", b'{"folder": "%s"}' % folder.encode())
"""


def test_a_server_is_started_anew_where_it_can_not_load(run: Cli, weights: Path) -> None:
    """It was down, or else it would have to end first; its command can't wait until it answers."""

    def start(body: Body) -> Reply:
        threading.Timer(0.2, lambda: setattr(server, "lists", True)).start()
        return done(body)

    Path("restart.py").write_text(RESTART)
    with MockServer(sorry, {"/start": start}) as server:
        server.lists = False
        command = f"'{sys.executable}' restart.py"
        where = ("--base-url", server.base_url, "--restart-command", command)
        found = run(*ROLLOUT, *LOADS, *where)
        assert server.controls == [("/start", {"folder": str(weights.resolve())})]
    assert found.json()["status"]["error"] == 0
    assert found.err == ""


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("false", "ended with 1 for URL; see what it printed"),
        ("./nothing", "'./nothing': no such file or directory; check it"),
        ("restart 'my server", "can't be read: no closing quotation; close it"),
        (" ", "names no program; give one, or leave it out"),
    ],
)
def test_a_restart_that_fails(run: Cli, weights: Path, command: str, line: str) -> None:
    with MockServer(sorry) as server:
        where = ("--base-url", server.base_url, "--restart-command", command)
        found = run(*ROLLOUT, *LOADS, *where)
        line = line.replace("URL", server.base_url)
    assert (found.code, found.err) == (2, f"error: --restart-command: {line}\n")
