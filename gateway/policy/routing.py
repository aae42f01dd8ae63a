"""Which of a tenant's routes takes a request. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.errors import ModelNotFound

if TYPE_CHECKING:
    from gateway.policy.book import Caller
    from gateway.policy.schema import Route


def models_of(caller: Caller) -> list[str]:
    """The model names that this key may send, in the order of its tenant's file."""
    names = dict.fromkeys(route.model for route in caller.policy.routes)
    allowed = caller.key.models
    return [name for name in names if allowed is None or name in allowed]


def route_of(caller: Caller, model: str) -> Route | None:
    """The route that takes a request for `model`: the first one of that name. None if there is none for this key."""
    if caller.key.models is not None and model not in caller.key.models:
        return None
    return caller.policy.first_routes.get(model)


def require_route(caller: Caller, model: str) -> Route:
    """The same; raises ModelNotFound, which lists those that there are."""
    route = route_of(caller, model)
    if route is None:
        names = ", ".join(f"'{name}'" for name in models_of(caller))
        raise ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")
    return route
