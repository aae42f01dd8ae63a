"""The pages of the admin listener and their files, read once from gateway/admin/pages and validated by ETag.

The files hold no secrets: the pages fetch all figures, and those requests need a session.
"""

from __future__ import annotations

import gzip
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

from aiohttp import web

from gateway.admin.oidc import OIDC
from gateway.admin.session import SESSIONS
from gateway.errors import NotFound

_PAGES = Path(__file__).with_name("pages")
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".md": "text/markdown",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # No inline code and no other origins. Scripts may set single style properties, as the charts do.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Browsers revalidate each file, so that an upgraded gateway never runs with old pages.
    "Cache-Control": "no-cache",
    "Vary": "Accept-Encoding",
}
_MIN_GZIP_BYTES = 1_000


class Asset(NamedTuple):
    """A file of the pages. `packed` is its gzip, or None for small files."""

    body: bytes
    packed: bytes | None
    content_type: str
    etag: str


class Assets:
    """The files of the pages. Construct it before the event loop serves requests, because it reads them."""

    def __init__(self) -> None:
        self._by_path: dict[str, Asset] = {}
        for file in _PAGES.rglob("*.*"):
            if content_type := _TYPES.get(file.suffix):
                body = file.read_bytes()
                packed = gzip.compress(body, mtime=0) if len(body) >= _MIN_GZIP_BYTES else None
                etag = f'"{sha256(body).hexdigest()[:32]}"'
                self._by_path[file.relative_to(_PAGES).as_posix()] = Asset(body, packed, content_type, etag)

    def reply(self, request: web.Request, path: str) -> web.Response:
        """Return the file, or 304 if the browser has it. Raises NotFound."""
        found = self._by_path.get(path)
        if found is None:
            raise NotFound("There is no such file. The pages are /dashboard, /playground and /login.")
        headers = {**_HEADERS, "ETag": f"W/{found.etag}"}  # weak: packed or not, it is the same
        known_etags = request.headers.get("If-None-Match", "")
        if found.etag in (one.strip().removeprefix("W/") for one in known_etags.split(",")):
            return web.Response(status=304, headers=headers)
        body = found.body
        if found.packed is not None and "gzip" in request.headers.get("Accept-Encoding", ""):
            body = found.packed
            headers["Content-Encoding"] = "gzip"
        return web.Response(body=body, content_type=found.content_type, charset="utf-8", headers=headers)


ASSETS = web.AppKey("assets", Assets)


async def show_root(_: web.Request) -> web.Response:
    """GET /: redirect to the dashboard."""
    return web.Response(status=302, headers={"Location": "/dashboard"})


async def show_login(request: web.Request) -> web.Response:
    """GET /login."""
    return request.app[ASSETS].reply(request, "login.html")


async def show_page(request: web.Request) -> web.Response:
    """GET /dashboard/..., /playground: the pages, or without a session a redirect to the login page."""
    sessions = request.app[SESSIONS]
    # Before the ETag is compared: a 304 would let a browser without a session show the page.
    if await sessions.of(request) is not None:
        return request.app[ASSETS].reply(request, "dashboard.html")  # its script shows the page of the path
    can_log_in = sessions.key_set or OIDC in request.app
    query = urlencode({"why": "none" if can_log_in else "unset", "next": request.path_qs})
    return web.Response(status=302, headers={"Location": f"/login?{query}", "Cache-Control": "no-store"})


async def show_file(request: web.Request) -> web.Response:
    """GET /static/...: what pages are made of."""
    return request.app[ASSETS].reply(request, request.match_info["path"])
