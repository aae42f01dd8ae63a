"""The admin listener with routes of a test: its errors, authentication, sessions and pages."""

from __future__ import annotations

from contextlib import asynccontextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.test_utils import TestClient

from gateway.admin.assets import ASSETS, Assets
from gateway.admin.auth import authorize
from gateway.admin.login_throttle import ATTEMPTS, LoginThrottle
from gateway.admin.session import SESSIONS, Sessions
from gateway.api import keys
from gateway.api.error_body import render_errors
from gateway.api.not_found import Endpoints
from gateway.pipeline.admission import Admission
from gateway.telemetry.metrics import Metrics
from tests.listener_server import ListenerServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from gateway.admin.oidc import OidcProvider
    from gateway.admin.roles import Role

KEY = "an-admin-key-for-tests"
HERE = {"Sec-Fetch-Site": "same-origin"}
"""Headers of a page of the listener."""


class Clock:
    """Unix seconds, which a test may move."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def admin_listener(
    sessions: Sessions,
    opened: Iterable[web.RouteDef],
    unlisted: Iterable[web.RouteDef] = (),
    by_role: Mapping[Role, Iterable[web.RouteDef]] | None = None,
    *,
    oidc: OidcProvider | None = None,
    attempts: LoginThrottle | None = None,
    parts: Mapping[web.AppKey[Any], object] | None = None,
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    """Run a listener with open routes, routes of roles, and routes without a role. Yield a client with cookies."""
    by_role, metrics = by_role or {}, Metrics()
    app = web.Application(middlewares=[render_errors, authorize(sessions, opened, by_role, oidc)])
    app.add_routes([*opened, *unlisted, *chain.from_iterable(by_role.values())])
    app[SESSIONS], app[ASSETS], app[ATTEMPTS] = sessions, Assets(), attempts or LoginThrottle(pause_s=0.0)
    app[keys.METRICS], app[keys.ENDPOINTS] = metrics, Endpoints(opened)
    app[keys.ADMISSION] = Admission(1, None, metrics)  # type: ignore[arg-type]
    for key, part in (parts or {}).items():
        app[key] = part
    async with TestClient(ListenerServer(app)) as client:
        yield client
