"""An object store on this machine: listing and reading as S3 does it, and Google's store too."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

_ENTRY = (
    "<Contents><Key>{}</Key><Size>{}</Size><ETag>x</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)


class ObjectStore:
    """Serves objects by key, whatever the bucket, to whoever signs requests as `user`."""

    def __init__(self, objects: dict[str, bytes], user: str | None = None) -> None:
        self.requests: list[str] = []  # method and path of each
        self.user = user
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                store.requests.append(f"{self.command} {self.path}")
                url = urlsplit(self.path)
                key = unquote(url.path).lstrip("/").partition("/")[2]
                if store.user and f"Credential={store.user}/" not in self.headers.get(
                    "Authorization", ""
                ):
                    self.reply(403, b"<Error><Code>AccessDenied</Code></Error>")
                elif not key:
                    prefix = parse_qs(url.query).get("prefix", [""])[0]
                    found = sorted(one for one in objects if one.startswith(prefix))
                    rows = "".join(_ENTRY.format(one, len(objects[one])) for one in found)
                    head = "<Name>bucket</Name><IsTruncated>false</IsTruncated>"
                    self.reply(200, f"<ListBucketResult>{head}{rows}</ListBucketResult>".encode())
                elif key not in objects:
                    self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>")
                else:
                    self.send_part(objects[key], self.headers.get("Range"))

            def send_part(self, whole: bytes, wanted: str | None) -> None:
                if not wanted:
                    self.reply(200, whole)
                    return
                first, last = wanted.removeprefix("bytes=").split("-")
                size = len(whole)
                start = int(first) if first else max(0, size - int(last))
                end = min(int(last), size - 1) if first and last else size - 1
                place = f"bytes {start}-{end}/{size}"
                self.reply(206, whole[start : end + 1], {"Content-Range": place})

            def reply(self, status: int, body: bytes, more: dict[str, str] | None = None) -> None:
                self.send_response(status)
                dated = {"ETag": "x", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"}
                length = {"Content-Length": str(len(body))}
                for name, value in (length | dated | (more or {})).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
