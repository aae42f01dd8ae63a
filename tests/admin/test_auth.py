"""The admin listener serves probes and metrics openly, and all else only with the admin key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from aiohttp import web
from pydantic import SecretStr

from gateway.admin.routes import OPEN_ROUTES, PAGE_ROUTES, ROUTES_BY_ROLE
from gateway.admin.session import Sessions
from tests.kit.admin_listener import KEY, admin_listener

if TYPE_CHECKING:
    from tests.gateway_process import GatewayProcess


async def answer(_: web.Request) -> web.Response:
    return web.Response(text="said")


async def secret(_: web.Request) -> web.Response:
    return web.Response(text="secret")


async def ask(
    path: str, *, key: str | None = KEY, method: str = "GET", **headers: str
) -> tuple[int, dict[str, Any] | str]:
    """Return status and body from a listener with one open and one protected route."""
    open_to_all = [web.get("/open", answer)]
    sessions = Sessions(None if key is None else SecretStr(key))
    closed = [web.get("/secret", secret), web.post("/{any:[a-z]+/open}", secret)]
    async with (
        admin_listener(sessions, open_to_all, closed) as client,
        client.request(method, path, headers=headers) as reply,
    ):
        body = await reply.text()
        return reply.status, (await reply.json()) if body.startswith("{") else body


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_public_route_needs_no_key(key: str | None) -> None:
    assert await ask("/open", key=key) == (200, "said")
    assert await ask("/open", key=key, method="HEAD") == (200, "")


async def test_any_other_route_wants_the_whole_key() -> None:
    assert await ask("/secret", Authorization=f"Bearer {KEY}") == (200, "secret")
    assert await ask("/secret", Authorization=f"bearer  {KEY} ") == (200, "secret")
    wrong = ["", KEY[:-1], KEY + "x", KEY.upper(), KEY[:12], "gk-dev", "é\udcff", "x" * 4000]
    for shown in wrong:
        status, body = await ask("/secret", Authorization=f"Bearer {shown}")
        assert status == 401, shown
        assert isinstance(body, dict)
        assert body["error"]["code"] == "invalid_api_key"
        assert len(shown) < 5 or shown not in str(body)
    for scheme in (KEY, f"Basic {KEY}", f"Token {KEY}"):
        assert (await ask("/secret", Authorization=scheme))[0] == 401
    assert (await ask("/secret"))[0] == 401


async def test_without_a_configured_key_every_request_is_rejected_with_the_reason() -> None:
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer None"}):
        status, body = await ask("/secret", key=None, **headers)
        assert status == 403
        assert isinstance(body, dict)
        assert body["error"]["code"] == "admin_key_unset"
        assert "admin.key" in body["error"]["message"]


async def test_access_depends_on_the_matched_route_and_not_on_the_spelling() -> None:
    for path in ("/secret?/open", "/secret#/open", "/%73ecret", "/open/../secret", "/secret?open=1"):
        assert (await ask(path))[0] == 401, path
    assert (await ask("/secret", Host="open"))[0] == 401
    assert (await ask("/secret/open", method="POST"))[0] == 401
    assert (await ask("/secret", **{"X-Original-URL": "/open", "X-Forwarded-Host": "localhost"}))[0] == 401


async def test_errors_have_openais_shape() -> None:
    status, body = await ask("/nothing")
    assert (status, isinstance(body, dict) and body["error"]["message"]) == (
        404,
        "There is no GET /nothing here. This listener has GET /open.",
    )
    status, body = await ask("/open", method="DELETE")
    assert (status, isinstance(body, dict) and body["error"]["code"]) == (405, "method_not_allowed")


def test_only_probes_metrics_queues_and_pages_are_open() -> None:
    assert {(route.method, route.path) for route in OPEN_ROUTES if route not in PAGE_ROUTES} == {
        ("GET", "/metrics"),
        ("GET", "/queue"),
        ("GET", "/healthz"),
        ("GET", "/readyz"),
    }


async def test_every_other_route_of_the_listener_requires_the_key() -> None:
    """The test reads the router, so it covers routes that are added later."""
    opened = {route.handler for route in OPEN_ROUTES}
    async with admin_listener(Sessions(SecretStr(KEY)), OPEN_ROUTES, by_role=ROUTES_BY_ROLE) as client:
        for route in client.app.router.routes():
            resource = route.resource
            assert resource is not None
            path = resource.canonical.replace("{", "").replace("}", "")
            async with client.request(route.method, path) as reply:
                assert (reply.status == 401) == (route.handler not in opened), (route.method, path)


def test_the_running_listener_is_as_tight(gateway: GatewayProcess) -> None:
    """The running listener has no admin key configured."""
    with httpx.Client(base_url=gateway.admin_url) as client:
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/metrics", "/queue")] == [200] * 4
        missing = client.get("/v1/models")
        assert missing.status_code == 404
        message = missing.json()["error"]["message"]
        assert message.startswith("There is no GET /v1/models here. This listener has GET /metrics, GET /queue, ")
        assert "GET|POST|DELETE /session, " in message
        assert missing.headers["x-request-id"].startswith("req_")
