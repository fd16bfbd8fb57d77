"""A pool of servers: their addresses, and weight updates of running servers.

A server gets a checkpoint by the first of these methods that is available:

1. Weights are sent over NCCL by vLLM's weight-transfer API. The server must have been started with
   `--weight-transfer-config`, and this process needs vLLM and a GPU.
2. The server reads the folder, which it must see under the same path, by vLLM's `/collective_rpc`.
3. The user's command restarts the server.

vLLM serves the routes of 1 and 2 if VLLM_SERVER_DEV_MODE=1. On a CPU, vLLM 0.32 keeps a packed copy
of an output layer tied to the embeddings and does not update it, so only method 3 is correct there.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypedDict

from stages.errors import InputError
from stages.serving.address import shown
from stages.serving.endpoint import Endpoint, EndpointError
from stages.serving.weight_transfer import ROUTE as TRANSFER
from stages.serving.weight_transfer import can_send, send_weights, takes_nccl
from stages.tables.pipes import content
from stages.tables.state import read_state

LOADING_S = 1800.0  # most seconds for a server to load weights or to start
MOST_WORKERS = 2**16  # of a server
LOOK_S = 1.0  # seconds between health checks of a starting server
RELOAD, FORGET_PREFIXES = "/collective_rpc", "/reset_prefix_cache"
INFO = "/server_info?config_format=json"


def addresses(given: Iterable[str]) -> tuple[str, ...]:
    """Return the base URLs of servers, without repetitions.

    Args:
        given: URLs, and paths of files with one URL per line; empty lines and lines that start with
            `#` are ignored.

    Returns:
        The URLs, in order.

    Raises:
        InputError: a file is missing, or a line is not a URL.
    """
    urls: list[str] = []
    for url_or_file in given:
        urls += [url_or_file] if "://" in url_or_file else _listed(url_or_file)
    return tuple(dict.fromkeys(url.rstrip("/") for url in urls))


async def load_weights(
    base_urls: Sequence[str], folder: str, restart_command: str | None
) -> tuple[str, ...]:
    """Update the weights of all servers concurrently.

    Args:
        base_urls: base URLs of the servers, each up to and including `/v1`.
        folder: folder of the weights, as the servers see it.
        restart_command: command that restarts a server that can't load weights while it runs. It is
            called with the server's base URL and the folder, and must end after the old server has
            stopped.

    Returns:
        The servers with the new weights, in order. A server that is down is left out unless there
        is a restart command.

    Raises:
        InputError: a server can't load weights or rejects these, no server answers, or the command
            is invalid.
    """
    path, sending = str(Path(folder).resolve()), asyncio.Lock()
    restart = _words(restart_command) if restart_command else []
    loaded = await asyncio.gather(*(_load(url, path, restart, sending) for url in base_urls))
    ready = tuple(url for url, done in zip(base_urls, loaded, strict=True) if done)
    if not ready:
        raise InputError("--base-url", "no server answers", "start them, or give other addresses")
    return ready


def _words(command: str) -> list[str]:
    """Split a command into words as a shell does."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        what = f"can't be read: {str(error).lower()}"
        raise InputError("--restart-command", what, "close it") from None
    if not words:
        raise InputError("--restart-command", "names no program", "give one, or leave it out")
    return words


async def _load(base_url: str, folder: str, restart: list[str], sending: asyncio.Lock) -> bool:
    """Update the weights of one server; return False if it is down and can't be restarted."""
    server = Endpoint(base_url, LOADING_S, 0, "--load-weights")
    root, name = _root(server.url), shown(base_url)
    try:
        up = await server.answers()
        paths = (await _queried(server, root + "/openapi.json")).get("paths") if up else None
        routes = paths if isinstance(paths, dict) else {}
        info = await _queried(server, root + INFO) if RELOAD in routes else {}
        stale = on_cpu(info) and _tied(folder)
        if RELOAD in routes and not stale:
            sends = TRANSFER in routes and takes_nccl(info) and can_send()
            await _replace(server, base_url, folder, sending if sends else None)
        elif restart:
            await _restart(server, base_url, folder, restart)
        elif stale:
            what = "would keep the old output layer, tied to the embeddings, on its CPU"
            raise InputError(name, what, "give --restart-command")
        elif up:
            what = "can't load weights while it runs"
            todo = "start vLLM with VLLM_SERVER_DEV_MODE=1, or give --restart-command"
            raise InputError(name, what, todo)
        return up or bool(restart)
    finally:
        await server.close()


