"""Step 2 of the request path: authenticate the caller."""

from __future__ import annotations

from hmac import compare_digest
from typing import TYPE_CHECKING

from gateway.api.connection import connection_of
from gateway.api.headers import is_messages
from gateway.api.keys import CALLERS, INFO
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


def caller_key(request: web.Request) -> str:
    """Return the key of a caller, from `Authorization` as OpenAI's clients send it or `x-api-key` as Anthropic's do.

    Beside a bearer key, x-api-key is ignored on OpenAI's paths: proxies send it for purposes of their own. Raises
    NotAuthenticated without a key, and for different keys on Anthropic's paths: it would be unclear which one counts.
    """
    headers = request.headers
    if "x-api-key" not in headers or (shows_key(request) and not is_messages(request.path)):
        if "Authorization" not in headers:
            raise NotAuthenticated(
                "There is no API key. Send 'Authorization: Bearer YOUR_KEY' or 'x-api-key: YOUR_KEY'."
            )
        return bearer(request)
    own = headers.getall("x-api-key")
    if len(own) > 1:
        raise NotAuthenticated(f"The request has {len(own)} x-api-key headers. Send one.")
    key = own[0].strip()
    if not key:
        raise NotAuthenticated("The header x-api-key is empty. Send the API key in it.")
    if shows_key(request) and not compare_digest(_bytes_of(bearer(request)), _bytes_of(key)):
        raise NotAuthenticated("Authorization and x-api-key have different keys. Send one of them.")
    return key


def _bytes_of(key: str) -> bytes:
    """Return a key as it was sent. aiohttp reads bytes that are not UTF-8 as surrogates."""
    return key.encode("utf-8", "surrogateescape")


def _scheme_and_token(value: str) -> tuple[str, str]:
    """Split a header into its scheme in lower case and its token. A token that is blank in Unicode is empty."""
    scheme, _, token = value.partition(" ")
    token = token.strip(" \t")
    return scheme.lower(), "" if token.isspace() else token


async def authenticate(request: web.Request) -> Caller:
    """Return the caller of a request by its key or token. Raises NotAuthenticated; the message contains neither.

    Only a token that was not verified before takes longer than a step of the event loop.
    """
    callers, key = request.app[CALLERS], caller_key(request)
    caller = callers.known(key) or await callers.authenticate(key)
    request[INFO].tenant = caller.policy.tenant
    connection_of(request).authenticated(caller.policy)
    if caller.policy.log_content:
        allow_content_in_logs(allowed=True)
    return caller
