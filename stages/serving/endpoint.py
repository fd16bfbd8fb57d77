"""An OpenAI-compatible server, asked until it answers or our patience ends."""

from __future__ import annotations

import asyncio
import email.utils
import os
import random
import time
from typing import Any
from urllib.parse import quote

from stages.errors import InputError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # between two attempts; a server may ask for more or less
PASSING = frozenset({408, 409, 429})  # these, and all from 500 on, may be gone at the next attempt
ANSWERS_S = 10.0  # in which a server that lives tells its models

SESSION = "x-session-id"  # as Ray Serve calls it
CHAT, COMPLETIONS = "/chat/completions", "/completions"
WRITTEN = {CHAT: ("message", dict), COMPLETIONS: ("text", str)}  # what a choice must hold

Answer = dict[str, Any]  # as JSON


class EndpointError(Exception):
    """The server gave no usable answer."""

    def __init__(self, what: str, status: int | None = None) -> None:
        super().__init__(what)
        self.status = status  # of HTTP; None: there was no answer, or a broken one

    @property
    def passing(self) -> bool:
        """Whether another attempt, or another server, may do better."""
        return self.status is None or self.status in PASSING or self.status >= 500


class Endpoint:
    """One server.

    A request ends after at most (retries + 1) * timeout_s and the waits between attempts, each
    of at most LONGEST_WAIT_S, whatever the server does: one that sends a byte now and then does
    not keep us. Waits double and are drawn at random, so that episodes do not come back together.
    """

    def __init__(
        self,
        base_url: str | None,
        timeout_s: float,
        retries: int,
        where: str,
        first_wait_s: float = FIRST_WAIT_S,
        rate_limit: float | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            base_url: up to and with `/v1`; None: OpenAI's own.
            timeout_s: of one attempt, from its start to the last byte.
            retries: attempts after the first.
            where: the option that asked for this, for errors.
            first_wait_s: before the first retry, where the server doesn't say.
            rate_limit: attempts per second, at most, evenly spaced; None: no limit.

        Raises:
            InputError: the package openai or an API key is missing.
        """
        try:
            import openai
        except ImportError:
            todo = "pip install 'irc-cli[openai]'"
            raise InputError(where, "needs the package 'openai'", todo) from None
        key = os.environ.get("OPENAI_API_KEY") or ("none" if base_url else None)
        if key is None:
            todo = "set OPENAI_API_KEY, or give the address of a server"
            raise InputError(where, "no API key for api.openai.com", todo)
        self._client = openai.AsyncOpenAI(
            base_url=base_url, api_key=key, timeout=timeout_s, max_retries=0
        )
        self._timeout_s, self._retries, self._first_wait_s = timeout_s, retries, first_wait_s
        self._spacing_s = 1 / rate_limit if rate_limit else 0.0
        self._free_at = 0.0  # when the next attempt may begin, on the monotonic clock

    async def complete(
        self,
        body: dict[str, Any],
        path: str = CHAT,
        *,
        replaceable: bool = False,
        session: str | None = None,
    ) -> Answer:
        """Return the answer to a request; its first choice has a message, or a text.

        Args:
            body: of the request.
            path: CHAT or COMPLETIONS.
            replaceable: another server can take over, so that a dead one is not waited for.
            session: what the request is part of, for a router that keeps a session in one place.

        Raises:
            EndpointError: the server refused, or all attempts failed.
        """
        headers = {SESSION: quote(session)} if session else {}
        attempt = 0
        while True:
            wait_s: float | None = None
            try:
                return await self._attempt(body, path, headers)
            except _PassingError as passing:
                error, wait_s = passing.error, passing.wait_s
            if attempt == self._retries:
                raise error
            if replaceable and error.status is None and not await self.answers():
                raise error
            longest = min(self._first_wait_s * 2**attempt, LONGEST_WAIT_S)
            drawn = longest * random.uniform(0.5, 1)
            await asyncio.sleep(drawn if wait_s is None else min(wait_s + drawn, LONGEST_WAIT_S))
            attempt += 1

    async def answers(self) -> bool:
        """Whether the server is there, and not at its end: it tells its models, or refuses to."""
        try:
            async with asyncio.timeout(ANSWERS_S):
                await self.call("GET", "/models")
        except (EndpointError, TimeoutError) as error:
            return isinstance(error, EndpointError) and not error.passing
        return True

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the JSON that the server answers to one request, which is not repeated.

        Args:
            method: GET or POST.
            path: after the base URL.
            body: of a POST.

        Raises:
            EndpointError: the server refused, or gave no JSON.
        """
        try:
            return await self._request(method, path, body)
        except _PassingError as passing:
            raise passing.error from None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _attempt(self, body: dict[str, Any], path: str, headers: dict[str, str]) -> Answer:
        await self._pace()
        answer = await self._request("POST", path, body, headers)
        if not _usable(answer, *WRITTEN[path]):
            kind = "chat completion" if path == CHAT else "completion"
            raise _PassingError(EndpointError(f"the answer is no {kind}"))
        return answer  # type: ignore[no-any-return]  # a dict, as _usable says

    async def _pace(self) -> None:
        """Wait for this attempt's turn under the rate limit."""
        now = time.monotonic()
        begin = max(now, self._free_at)
        self._free_at = begin + self._spacing_s
        await asyncio.sleep(begin - now)

    async def _request(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        import openai

        try:
            async with asyncio.timeout(self._timeout_s):
                if method == "GET":
                    return await self._client.get(path, cast_to=object)
                options: Any = {"headers": headers or {}}
                return await self._client.post(path, cast_to=object, body=body, options=options)
        except openai.APIStatusError as error:
            status = error.status_code
            told = error.body.get("message") if isinstance(error.body, dict) else None
            reason = _first_line(str(told or error.message))
            refused = EndpointError(f"HTTP {status}: {reason}", status)
            if refused.passing:
                raise _PassingError(refused, _retry_after(error.response.headers)) from None
            raise refused from None
        except (openai.APITimeoutError, TimeoutError):
            raise _PassingError(EndpointError(f"no answer in {self._timeout_s:g} s")) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _PassingError(EndpointError(f"connection: {_first_line(str(cause))}")) from None
        except (ValueError, openai.APIError):
            raise _PassingError(EndpointError("the answer is not JSON")) from None


class _PassingError(Exception):
    """A failure that may be gone at the next attempt."""

    def __init__(self, error: EndpointError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait_s = error, wait_s


def plain_text(text: str) -> str:
    """Return text that can be written as UTF-8: half a surrogate pair becomes '?'."""
    return text.encode("utf-8", "replace").decode()


def _usable(answer: Any, key: str, kind: type) -> bool:
    try:
        return isinstance(answer["choices"][0][key], kind)
    except (LookupError, TypeError):
        return False


def _retry_after(headers: Any) -> float | None:
    """Seconds that the server asks us to wait; None where it doesn't, or not in a form we know."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _first_line(text: str) -> str:
    lines = plain_text(text).strip().splitlines()
    return lines[0][:200] if lines else "no reason given"
