"""An HTTP client for one untrusted server, with bounded memory and no redirects to other hosts."""

from __future__ import annotations

import zlib
from typing import Any

import openai

from stages.serving.address import Address

LARGEST_ANSWER = 2**24  # bytes, sent and decoded; enough for ids and logprobs of 100,000 tokens
HOPS = 5  # most redirects to follow
OF_BYTES = ("content-type", "content-encoding", "content-length", "transfer-encoding")
ENCODINGS = ("", "identity", "gzip", "x-gzip", "deflate")


class UnreadableError(openai.OpenAIError):
    """An answer is rejected because it is too large or wrongly encoded."""


class GuardedClient(openai.DefaultAsyncHttpxClient):
    """An HTTP client of one server that follows redirects only to the same origin.

    An answer is read and decoded up to LARGEST_ANSWER. The address's secrets are added only when a
    request is sent, so that the libraries' logs do not show them in its URL.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(headers={"accept-encoding": "gzip, deflate"})
        self._address = address

    async def send(
        self, request: Any, *, stream: bool = False, follow_redirects: Any = None, **more: Any
    ) -> Any:
        """Send a request as httpx does; return the whole answer, or a redirect not followed.

        Args:
            request: httpx request.
            stream: ignored; the answer is read completely.
            follow_redirects: ignored; see the class.
            more: further options of httpx.

        Returns:
            httpx response with decoded content.

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
        """Send one request with the address's secrets."""
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
    """Return an answer with its complete, decoded content."""
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
    """Decompress content synchronously, so that two decompression bombs never expand at once."""
    encoding = encoding.strip().lower()
    if encoding not in ENCODINGS:
        raise UnreadableError(f"the answer is encoded as '{encoding:.40}', which was not asked for")
    if encoding in ENCODINGS[:2]:
        return content
    decoder = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the header selects gzip or zlib
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
