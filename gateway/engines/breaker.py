"""The circuit breaker of one engine. Callers pass the time, and the breaker performs no I/O.

Connection failures and failed probes depend on no request, and open the breaker for all tenants. The request may cause
any other failure, so such a failure pauses the engine only for the tenant of the request.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BreakerState = Literal["closed", "open", "half_open"]

# Failed trials prolong a cooldown to 30 times the first one, and not above 30 s.
_MAX_LONGER, _MAX_COOLDOWN_S = 30, 30.0
# The upper bound on a pause that an engine requests, and on a sleep that no probe confirms.
_MAX_PAUSE_S = 60.0
# During a requested pause, one call of the tenant passes in this time.
_PAUSE_TRIAL_S = 1.0


class BreakerRule(NamedTuple):
    """Refuse calls for `cooldown_s` after `failures` consecutive failures. Each failed trial doubles the cooldown."""

    failures: int = 5
    cooldown_s: float = 1.0


class BreakerCall(NamedTuple):
    """A permitted call. The outcome of a trial ends or prolongs the time in which other calls are refused."""

    tenant: str
    is_trial: bool = False


@dataclass(slots=True)
class _Circuit:
    """Consecutive failures: of one tenant's calls, or of all connections. It is open from `rule.failures` on."""

    rule: BreakerRule
    failures: int = 0
    cooldown_s: float = 0.0
    cools_until: float = 0.0  # calls are refused until then
    trial_until: float = 0.0  # calls await the outcome of a trial until then

    @property
    def is_open(self) -> bool:
        return self.failures >= self.rule.failures

    def fail(self, now: float, spread: float, *, is_trial: bool) -> bool:
        """Record a failure. Return whether the circuit opened. Only a failed trial prolongs an open circuit."""
        was_open = self.is_open
        if was_open and not is_trial:
            return False
        self.failures += 1
        if self.is_open:
            first_s = self.rule.cooldown_s
            longer_s = min(2 * self.cooldown_s, _MAX_LONGER * first_s, max(_MAX_COOLDOWN_S, first_s))
            self.cooldown_s = longer_s if was_open else self.rule.cooldown_s
            self.cools_until, self.trial_until = now + self.cooldown_s * spread, 0.0
        return self.is_open and not was_open


@dataclass(slots=True)
class _Pause:
    """A pause that the engine requested in its reply to a tenant."""

    until: float
    next_trial: float


