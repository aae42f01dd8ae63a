"""The token limit that a route allows for a request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import InvalidRequest
from gateway.protocol.text import TextRequest

if TYPE_CHECKING:
    from gateway.policy.schema import Route
    from gateway.protocol.requests import CompletionRequest


def allowed_limit(request: CompletionRequest, route: Route) -> int | None:
    """Return the token limit of a request, at most the route's maximum; None: neither has one.

    Raises InvalidRequest for a raw prompt with a limit above the maximum.
    """
    limit, most = request.max_tokens, route.max_tokens_limit
    if limit is None:
        return route.default_max_tokens or most
    if most is None or limit <= most:
        return limit
    if isinstance(request, TextRequest):
        raise InvalidRequest(
            f"'max_tokens' is {limit}, and the maximum of '{route.model}' is {most}. Send at most {most}.",
            param="max_tokens",
        )
    return most
