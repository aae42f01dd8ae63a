"""Step 2 of the request path: authenticate the caller."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.api.connection import connection_of
from gateway.api.keys import CALLERS
from gateway.errors import NotAuthenticated
from gateway.telemetry.logs import allow_content_in_logs

if TYPE_CHECKING:
    from aiohttp import web

    from gateway.policy.book import Caller


def shows_key(request: web.Request) -> bool:
    """Return whether the request carries a bearer key, valid or not. Credentials for a proxy do not count."""
    return any(_scheme_and_token(value)[0] == "bearer" for value in request.headers.getall("Authorization", ()))


def bearer(request: web.Request) -> str:
    """Return the bearer key of the request. Raises NotAuthenticated if there is none, or an empty one.

    More than one Authorization header is rejected, too: a proxy and the gateway could read two headers differently.
    """
    values = request.headers.getall("Authorization", ())
    if len(values) > 1:
        raise NotAuthenticated(f"The request has {len(values)} Authorization headers. Send one.")
    scheme, token = _scheme_and_token(values[0]) if values else ("", "")
    if scheme != "bearer" or not token:
        raise NotAuthenticated("There is no API key. Send it as 'Authorization: Bearer YOUR_KEY'.")
    return token


def _scheme_and_token(value: str) -> tuple[str, str]:
    """Split a header into its scheme in lower case and its token. A token that is blank in Unicode is empty."""
    scheme, _, token = value.partition(" ")
    token = token.strip(" \t")
    return scheme.lower(), "" if token.isspace() else token


def authenticate(request: web.Request) -> Caller:
    """Return the caller of a request by its bearer key. Raises NotAuthenticated; the message never contains the key."""
    caller = request.app[CALLERS].authenticate(bearer(request))
    connection_of(request).authenticated(caller.policy)
    if caller.policy.log_content:
        allow_content_in_logs(allowed=True)
    return caller