class Breaker:
    """A circuit breaker with one circuit for all tenants and one for each failing tenant.

    Closed: calls pass. Open: calls are refused for a cooldown. Half open: one call is the trial, and other calls await
    its outcome, for one cooldown at most. Times are seconds on any one clock.

    An overloaded engine that requests a pause has not failed. During the pause one call of the tenant per second is a
    trial. Its success ends the pause; its failure changes nothing.

    Cooldowns differ between processes by `draw`, a random number from 0 to 1.
    """

    def __init__(self, rule: BreakerRule, draw: Callable[[], float] = random.random) -> None:
        self._rule = rule
        self._draw = draw
        self._all = _Circuit(rule)
        self._failing: dict[str, _Circuit] = {}  # by tenant, since the last success of any tenant
        self._paused: dict[str, _Pause] = {}  # by tenant
        self._asleep_until = 0.0

    def state(self, now: float) -> BreakerState:
        """Return the state for all tenants."""
        if now < self._asleep_until:
            return "open"
        if not self._all.is_open:
            return "closed"
        return "open" if now < self._all.cools_until else "half_open"

    def paused_tenants(self, now: float) -> int:
        """Return the number of tenants that failed too often, or that the engine told to pause."""
        failing = {tenant for tenant, circuit in self._failing.items() if circuit.is_open}
        return len(failing | {tenant for tenant, pause in self._paused.items() if now < pause.until})

    def is_closed_for(self, tenant: str, now: float) -> bool:
        """Return whether calls of the tenant pass, and none of them is a trial."""
        pause = self._paused.get(tenant)
        is_paused = now < self._asleep_until or (pause is not None and now < pause.until)
        return not is_paused and not any(circuit.is_open for circuit in self._circuits(tenant))

    def refuses_for_s(self, tenant: str, now: float) -> float:
        """Return for how many seconds calls of the tenant are refused; 0 if the next call may start."""
        return max(self.cools_for_s(tenant, now), self.tries_for_s(tenant, now))

    def cools_for_s(self, tenant: str, now: float) -> float:
        """Return the seconds left of the cooldowns and pauses that apply to the tenant; 0 if there are none."""
        ends = [self._asleep_until, *(circuit.cools_until for circuit in self._circuits(tenant) if circuit.is_open)]
        pause = self._paused.get(tenant)
        if pause is not None and now < pause.next_trial:
            ends.append(pause.until)
        return max(0.0, max(ends) - now)

    def tries_for_s(self, tenant: str, now: float) -> float:
        """Return the seconds after which the outcome of a trial in flight is no longer awaited; 0 if there is none."""
        return max(0.0, *(circuit.trial_until - now for circuit in self._circuits(tenant)))

    def start_call(self, tenant: str, now: float) -> BreakerCall:
        """Register a call that `refuses_for_s` permits. Return the handle for reporting its outcome."""
        is_trial = False
        for circuit in self._circuits(tenant):
            if circuit.is_open:
                circuit.trial_until, is_trial = now + circuit.cooldown_s, True
        pause = self._paused.get(tenant)
        if pause is not None and now < pause.until:
            pause.next_trial, is_trial = now + _PAUSE_TRIAL_S, True
        elif pause is not None:
            del self._paused[tenant]
        return BreakerCall(tenant, is_trial)

    def succeeded(self, call: BreakerCall) -> None:
        """Record a successful call. It closes the circuits of all tenants: the engine works."""
        self._connected()
        self._failing.clear()
        if call.is_trial:
            self._paused.pop(call.tenant, None)

    def started(self, call: BreakerCall) -> None:
        """Record the first data of an answer. This ends a trial; other failures count until a call succeeds."""
        self._connected()
        if call.is_trial:
            self._failing.pop(call.tenant, None)
            self._paused.pop(call.tenant, None)

    def rejected(self, call: BreakerCall) -> None:
        """Record that the engine rejected an invalid request: it works, perhaps only for this tenant."""
        self._connected()
        self._failing.pop(call.tenant, None)

    def failed(self, call: BreakerCall, now: float, *, replied: bool = True) -> bool:
        """Record a failure that the request may have caused. Return whether the circuit of the tenant opened.

        Without a reply, such as at a timeout, the circuit for all stays as it is, and the next call may be its trial.
        """
        if replied:
            self._connected()
        elif call.is_trial:
            self._all.trial_until = 0.0
        circuit = self._failing.setdefault(call.tenant, _Circuit(self._rule))
        return circuit.fail(now, self._spread(), is_trial=call.is_trial)

    def unconnected(self, call: BreakerCall, now: float) -> None:
        """Record that there was no connection."""
        self.abandoned(call)
        self._all.fail(now, self._spread(), is_trial=call.is_trial)

    def pause(self, call: BreakerCall, now: float, seconds: float) -> None:
        """Refuse calls of the tenant for the pause that the overloaded engine requested."""
        self.abandoned(call)
        self._connected()
        pause = self._paused.get(call.tenant)
        if pause is None or pause.until <= now:
            pause = self._paused[call.tenant] = _Pause(now, now + _PAUSE_TRIAL_S)
        pause.until = max(pause.until, now + min(seconds, _MAX_PAUSE_S))

    def abandoned(self, call: BreakerCall) -> None:
        """Record a call that ended without an outcome, such as a canceled one. The next call may be the trial."""
        if call.is_trial:
            for circuit in self._circuits(call.tenant):
                circuit.trial_until = 0.0

    def probe_failed(self, now: float, *, asleep: bool) -> None:
        """Record a failed probe. An engine that sleeps gets no call until a probe succeeds, for a minute at most."""
        self._all.fail(now, self._spread(), is_trial=False)
        if asleep:
            self._asleep_until = now + _MAX_PAUSE_S

    def probe_succeeded(self) -> None:
        """Record a successful probe: the circuit for all closes, and each tenant's circuit is due for its trial.

        A probe does not show that the engine generates answers.
        """
        self._asleep_until = 0.0
        self._connected()
        for circuit in self._failing.values():
            circuit.cools_until = 0.0

    def _circuits(self, tenant: str) -> tuple[_Circuit, ...]:
        """Return the circuits that apply to the tenant."""
        failing = self._failing.get(tenant)
        return (self._all,) if failing is None else (self._all, failing)

    def _connected(self) -> None:
        """Close the circuit for all: the engine was reached."""
        if self._all.failures:
            self._all = _Circuit(self._rule)

    def _spread(self) -> float:
        """Return the factor of a cooldown. Otherwise all processes would start their trials at the same time."""
        return 0.75 + self._draw() / 2
