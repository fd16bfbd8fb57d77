"""OpenAI-compatible server for a small model, to try things out without an inference engine.

python -m examples.verifiers_env.serve --model data/seed_policy --port 8000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from stages.policies.policy import Sampling
from stages.policies.transformers_policy import TransformersPolicy
from stages.policy_registry import SEED_POLICY


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=SEED_POLICY)
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    serve(TransformersPolicy.load(given.model), given.port)


def serve(policy: TransformersPolicy, port: int) -> None:
    """Answer POST /v1/chat/completions."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    numbers = itertools.count()

    async def answer(body: dict[str, Any]) -> dict[str, Any]:
        name = str(number := next(numbers))
        sampling = Sampling(max_tokens=body.get("max_completion_tokens") or 60)
        seed = body.get("seed") or number
        action = await policy.act(name, body["messages"], body.get("tools") or [], sampling, seed)
        policy.forget(name)
        finish = "tool_calls" if action.message.get("tool_calls") else action.finish
        usage = {
            "prompt_tokens": len(action.prompt_ids or ()),
            "completion_tokens": len(action.token_ids or ()),
        }
        usage["total_tokens"] = sum(usage.values())
        choice = {"index": 0, "finish_reason": finish, "message": action.message}
        top = {"id": name, "object": "chat.completion", "created": 0, "model": body.get("model")}
        return {**top, "choices": [choice], "usage": usage}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = orjson.loads(self.rfile.read(int(self.headers["content-length"])))
            try:
                made = asyncio.run_coroutine_threadsafe(answer(body), loop).result()
                self._send(200, made)
            except Exception as error:  # report any error to the client
                self._send(400, {"error": {"message": f"{type(error).__name__}: {error}"}})

        def _send(self, status: int, document: dict[str, Any]) -> None:
            text = orjson.dumps(document)
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
