"""The circuit breaker of one engine. Callers pass the time, and the breaker performs no I/O.

Two kinds of failure are counted separately. A connection failure depends on no request and opens the circuit for all
tenants. Any other failure may be caused by the request, so it counts against the tenant of the request. Calls of a
tenant are refused only after one of its own calls has failed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

BreakerState = Literal["closed", "open", "half_open"]

# The upper bound on a pause that an engine requests. Its limit may be raised during the pause.
_MAX_PAUSE_S = 60.0
# Repeated failures of one request are no evidence against the engine.
_MIN_REQUESTS = 2
_MIN_TENANTS = 2
# For how long calls in flight show that an engine without success is busy. They may hang.
_BUSY_S = 30.0
# During a pause, one call per tenant passes in this time.
_PAUSE_TRIAL_S = 1.0
# The number of failing, and of paused, tenants with stored state. The oldest is evicted.
_MAX_TENANTS = 10_000


class BreakerRule(NamedTuple):
    """Refuse calls for `cooldown_s` after `failures` consecutive failures."""

    failures: int = 5
    cooldown_s: float = 1.0
    max_cooldown_s: float = 30.0  # each failed trial doubles the cooldown, up to this


@dataclass(slots=True)
class _Pause:
    """The pause of one tenant."""

    until: float
    next_trial: float

    def refuses_for_s(self, now: float) -> float:
        return max(0.0, self.until - now) if now < self.next_trial else 0.0


class BreakerCall(NamedTuple):
    """A permitted call. A trial flag means that the outcome closes the scope's circuit or opens it again."""

    tenant: str
    request_id: str
    engine_trial: bool = False
    tenant_trial: bool = False
    pause: _Pause | None = None  # the pause of the tenant that the call's success ends


@dataclass(slots=True)
class _Scope:
    """A circuit, which is closed while `open_until` is None."""

    cooldown_s: float
    open_until: float | None = None
    trial_until: float = 0.0

    def cools_for_s(self, now: float) -> float:
        return 0.0 if self.open_until is None else max(0.0, self.open_until - now)

    def tries_for_s(self, now: float) -> float:
        return 0.0 if self.open_until is None else max(0.0, self.trial_until - now)

    def start_trial(self, now: float) -> bool:
        """Start a trial if the circuit is open. Other calls are refused until its outcome, for one cooldown at most."""
        if self.open_until is None:
            return False
        self.trial_until = now + self.cooldown_s
        return True


@dataclass(slots=True)
class _Tenant:
    """The failures of one tenant since the engine's last successful call."""

    scope: _Scope
    calls: int = 0
    requests: set[str] = field(default_factory=set)


