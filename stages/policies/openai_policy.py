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

# What we ask for beyond the text; a server that knows one of them not is not asked again.
# `return_token_ids` is vLLM's: it gives the ids of the prompt and of what was sampled.
EXTRAS = {"return_token_ids": True, "logprobs": True}
# Logprobs of no token but the sampled one. vLLM would take top_k and min_p from the model's own
# settings (20 with Qwen3), and `train` knows of no truncation but top_p.
EXTRAS_OF_IDS = {**EXTRAS, "logprobs": 0, "top_k": -1, "min_p": 0.0}
TOO_LONG = re.compile(
    r"context.{0,20}length|maximum context|too long|context window", re.IGNORECASE
)
CHECK_S = 5.0  # from one look at a server that is down to the next


@dataclass(eq=False)
class Server:
    """One server and its load."""

    endpoint: Endpoint
    up: bool = True  # when it was last asked
    live: int = 0  # episodes that play there
    episodes: int = 0  # that ever began there


@dataclass
class Place:
    """Where an episode plays."""

    server: Server | None = None  # None: it has yet to begin
    failed: list[Server] = field(default_factory=list)  # those that it was lost on


class OpenAIPolicy:
    """Plays each episode on one server, so that its prefix stays in that server's cache.

    A server that is many behind one address is told which episode a request is part of.

    It begins on the server where fewest play. A server that fails for good loses its episodes: each
    begins again on another one, at most once on each. The server gets no more of them until it
    answers again.

    Token ids and logprobs are stored as the server tells them, and are unknown otherwise. vLLM's
    logprobs are those of temperature 1 unless it runs with `--logprobs-mode processed_logprobs`.

    A server of chats tokenizes what the model wrote again, at each turn. With the model's tokenizer
    a prompt is sent as token ids, and goes on exactly where the model stopped.
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
        """Prepare; nothing is sent yet.

        Args:
            model: name that the servers know.
            base_urls: of the servers, each up to and with `/v1`; none: OpenAI's own.
            timeout_s: of one request.
            retries: of one request.
            first_wait_s: before the first retry.
            tokenizer: of transformers, with the model's chat template, for servers that take and
                give token ids, as vLLM's does; None: the servers use their own.
            rate_limit: requests per second to each server, at most; None: no limit.
            rejoin: whether a server that comes back plays again. One that was given other weights
                than it starts with must not.
            check_s: from one look at a server that is down to the next.

        Raises:
            InputError: the package openai or an API key is missing.
        """
        self._model = model
        urls = tuple(base_urls)
        self._own = bool(urls)  # not OpenAI's servers, which show tools
        self._extras = dict(EXTRAS_OF_IDS if tokenizer else EXTRAS)
        self._servers = [
            Server(Endpoint(url, timeout_s, retries, "--policy openai", first_wait_s, rate_limit))
            for url in urls or (None,)
        ]
        self._places: dict[str, Place] = {}
        self._chat = Renderer(tokenizer) if tokenizer else None
        self._rejoin, self._check_s = rejoin, check_s
        self._watches: set[asyncio.Task[None]] = set()
        # A server alone is asked in any case.
        self._checked, self._checking = len(self._servers) == 1, asyncio.Lock()

    def told(self, tools: list[dict[str, Any]]) -> Told:
        """Return how the model is told of its tools; see `Prompts`."""
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
        """Let go of an episode that has ended."""
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
        """The server of an episode: at its first turn, of those that are up, the least loaded."""
        place = self._places.setdefault(episode_id, Place())
        if place.server is None:
            left = [server for server in self._servers if server not in place.failed]
            able = [server for server in left if server.up] or left
            place.server = min(able, key=lambda server: (server.live, server.episodes))
            place.server.live += 1
            place.server.episodes += 1
        return place.server

    def _others(self, episode_id: str) -> list[Server]:
        """The servers on which an episode could begin again."""
        place = self._places[episode_id]
        tried = [*place.failed, place.server]
        return [server for server in self._servers if server.up and server not in tried]

    def _leave(self, episode_id: str) -> None:
        """Let an episode begin again, elsewhere."""
        place = self._places[episode_id]
        if place.server:
            place.server.live -= 1
            place.failed.append(place.server)
            place.server = None

    async def _check(self) -> None:
        """Before the first turn of all, see which servers are there."""
        async with self._checking:
            if not self._checked:
                asked = (server.endpoint.answers() for server in self._servers)
                for server, up in zip(self._servers, await asyncio.gather(*asked), strict=True):
                    if not up:
                        self._down(server)
                self._checked = True

    def _down(self, server: Server) -> None:
        """Give a server nothing new until it answers again."""
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
    """Return a message as every server takes it: arguments of calls are a JSON object.

    Servers whose chat template needs the arguments parsed refuse a conversation in which the
    model once wrote anything else. It still sees the error that its call got.
    """
    calls = message.get("tool_calls")
    if not calls:
        return message
    return {**message, "tool_calls": [_sendable_call(call) for call in calls]}


def action_of(answer: Answer, turn: int) -> Action:
    """Read an answer, whatever the model wrote.

    Args:
        answer: of /chat/completions, as `checked` returns it.
        turn: number that makes the ids of calls unique in the episode; the server's own are
            drawn at random, which no two runs would share.
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
    """Read an answer to a prompt of token ids.

    Raises:
        PolicyError: the server does not tell which tokens it sampled, or they are of another
            tokenizer.
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
    """The logprob of each token; None unless there is one for each."""
    try:
        logprobs = [float(token["logprob"]) for token in given["content"]]
    except (TypeError, LookupError):
        return None
    return logprobs if token_ids is not None and len(logprobs) == len(token_ids) else None
