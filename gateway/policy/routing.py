"""Choose the route of a request, the first of its model whose `when` matches, and apply overrides of the route.

Overrides come from a caller's headers, within the policy, or from an operator. Pure, except for a thread.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from gateway.config.scalars import ANY_NAME
from gateway.errors import InvalidRequest, ModelNotFound
from gateway.policy.conditions import RequestFacts
from gateway.policy.split import assign
from gateway.runtime.record import Record

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.book import Caller
    from gateway.policy.plan import SplitFacts
    from gateway.policy.projections import Placement, Projection
    from gateway.policy.schema import OverrideMode, Route, TenantPolicy
    from gateway.protocol.requests import AnyRequest, CompletionRequest

NO_HEADERS: Mapping[str, str] = MappingProxyType({})
# Matching more text than this can take milliseconds, so a thread does it.
_MAX_INLINE_BYTES = 8000
_MAX_LISTED = 5
MODE = "x-gkt-mode"
TOKENS = "x-gkt-guidance-tokens"
_MAX_DIGITS = 6


class RouteChoice(Record, frozen=True):
    """The route chosen for a request."""

    route: Route | None  # the matching route; None if no route matches
    index: int | None  # its index in the policy file, from 0
    passed: tuple[tuple[int, str], ...] = ()  # earlier routes by index, each with the reason why it does not match


def models_of(caller: Caller) -> list[str]:
    """Return the model names that this key may use, aliases included, in the order of its tenant's file.

    `*` is not among them, since it stands for names that are not known.
    """
    return [name for name in caller.policy.routes_by_name if name != ANY_NAME and routes_for(caller, name)]


def choose(caller: Caller, request: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> RouteChoice:
    """Return the first route of the requested model that matches."""
    passed: list[tuple[int, str]] = []
    facts: RequestFacts | None = None
    for index, route in routes_for(caller, request.model):
        if route.when is None:
            return RouteChoice(route, index, tuple(passed))
        facts = facts or RequestFacts(request, headers, caller)
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


def first_route(caller: Caller, model: str) -> Route | None:
    """Return the first route of a model if it takes every request, else None. Most models have one such route."""
    routes = routes_for(caller, model)
    return routes[0][1] if routes and routes[0][1].when is None else None


async def find_route(caller: Caller, request: AnyRequest, headers: Mapping[str, str] = NO_HEADERS) -> Route:
    """Return the matching route as `require_route`; long texts are matched in a thread."""
    if request.size_bytes > _MAX_INLINE_BYTES and any(
        route.when is not None and route.when.reads_text for _, route in routes_for(caller, request.model)
    ):
        return await asyncio.to_thread(require_route, caller, request, headers)
    return require_route(caller, request, headers)


def not_found(caller: Caller, model: str, choice: RouteChoice | None = None) -> ModelNotFound:
    """Return the error of a request without a route. It contains no request text and no header value."""
    if choice is not None and choice.passed:
        reasons = [f"routes[{index}]: {reason}" for index, reason in choice.passed[:_MAX_LISTED]]
        more = len(choice.passed) - len(reasons)
        rest = f"; and {more} more" if more else ""
        return ModelNotFound(f"No route for '{model}' takes this request. {'; '.join(reasons)}{rest}.", param="model")
    names = ", ".join(f"'{name}'" for name in models_of(caller)) or "none"
    return ModelNotFound(f"There is no model '{model}' for this key. It may use: {names}.", param="model")


def routes_for(caller: Caller, model: str) -> tuple[tuple[int, Route], ...]:
    """Return the routes of a requested model that this key may use, in order, each with its index in the file.

    A key that may use a route may use its aliases. A key may also name aliases alone.
    """
    routes, allowed = caller.policy.routes_named(model), caller.key.models
    if allowed is None or model in allowed:
        return routes
    return tuple([(index, route) for index, route in routes if route.model in allowed])


class RouteOverride(NamedTuple):
    """An operator's override of a route, independent of the overrides allowed to callers. None: the route's value."""

    mode: OverrideMode
    tokens: int | None = None  # maximum length of the guidance
    projection: Projection | None = None  # a known projection; the route's own projection keeps its exemplars
    placement: Placement | None = None

    def apply(self, route: Route) -> Route:
        """Return the overridden route. Raises InvalidRequest if it lacks an engine of the mode."""
        if not route.has_engines_of(self.mode):
            lacks = "no teacher" if route.teacher is None and self.mode != "student" else "no student"
            raise InvalidRequest(
                f"'{route.model}' cannot be answered in mode {self.mode}: its route names {lacks}.", param="mode"
            )
        fields = {"tokens": self.tokens, "placement": self.placement}
        changed = {name: value for name, value in fields.items() if value is not None}
        guidance = route.guidance.model_copy(update=changed)
        if self.projection is not None and self.projection.name != guidance.projection:
            guidance = guidance.with_projection(self.projection)
        return route.model_copy(update={"mode": self.mode, "guidance": guidance})


def apply_headers(policy: TenantPolicy, route: Route, headers: Mapping[str, str]) -> Route:
    """Return the route with the overrides of the request's headers; the route itself without any. Raises
    InvalidRequest, which names the header and its allowed values."""
    mode, tokens = headers.get(MODE), headers.get(TOKENS)
    if mode is None and tokens is None:
        return route
    changed: dict[str, object] = {} if mode is None else {"mode": _mode(policy, route, mode)}
    if tokens is not None:
        changed["guidance"] = route.guidance.model_copy(update={"tokens": _tokens(policy, route, tokens)})
    return route.model_copy(update=changed)


def served_route(
    policy: TenantPolicy, route: Route, request: CompletionRequest, headers: Mapping[str, str], key_id: str | None
) -> tuple[Route, SplitFacts | None]:
    """Return the route with the caller's overrides, or the request's variant of the route and the facts about it.

    A request that overrides its route takes no part in the split: it would not show what the variant does.
    """
    overridden = apply_headers(policy, route, headers)
    if route.split is None or key_id is None or overridden.mode != route.mode or TOKENS in headers:
        return overridden, None
    shares = [(variant.name, variant.share) for variant in route.variants]
    split = assign(route.split.by, shares, policy.tenant, route.model, key_id, request, headers)
    return next(variant.route for variant in route.variants if variant.name == split.variant), split


def refuse_overrides(headers: Mapping[str, str]) -> None:
    """Raise InvalidRequest if a request for embeddings has an override header."""
    for name in (MODE, TOKENS):
        if name in headers:
            raise InvalidRequest(f"'{name}' does not apply to embeddings: remove the header.", param=name)


def modes_of(policy: TenantPolicy, route: Route) -> tuple[OverrideMode, ...]:
    """Return the modes that callers may request on this route, its own mode excluded."""
    return tuple(mode for mode in policy.overrides_of(route).modes if route.has_engines_of(mode))


def _mode(policy: TenantPolicy, route: Route, value: str) -> str:
    value = value.strip().lower()
    allowed = list(dict.fromkeys([*([route.mode] if route.mode != "shadow" else []), *modes_of(policy, route)]))
    if value in allowed:
        return value
    raise _refused(MODE, route, f"must be {' or '.join(allowed)}" if len(allowed) > 1 else None)


def _tokens(policy: TenantPolicy, route: Route, value: str) -> int:
    limit = policy.overrides_of(route).guidance_tokens
    value = value.strip()
    is_number = value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS
    if limit is not None and is_number and 1 <= int(value) <= limit:
        return int(value)
    raise _refused(TOKENS, route, f"must be a whole number from 1 to {limit}" if limit is not None else None)


def _refused(name: str, route: Route, allowed: str | None) -> InvalidRequest:
    text = f"'{name}' {allowed} with model '{route.model}': correct or omit it."
    if allowed is None:
        text = (
            f"'{name}' may not be sent with model '{route.model}': remove the header, or ask the operator to "
            "allow it (`overrides` in the policy)."
        )
    return InvalidRequest(text, param=name)
