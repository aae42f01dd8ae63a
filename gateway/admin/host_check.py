"""Check the Host header of the admin listener's requests.

A page of another site may give its own name the address of this listener (DNS rebinding). The browser then lets the
page read replies that need no key. Such a request has the page's name in `Host`, so only known names are served.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import web

from gateway.errors import HostUnknown

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from aiohttp.typedefs import Middleware

    from gateway.config.sections import AdminSettings

_LOOPBACK = "localhost"
_MAX_SHOWN = 100  # characters of a name in the error


def require_known_host(settings: AdminSettings) -> Middleware:
    """Return a middleware that rejects requests for a name that is not one of the admin listener's."""
    names = {_LOOPBACK, settings.host.lower(), *settings.hosts}
    if settings.oidc is not None:
        names.add(urlsplit(settings.oidc.public_url).hostname or "")

    @web.middleware
    async def checked(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        host = request.headers.get("Host")  # may be missing in HTTP/1.0, which no browser sends
        if host is not None and not _is_known(name := _name_in(host), names):
            raise HostUnknown(
                f"The admin listener has no name '{name[:_MAX_SHOWN]}'. Add it to admin.hosts in config.yaml and "
                "restart the gateway, or use an IP address or localhost."
            )
        return await handler(request)

    return checked


def _name_in(host: str) -> str:
    """Return the name or address of a Host header, in lower case and without the port."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")


def _is_known(name: str, names: set[str]) -> bool:
    """Return whether a name is an address or one of the listener's. An address cannot be another site's name."""
    if name in names or name.endswith(f".{_LOOPBACK}"):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
