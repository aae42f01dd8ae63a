"""The listener's own lookup of routes answers as aiohttp's router does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web

from gateway.api import keys
from gateway.api.error_body import render_errors
from gateway.api.not_found import Endpoints
from gateway.api.runner import Runner
from gateway.pipeline.admission import Admission
from gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@web.middleware
async def outer(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    response = await handler(request)
    response.headers["X-Outer"] = "seen"
    return response


async def show(request: web.Request) -> web.Response:
    route = request.match_info.route.resource
    assert route is not None
    return web.json_response({
        "route": route.canonical,
        "names": dict(request.match_info),
        "path": request.path,
        "query": request.query_string,
        "body": (await request.read()).decode(),
        "metrics": keys.METRICS in request.app,
    })  # fmt: skip


def application() -> tuple[web.Application, Metrics]:
    app = web.Application(middlewares=[outer, render_errors])
    app[keys.METRICS] = metrics = Metrics()
    app[keys.ADMISSION] = Admission(1, None, metrics)  # type: ignore[arg-type]
    app[keys.ENDPOINTS] = Endpoints([web.post("/v1/answers", show)])
    app.router.add_post("/v1/answers", show)
    app.router.add_get("/v1/models", show)
    app.router.add_get("/v1/models/{name}", show)
    return app, metrics


async def replies(*, own: bool, method: str, path: str, headers: dict[str, str]) -> tuple[int, dict[str, str], str]:
    app, metrics = application()
    runner = (
        Runner(app, metrics=metrics, listener="public", max_connections=9, access_log=None)
        if own
        else web.AppRunner(app, access_log=None)
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with httpx.AsyncClient() as client:
            request = client.build_request(
                method, url + path, headers=headers, content=b"hi" if method == "POST" else None
            )
            answer = await client.send(request)
    finally:
        await runner.cleanup()
    changing = {"date", "server", "x-request-id", "openai-processing-ms"}
    return answer.status_code, {k: v for k, v in answer.headers.items() if k not in changing}, answer.text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/answers"),
        ("POST", "/v1/answers?a=1&b=%20"),
        ("POST", "/v1/%61nswers"),
        ("POST", "/v1/answers/"),
        ("POST", "//v1/answers"),
        ("POST", "/v1/../v1/answers"),
        ("GET", "/v1/answers"),
        ("OPTIONS", "/v1/answers"),
        ("GET", "/v1/models"),
        ("HEAD", "/v1/models"),
        ("GET", "/v1/models/a%2Fb"),
        ("DELETE", "/v1/models"),
        ("GET", "/v1/none"),
        ("POST", "/"),
    ],
)
@pytest.mark.parametrize("headers", [{}, {"Expect": "100-continue"}], ids=["plain", "expect"])
async def test_each_path_is_answered_as_by_aiohttp(method: str, path: str, headers: dict[str, str]) -> None:
    own = await replies(own=True, method=method, path=path, headers=headers)
    assert own == await replies(own=False, method=method, path=path, headers=headers)
    assert own[1]["x-outer"] == "seen"


async def test_only_connections_that_have_been_idle_for_long_enough_are_closed() -> None:
    resumed = asyncio.Event()

    async def hold(_: web.Request) -> web.Response:
        await resumed.wait()
        return web.Response(text="done")

    app, metrics = application()
    app.router.add_get("/v1/held", hold)
    runner = Runner(app, metrics=metrics, listener="public", max_connections=9, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        (used, to_used), (busy, to_busy) = [await asyncio.open_connection(*runner.addresses[0][:2]) for _ in range(2)]
        to_used.write(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await used.readline()).startswith(b"HTTP/1.1 200")
        assert not runner.has_requests
        to_busy.write(b"GET /v1/held HTTP/1.1\r\nHost: a\r\n\r\n")
        while not runner.has_requests:
            await asyncio.sleep(0)
        runner.close_idle(60.0)
        assert runner.open_connections == 2
        runner.close_idle(0.0)
        await used.read()  # until its end
        resumed.set()
        assert (await busy.readline()).startswith(b"HTTP/1.1 200")
        to_used.close()
        to_busy.close()
    finally:
        await runner.cleanup()
