"""The HTTP client of one server, which trusts it with no more memory and no other host."""

from __future__ import annotations

import zlib
from typing import Any

import openai

from stages.serving.address import Address

LARGEST_ANSWER = 2**24  # bytes, as sent and as decoded; ids and logprobs of 100,000 tokens fit
HOPS = 5  # redirects that are followed
OF_BYTES = ("content-type", "content-encoding", "content-length", "transfer-encoding")
ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")


class UnreadableError(openai.OpenAIError):
    """An answer is not taken in: it is too large, or wrongly encoded."""


class GuardedClient(openai.DefaultAsyncHttpxClient):
    """Sends requests to one server, and to no other that it redirects to.

    An answer is read and decoded up to LARGEST_ANSWER. The secrets of the address are added where
    a request is sent, so that no log of the libraries shows them in its URL.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(headers={"accept-encoding": "gzip, deflate"})
        self._address = address

    async def send(
        self, request: Any, *, stream: bool = False, follow_redirects: Any = None, **more: Any
    ) -> Any:
        """Return the whole answer, or the redirect that is not followed; see httpx.

        Raises:
            UnreadableError: the answer is too large, or wrongly encoded.
        """
        answer = await self._sent(request, more)
        for _ in range(HOPS):
            onward = answer.next_request
            if onward is None or _origin(onward.url) != _origin(request.url):
                break
            await answer.aclose()
            answer = await self._sent(onward, more)
        return await _whole(answer)

    async def _sent(self, request: Any, options: dict[str, Any]) -> Any:
        """Send one request, with the secrets of the address."""
        if self._address.authorization:
            request.headers["authorization"] = self._address.authorization
        if self._address.query:
            path = request.url.raw_path
            target = path + (b"&" if b"?" in path else b"?") + self._address.query.encode()
            request.extensions = {**request.extensions, "target": target}
        return await super().send(request, stream=True, follow_redirects=False, **options)


def _origin(url: Any) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def _whole(answer: Any) -> Any:
    """Return an answer with all of its content, decoded."""
    pieces, size = [], 0
    try:
        async for piece in answer.aiter_raw():
            size += len(piece)
            if size > LARGEST_ANSWER:
                raise _too_large()
            pieces.append(piece)
    finally:
        await answer.aclose()
    content = _decoded(b"".join(pieces), answer.headers.get("content-encoding", ""))
    try:
        content.decode()
    except UnicodeDecodeError:
        raise UnreadableError("the answer is not UTF-8") from None
    headers = answer.headers.multi_items()
    return type(answer)(
        answer.status_code,
        headers=[(name, value) for name, value in headers if name not in OF_BYTES],
        content=content,
        request=answer.request,
        extensions=answer.extensions,
    )


def _decoded(content: bytes, encoding: str) -> bytes:
    """Return content without its compression, all at once: no two bombs are open together."""
    encoding = encoding.strip().lower()
    if encoding not in ENCODINGS:
        raise UnreadableError(f"the answer is encoded as '{encoding:.40}', which was not asked for")
    if encoding in ENCODINGS[:2]:
        return content
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # by its header: gzip or zlib
    try:
        decoded = decoder.decompress(content, LARGEST_ANSWER + 1)
    except zlib.error:
        raise UnreadableError(f"the answer is not encoded as {encoding}, as it says") from None
    if len(decoded) > LARGEST_ANSWER:
        raise _too_large()
    if not decoder.eof:
        raise UnreadableError(f"the answer's {encoding} is cut off")
    return decoded


def _too_large() -> UnreadableError:
    return UnreadableError(f"the answer is larger than {LARGEST_ANSWER >> 20} MiB")
