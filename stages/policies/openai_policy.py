"""The policy `openai`: a model behind any number of OpenAI-compatible servers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from stages.endpoint import (
    CHAT,
    COMPLETIONS,
    FIRST_WAIT_S,
    Answer,
    Endpoint,
    EndpointError,
    plain_text,
)
from stages.policies.chat import Chat
from stages.policies.policy import Action, ContextOverflowError, PolicyError, Sampling
from stages.worlds.world import Message

# What we ask for beyond the text; a server that knows one of them not is not asked again.
# `return_token_ids` is vLLM's: it gives the ids of the prompt and of what was sampled.
EXTRAS = {"return_token_ids": True, "logprobs": True}
EXTRAS_OF_IDS = {**EXTRAS, "logprobs": 0}  # of no token but the sampled one
TOO_LONG = re.compile(
    r"context.{0,20}length|maximum context|too long|context window", re.IGNORECASE
)


@dataclass
class Server:
    """One server and its load."""

    endpoint: Endpoint
    waiting: int = 0  # requests in flight
    episodes: int = 0  # that ever began there


class OpenAIPolicy:
    """Plays each episode on one server, so that its prefix stays in that server's cache.

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

        Raises:
            InputError: the package openai or an API key is missing.
        """
        self._model = model
        self._extras = dict(EXTRAS_OF_IDS if tokenizer else EXTRAS)
        self._servers = [
            Server(Endpoint(url, timeout_s, retries, "--policy openai", first_wait_s))
            for url in tuple(base_urls) or (None,)
        ]
        self._server_of: dict[str, Server] = {}
        self._chat = Chat(tokenizer) if tokenizer else None

    async def act(
        self,
        episode_id: str,
        messages: Sequence[Message],
        tools: list[dict[str, Any]],
        sampling: Sampling,
        seed: int,
    ) -> Action:
        """Return the next message; see `Policy`."""
        server = self._server(episode_id)
        body = {
            "model": self._model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_tokens,
            "seed": seed,
        }
        server.waiting += 1
        try:
            if self._chat:
                prompt = self._chat.prompt(episode_id, messages, tools).ids
                answer = await self._ask(server, body | {"prompt": prompt}, COMPLETIONS)
                return continued(self._chat, episode_id, prompt, answer, tools)
            body["messages"] = [sendable(message) for message in messages]
            if tools:
                body["tools"] = tools
            return action_of(await self._ask(server, body, CHAT), turn=len(messages))
        finally:
            server.waiting -= 1

    async def close(self) -> None:
        """Close all connections."""
        for server in self._servers:
            await server.endpoint.close()

    def _server(self, episode_id: str) -> Server:
        """The server of an episode: at its first turn the one with the least to do."""
        server = self._server_of.get(episode_id)
        if server is None:
            server = min(self._servers, key=lambda one: (one.waiting, one.episodes))
            server.episodes += 1
            self._server_of[episode_id] = server
        return server

    async def _ask(self, server: Server, body: dict[str, Any], path: str) -> Answer:
        while True:
            extras = dict(self._extras)
            try:
                return await server.endpoint.complete(body | extras, path)
            except EndpointError as error:
                unknown = [name for name in extras if error.status == 400 and name in str(error)]
                if not unknown:
                    if error.status == 400 and TOO_LONG.search(str(error)):
                        raise ContextOverflowError from None
                    raise PolicyError(str(error)) from None
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
        answer: of /chat/completions; its first choice has a message.
        turn: number that makes the ids of calls unique in the episode; the server's own are
            drawn at random, which no two runs would share.
    """
    choice = answer["choices"][0]
    said = choice["message"]
    content = said.get("content")
    message: Message = {
        "role": "assistant",
        "content": plain_text(content) if isinstance(content, str) else None,
    }
    if isinstance(thought := said.get("reasoning_content"), str):
        message["reasoning_content"] = plain_text(thought)
    if calls := _list(said.get("tool_calls")):
        message["tool_calls"] = [
            _call(call, f"call_{turn}_{number}") for number, call in enumerate(calls)
        ]
    elif message["content"] is None:
        message["content"] = ""
    prompt_ids, token_ids = _ids(answer.get("prompt_token_ids")), _ids(choice.get("token_ids"))
    usage = answer.get("usage")
    counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Action(
        message,
        prompt_ids,
        token_ids,
        _logprobs(choice.get("logprobs"), token_ids),
        "length" if choice.get("finish_reason") == "length" else "stop",
        counted if type(counted) is int else None,
    )


def continued(
    chat: Chat, episode_id: str, prompt: list[int], answer: Answer, tools: list[dict[str, Any]]
) -> Action:
    """Read an answer to a prompt of token ids.

    Raises:
        PolicyError: the server does not tell which tokens it sampled.
    """
    choice = answer["choices"][0]
    token_ids = _ids(choice.get("token_ids"))
    if not token_ids:
        raise PolicyError("the server gives no token ids, which '--tokenizer' needs")
    logprobs = choice.get("logprobs")
    found = logprobs.get("token_logprobs") if isinstance(logprobs, dict) else None
    known = isinstance(found, list) and len(found) == len(token_ids) and None not in found
    cut = choice.get("finish_reason") == "length"
    message = chat.answer(episode_id, token_ids, tools)
    return Action(message, prompt, token_ids, found if known else None, "length" if cut else "stop")


def _sendable_call(call: Any) -> Any:
    try:
        known = isinstance(orjson.loads(call["function"]["arguments"]), dict)
    except orjson.JSONDecodeError:
        known = False
    return call if known else {**call, "function": {**call["function"], "arguments": "{}"}}


def _call(call: Any, call_id: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    function = function if isinstance(function, dict) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    name = plain_text(name) if isinstance(name, str) else ""
    function = {"name": name, "arguments": plain_text(arguments)}
    return {"id": call_id, "type": "function", "function": function}


def _logprobs(given: Any, token_ids: list[int] | None) -> list[float] | None:
    """The logprob of each token; None unless there is one for each."""
    try:
        found = [float(token["logprob"]) for token in given["content"]]
    except (TypeError, LookupError, ValueError):
        return None
    return found if token_ids is not None and len(found) == len(token_ids) else None


def _ids(given: Any) -> list[int] | None:
    known = isinstance(given, list) and all(type(token) is int for token in given)
    return given if known else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
