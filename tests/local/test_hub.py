"""The hub's client against a small hub on this machine."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from gateway.local import WeightsUnavailable, hub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONTENT = b"weights" * 1000


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Set the hub's address, as the variable HF_ENDPOINT does at the start of a process."""
    template = hub.constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(hub.constants.ENDPOINT, url)
    monkeypatch.setattr(hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(hub.constants, "ENDPOINT", url)


@contextmanager
def small_hub(monkeypatch: pytest.MonkeyPatch, status: int = 200) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("ETag", f'"{sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(CONTENT)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(CONTENT)

        do_HEAD = do_GET  # noqa: N815 (the base class's name)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        use(monkeypatch, f"http://127.0.0.1:{server.server_address[1]}")
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", False)


def test_a_file_is_downloaded_and_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    done: list[int] = []
    with small_hub(monkeypatch):
        path = hub.download("some/repo", "a.gguf", tmp_path, report=done.append)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(tmp_path)
    assert done[-1] == len(CONTENT)


def test_a_refusal_costs_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with small_hub(monkeypatch, 404), pytest.raises(WeightsUnavailable, match=r"is unreachable \(HTTP 404\)"):
        hub.download("some/repo", "a.gguf", tmp_path, report=lambda _: None)


def test_a_hub_that_cannot_be_reached_costs_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use(monkeypatch, "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(WeightsUnavailable, match="is unreachable"):
        hub.download("some/repo", "a.gguf", tmp_path, report=lambda _: None)
    assert time.monotonic() - began < hub.REACH_LIMIT_S + 2


def test_a_disabled_hub_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsUnavailable, match="is disabled"):
        hub.download("some/repo", "a.gguf", tmp_path, report=lambda _: None)
