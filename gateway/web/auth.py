"""Step 2: who is calling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import NotAuthenticated
from gateway.logs import let_quote_content
from gateway.web.keys import POLICIES

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.policy.book import Caller


def authenticate(request: web.Request) -> Caller:
    """The caller of a request, by its bearer key. Raises NotAuthenticated; the key never stands in the message."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise NotAuthenticated("There is no API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    caller = request.app[POLICIES].book.tenant_of_key(token.strip())
    if caller is None:
        raise NotAuthenticated("The API key is not known here. Check it, or ask whoever runs this gateway for one.")
    let_quote_content(quotes=caller.policy.log_content)
    return caller
