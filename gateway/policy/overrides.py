"""Overrides of a route: by a caller's headers, within the policy, and by an operator. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.projections import Placement, Projection
    from gateway.policy.schema import OverrideMode, Route, TenantPolicy

MODE = "x-gkt-mode"
TOKENS = "x-gkt-guidance-tokens"
_MAX_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RouteOverride:
    """An operator's override of a route, independent of the overrides allowed to callers. None: the route's value.

    Attributes:
        tokens: maximum length of the guidance; auto: chosen by the route's own rule.
        projection: a known projection; the route's own projection keeps its exemplars.
    """

    mode: OverrideMode
    tokens: int | Literal["auto"] | None = None
    projection: Projection | None = None
    placement: Placement | None = None

    def apply(self, route: Route) -> Route:
        """Return the overridden route. Raises InvalidRequest if it lacks an engine or a rule for auto length."""
        if not route.has_engines_of(self.mode):
            lacks = "no teacher" if route.teacher is None and self.mode != "student" else "no student"
            raise InvalidRequest(
                f"'{route.model}' cannot be answered in mode {self.mode}: its route names {lacks}.", param="mode"
            )
        if self.tokens == "auto" and route.guidance.tokens != "auto":
            raise InvalidRequest(
                f"'{route.model}' chooses no length: its policy has tokens: {route.guidance.tokens}, and not auto. "
                "Send a number, or leave it out.",
                param="guidance.tokens",
            )
        fields = {"tokens": self.tokens, "placement": self.placement}
        changed = {name: value for name, value in fields.items() if value is not None}
        guidance = route.guidance.model_copy(update=changed)
        if self.projection is not None and self.projection.name != guidance.projection:
            guidance = guidance.with_projection(self.projection)
        return route.model_copy(update={"mode": self.mode, "guidance": guidance})


def apply_headers(policy: TenantPolicy, route: Route, headers: Mapping[str, str]) -> Route:
    """Return the route with the overrides of the request's headers; the route itself without any.

    Raises InvalidRequest, which names the header and its allowed values.
    """
    mode, tokens = headers.get(MODE), headers.get(TOKENS)
    if mode is None and tokens is None:
        return route
    changed: dict[str, object] = {}
    if mode is not None:
        changed["mode"] = _mode(policy, route, mode)
    if tokens is not None:
        changed["guidance"] = route.guidance.model_copy(update={"tokens": _tokens(policy, route, tokens)})
    return route.model_copy(update=changed)


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
    raise _refused(MODE, route, f"may say {' or '.join(allowed)}" if len(allowed) > 1 else None)


def _tokens(policy: TenantPolicy, route: Route, value: str) -> int:
    limit = policy.overrides_of(route).guidance_tokens
    value = value.strip()
    is_number = value.isascii() and value.isdigit() and len(value) <= _MAX_DIGITS
    if limit is not None and is_number and 1 <= int(value) <= limit:
        return int(value)
    raise _refused(TOKENS, route, f"may say a whole number from 1 to {limit}" if limit is not None else None)


def _refused(name: str, route: Route, allowed: str | None) -> InvalidRequest:
    if allowed is None:
        return InvalidRequest(
            f"'{name}' may not be sent with model '{route.model}': remove the header, or ask the operator to "
            "allow it (`overrides` in the policy).",
            param=name,
        )
    return InvalidRequest(f"'{name}' {allowed} with model '{route.model}': send that, or no such header.", param=name)
