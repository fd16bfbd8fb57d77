"""A client of an OpenAI-compatible server, with timeouts, retries and a rate limit."""

from __future__ import annotations

import asyncio
import email.utils
import json
import math
import os
import random
import re
import time
from typing import Any
from urllib.parse import quote

from stages.errors import InputError
from stages.serving.address import HIDDEN, Address, not_an_address, shown
from stages.serving.answers import CHAT, Answer, AnswerError, checked

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0  # between two attempts; Retry-After may lengthen a wait
PASSING = frozenset({408, 409, 429})  # transient statuses, besides all from 500 on
ANSWERS_S = 10.0  # timeout of a health check, which asks for the server's models
OPENAI = "https://api.openai.com/v1"
SECRET = 16  # characters; a key or password of this length is not in an answer by chance

SESSION = "x-session-id"  # Ray Serve's header


class EndpointError(Exception):
    """The server gave no usable answer."""

    def __init__(self, what: str, status: int | None = None) -> None:
        super().__init__(what)
        self.status = status  # HTTP status; None: no answer, or a broken one

    @property
    def passing(self) -> bool:
        """Whether the error is transient: another attempt or another server may succeed."""
        return self.status is None or self.status in PASSING or self.status >= 500


class Endpoint:
    """A client of one server.

    A request takes at most (retries + 1) * timeout_s plus the waits between attempts, each of at
    most LONGEST_WAIT_S, even if the server keeps sending single bytes. Waits back off exponentially
    with jitter, so that episodes do not retry in lockstep.
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
        """Create the client; nothing is sent yet.

        Args:
            base_url: base URL up to and including `/v1`; None: OPENAI_BASE_URL, or OpenAI's.
            timeout_s: timeout of an attempt in seconds, from its start to the last byte.
            retries: attempts after the first.
            where: the option behind the request, for errors.
            first_wait_s: longest wait before the first retry, in seconds, without Retry-After.
            rate_limit: most attempts per second, evenly spaced; None: no limit.

        Raises:
            InputError: the package openai or an API key is missing, or the URL is not an address.
        """
        try:
            import openai

            from stages.serving.guarded_client import GuardedClient
        except ImportError:
            todo = "pip install 'irc-cli[openai]'"
            raise InputError(where, "needs the package 'openai'", todo) from None
        key = os.environ.get("OPENAI_API_KEY")
        if not (key or base_url):
            todo = "set OPENAI_API_KEY, or give the address of a server"
            raise InputError(where, "no API key for api.openai.com", todo)
        given = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
        address = Address.of(given, where)
        self.url = address.url
        self._secrets = (*address.secrets, *([key] if key else []))
        try:
            self._client = openai.AsyncOpenAI(
                base_url=address.url,
                api_key=key or "none",
                timeout=timeout_s,
                max_retries=0,
                http_client=GuardedClient(address),
            )
        except Exception:  # from httpx, which has its own rules for hosts
            raise not_an_address(given, where) from None
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
        """Return the answer to a request, retrying transient errors.

        Args:
            body: body of the request.
            path: CHAT or COMPLETIONS.
            replaceable: whether another server can take over, so that a dead server is not retried.
            session: id of the episode, for routers with session affinity.

        Returns:
            The answer, as `checked` returns it.

        Raises:
            EndpointError: the server refused the request, or all attempts failed.
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
        """Return whether the server is alive: it lists its models, or refuses for good."""
        try:
            async with asyncio.timeout(ANSWERS_S):
                await self.call("GET", "/models")
        except (EndpointError, TimeoutError) as error:
            return isinstance(error, EndpointError) and not error.passing
        return True

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Send one request without retries; return the JSON of the answer.

        Args:
            method: GET or POST.
            path: path relative to the base URL, or a full URL.
            body: body of a POST.

        Returns:
            JSON values.

        Raises:
            EndpointError: the server refused, or did not answer with JSON.
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
        try:
            return checked(answer, path)
        except AnswerError as error:
            raise _PassingError(self._error(str(error))) from None

    async def _pace(self) -> None:
        """Wait until the rate limit allows this attempt."""
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
                return await self._json(method, path, body, headers or {})
        except openai.APIStatusError as error:
            refused = self._refusal(error)
            if refused.passing:
                raise _PassingError(refused, _retry_after(error.response.headers)) from None
            raise refused from None
        except (openai.APITimeoutError, TimeoutError):
            raise _PassingError(EndpointError(f"no answer in {self._timeout_s:g} s")) from None
        except (openai.APIConnectionError, OSError) as error:
            cause = error.__cause__ or error
            raise _PassingError(self._error(f"connection: {cause}")) from None
        except (UnicodeError, json.JSONDecodeError):
            raise _PassingError(EndpointError("the answer is not JSON")) from None
        except RecursionError:
            raise _PassingError(EndpointError("the answer is nested too deep")) from None
        except (ValueError, openai.OpenAIError) as error:
            raise _PassingError(self._error(str(error))) from None

    async def _json(
        self, method: str, path: str, body: dict[str, Any] | None, headers: dict[str, str]
    ) -> Any:
        options: Any = {"headers": headers}
        if method == "GET":
            answer = await self._client.get(path, cast_to=str, options=options)
        else:
            answer = await self._client.post(path, cast_to=str, body=body, options=options)
        for secret in filter(_is_distinctive, self._secrets):
            answer = answer.replace(secret, HIDDEN)
        return json.loads(answer)

    def _refusal(self, error: Any) -> EndpointError:
        """Return the error for an HTTP status that is not a success."""
        status, body = error.status_code, error.body
        if 300 <= status < 400:
            place = shown(error.response.headers.get("location", "nowhere"))
            return self._error(f"HTTP {status}: redirects to {place}, not followed", status)
        reason = body.get("message") if isinstance(body, dict) else None
        return self._error(f"HTTP {status}: {reason or error.message}", status)

    def _error(self, what: str, status: int | None = None) -> EndpointError:
        """Return an error with a server's text on one line, without our secrets."""
        for secret in self._secrets:
            what = what.replace(secret, HIDDEN)
        return EndpointError(_first_line(what), status)


class _PassingError(Exception):
    """A transient failure."""

    def __init__(self, error: EndpointError, wait_s: float | None = None) -> None:
        super().__init__(str(error))
        self.error, self.wait_s = error, wait_s


def _is_distinctive(secret: str) -> bool:
    """Return whether a secret can be masked in answers; "EMPTY", say, may be a model's own word."""
    letters, digits = re.search("[A-Za-z]", secret), re.search("[0-9]", secret)
    return len(secret) >= SECRET and bool(letters and digits)


def plain_text(text: str) -> str:
    """Return text that can be written as UTF-8; a lone surrogate becomes '?'.

    Args:
        text: any text.

    Returns:
        The text without surrogates.
    """
    return text.encode("utf-8", "replace").decode()


def _retry_after(headers: Any) -> float | None:
    """Return the seconds to wait that the server asks for; None if absent or unreadable."""
    value = headers.get("retry-after", "")
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError, IndexError, OverflowError, OSError):
            return None
    return max(0.0, wait_s) if math.isfinite(wait_s) else None


def _first_line(text: str) -> str:
    lines = plain_text(text).strip().splitlines()
    shown = (letter if letter.isprintable() else "?" for letter in lines[0][:200]) if lines else ()
    return "".join(shown) or "no reason given"
