"""The image's health check, run as Docker runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web

from tests.fakes import served

A_PROXY = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}


# Says on stdout where a connection is tried.
WATCH = """
import sys
sys.addaudithook(lambda event, about: event == "socket.connect" and print(about[1]))
"""


def _check(**environ: str) -> subprocess.CompletedProcess[str]:
    text = Path(__file__).parents[1].joinpath("Dockerfile").read_text("utf-8").replace("\\\n", "")
    (line,) = (line for line in text.splitlines() if line.startswith("HEALTHCHECK "))
    _, flag, code = json.loads(line.partition(" CMD ")[2])
    return subprocess.run(
        [sys.executable, flag, WATCH + code], capture_output=True, text=True, timeout=20, env=environ, check=False
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_it_asks_the_gateway_itself_whatever_proxy_there_is(status: int, code: int) -> None:
    async def healthz(_: web.Request) -> web.Response:
        return web.Response(status=status)

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    with served(app) as url:
        done = _check(GKT_PORT=url.rpartition(":")[2], **A_PROXY)
    assert (done.returncode, done.stderr) == (code, "")


def test_an_empty_port_is_the_default_one() -> None:
    """It is asked, whether or not somebody listens there."""
    assert _check(GKT_PORT="").stdout == "('127.0.0.1', 8080)\n"
    assert _check().stdout == "('127.0.0.1', 8080)\n"
