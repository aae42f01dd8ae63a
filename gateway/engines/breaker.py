"""The circuit breaker of one engine: when calls are refused, whose, and when one is tried again.

Pure: it is told the time. Two kinds of failure count apart. A connection failure depends on no request, and opens the
breaker for every tenant. Any other failure may be the fault of what was sent, so it counts against the tenant that sent
it: no tenant is refused before a call of its own has failed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BreakerState = Literal["closed", "open", "half_open"]

# An engine that asks for a longer pause is called again all the same: its limit may have been raised meanwhile.
_LONGEST_ASKED_S = 60.0
# One request that fails again and again proves nothing about the engine.
_LEAST_REQUESTS = 2
_LEAST_TENANTS = 2
# Failing tenants that are remembered. The state of a tenant above the bound starts anew.
_MOST_TENANTS = 10_000


@dataclass(frozen=True, slots=True)
class BreakerRule:
    """Refuse calls for `rest_s` after `failures` failed calls in a row. A failed trial doubles it, to `longest_s`."""

    failures: int = 5
    rest_s: float = 1.0
    longest_s: float = 30.0


class BreakerCall(NamedTuple):
    """A call that was let through. The trial flags name the scopes that its outcome decides."""

    tenant: str
    request_id: str
    engine_trial: bool = False
    tenant_trial: bool = False


@dataclass(slots=True)
class _Scope:
    """A circuit. It is closed while `open_until` is None."""

    rest_s: float
    open_until: float | None = None
    trial_until: float = 0.0

    def refuses_for_s(self, now: float) -> float:
        if self.open_until is None:
            return 0.0
        return max(0.0, self.open_until - now, self.trial_until - now)

    def begin(self, now: float) -> bool:
        """Start a trial if the circuit is open. Other calls wait for its outcome, but no longer than one rest."""
        if self.open_until is None:
            return False
        self.trial_until = now + self.rest_s
        return True


@dataclass(slots=True)
class _Tenant:
    """The failures of one tenant since any call last succeeded."""

    scope: _Scope
    calls: int = 0
    requests: set[str] = field(default_factory=set)


class Breaker:
    """Closed, calls go through. Open, none does. Half open, one call is the trial, and the others wait for its outcome.

    Times are seconds on one clock of the caller's choice. An engine that was overloaded and said for how long has not
    failed: calls are refused until then, and no trial is needed. Providers say so to a single large request as well, so
    only the tenant that was told is refused; all are while two tenants are.

    Args:
        draw: a number from 0 to 1, for rests that differ from process to process.
    """

    def __init__(self, rule: BreakerRule, draw: Callable[[], float] = random.random) -> None:
        self._rule = rule
        self._draw = draw
        self._engine = _Scope(rule.rest_s)
        self._unconnected = 0  # connection failures in a row
        self._tenants: dict[str, _Tenant] = {}
        self._failed_calls = 0  # of all tenants, since any call last succeeded
        self._tenants_open_until: float | None = None  # the latest end of a tenant's rest; None: no tenant is refused
        self._held: dict[str, float] = {}  # the end of the pause of each tenant that the engine asked for one
        self._some_held_until = 0.0  # the latest of these
        self._held_until = 0.0  # the end of the pause of all tenants

    def state(self, now: float) -> BreakerState:
        """The state of the engine as a whole: open or half open while any tenant's calls are refused."""
        if self._engine.open_until is None and self._tenants_open_until is None:
            return "open" if now < self._some_held_until else "closed"
        ends = [end for end in (self._engine.open_until, self._tenants_open_until) if end is not None]
        if now < max([self._some_held_until, *ends]):
            return "open"
        return "half_open" if ends else "closed"

    def refuses_for_s(self, tenant: str, now: float) -> float:
        """Seconds for which the tenant's calls are refused; 0 when the next one may go. Asking changes nothing."""
        if self.state(now) == "closed":
            return 0.0
        held_until = max(self._held_until, self._held.get(tenant, 0.0))
        refused_s = max(held_until - now, self._engine.refuses_for_s(now))
        if (failing := self._tenants.get(tenant)) is not None:
            refused_s = max(refused_s, failing.scope.refuses_for_s(now))
        return refused_s

    def begin(self, tenant: str, request_id: str, now: float) -> BreakerCall:
        """Let a call through, which `refuses_for_s` allowed. Report its outcome with what is returned."""
        failing = self._tenants.get(tenant)
        own = failing is not None and failing.scope.begin(now)
        return BreakerCall(tenant, request_id, self._engine.begin(now), own)

    def succeeded(self) -> bool:
        """The engine answered. That closes the circuits of all tenants. Returns whether one was open."""
        closed = self._engine.open_until is not None or self._tenants_open_until is not None
        self._connected()
        if self._tenants:
            self._tenants.clear()
            self._failed_calls, self._tenants_open_until = 0, None
        return closed

    def refused(self, call: BreakerCall) -> None:
        """The request itself is at fault. The engine is there, but whether it answers other tenants is not known."""
        self._connected()
        if call.tenant in self._tenants:
            self._forget(call.tenant)

    def begun(self, call: BreakerCall) -> None:
        """The engine has begun to answer. That ends a trial; other failures are kept until a call succeeds."""
        self._connected()
        if call.tenant_trial:
            self._forget(call.tenant)

    def failed(self, call: BreakerCall, now: float, *, connected: bool) -> bool:
        """A call failed. Returns whether a circuit opened.

        Args:
            connected: whether the engine got the call. Without a connection the request cannot be at fault.
        """
        if not connected:
            self._end_tenant_trial(call)
            return self._failed_to_connect(call, now)
        self._connected()
        failing = self._tenants.get(call.tenant)
        if failing is None:
            if len(self._tenants) >= _MOST_TENANTS:
                self._forget(next(iter(self._tenants)))
            failing = self._tenants[call.tenant] = _Tenant(_Scope(self._rule.rest_s))
        if call.tenant_trial and failing.scope.open_until is not None:
            failing.scope.rest_s = min(self._rule.longest_s, failing.scope.rest_s * 2)
        elif failing.scope.open_until is not None:
            return False  # a call that was under way when the circuit opened
        else:
            failing.calls += 1
            self._failed_calls += 1
            if len(failing.requests) < _LEAST_REQUESTS:
                failing.requests.add(call.request_id)
            if not self._is_enough(failing):
                return False
        self._open(failing.scope, now)
        self._tenants_open_until = max(self._tenants_open_until or 0.0, failing.scope.open_until or 0.0)
        return True

    def asked_to_wait(self, tenant: str, now: float, seconds: float) -> None:
        """The engine answered a call of the tenant that it is overloaded, and for how long."""
        until = max(now + min(seconds, _LONGEST_ASKED_S), self._held.get(tenant, 0.0))
        others = {other: end for other, end in self._held.items() if end > now and other != tenant}
        self._held = {**others, tenant: until}
        self._some_held_until = max(self._some_held_until, until)
        # Not longer than the engine asked of each of two: one of them may have brought its pause upon itself.
        self._held_until = max(self._held_until, min(until, max(others.values(), default=0.0)))

    def abandoned(self, call: BreakerCall) -> None:
        """The call ended without an outcome: its caller has gone. Another one may be the trial."""
        if call.engine_trial:
            self._engine.trial_until = 0.0
        self._end_tenant_trial(call)

    def answers(self, now: float) -> None:
        """A probe in the background found the engine there: trials may come at once."""
        for scope in (self._engine, *(failing.scope for failing in self._tenants.values())):
            if scope.open_until is not None:
                scope.open_until = min(scope.open_until, now)
        if self._tenants_open_until is not None:
            self._tenants_open_until = min(self._tenants_open_until, now)

    def _is_enough(self, failing: _Tenant) -> bool:
        """Return whether the failures of a tenant, or its failures beside those of others, speak against the engine."""
        failures = self._rule.failures
        if len(self._tenants) >= _LEAST_TENANTS and self._failed_calls >= failures:
            return True
        return failing.calls >= failures and len(failing.requests) >= min(_LEAST_REQUESTS, failures)

    def _failed_to_connect(self, call: BreakerCall, now: float) -> bool:
        if call.engine_trial and self._engine.open_until is not None:
            self._engine.rest_s = min(self._rule.longest_s, self._engine.rest_s * 2)
        elif self._engine.open_until is not None:
            return False
        else:
            self._unconnected += 1
            if self._unconnected < self._rule.failures:
                return False
        self._open(self._engine, now)
        return True

    def _open(self, scope: _Scope, now: float) -> None:
        scope.open_until = now + scope.rest_s * (0.75 + self._draw() / 2)
        scope.trial_until = 0.0

    def _connected(self) -> None:
        """The engine took a call: connection failures before it are over."""
        self._unconnected = 0
        if self._engine.open_until is not None:
            self._engine = _Scope(self._rule.rest_s)

    def _end_tenant_trial(self, call: BreakerCall) -> None:
        failing = self._tenants.get(call.tenant)
        if call.tenant_trial and failing is not None:
            failing.scope.trial_until = 0.0

    def _forget(self, tenant: str) -> None:
        gone = self._tenants.pop(tenant, None)
        if gone is not None:
            self._failed_calls -= gone.calls
        ends = [one.scope.open_until for one in self._tenants.values() if one.scope.open_until is not None]
        self._tenants_open_until = max(ends, default=None)
