"""A relay between the gateway and an engine that counts the prompts of each call."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

_CALL_LIMIT_S = 120.0


class CountingRelay(ThreadingHTTPServer):
    """A relay to an engine, on a free port.

    Attributes:
        sizes: number of prompts of each POST that the engine answered with 200.
    """

    daemon_threads = True

    def __init__(self, engine_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.engine = httpx.Client(base_url=engine_url, timeout=_CALL_LIMIT_S)
        self.sizes: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: CountingRelay

    def do_GET(self) -> None:
        self._pass_on(b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._pass_on(body) == 200:
            self.server.sizes.append(prompts(body))

    def _pass_on(self, body: bytes) -> int:
        headers = {"Content-Type": "application/json"}
        try:
            reply = self.server.engine.request(self.command, self.path, content=body, headers=headers)
            status, content = reply.status_code, reply.content
        except httpx.HTTPError as error:
            status, content = 502, str(error).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return status

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def prompts(body: bytes) -> int:
    """Return the number of chats or prompts in a request. A list of messages or of token ids is one."""
    sent = json.loads(body)
    for name in ("messages", "prompt", "input_ids", "text"):
        value = sent.get(name)
        if isinstance(value, list) and value and not isinstance(value[0], dict | int):
            return len(value)
    return 1