async def _queried(server: Endpoint, url: str) -> dict[str, Any]:
    """Return the JSON object at a URL of the server; {} if there is none."""
    try:
        answer = await server.call("GET", url)
    except EndpointError:
        return {}
    return answer if isinstance(answer, dict) else {}


def on_cpu(server_info: Any) -> bool:
    """Return whether a vLLM server computes on a CPU.

    Args:
        server_info: its answer to `/server_info?config_format=json`.

    Returns:
        True if its device is the CPU; False if it is another one or unknown.
    """
    try:
        return bool(server_info["vllm_config"]["device_config"]["device"] == "cpu")
    except (LookupError, TypeError):
        return False


class _ModelConfig(TypedDict, total=False):
    """The fields of a model's config.json that are read."""

    tie_word_embeddings: bool


def _tied(folder: str) -> bool:
    """Return whether output layer and embeddings are tied, which is transformers' default."""
    path = Path(folder, "config.json")
    if not path.exists():
        return True
    config = read_state(path, _ModelConfig, "give a folder that transformers loads")
    return bool(config.get("tie_word_embeddings", True))


async def _replace(
    server: Endpoint, base_url: str, folder: str, sending: asyncio.Lock | None
) -> None:
    """Have vLLM load the weights and reset its prefix cache.

    Args:
        server: the server.
        base_url: its address.
        folder: folder of the weights.
        sending: lock to hold while weights are sent over NCCL, because one GPU sends to all
            servers; None: the server reads the folder.
    """
    root, name = _root(server.url), shown(base_url)
    try:
        if sending:
            async with sending:
                size = (await _queried(server, root + "/get_world_size")).get("world_size")
                if not (type(size) is int and 0 < size < MOST_WORKERS):
                    raise EndpointError("it does not report its number of workers")
                target = _root(base_url.partition("?")[0])  # with the user and password
                await asyncio.to_thread(send_weights, target, folder, size, LOADING_S)
        else:
            request = {"method": "reload_weights", "kwargs": {"weights_path": folder}}
            await server.call("POST", root + RELOAD, request)
        forgot = await server.call("POST", root + FORGET_PREFIXES)
    except EndpointError as error:
        todo = "see its log; the folder must be one that the server sees, of the same architecture"
        raise InputError(name, f"did not load '{folder}': {error}", todo) from None
    if not (isinstance(forgot, dict) and forgot.get("success")):
        todo = "run again when nobody else plays there"
        raise InputError(name, "still uses what it computed with the old weights", todo)


async def _restart(server: Endpoint, base_url: str, folder: str, restart: list[str]) -> None:
    args = [*restart, base_url, folder]
    try:
        # Standard output is reserved for our results.
        process = await asyncio.create_subprocess_exec(*args, stdout=asyncio.subprocess.DEVNULL)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError("--restart-command", f"'{args[0]}': {reason}", "check it") from None
    if code := await process.wait():
        what = f"ended with {code} for {shown(base_url)}"
        raise InputError("--restart-command", what, "see what it printed")
    end = time.monotonic() + LOADING_S
    while not await server.answers():
        if time.monotonic() > end:
            raise InputError(shown(base_url), "does not answer after its restart", "see its log")
        await asyncio.sleep(LOOK_S)


def _root(base_url: str) -> str:
    """Return the base URL of the routes that are not OpenAI's."""
    return base_url.removesuffix("/v1")


def _listed(path: str) -> list[str]:
    try:
        lines = content(path).decode().splitlines()
    except FileNotFoundError:
        todo = "give http://HOST:PORT/v1, or a file with such lines"
        raise InputError("--base-url", f"'{shown(path)}' is no URL, and no file", todo) from None
    except UnicodeDecodeError:
        raise InputError(path, "not UTF-8 text", "give a file with one URL per line") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(path, f"can't be read ({reason})", "check the path") from None
    urls = []
    for number, line in enumerate(lines, 1):
        url = line.strip()
        if url and not url.startswith("#"):
            if "://" not in url:
                todo = "write http://HOST:PORT/v1"
                raise InputError(f"{path}:{number}", f"'{shown(url)}' is no URL", todo)
            urls.append(url)
    return urls
