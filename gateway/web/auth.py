"""Step 2: who is calling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import NotAuthenticated
from gateway.logs import let_quote_content
from gateway.web.keys import CALLERS

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.policy.book import Caller


def shows_key(request: web.Request) -> bool:
    """Whether the request shows a key, right or wrong. What a proxy asks for in front of it is none."""
    return request.headers.get("Authorization", "").partition(" ")[0].lower() == "bearer"


def bearer(request: web.Request) -> str:
    """The key that a request shows. Raises NotAuthenticated."""
    _, _, token = request.headers.get("Authorization", "").partition(" ")
    if not shows_key(request) or not token:
        raise NotAuthenticated("There is no API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    return token.strip()


def authenticate(request: web.Request) -> Caller:
    """The caller of a request, by its bearer key. Raises NotAuthenticated; the key never stands in the message."""
    caller = request.app[CALLERS].of(bearer(request))
    let_quote_content(quotes=caller.policy.log_content)
    return caller
