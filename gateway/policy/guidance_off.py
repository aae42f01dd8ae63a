"""Scopes whose guidance is switched off, by an operator or because the quality of guided answers fell. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

AnswerBy: TypeAlias = Literal["student", "teacher"]
"""The engine that answers without guidance."""
SWITCHED_OFF = "switched_off"
"""Reason for an unguided answer: an operator switched guidance off."""
QUALITY_FALLBACK = "quality_fallback"
"""Reason for an unguided answer: guided answers were below the route's `quality.min_agreement`."""


class GuidanceScope(NamedTuple):
    """Part of the requests: those of one route (the `model` of requests) of a tenant, of a tenant, or all."""

    tenant: str | None = None
    route: str | None = None

    @property
    def text(self) -> str:
        """Return the scope for messages."""
        if self.tenant is None:
            return "everything"
        return f"tenant '{self.tenant}'" if self.route is None else f"route '{self.route}' of tenant '{self.tenant}'"


class GuidanceOff(msgspec.Struct, frozen=True):
    """A switch that is off.

    Attributes:
        since_s: Unix seconds by Redis' clock.
        by: whether an operator or the quality of guided answers switched guidance off.
        actor: name of the operator; `quality` without one.
        answer_by: the engine that answers meanwhile.
    """

    since_s: float
    by: Literal["operator", "quality"] = "operator"
    actor: str = ""
    reason: str | None = None
    answer_by: AnswerBy = "student"

    @property
    def unguided(self) -> str:
        """Return the reason on receipts."""
        return QUALITY_FALLBACK if self.by == "quality" else SWITCHED_OFF


class GuidanceSwitches:
    """The switches that are off, in the memory of one process. No method awaits."""

    def __init__(self) -> None:
        self._off: dict[GuidanceScope, GuidanceOff] = {}

    @property
    def off(self) -> Mapping[GuidanceScope, GuidanceOff]:
        return self._off

    def replace(self, off: Mapping[GuidanceScope, GuidanceOff]) -> None:
        """Replace all switches."""
        self._off = dict(off)

    def find(self, tenant: str, route: str) -> GuidanceOff | None:
        """Return the switch that applies to a request: that of its route, else of its tenant, else of everything."""
        if not self._off:
            return None
        scopes = GuidanceScope(tenant, route), GuidanceScope(tenant), GuidanceScope()
        return next((found for scope in scopes if (found := self._off.get(scope)) is not None), None)
