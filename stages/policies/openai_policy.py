"""The policy `openai`: a model behind any number of OpenAI-compatible servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from stages.messages.message import Message, Told
from stages.messages.renderer import Renderer
from stages.policies.policy import Action, ContextOverflowError, LostError, PolicyError, Sampling
from stages.serving.answers import CHAT, COMPLETIONS, Answer, is_cut
from stages.serving.endpoint import FIRST_WAIT_S, Endpoint, EndpointError, plain_text

# Optional request fields; one that a server rejects is not sent again. `return_token_ids` is
# vLLM's: it returns the ids of the prompt and of the sampled tokens.
EXTRAS = {"return_token_ids": True, "logprobs": True}
# Logprobs of the sampled token only. By default vLLM takes top_k and min_p from the model's own
# settings (top_k 20 with Qwen3), but `train` supports no truncation except top_p.
EXTRAS_OF_IDS = {**EXTRAS, "logprobs": 0, "top_k": -1, "min_p": 0.0}
TOO_LONG = re.compile(
    r"context.{0,20}length|maximum context|too long|context window", re.IGNORECASE
)
CHECK_S = 5.0  # seconds between health checks of a server that is down


@dataclass(eq=False)
class Server:
    """A server and its load."""

    endpoint: Endpoint
    up: bool = True  # as of the last check
    live: int = 0  # running episodes
    episodes: int = 0  # all episodes ever started there


@dataclass
class Place:
    """The server of an episode, and the servers that lost it."""

    server: Server | None = None  # None: not started
    failed: list[Server] = field(default_factory=list)  # servers that lost the episode


class OpenAIPolicy:
    """A policy behind OpenAI-compatible servers, with each episode pinned to one server.

    Pinning keeps the episode's prefix in the server's cache. Each episode starts on the least
    loaded server; requests carry its id for routers in front of several servers. If a server fails
    for good, its episodes restart on other servers, at most once on each, and the server gets no
    new episodes until it answers again.

    Token ids and logprobs are recorded if the server returns them. vLLM's logprobs are those of
    temperature 1 unless it runs with `--logprobs-mode processed_logprobs`.

    A chat server tokenizes the model's earlier messages again at each turn. With the model's
    tokenizer the prompt is sent as token ids that continue the sampled tokens exactly.
    """

    def __init__(
        self,
        model: str,
        base_urls: Iterable[str] = (),
        timeout_s: float = 120.0,
        retries: int = 5,
        first_wait_s: float = FIRST_WAIT_S,
        tokenizer: Any = None,
        rate_limit: float | None = None,
        rejoin: bool = True,
        check_s: float = CHECK_S,
    ) -> None:
        """Create the clients; nothing is sent yet.

        Args:
            model: name of the model on the servers.
            base_urls: base URLs of the servers, each up to and including `/v1`; empty: OpenAI's.
            timeout_s: timeout of a request in seconds.
            retries: retries of a request.
            first_wait_s: seconds before the first retry.
            tokenizer: transformers tokenizer with the model's chat template, for servers that
                accept and return token ids, such as vLLM; None: the servers tokenize.
            rate_limit: most requests per second to each server; None: no limit.
            rejoin: whether a server that recovers gets episodes again. It must not if weights were
                loaded into it, because it would restart with stale weights.
            check_s: seconds between health checks of a server that is down.

        Raises:
            InputError: the package openai or an API key is missing, or a URL is not an address.
        """
        self._model = model
        urls = tuple(base_urls)
        self._own = bool(urls)  # not OpenAI's servers, which always pass tools to the model
        self._extras = dict(EXTRAS_OF_IDS if tokenizer else EXTRAS)
        self._servers = [
            Server(Endpoint(url, timeout_s, retries, "--policy openai", first_wait_s, rate_limit))
            for url in urls or (None,)
        ]
        self._places: dict[str, Place] = {}
        self._chat = Renderer(tokenizer) if tokenizer else None
        self._rejoin, self._check_s = rejoin, check_s
        self._watches: set[asyncio.Task[None]] = set()
        # A single server needs no initial check, because it is used in any case.
        self._checked, self._checking = len(self._servers) == 1, asyncio.Lock()

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the prompt describes the tools; see `Prompts`."""
        if self._chat:
            return self._chat.template.told(tools)
        record = {"tools": "server", "system": "server"}
        if not (tools and self._own):
            return Told(record, [])
        what = "the server makes the prompt, and may leave out tools that its chat template ignores"
        return Told(record, [f"--policy openai: {what}; give --tokenizer to make it here"])

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; see `Policy`."""
        await self._check()
        server = self._server(episode_id)
        body = {
            "model": self._model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
        }
        try:
            if self._chat:
                prompt = self._chat.prompt(episode_id, messages, tools).ids
                answer = await self._ask(episode_id, body | {"prompt": prompt}, COMPLETIONS)
                return continued(self._chat, episode_id, prompt, answer, tools)
            body["messages"] = [sendable(message) for message in messages]
            if tools:
                body["tools"] = tools
            return action_of(await self._ask(episode_id, body, CHAT), turn=len(messages))
        except EndpointError as error:
            if not (error.passing and self._others(episode_id)):
                raise PolicyError(str(error)) from None
            self._leave(episode_id)
            self._down(server)
            raise LostError(str(error)) from None

    def forget(self, episode_id: str) -> None:
        """Release an episode that has ended."""
        place = self._places.pop(episode_id, None)
        if place and place.server:
            place.server.live -= 1

    async def close(self) -> None:
        """Close all connections."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        for server in self._servers:
            await server.endpoint.close()

    def _server(self, episode_id: str) -> Server:
        """Return an episode's server; assign the least loaded one that is up at the first turn."""
        place = self._places.setdefault(episode_id, Place())
        if place.server is None:
            left = [server for server in self._servers if server not in place.failed]
            able = [server for server in left if server.up] or left
            place.server = min(able, key=lambda server: (server.live, server.episodes))
            place.server.live += 1
            place.server.episodes += 1
        return place.server

    def _others(self, episode_id: str) -> list[Server]:
        """Return the servers on which an episode could restart."""
        place = self._places[episode_id]
        tried = [*place.failed, place.server]
        return [server for server in self._servers if server.up and server not in tried]

    def _leave(self, episode_id: str) -> None:
        """Detach an episode from its server, so that it can restart elsewhere."""
        place = self._places[episode_id]
        if place.server:
            place.server.live -= 1
            place.failed.append(place.server)
            place.server = None

    async def _check(self) -> None:
        """Check all servers once, before the first turn of any episode."""
        async with self._checking:
            if not self._checked:
                asked = (server.endpoint.answers() for server in self._servers)
                for server, up in zip(self._servers, await asyncio.gather(*asked), strict=True):
                    if not up:
                        self._down(server)
                self._checked = True

    def _down(self, server: Server) -> None:
        """Mark a server as down, so that it gets no new episodes until it answers again."""
        if server.up:
            server.up = False
            if self._rejoin:
                watch = asyncio.create_task(self._watch(server))
                self._watches.add(watch)
                watch.add_done_callback(self._watches.discard)

    async def _watch(self, server: Server) -> None:
        while not server.up:
            await asyncio.sleep(self._check_s)
            server.up = await server.endpoint.answers()

    async def _ask(self, episode_id: str, body: dict[str, Any], path: str) -> Answer:
        server = self._server(episode_id)
        while True:
            extras = dict(self._extras)
            replaceable = bool(self._others(episode_id))
            try:
                return await server.endpoint.complete(
                    body | extras, path, replaceable=replaceable, session=episode_id
                )
            except EndpointError as error:
                unknown = [name for name in extras if error.status == 400 and name in str(error)]
                if not unknown:
                    if error.status == 400 and TOO_LONG.search(str(error)):
                        raise ContextOverflowError from None
                    raise
                for name in unknown:
                    self._extras.pop(name, None)


