"""Choose the route of a request: the first of its model whose `when` matches. Pure, except for a thread."""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING

from gateway.errors import ModelNotFound
from gateway.policy.conditions import RequestFacts
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.book import Caller
    from gateway.policy.schema import Route
    from gateway.protocol.requests import AnyRequest

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Matching more text than this can take milliseconds, so a thread does it.
_MAX_INLINE_BYTES = 8000
_MAX_LISTED = 5


class RouteChoice(Record, frozen=True):
    """The route chosen for a request.

    Attributes:
        route: the matching route; None if no route matches.
        index: its index in the policy file, from 0.
        passed: earlier routes by index, each with the reason why it does not match.
    """

    route: Route | None
    index: int | None
    passed: tuple[tuple[int, str], ...] = ()


def models_of(caller: Caller) -> list[str]:
    """Return the model names that this key may use, in the order of its tenant's file."""
    allowed = caller.key.models
    return [name for name in caller.policy.routes_of if allowed is None or name in allowed]


def choose(caller: Caller, request: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> RouteChoice:
    """Return the first route of the requested model that matches."""
    passed: list[tuple[int, str]] = []
    facts: RequestFacts | None = None
    for index, route in _routes(caller, request.model):
        if route.when is None:
            return RouteChoice(route, index, tuple(passed))
        facts = facts or RequestFacts(request, headers)
        reason = route.when.mismatch(facts, route.default_max_tokens)
        if reason is None:
            return RouteChoice(route, index, tuple(passed))
        passed.append((index, reason))
    return RouteChoice(None, None, tuple(passed))


def require_route(caller: Caller, request: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> Route:
    """Return the matching route. Raises ModelNotFound with the known models or the reasons against each route."""
    choice = choose(caller, request, headers)
    if choice.route is not None:
        return choice.route
    raise not_found(caller, request.model, choice)


async def find_route(caller: Caller, request: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> Route:
    """Return the matching route as `require_route`; long texts are matched in a thread."""
    if request.size_bytes > _MAX_INLINE_BYTES and any(
        route.when is not None and route.when.reads_text for _, route in _routes(caller, request.model)
    ):
        return await asyncio.to_thread(require_route, caller, request, headers)
    return require_route(caller, request, headers)


def not_found(caller: Caller, model: str, choice: RouteChoice) -> ModelNotFound:
    """Return the error of a request without a route. It contains no request text and no header value."""
    if choice.passed:
        reasons = [f"routes[{index}]: {reason}" for index, reason in choice.passed[:_MAX_LISTED]]
        more = len(choice.passed) - len(reasons)
        rest = f"; and {more} more" if more else ""
        return ModelNotFound(f"No route for '{model}' takes this request. {'; '.join(reasons)}{rest}.", param="model")
    names = ", ".join(f"'{name}'" for name in models_of(caller))
    return ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")


def _routes(caller: Caller, model: str) -> tuple[tuple[int, Route], ...]:
    if caller.key.models is not None and model not in caller.key.models:
        return ()
    return caller.policy.routes_of.get(model, ())
