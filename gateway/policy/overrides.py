"""What a caller asks for by headers, where the policy lets it; and what an operator asks for. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from gateway.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gateway.policy.projections import Placement, Projection
    from gateway.policy.schema import AskedMode, Route, TenantPolicy

MODE = "x-gkt-mode"
TOKENS = "x-gkt-guidance-tokens"
_MOST_DIGITS = 6


@dataclass(frozen=True, slots=True)
class RouteOverride:
    """How an operator wants a route to answer, whatever its policy lets callers ask for. None: as the route has it.

    Attributes:
        tokens: how long the opening may be; auto: the route's own rule chooses, where it has one.
        projection: of the library; the route's own stays as its policy has it, exemplars and all.
    """

    mode: AskedMode
    tokens: int | Literal["auto"] | None = None
    projection: Projection | None = None
    placement: Placement | None = None

    def of(self, route: Route) -> Route:
        """The route as it is wanted. Raises InvalidRequest where it names no engine for that, or chooses no length."""
        if not route.has_engines_of(self.mode):
            lacks = "no teacher" if route.teacher is None and self.mode != "student" else "no student"
            raise InvalidRequest(
                f"'{route.model}' cannot be answered in mode {self.mode}: its route names {lacks}.", param="mode"
            )
        if self.tokens == "auto" and route.guidance.tokens != "auto":
            raise InvalidRequest(
                f"'{route.model}' chooses no length: its policy says tokens: {route.guidance.tokens}, and not auto. "
                "Send a number, or leave it out.",
                param="guidance.tokens",
            )
        wanted = {"tokens": self.tokens, "placement": self.placement}
        changed = {name: value for name, value in wanted.items() if value is not None}
        guidance = route.guidance.model_copy(update=changed)
        if self.projection is not None and self.projection.name != guidance.projection:
            guidance = guidance.asking(self.projection)
        return route.model_copy(update={"mode": self.mode, "guidance": guidance})


def as_asked(policy: TenantPolicy, route: Route, headers: Mapping[str, str]) -> Route:
    """The route as this request wants it; the route itself where it asks for nothing.

    Raises InvalidRequest, which names the header and what it may say.
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
    """Embeddings have nothing to ask for. Raises InvalidRequest where it is asked for all the same."""
    for name in (MODE, TOKENS):
        if name in headers:
            raise InvalidRequest(f"'{name}' says nothing of embeddings: remove the header.", param=name)


def modes_of(policy: TenantPolicy, route: Route) -> tuple[AskedMode, ...]:
    """What MODE may say on this route, apart from its own mode, which it may always say."""
    return tuple(mode for mode in policy.overrides_of(route).modes if route.has_engines_of(mode))


def _mode(policy: TenantPolicy, route: Route, said: str) -> str:
    said = said.strip().lower()
    allowed = list(dict.fromkeys([*([route.mode] if route.mode != "shadow" else []), *modes_of(policy, route)]))
    if said in allowed:
        return said
    raise _refused(MODE, route, f"may say {' or '.join(allowed)}" if len(allowed) > 1 else None)


def _tokens(policy: TenantPolicy, route: Route, said: str) -> int:
    most = policy.overrides_of(route).guidance_tokens
    said = said.strip()
    if most is not None and said.isascii() and said.isdigit() and len(said) <= _MOST_DIGITS and 1 <= int(said) <= most:
        return int(said)
    raise _refused(TOKENS, route, f"may say a whole number from 1 to {most}" if most is not None else None)


def _refused(name: str, route: Route, allowed: str | None) -> InvalidRequest:
    if allowed is None:
        return InvalidRequest(
            f"'{name}' may not be sent with model '{route.model}': remove the header, or have whoever runs this "
            "gateway allow it (`overrides` in the policy).",
            param=name,
        )
    return InvalidRequest(f"'{name}' {allowed} with model '{route.model}': send that, or no such header.", param=name)