def sendable(message: Message) -> Message:
    """Return a message that every server accepts: call arguments that are no JSON object become {}.

    Servers whose chat template parses the arguments reject a conversation in which the model once
    wrote anything else. The model still sees the error that its call got.

    Args:
        message: a message of the conversation.

    Returns:
        The message itself, or a copy with other arguments.
    """
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_sendable_call(call) for call in calls]}


def action_of(answer: Answer, turn: int) -> Action:
    """Convert an answer of /chat/completions to an action.

    Args:
        answer: the answer, as `checked` returns it.
        turn: number that makes call ids unique in the episode. The server's own ids are random,
            so runs would not be reproducible.

    Returns:
        The message, with tokens and logprobs if the server returned them.
    """
    choice = answer["choices"][0]
    said = choice["message"]
    content, calls = said.get("content"), said.get("tool_calls")
    if content is None and not calls:
        content = ""
    message: Message = {"role": "assistant", "content": content and plain_text(content)}
    if isinstance(thought := said.get("reasoning_content"), str):
        message["reasoning_content"] = plain_text(thought)
    if calls:
        message["tool_calls"] = [
            _call(call["function"], f"call_{turn}_{number}") for number, call in enumerate(calls)
        ]
    token_ids = choice.get("token_ids")
    return Action(
        message,
        answer.get("prompt_token_ids"),
        token_ids,
        _logprobs(choice.get("logprobs"), token_ids),
        "length" if is_cut(choice) else "stop",
        (answer.get("usage") or {}).get("completion_tokens"),
    )


def continued(
    chat: Renderer, episode_id: str, prompt: list[int], answer: Answer, tools: list[dict[str, Any]]
) -> Action:
    """Convert an answer to a prompt of token ids to an action.

    Args:
        chat: renderer of the model.
        episode_id: id of the episode.
        prompt: tokens of the prompt.
        answer: answer of /completions, as `checked` returns it.
        tools: tools of the agent, in OpenAI's format.

    Returns:
        The message with its tokens, and logprobs if the server returned one for each.

    Raises:
        PolicyError: the server returned no token ids, or ids of another tokenizer.
    """
    choice = answer["choices"][0]
    token_ids = choice.get("token_ids")
    if not token_ids:
        raise PolicyError("the server gives no token ids, which '--tokenizer' needs")
    if (largest := max(token_ids)) >= chat.vocabulary:
        raise PolicyError(f"the server sampled token {largest}, which '--tokenizer' does not have")
    logprobs = choice.get("logprobs")
    given = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    known = isinstance(given, list) and len(given) == len(token_ids) and None not in given
    message = chat.answer(episode_id, token_ids, tools)
    finish: Any = "length" if is_cut(choice) else "stop"
    return Action(message, prompt, token_ids, given if known else None, finish)


def _sendable_call(call: Any) -> Any:
    try:
        known = isinstance(orjson.loads(call["function"]["arguments"]), dict)
    except orjson.JSONDecodeError:
        known = False
    return call if known else {**call, "function": {**call["function"], "arguments": "{}"}}


def _call(function: dict[str, Any], call_id: str) -> dict[str, Any]:
    written = {name: plain_text(function[name]) for name in ("name", "arguments")}
    return {"id": call_id, "type": "function", "function": written}


def _logprobs(given: Any, token_ids: list[int] | None) -> list[float] | None:
    """Return the logprob of each token; None unless there is one for each."""
    try:
        logprobs = [float(token["logprob"]) for token in given["content"]]
    except (TypeError, LookupError):
        return None
    return logprobs if token_ids is not None and len(logprobs) == len(token_ids) else None