class Breaker:
    """A circuit breaker with one circuit for the engine and one for each failing tenant.

    Closed: calls pass. Open: calls are refused. Half open: one call is the trial, and other calls are refused until its
    outcome is known. Times are seconds on any one clock.

    An overloaded engine that requests a pause has not failed. Providers also request a pause after a single large
    request, so the pause applies only to the tenant of that request. During the pause one call of the tenant per second
    is a trial. Its success ends the pause; its failure changes nothing.

    Cooldowns differ between processes by `draw`, a random number from 0 to 1.
    """

    def __init__(self, rule: BreakerRule, draw: Callable[[], float] = random.random) -> None:
        self._rule = rule
        self._draw = draw
        self._engine = _Scope(rule.cooldown_s)
        self._unconnected = 0  # connection failures in a row
        self._tenants: dict[str, _Tenant] = {}
        self._failed_calls = 0  # of all tenants, since the last success
        self._tenants_open_until: float | None = None  # the latest end of a tenant's cooldown; None: all are closed
        self._paused: dict[str, _Pause] = {}  # the one that was paused last is the last
        self._last_pause_until = 0.0  # the latest end of a tenant's pause
        self._suspended_until = 0.0
        self._busy_since: float | None = None  # since when, without a success, the engine is busy with earlier calls

    def state(self, now: float) -> BreakerState:
        """Return the state of the engine: open or half open while calls of any tenant are refused."""
        paused_until = max(self._last_pause_until, self._suspended_until)
        if self._engine.open_until is None and self._tenants_open_until is None:
            return "open" if now < paused_until else "closed"
        ends = [end for end in (self._engine.open_until, self._tenants_open_until) if end is not None]
        if now < max([paused_until, *ends]):
            return "open"
        return "half_open" if ends else "closed"

    def refuses_for_s(self, tenant: str, now: float) -> float:
        """Return for how many seconds calls of the tenant are refused; 0 if the next call may start."""
        return max(self.cools_for_s(tenant, now), self.tries_for_s(tenant, now))

    def cools_for_s(self, tenant: str, now: float) -> float:
        """Return the seconds left of the cooldowns and pauses that apply to the tenant; 0 if there are none."""
        if self.state(now) == "closed":
            return 0.0
        pause = self._paused.get(tenant)
        paused_s = 0.0 if pause is None else pause.refuses_for_s(now)
        return max(paused_s, self._suspended_until - now, *(scope.cools_for_s(now) for scope in self._scopes(tenant)))

    def tries_for_s(self, tenant: str, now: float) -> float:
        """Return the seconds after which the outcome of a trial in flight is no longer awaited; 0 if there is none."""
        if self._engine.open_until is None and self._tenants_open_until is None:
            return 0.0
        return max(scope.tries_for_s(now) for scope in self._scopes(tenant))

    def start_call(self, tenant: str, request_id: str, now: float) -> BreakerCall:
        """Register a call that `refuses_for_s` permits. Return the handle for reporting its outcome."""
        failing = self._tenants.get(tenant)
        tenant_trial = failing is not None and failing.scope.start_trial(now)
        pause = self._paused.get(tenant)
        if pause is not None and now >= pause.until:
            del self._paused[tenant]
            pause = None
        if pause is not None:
            pause.next_trial = now + _PAUSE_TRIAL_S
        return BreakerCall(tenant, request_id, self._engine.start_trial(now), tenant_trial, pause)

    def succeeded(self, call: BreakerCall | None = None) -> bool:
        """Record a successful call, and close the circuits of all tenants. Return whether one was open.

        `call` is None for a call of the gateway itself.
        """
        if call is not None:
            self._end_pause(call)
        closed = self._engine.open_until is not None or self._tenants_open_until is not None
        self._connected()
        self._busy_since = None
        if self._tenants:
            self._tenants.clear()
            self._failed_calls, self._tenants_open_until = 0, None
        return closed

    def refused(self, call: BreakerCall) -> None:
        """Record that the engine rejected an invalid request. The engine is available, perhaps only for this tenant."""
        self._connected()
        if call.tenant in self._tenants:
            self._forget(call.tenant)

    def started(self, call: BreakerCall) -> None:
        """Record the first data of an answer. This ends a trial; other failures count until a call succeeds."""
        self._connected()
        self._busy_since = None
        self._end_pause(call)
        if call.tenant_trial:
            self._forget(call.tenant)

    def failed(self, call: BreakerCall, now: float, *, connected: bool) -> bool:
        """Record a failed call. Return whether a circuit opened. Without a connection the request is not the cause."""
        if not connected:
            self._end_tenant_trial(call)
            return self._failed_to_connect(call, now)
        self._connected()
        failing = self._tenants.get(call.tenant)
        if failing is None:
            if len(self._tenants) >= _MAX_TENANTS:
                self._forget(next(iter(self._tenants)))
            failing = self._tenants[call.tenant] = _Tenant(_Scope(self._rule.cooldown_s))
        if failing.scope.open_until is None:
            failing.calls += 1
            self._failed_calls += 1
            if len(failing.requests) < _MIN_REQUESTS:
                failing.requests.add(call.request_id)
            if not self._reaches_limit(failing):
                return False
        elif not self._lengthen(failing.scope, is_trial=call.tenant_trial):
            return False
        self._open(failing.scope, now)
        self._tenants_open_until = max(self._tenants_open_until or 0.0, failing.scope.open_until or 0.0)
        return True

    def overloaded(self, call: BreakerCall, now: float, *, busy: bool) -> bool:
        """Record a call that the engine rejected as overloaded, without a pause. Return whether a circuit opened.

        `busy`: an earlier call is in flight. The engine is then at its limit, and the rejection is no failure. Without
        any success, this applies for 30 s.
        """
        if busy:
            if self._busy_since is None:
                self._busy_since = now
            if now - self._busy_since < _BUSY_S:
                self._connected()
                self.abandoned(call)
                return False
        return self.failed(call, now, connected=True)

    def pause(self, tenant: str, now: float, seconds: float) -> None:
        """Refuse calls of the tenant for the pause that the overloaded engine requested."""
        pause = self._paused.pop(tenant, None)
        if pause is None or pause.until <= now:
            pause = _Pause(now, now + _PAUSE_TRIAL_S)
        pause.until = max(pause.until, now + min(seconds, _MAX_PAUSE_S))
        if len(self._paused) >= _MAX_TENANTS:
            del self._paused[next(iter(self._paused))]
        self._paused[tenant] = pause
        self._last_pause_until = max(self._last_pause_until, pause.until)

    def suspend(self, now: float) -> None:
        """Refuse calls of all tenants, until a probe succeeds or for as long as an engine may request a pause."""
        self._suspended_until = now + _MAX_PAUSE_S

    def abandoned(self, call: BreakerCall) -> None:
        """Record a call that ended without an outcome, such as a canceled one. The next call may be the trial."""
        if call.engine_trial:
            self._engine.trial_until = 0.0
        self._end_tenant_trial(call)

    def probe_succeeded(self, now: float) -> None:
        """Record a successful background probe: the engine's circuit closes, and a suspension ends.

        A tenant's circuit is due for its trial: a probe does not show that the engine generates answers.
        """
        self._suspended_until = 0.0
        self._connected()
        for failing in self._tenants.values():
            if failing.scope.open_until is not None:
                failing.scope.open_until = min(failing.scope.open_until, now)
        if self._tenants_open_until is not None:
            self._tenants_open_until = min(self._tenants_open_until, now)

    def _scopes(self, tenant: str) -> Sequence[_Scope]:
        """Return the circuits that apply to the tenant."""
        failing = self._tenants.get(tenant)
        return (self._engine,) if failing is None else (self._engine, failing.scope)

    def _reaches_limit(self, failing: _Tenant) -> bool:
        """Return whether the failures of this tenant, or of all tenants, are evidence against the engine."""
        failures = self._rule.failures
        if len(self._tenants) >= _MIN_TENANTS and self._failed_calls >= failures:
            return True
        return failing.calls >= failures and len(failing.requests) >= min(_MIN_REQUESTS, failures)

    def _failed_to_connect(self, call: BreakerCall, now: float) -> bool:
        if self._engine.open_until is None:
            self._unconnected += 1
            if self._unconnected < self._rule.failures:
                return False
        elif not self._lengthen(self._engine, is_trial=call.engine_trial):
            return False
        self._open(self._engine, now)
        return True

    def _lengthen(self, scope: _Scope, *, is_trial: bool) -> bool:
        """Double the cooldown after a failed trial, and return whether the call was one."""
        if is_trial:
            scope.cooldown_s = min(self._rule.max_cooldown_s, scope.cooldown_s * 2)
        return is_trial

    def _open(self, scope: _Scope, now: float) -> None:
        scope.open_until = now + scope.cooldown_s * (0.75 + self._draw() / 2)
        scope.trial_until = 0.0

    def _connected(self) -> None:
        """Reset the count of connection failures, and close the engine's circuit."""
        self._unconnected = 0
        if self._engine.open_until is not None:
            self._engine = _Scope(self._rule.cooldown_s)

    def _end_pause(self, call: BreakerCall) -> None:
        """End the pause of the tenant after a successful trial."""
        if call.pause is None or self._paused.get(call.tenant) is not call.pause:
            return
        del self._paused[call.tenant]
        if call.pause.until >= self._last_pause_until:
            self._last_pause_until = max((other.until for other in self._paused.values()), default=0.0)

    def _end_tenant_trial(self, call: BreakerCall) -> None:
        failing = self._tenants.get(call.tenant)
        if call.tenant_trial and failing is not None:
            failing.scope.trial_until = 0.0

    def _forget(self, tenant: str) -> None:
        removed = self._tenants.pop(tenant, None)
        if removed is not None:
            self._failed_calls -= removed.calls
        ends = [one.scope.open_until for one in self._tenants.values() if one.scope.open_until is not None]
        self._tenants_open_until = max(ends, default=None)
