"""An OpenAI-compatible server on this machine that answers, or fails, as a test wants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import orjson

Body = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """What the server sends."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0  # before anything is sent
    missing: int = 0  # bytes that are promised, and never come
    drip_s: float = 0.0  # between two bytes
    raw: bytes = b""  # sent in the place of all this, before the connection is closed


Routes = dict[str, Callable[[Body], Reply]]  # by path


def completion(message: Body, /, **more: Any) -> Reply:
    """An answer with this message; `more` goes to the choice, and usage and ids to the top."""
    top = {key: more.pop(key) for key in ("usage", "prompt_token_ids") if key in more}
    choice = {"index": 0, "finish_reason": "stop", "message": message, **more}
    return Reply(orjson.dumps({"id": "x", "object": "chat.completion", "choices": [choice], **top}))


def says(text: str, **more: Any) -> Reply:
    return completion({"role": "assistant", "content": text}, **more)


def calls(name: Any, arguments: Any, **more: Any) -> Reply:
    call = {"id": "random", "type": "function", "function": {"name": name, "arguments": arguments}}
    return completion({"role": "assistant", "content": None, "tool_calls": [call]}, **more)


def fails(status: int, message: str = "no", **headers: str) -> Reply:
    return Reply(orjson.dumps({"error": {"message": message}}), status, headers)


class MockServer:
    """Answers each request with what `answer` makes of its body and its number, from 0.

    Routes outside /v1 are the server's own; what they were asked is in `controls`. It lists models
    while `lists` holds.
    """

    def __init__(
        self,
        answer: Callable[[Body, int], Reply],
        routes: Routes | None = None,
    ) -> None:
        self.requests: list[Body] = []
        self.times: list[float] = []
        self.sessions: list[str | None] = []
        self.headers: list[dict[str, str]] = []  # of each request, under lower-case names
        self.paths: list[str] = []  # of all requests, with their queries
        self.controls: list[tuple[str, Body]] = []
        self.lists = True
        self._routes = routes or {}
        self._dead = False
        self._stop = threading.Event()  # ends all delays
        lock = threading.Lock()
        mock = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                mock.paths.append(self.path)
                written = self.rfile.read(int(self.headers["content-length"] or 0))
                body = orjson.loads(written or b"{}")
                if self.path in mock._routes:
                    mock.controls.append((self.path, body))
                    self._answer(mock._routes[self.path](body))
                    return
                with lock:
                    number = len(mock.requests)
                    mock.requests.append(body)
                    mock.times.append(time.monotonic())
                    mock.sessions.append(self.headers["x-session-id"])
                    told = self.headers.items()
                    mock.headers.append({name.lower(): value for name, value in told})
                    reply = answer(body, number)
                self._answer(reply)

            def do_GET(self) -> None:
                mock.paths.append(self.path)
                if self.path == "/openapi.json" and mock._routes:
                    paths: Body = {path: {} for path in mock._routes}
                    self._answer(Reply(orjson.dumps({"paths": paths})))
                elif self.path == "/v1/models":
                    self._answer(Reply(b'{"data": []}') if mock.lists else fails(503))
                elif route := mock._routes.get(self.path):
                    self._answer(route({}))
                else:
                    self._answer(fails(404))

            def _answer(self, reply: Reply) -> None:
                mock._stop.wait(reply.delay_s)
                try:
                    if not mock._dead:
                        self._send(reply)
                        return
                except OSError:  # the client has gone away
                    pass
                self.close_connection = True

            def _send(self, reply: Reply) -> None:
                if reply.raw:
                    self.wfile.write(reply.raw)
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                headers = {"content-type": "application/json", **reply.headers}
                headers["content-length"] = str(len(reply.body) + reply.missing)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                pieces = [reply.body[i : i + 1] for i in range(len(reply.body))]
                for piece in pieces if reply.drip_s else [reply.body]:
                    self.wfile.write(piece)
                    mock._stop.wait(reply.drip_s)
                self.close_connection = bool(reply.missing)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # a client that hangs up is part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def die(self) -> None:
        """Break all connections without a word, and take no more."""
        self._dead = True
        self._server.shutdown()
        self._server.server_close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
