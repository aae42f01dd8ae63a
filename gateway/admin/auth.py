"""Who may ask the admin listener for more than probes and metrics: whoever shows the admin key."""

from __future__ import annotations

from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from gateway.errors import AdminKeyUnset, NotAuthenticated
from gateway.web.auth import bearer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from aiohttp.typedefs import Middleware
    from pydantic import SecretStr


log = structlog.get_logger()


def needs_key(key: SecretStr | None, open_to_all: Iterable[web.RouteDef]) -> Middleware:
    """A middleware that lets a request through to `open_to_all`, and to any other route only with the admin key.

    It goes by the handler that the router has found, never by what the request says of its path or its host. So a
    route that nobody thought of needs the key.
    """
    open_handlers = frozenset(route.handler for route in open_to_all)
    # Of all of it, whatever its length: a comparison of hashes takes the same time wherever they differ.
    wanted = None if key is None else sha256(key.get_secret_value().encode()).digest()

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        found = request.match_info
        if found.http_exception is None and found.handler not in open_handlers:
            _check(request, wanted)
        return await handler(request)

    return checked


def _check(request: web.Request, wanted: bytes | None) -> None:
    if wanted is None:
        raise AdminKeyUnset(
            "This needs the admin key, and this gateway has none. Set admin.key in config.yaml, for example to "
            "env:GKT_ADMIN_KEY, and start it again."
        )
    shown = sha256(bearer(request).encode("utf-8", "surrogatepass")).digest()
    if not compare_digest(shown, wanted):
        log.warning("admin_key_wrong", remote=request.remote)
        raise NotAuthenticated("This is not the admin key: admin.key of config.yaml. Callers' keys do not hold here.")
