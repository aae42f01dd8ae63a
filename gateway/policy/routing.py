"""Which of a tenant's routes takes a request: the first of its name whose `when` holds. Pure, but for a thread."""

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
# Looking through more than this can take milliseconds: a thread does it.
_MOST_BYTES_HERE = 8000
_MOST_TOLD = 5


class RouteChoice(Record, frozen=True):
    """What became of a request at the routes of its name.

    Attributes:
        route: the one that takes it; None if none does.
        index: its place in the policy file, from 0.
        passed: those before it, by place, and why each does not take it.
    """

    route: Route | None
    index: int | None
    passed: tuple[tuple[int, str], ...] = ()


def models_of(caller: Caller) -> list[str]:
    """The model names that this key may send, each once, in the order of its tenant's file."""
    allowed = caller.key.models
    return [name for name in caller.policy.routes_of if allowed is None or name in allowed]


def choose(caller: Caller, asked: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> RouteChoice:
    """The first route of the model's name that takes the request."""
    passed: list[tuple[int, str]] = []
    facts: RequestFacts | None = None
    for index, route in _routes(caller, asked.model):
        if route.when is None:
            return RouteChoice(route, index, tuple(passed))
        facts = facts or RequestFacts(asked, headers)
        why = route.when.why_not(facts, route.default_max_tokens)
        if why is None:
            return RouteChoice(route, index, tuple(passed))
        passed.append((index, why))
    return RouteChoice(None, None, tuple(passed))


def require_route(caller: Caller, asked: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> Route:
    """The same; raises ModelNotFound, which lists the models that there are, or says why no route takes it."""
    choice = choose(caller, asked, headers)
    if choice.route is not None:
        return choice.route
    raise not_found(caller, asked.model, choice)


async def find_route(caller: Caller, asked: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> Route:
    """The same. Where many words are to be looked through, the event loop goes on meanwhile."""
    if asked.size_bytes > _MOST_BYTES_HERE and any(
        route.when is not None and route.when.reads_text for _, route in _routes(caller, asked.model)
    ):
        return await asyncio.to_thread(require_route, caller, asked, headers)
    return require_route(caller, asked, headers)


def not_found(caller: Caller, model: str, choice: RouteChoice) -> ModelNotFound:
    """What to tell who is taken by no route. Nothing of the request's words, and no value of a header."""
    if choice.passed:
        told = [f"routes[{index}]: {why}" for index, why in choice.passed[:_MOST_TOLD]]
        more = len(choice.passed) - len(told)
        rest = f"; and {more} more" if more else ""
        return ModelNotFound(f"No route for '{model}' takes this request. {'; '.join(told)}{rest}.", param="model")
    names = ", ".join(f"'{name}'" for name in models_of(caller))
    return ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")


def _routes(caller: Caller, model: str) -> tuple[tuple[int, Route], ...]:
    if caller.key.models is not None and model not in caller.key.models:
        return ()
    return caller.policy.routes_of.get(model, ())
